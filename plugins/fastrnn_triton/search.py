"""The search behind `fastrnn tune`: every launch configuration worth it, checked and timed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch

from fastrnn.roofline import rows
from fastrnn_triton import cost
from fastrnn_triton.tuned import Found, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from fastrnn.request import Request
    from fastrnn_kernels import LaunchConfig
    from fastrnn_kernels.configs import Direction
    from fastrnn_kernels.matmul_configs import Precision

    Run = Callable[[LaunchConfig], Tensor]
    Clock = Callable[[Callable[[], object]], float]

SLACK = 2.0
"""Configurations estimated at up to this many times the best are tried."""
STEPS = 128
"""Steps of a timed call, at most: what is sought is the time of a step."""


def search(
    request: Request,
    progress: Callable[[str], None],
    *,
    device: str = "cuda",
    clock: Clock | None = None,
) -> Iterator[tuple[Key, Found]]:
    """Find the fastest configurations of one layer: forward, and back if gradients are asked for.

    Each is compared with the step regime first, and must give the same bits twice; one that is
    wrong, or that the compiler or the driver refuses, is reported and left out.

    Args:
        request: the problem; T and B are known.
        progress: takes a line for the user.
        device: where to run.
        clock: seconds of a call; device events by default.

    Raises:
        RuntimeError: none was right.
    """
    import fastrnn_kernels as kernels

    T = min(request.seq_len or STEPS, STEPS)
    G, H, B, K = request.directions, request.hidden_size, rows(request), request.gates
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.rand(shape, generator=generator) * 2 - 1
        return values.to(device=device, dtype=request.dtype)

    gates_x, weight_hh, h0 = draw(T, B, G, K * H), draw(G, K * H, H) / math.sqrt(H), draw(G, B, H)
    c0 = draw(G, B, H) if request.cell == "lstm" else None
    precision = cast("Precision", request.precision)

    def forward(config: LaunchConfig) -> Tensor:
        return kernels.forward(
            request.cell, gates_x, weight_hh, h0, c0,
            save=request.needs_grad, precision=precision, config=config,
        ).output  # fmt: skip

    yield _fastest("forward", forward, T, request, progress, device, clock)
    if not request.needs_grad:
        return
    made = kernels.forward(
        request.cell, gates_x, weight_hh, h0, c0, save=True, precision=precision, regime="step"
    )
    d_output = draw(T, B, G, H)

    def backward(config: LaunchConfig) -> Tensor:
        return kernels.backward(
            request.cell, weight_hh, made.output, made.gates, made.cells, c0,
            d_output=d_output, precision=precision, config=config,
        ).d_gates  # fmt: skip

    yield _fastest("backward", backward, T, request, progress, device, clock)


def _fastest(
    direction: Direction,
    run: Run,
    T: int,
    request: Request,
    progress: Callable[[str], None],
    device: str,
    clock: Clock | None,
) -> tuple[Key, Found]:
    """The fastest configuration of one direction; T: steps of a run."""
    import fastrnn_kernels as kernels
    from fastrnn_kernels.model import Rates, estimate
    from fastrnn_kernels.plan import candidates

    limits = kernels.DeviceLimits.of(torch.device(device))
    problem = cost.problem(request, direction)
    guesses = {
        config: estimate(config, problem, limits, Rates()).seconds(T)
        for config in candidates(problem, limits)
    }
    reference = next(config for config in guesses if config.regime == "step")
    most = SLACK * min(guesses.values())
    tried = [config for config in sorted(guesses, key=guesses.__getitem__)
             if guesses[config] <= most or config is reference]  # fmt: skip
    want = run(reference).double()
    # Two roundings to the dtype a step, of values up to the largest, as a random walk.
    allowed = 4 * torch.finfo(request.dtype).eps * math.sqrt(T)
    if request.dtype == torch.float32 and request.precision == "tf32":
        allowed = 4 * 2.0**-10 * math.sqrt(T)
    allowed *= max(1.0, float(want.abs().max()))
    clock = clock or _device_seconds
    best: Found | None = None
    for number, config in enumerate(tried, 1):
        progress(f"triton {direction}: {number} of {len(tried)}: {config}")
        try:
            got = run(config)
            if not (got.double() - want).abs().max() <= allowed:
                raise ArithmeticError("another result than the step regime's")
            if not torch.equal(got, run(config)):
                raise ArithmeticError("another result the second time")
            microseconds = clock(lambda config=config: run(config)) / T * 1e6  # type: ignore[misc] # bound now
        except Exception as error:  # the others may still do
            progress(f"triton {direction}: left out {config}: {type(error).__name__}: {error}")
            continue
        if best is None or microseconds < best.microseconds:
            best = Found(config, microseconds)
    if best is None:
        raise RuntimeError(f"no launch configuration of the Triton kernels was right {direction}")
    progress(f"triton {direction}: {best.microseconds:.2f} us a step with {best.config}")
    hidden, batch, groups = request.hidden_size, rows(request), request.directions
    key = Key.of(
        direction, request.arch, request.cell, request.dtype, request.precision,
        hidden, batch, groups, T,
    )  # fmt: skip
    return key, best


def _device_seconds(call: Callable[[], object]) -> float:
    """The median by device events, with L2 emptied before each call."""
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median")) / 1e3
