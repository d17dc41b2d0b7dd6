"""What a call costs in the kernels' regimes. On a GPU none of this has been measured yet."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from fastrnn.cell import cell_of
from fastrnn.precision import arch_of
from fastrnn.request import Cost
from fastrnn.roofline import recurrent_weights, rows, steps
from fastrnn_triton import tuned

if TYPE_CHECKING:
    from fastrnn.request import Request
    from fastrnn_kernels import DeviceLimits, Problem
    from fastrnn_kernels.configs import Direction
    from fastrnn_kernels.plan import Plan

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
MOST_AT_ONCE = 8
"""Layers that are considered to be run at once; more fit only if they are tiny."""
INTERPRETER_STEP = 5e-3
"""Seconds of a step in the interpreter, which exists to test and never to win."""


def estimate(request: Request) -> Cost:
    """The planned regimes' steps, and the products around them, times a penalty."""
    if request.device == "cpu":
        return Cost(steps(request) * INTERPRETER_STEP, "the interpreter, for tests")
    at_once = layers_at_once(request)
    chosen = planned(request, "forward", at_once)
    forward = _loops(request, at_once, "forward", measured=False) or 0.0
    seconds = CALL + forward + around(request, at_once) * (3 if request.needs_grad else 1)
    why = f"{chosen.config.regime} regime, {chosen.estimate.step * 1e6:.1f} us a step"
    if request.needs_grad:
        seconds += _loops(request, at_once, "backward", measured=False) or 0.0
        back = planned(request, "backward", at_once).estimate
        why += f" and {back.step * 1e6:.1f} us back"
    if at_once > 1:
        why += f" of {at_once} layers at once"
    if request.needs_grad and request.recompute:
        # Each chunk has its calls, and those of a cell with gates to save run forward twice.
        runs = -(-steps(request) // steps_of_a_run(request))
        saves_gates = cell_of(request.cell).has_cell_state
        seconds += 2 * runs * CALL + (forward if saves_gates else 0.0)
    return Cost(seconds * UNMEASURED, f"{why}, x{UNMEASURED:g}: unmeasured")


def layers_at_once(request: Request) -> int:
    """How many layers at a time take the least time, measured by `fastrnn tune` or estimated.

    What was measured competes with what was measured, estimates with estimates.
    """
    if request.device == "cpu":  # the interpreter does nothing at the same time
        return 1
    is_known = _seconds(request, 1, measured=True) is not None
    return _least(request, 1, measured=is_known)


def most_promising(request: Request) -> int:
    """How many layers at a time, more than one, are estimated to take the least; 1: none can."""
    return _least(request, 2, measured=False)


def _least(request: Request, least: int, *, measured: bool) -> int:
    if not request.stacks_plainly:
        return 1
    counts = range(least, min(request.num_layers, MOST_AT_ONCE) + 1)
    found = {count: _seconds(request, count, measured=measured) for count in counts}
    known = {count: seconds for count, seconds in found.items() if seconds is not None}
    return min(known, key=known.__getitem__, default=1)


def _seconds(request: Request, at_once: int, *, measured: bool) -> float | None:
    """Of the time loops of a stack, and the products before them; None if it cannot be known."""
    total = around(request, at_once)
    for direction in ("forward", "backward") if request.needs_grad else ("forward",):
        loops = _loops(request, at_once, direction, measured=measured)
        if loops is None:
            return None
        total += loops
    return total


def _loops(request: Request, at_once: int, direction: Direction, *, measured: bool) -> float | None:
    """Seconds of one direction's time loops, `at_once` layers at a time."""
    total = 0.0
    once = steps_of_a_run(request)
    runs = -(-steps(request) // request.num_layers // once)  # of a layer
    for first in range(0, request.num_layers, at_once):
        layers = min(at_once, request.num_layers - first)
        try:
            estimate = planned(request, direction, layers).estimate
        except ValueError:  # so many layers do not fit
            return None
        step = estimate.step
        if measured:
            found = tuned.find(key(request, direction, layers))
            if found is None:
                return None
            step = found.microseconds * 1e-6
        # The last layer is behind the first by a step each.
        total += runs * (estimate.start + (once + layers - 1) * step)
    return total


def steps_of_a_run(request: Request) -> int:
    """Steps of one run of the kernels: T, or those of a chunk."""
    T = steps(request) // request.num_layers
    return min(T, request.recompute) if request.needs_grad and request.recompute else T


def planned(request: Request, direction: Direction, layers: int = 1) -> Plan:
    """What the planner would do for so many layers at once.

    Raises:
        ValueError: they do not fit.
    """
    from fastrnn_kernels import plan
    from fastrnn_kernels.plan import steps_class

    few = steps_class(steps_of_a_run(request))
    return plan(problem(request, direction, layers), limits_of(request.arch), steps=few)


def problem(request: Request, direction: Direction, layers: int = 1) -> Problem:
    """A layer of the request as the kernels see it, or several that are run at once."""
    from fastrnn_kernels import Problem

    cell = cell_of(request.cell)
    return Problem.of(
        direction, cell.gates, request.hidden_size, rows(request), layers * request.directions,
        request.dtype, request.precision, cell.has_cell_state, chained=layers > 1,
    )  # fmt: skip


def key(request: Request, direction: Direction, layers: int = 1) -> tuned.Key:
    """What `fastrnn tune` finds a configuration for."""
    return tuned.Key.of(
        direction, request.arch, request.cell, request.dtype, request.precision,
        request.hidden_size, rows(request), layers * request.directions,
        steps_of_a_run(request), chained=layers > 1,
    )  # fmt: skip


def around(request: Request, at_once: int = 1) -> float:
    """Seconds of a pass's input projections, large products of those that are not in the loops."""
    hidden, directions = request.hidden_size, request.directions
    products = -(-request.num_layers // at_once)
    inputs = request.input_size + (products - 1) * hidden * directions
    multiply_adds = steps(request) // request.num_layers * rows(request) * inputs
    multiply_adds *= directions * recurrent_weights(request) // hidden
    multiply_adds = multiply_adds * cell_of(request.cell).gates // request.gates
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
