"""The search behind `fastrnn tune`: every launch configuration worth it, checked and timed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch

from fastrnn.cell import cell_of
from fastrnn.roofline import rows
from fastrnn_triton import cost
from fastrnn_triton.cells import kernel_cell
from fastrnn_triton.tuned import Found, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from torch import Tensor

    from fastrnn.request import Request
    from fastrnn_kernels import ForwardResult, LaunchConfig
    from fastrnn_kernels.configs import Direction
    from fastrnn_kernels.matmul_configs import Precision

    Run = Callable[[LaunchConfig], Tensor]
    Clock = Callable[[Callable[[], object]], float]
    Draw = Callable[..., Tensor]
    Pass = tuple[Direction, Run, Tensor]
    """Which one, with a given configuration, and what must come of it."""

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

    And of several layers at once, where the stack allows that: of as many as promise the most.
    Each configuration is compared with the step regime first, and must give the same bits twice;
    one that is wrong, or that the compiler or the driver refuses, is reported and left out.

    Args:
        request: the problem; T and B are known.
        progress: takes a line for the user.
        device: where to run.
        clock: seconds of a call; device events by default.

    Raises:
        RuntimeError: none was right.
    """
    for layers in sorted({1, cost.most_promising(request)}):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            values = torch.rand(shape, generator=generator) * 2 - 1
            return values.to(device=device, dtype=request.dtype)

        passes = _one_by_one(request, draw) if layers == 1 else _at_once(request, layers, draw)
        for direction, run, want in passes:
            yield _fastest(direction, run, want, request, layers, progress, device, clock)


def _one_by_one(request: Request, draw: Draw) -> Iterator[Pass]:
    """Both passes of a layer."""
    import fastrnn_kernels as kernels

    known, cell = cell_of(request.cell), kernel_cell(request.cell)
    (T, B), G, H, K = _steps_and_rows(request), request.directions, request.hidden_size, known.gates
    precision = cast("Precision", request.precision)
    gates_x, weight_hh, h0 = draw(T, B, G, K * H), draw(G, K * H, H) / math.sqrt(H), draw(G, B, H)
    c0 = draw(G, B, H) if known.has_cell_state else None
    own = draw(G, known.weights, H) if known.weights else None

    def forward(**how: Any) -> ForwardResult:
        return kernels.forward(
            cell, gates_x, weight_hh, h0, c0, cell_weight=own, precision=precision, **how
        )

    made = forward(save=True, regime="step")
    save = request.needs_grad
    yield "forward", lambda config: forward(save=save, config=config).output, made.output
    d_output = draw(T, B, G, H)

    def backward(**how: Any) -> Tensor:
        return kernels.backward(
            cell, weight_hh, made.output, made.gates, made.cells, c0,
            cell_weight=own, d_output=d_output, precision=precision, **how,
        ).d_gates  # fmt: skip

    if request.needs_grad:
        yield "backward", lambda config: backward(config=config), backward(regime="step")


def _at_once(request: Request, layers: int, draw: Draw) -> Iterator[Pass]:
    """Both passes of several layers, which must do what the layers do one after another."""
    import fastrnn_kernels as kernels

    (T, B), G = _steps_and_rows(request), layers
    H, K = request.hidden_size, request.gates
    cell, precision = request.cell, cast("Precision", request.precision)
    gates_x, weight_hh, h0 = draw(T, B, 1, K * H), draw(G, K * H, H) / math.sqrt(H), draw(G, B, H)
    weight_chain = draw(G - 1, K * H, H) / math.sqrt(H)
    c0 = draw(G, B, H) if cell == "lstm" else None

    def states(g: int) -> tuple[Tensor, Tensor | None]:
        return h0[g : g + 1], None if c0 is None else c0[g : g + 1]

    made: list[ForwardResult] = []
    x = gates_x
    for g in range(G):
        made.append(
            kernels.forward(
                cell, x, weight_hh[g : g + 1], *states(g),
                save=True, precision=precision, regime="step",
            )
        )  # fmt: skip
        if g < G - 1:
            x = made[g].output @ weight_chain[g].mT

    def forward(config: LaunchConfig) -> Tensor:
        return kernels.forward(
            cell, gates_x, weight_hh, h0, c0, weight_chain=weight_chain,
            save=request.needs_grad, precision=precision, config=config,
        ).output  # fmt: skip

    output = torch.cat([each.output for each in made], 2)
    yield "forward", forward, output
    if not request.needs_grad:
        return
    gates, cells = (
        None if c0 is None else torch.cat([getattr(each, name) for each in made], 2)
        for name in ("gates", "cells")
    )
    d_output = draw(T, B, 1, H)

    def backward(config: LaunchConfig) -> Tensor:
        return kernels.backward(
            cell, weight_hh, output, gates, cells, c0, weight_chain=weight_chain,
            d_output=d_output, precision=precision, config=config,
        ).d_gates  # fmt: skip

    d_gates: list[Tensor] = []
    dy = d_output
    for g in reversed(range(G)):
        d_gates.insert(
            0,
            kernels.backward(
                cell, weight_hh[g : g + 1], made[g].output, made[g].gates, made[g].cells,
                states(g)[1],
                d_output=dy, precision=precision, regime="step",
            ).d_gates,
        )  # fmt: skip
        if g > 0:
            dy = d_gates[0] @ weight_chain[g - 1]
    yield "backward", backward, torch.cat(d_gates, 2)


def _steps_and_rows(request: Request) -> tuple[int, int]:
    return min(cost.steps_of_a_run(request), STEPS), rows(request)


def _fastest(
    direction: Direction,
    run: Run,
    want: Tensor,
    request: Request,
    layers: int,
    progress: Callable[[str], None],
    device: str,
    clock: Clock | None,
) -> tuple[Key, Found]:
    """The fastest configuration of one direction of so many layers at once."""
    import fastrnn_kernels as kernels
    from fastrnn_kernels.model import Rates, estimate
    from fastrnn_kernels.plan import candidates

    limits = kernels.DeviceLimits.of(torch.device(device))
    problem = cost.problem(request, direction, layers)
    T = want.shape[0]
    guesses = {
        config: estimate(config, problem, limits, Rates()).seconds(T)
        for config in candidates(problem, limits)
    }
    most = SLACK * min(guesses.values())
    tried = [config for config in sorted(guesses, key=guesses.__getitem__)
             if guesses[config] <= most or config.regime == "step"]  # fmt: skip
    want = want.double()
    # Two roundings to the dtype a step and layer, of values up to the largest, as a random walk.
    allowed = 4 * torch.finfo(request.dtype).eps * math.sqrt(T * layers)
    if request.dtype == torch.float32 and request.precision == "tf32":
        allowed = 4 * 2.0**-10 * math.sqrt(T * layers)
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
    what = f"{direction}, {layers} layers at once" if layers > 1 else direction
    progress(f"triton {what}: {best.microseconds:.2f} us a step with {best.config}")
    return cost.key(request, direction, layers), best


def _device_seconds(call: Callable[[], object]) -> float:
    """The median by device events, with L2 emptied before each call."""
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median")) / 1e3
