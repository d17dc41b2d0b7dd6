"""What a call costs in the kernels' regimes. On a GPU none of this has been measured yet."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from fastrnn.precision import arch_of
from fastrnn.request import Cost
from fastrnn.roofline import recurrent_weights, rows, steps

if TYPE_CHECKING:
    from fastrnn.request import Request
    from fastrnn_kernels import DeviceLimits, Problem

CALL = 60e-6
"""Seconds of a call beside its steps: Python and the launches around the loop."""
PRODUCTS = {2: 400e12, 4: 200e12}
"""Attainable operations a second of the large products around the loop, by bytes per element
(float32 as tf32)."""
ORDINARY = 40e12
"""The same on ordinary cores: float32 as ieee."""
UNMEASURED = 4.0
"""How much worse the kernels are taken to be until they have run on a GPU: `auto` then prefers
torch's path wherever that is at all good, and these kernels only where it is hopeless. What
`fastrnn tune` measures on a machine takes the place of all this."""
INTERPRETER_STEP = 5e-3
"""Seconds of a step in the interpreter, which exists to test and never to win."""


def estimate(request: Request) -> Cost:
    """The planned regimes' steps, and the products around them, times a penalty."""
    if request.device == "cpu":
        return Cost(steps(request) * INTERPRETER_STEP, "the interpreter, for tests")
    from fastrnn_kernels import plan
    from fastrnn_kernels.plan import steps_class

    limits, count = limits_of(request.arch), steps(request)
    # Steps of one run of the kernels, and how many runs a pass is.
    once = count // request.num_layers
    if request.needs_grad and request.recompute:
        once = min(once, request.recompute)
    runs = -(-count // once)
    chosen = plan(problem(request, "forward"), limits, steps=steps_class(once))
    forward = runs * chosen.estimate.start + count * chosen.estimate.step
    seconds = CALL + forward + around(request) * (3 if request.needs_grad else 1)
    why = f"{chosen.config.regime} regime, {chosen.estimate.step * 1e6:.1f} us a step"
    if request.needs_grad:
        back = plan(problem(request, "backward"), limits, steps=steps_class(once)).estimate
        seconds += runs * back.start + count * back.step
        why += f" and {back.step * 1e6:.1f} us back"
    if request.needs_grad and request.recompute:
        # Each chunk has its calls, and those of a cell with gates to save run forward twice.
        seconds += 2 * runs * CALL + (forward if request.cell == "lstm" else 0.0)
    return Cost(seconds * UNMEASURED, f"{why}, x{UNMEASURED:g}: unmeasured")


def problem(request: Request, direction: str) -> Problem:
    """A layer of the request as the kernels see it."""
    from fastrnn_kernels import Problem

    return Problem.of(
        "forward" if direction == "forward" else "backward",
        request.gates, request.hidden_size, rows(request), request.directions, request.dtype,
        request.precision, request.cell == "lstm",
    )  # fmt: skip


def around(request: Request) -> float:
    """Seconds of a pass's input projection, one large product a layer."""
    hidden, directions = request.hidden_size, request.directions
    inputs = request.input_size + (request.num_layers - 1) * hidden * directions
    multiply_adds = steps(request) // request.num_layers * rows(request) * inputs
    multiply_adds *= recurrent_weights(request) // hidden
    ieee = request.dtype.itemsize == 4 and request.precision == "ieee"
    return 2 * multiply_adds / (ORDINARY if ieee else PRODUCTS.get(request.dtype.itemsize, 1e13))


@lru_cache(maxsize=64)
def limits_of(arch: str) -> DeviceLimits:
    """Of this machine's GPU if it is one, of a typical one of the architecture if not."""
    from fastrnn_kernels import DeviceLimits
    from fastrnn_kernels.configs import TARGET_LIMITS

    if torch.cuda.is_available() and arch_of(torch.device("cuda")) == arch:
        return DeviceLimits.of(torch.device("cuda"))
    small = DeviceLimits(f"an {arch}", multiprocessors=64, shared_memory=65_536, exchange=False)
    return TARGET_LIMITS.get(arch, small)
