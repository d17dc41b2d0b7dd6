"""From checked tensors to launches: which regime and configuration, and how it is enqueued."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import graphs
from .arguments import direction_bits
from .cells import Cell
from .configs import DeviceLimits, Direction, LaunchConfig, Regime
from .marks import marks_of
from .matmul_configs import PRECISIONS, Precision
from .plan import REGIMES, plan, steps_class
from .sweep import INTERPRETED, Sweep, alignment, constants, problem_of, run

Launch = Literal["auto", "direct", "graph"]
LAUNCHES: tuple[Launch, ...] = ("auto", "direct", "graph")

# A guess, not measured: below it, filling a table and replaying 32 nodes is taken not to pay.
MIN_STEPS_FOR_GRAPH = 8


def enqueue(
    cell: Cell,
    direction: Direction,
    shape: tuple[int, int, int, int],
    strided: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    directions: Sequence[bool],
    links: tuple[Tensor, ...],
    ends: tuple[Tensor | None, Tensor | None],
    optional: tuple[Tensor | None, ...],
    flags: dict[str, Any],
    precision: Precision,
    regime: Regime | Literal["auto"],
    config: LaunchConfig | None,
    launch: Launch,
) -> None:
    """Make a sweep of checked tensors and run it.

    ``strided``: the one with strides of its own; ``links``: what groups are chained by; ``ends``:
    lengths and resets; ``optional``: see `Sweep`; ``flags``: what else `constants` takes.
    """
    T, B, G, H = shape
    output = tensors[5]
    assert output is not None
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    if precision == "tf32x3" and torch.version.hip is not None:
        raise ValueError("precision: 'tf32x3' exists on NVIDIA GPUs only, got a ROCm device")
    if launch not in LAUNCHES:
        raise ValueError(f"launch: expected one of {LAUNCHES}, got {launch!r}")
    if regime not in (*REGIMES, "auto"):
        raise ValueError(f"regime: expected one of {(*REGIMES, 'auto')}, got {regime!r}")
    chained = bool(links)
    if launch != "auto" and regime == "auto" and not chained:
        regime = "step"
    if chained and regime not in ("auto", "grid"):
        raise ValueError(f"regime: expected 'grid' for chained groups, got {regime!r}")
    if chained:
        regime = "grid"
    if config is not None and regime not in ("auto", config.regime):
        raise ValueError(f"config: expected one of the regime {regime!r}, got {config}")
    problem = problem_of(cell, direction, H, B, G, output.dtype, precision, chained)
    limits = DeviceLimits.of(output.device)
    if B == 0:
        return
    if config is None:
        config = plan(problem, limits, regime, steps_class(T)).config
    else:
        config.check(problem, limits)
    if launch != "auto" and config.regime != "step":
        raise ValueError(f"launch: expected 'auto' in the regime {config.regime!r}, got {launch!r}")

    # The stride of a dimension of size 1 is arbitrary, and multiplies nothing but 0.
    strides = [0, 0, 0]
    if strided is not None:
        strides = [
            stride if size > 1 else 0
            for stride, size in zip(strided.stride()[:3], strided.shape[:3], strict=True)
        ]
    width = cell.gates * H if direction == "forward" else H
    align = alignment(width, strides)
    # Triton launches on the current device, which need not be that of the tensors.
    on_gpu = output.device.type == "cuda"
    with torch.cuda.device(output.device) if on_gpu else contextlib.nullcontext():
        given = (*tensors, marks_of(*ends, T, B))
        sweep = Sweep(
            problem,
            T,
            # A kernel never follows the pointers of arguments that its constants say it has not.
            tuple(output if tensor is None else tensor for tensor in given),
            direction_bits(directions),
            (strides[0] // align, strides[1] // align, strides[2] // align),
            constants(
                cell, H, output.dtype, config, direction,
                precision=precision, align=align, chained=chained,
                marked=given[-1] is not None, **flags,
            ),
            config,
            limits,
            links,
            optional,
        )  # fmt: skip
        use_graph = launch == "graph"
        if launch == "auto" and config.regime == "step":
            use_graph = T >= MIN_STEPS_FOR_GRAPH and not INTERPRETED
        if use_graph and (against := graphs.reason_against(sweep)):
            if launch == "graph":
                raise ValueError(f"launch: 'graph' is impossible here: {against}")
            use_graph = False
        (graphs.run if use_graph else run)(sweep)
