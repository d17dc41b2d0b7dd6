"""A sweep: one direction of one recurrence, with everything its launches need.

`launch.py` makes sweeps of checked tensors. `run` does one: in a single launch on chip, or in the
`step` regime one launch at a time, for which `graphs.py` has another way, through CUDA graphs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl
from triton.runtime import JITFunction

from .cells import Cell
from .configs import DeviceLimits, Direction, LaunchConfig, Problem, Regime, tiles
from .exchange import COUNTER_STRIDE
from .grid import forward_grid
from .grid_backward import backward_grid
from .onchip import GridConfig
from .resident import forward_resident
from .resident_backward import backward_resident
from .step import forward_kernel
from .step_backward import backward_kernel

# Under TRITON_INTERPRET=1, @triton.jit makes something that runs on the CPU through NumPy.
INTERPRETED = not isinstance(forward_kernel, JITFunction)

KERNELS: dict[tuple[Regime, Direction], Any] = {
    ("step", "forward"): forward_kernel,
    ("step", "backward"): backward_kernel,
    ("resident", "forward"): forward_resident,
    ("resident", "backward"): backward_resident,
    ("grid", "forward"): forward_grid,
    ("grid", "backward"): backward_grid,
}

TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# Strides are passed in units of up to this many elements: 16 bytes of the smallest dtype and more.
MAX_ALIGN = 16


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all else: what sums and c are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem_of(
    cell: Cell,
    direction: Direction,
    H: int,
    B: int,
    G: int,
    dtype: torch.dtype,
    precision: str,
    chained: bool = False,
) -> Problem:
    """What a configuration depends on, from what a caller knows."""
    problem = Problem.of(
        direction, cell.gates, H, B, G, dtype, precision, cell.has_cell_state, chained
    )
    # The interpreter has no registers to run out of.
    return replace(problem, fma=False) if INTERPRETED else problem


def constants(
    cell: Cell,
    H: int,
    dtype: torch.dtype,
    config: LaunchConfig,
    direction: Direction,
    *,
    precision: str = "ieee",
    align: int = MAX_ALIGN,
    save: bool = True,
    keep: bool = True,
    chained: bool = False,
    marked: bool = False,
    has_d_output: bool = True,
    has_d_h_n: bool = True,
    has_d_cells: bool = False,
    clip: float = 0.0,
    dropout: bool = False,
    zoneout_h: bool = False,
    zoneout_c: bool = False,
) -> dict[str, Any]:
    """The compile-time arguments of a kernel. Whatever is not here never recompiles it."""
    shared = {
        "H": H,
        "K": cell.gates,
        "Q": cell.weights,
        "CELL_STATE": cell.has_cell_state,
        "ACC": TRITON_DTYPES[accumulation_dtype(dtype)],
        # Other dtypes have one way to be multiplied: one variant of the kernel, not three.
        "PRECISION": precision if dtype == torch.float32 else "ieee",
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
        "ALIGN": align,
        "MARKED": marked,
        "DROPOUT": dropout,
        "ZONEOUT_H": zoneout_h,
        "ZONEOUT_C": zoneout_c,
        **config.blocks(direction),
    }
    if config.regime == "grid":
        shared |= {"INTERPRETED": INTERPRETED, "CHAIN": chained}
        if direction == "backward":
            shared["PHASE"] = 0
    if direction == "forward":
        flags = {
            "SAVE": save and cell.has_cell_state,
            "KEEP": keep,
            "MADE": save and (zoneout_c if cell.has_cell_state else zoneout_h),
        }
        return {"STEP": cell.step, **flags, **shared}
    flags = {"HAS_D_OUTPUT": has_d_output, "HAS_D_H_N": has_d_h_n, "HAS_D_CELLS": has_d_cells}
    return {"GRAD": cell.grad, "CLIP": clip, **flags, **shared}


def alignment(width: int, strides: Sequence[int]) -> int:
    """The unit strides are passed in: a power of two, the same for every contiguous (.., width)."""
    return math.gcd(MAX_ALIGN, width, *strides)


@dataclass(frozen=True)
class Sweep:
    """One direction of a recurrence, ready to launch.

    Attributes:
        problem: sizes.
        T: time steps.
        tensors: the tensor arguments of the kernel, in its order.
        reverse: bit g is the direction of group g (see ``addressing.time_position``).
        strides: of T, B and G in the strided tensor, in units of ``constants["ALIGN"]``.
        constants: compile-time arguments.
        config: the launch configuration.
        limits: of the device.
        chain: the tensors by which the groups are chained, in the order of the grid kernels.
        optional: the cell's own weights, (G, Q, H), and what regularisers need, in the order of the
            kernel. None is no argument at all to the compiler, so that the kernels of others are
            what they would be without.
    """

    problem: Problem
    T: int
    tensors: tuple[torch.Tensor, ...]
    reverse: int
    strides: tuple[int, int, int]
    constants: dict[str, Any]
    config: LaunchConfig
    limits: DeviceLimits
    chain: tuple[torch.Tensor, ...] = ()
    optional: tuple[torch.Tensor | None, ...] = (None,) * 6

    @property
    def kernel(self) -> Any:
        """What is launched."""
        return KERNELS[self.config.regime, self.problem.direction]

    @property
    def grid(self) -> tuple[int]:
        """Programs of a launch."""
        return (self.config.programs(self.problem),)

    @property
    def rounds(self) -> int:
        """Steps of a `grid` launch in the interpreter; see `grid_backward.py`."""
        problem = self.problem
        behind = problem.G - 1 if problem.chained and problem.direction == "backward" else 0
        return self.T + behind

    @property
    def options(self) -> dict[str, int | bool]:
        """Launch options that are no arguments of the kernel."""
        return self.config.options(self.limits)


def run(sweep: Sweep) -> None:
    """Enqueue a sweep on the current stream: one launch on chip, else one a step."""
    problem, config = sweep.problem, sweep.config
    sizes = (sweep.T, problem.B, problem.G)
    rest = (sweep.reverse, *sweep.strides)
    launch = sweep.kernel[sweep.grid]
    tensors = (*sweep.tensors, *sweep.optional)
    if config.regime == "step":
        steps = range(sweep.T)
        for t in steps if problem.direction == "forward" else reversed(steps):
            launch(*tensors, *sizes, t, *rest, **sweep.constants, **sweep.options)
        return
    if config.regime == "resident":
        launch(*tensors, *sizes, *rest, **sweep.constants, **sweep.options)
        return
    tensors += exchanged(sweep)
    if not INTERPRETED:
        launch(*tensors, *sizes, 0, sweep.T, *rest, **sweep.constants, **sweep.options)
        return
    # Programs run one after another and cannot wait for each other: one launch a step and phase.
    phases = [{"PHASE": 1}, {"PHASE": 2}] if sweep.constants.get("SPLITS", 1) > 1 else [{}]
    for t, phase in itertools.product(range(sweep.rounds), phases):
        launch(*tensors, *sizes, t, t + 1, *rest, **{**sweep.constants, **phase})


def exchanged(sweep: Sweep) -> tuple[torch.Tensor, ...]:
    """What else a `grid` kernel takes: what chains groups, what programs share and wait by."""
    problem, config, device = sweep.problem, sweep.config, sweep.tensors[0].device
    assert isinstance(config, GridConfig)
    tiles_b, tiles_h = tiles(problem.B, config.block_b), config.tiles_h(problem)
    back = problem.direction == "backward"
    links = sweep.chain or sweep.tensors[: 1 if back else 2]  # not read if groups are not chained
    counters = torch.zeros(
        (problem.G, tiles_b, 1 + back * tiles_h, COUNTER_STRIDE.value),
        dtype=torch.int32,
        device=device,
    )
    if not back:
        return (*links, counters)
    size = (tiles_h, config.splits, config.block_b, config.columns(problem))
    parts = torch.empty(
        (problem.G, tiles_b, *size) if config.splits > 1 else (1,),
        dtype=accumulation_dtype(sweep.tensors[0].dtype),
        device=device,
    )
    return (*links, parts, counters)
