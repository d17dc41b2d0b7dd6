"""A sweep: one direction of one recurrence, with everything its launches need.

`launch.py` makes sweeps of checked tensors, `aot.py` of nothing but dtypes; `run` does a sweep's
steps one launch at a time, `graphs.py` does the same through CUDA graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from triton.runtime import JITFunction

from .cells import Cell
from .configs import Direction, LaunchConfig, Problem
from .recurrence import backward_kernel, forward_kernel

# Under TRITON_INTERPRET=1, @triton.jit makes something that runs on the CPU through NumPy.
INTERPRETED = not isinstance(forward_kernel, JITFunction)

KERNELS: dict[Direction, Any] = {"forward": forward_kernel, "backward": backward_kernel}

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
) -> Problem:
    """What a configuration depends on, from what a caller knows."""
    fma = dtype == torch.float64 or (dtype == torch.float32 and precision == "ieee")
    return Problem(direction, cell.gates, H, B, G, dtype.itemsize, fma)


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
    has_d_output: bool = True,
    has_d_h_n: bool = True,
) -> dict[str, Any]:
    """The compile-time arguments of a kernel. Whatever is not here never recompiles it."""
    shared = {
        "H": H,
        "K": cell.gates,
        "CELL_STATE": cell.has_cell_state,
        "ACC": TRITON_DTYPES[accumulation_dtype(dtype)],
        # Other dtypes have one way to be multiplied: one variant of the kernel, not three.
        "PRECISION": precision if dtype == torch.float32 else "ieee",
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
        "ALIGN": align,
        "BLOCK_B": config.block_b,
        "BLOCK_H": config.block_h,
        "BLOCK_K": config.block_k,
    }
    if direction == "forward":
        return {"STEP": cell.step, "SAVE": save and cell.has_cell_state, **shared}
    flags = {"HAS_D_OUTPUT": has_d_output, "HAS_D_H_N": has_d_h_n}
    return {"GRAD": cell.grad, **flags, **shared}


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
        reverse: bit g is the direction of group g (see ``recurrence.time_position``).
        strides: of T, B and G in the strided tensor, in units of ``constants["ALIGN"]``.
        constants: compile-time arguments.
        config: the launch configuration.
    """

    problem: Problem
    T: int
    tensors: tuple[torch.Tensor, ...]
    reverse: int
    strides: tuple[int, int, int]
    constants: dict[str, Any]
    config: LaunchConfig

    @property
    def grid(self) -> tuple[int]:
        """Programs of a launch."""
        return (self.config.programs(self.problem),)

    @property
    def options(self) -> dict[str, int]:
        """Launch options that are no arguments of the kernel."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}


def run(sweep: Sweep) -> None:
    """Enqueue a sweep's steps, one launch each, on the current stream."""
    problem = sweep.problem
    kernel = KERNELS[problem.direction][sweep.grid]
    sizes = (sweep.T, problem.B, problem.G)
    steps = range(sweep.T)
    for t in steps if problem.direction == "forward" else reversed(steps):
        kernel(
            *sweep.tensors,
            *sizes,
            t,
            t + 1,
            sweep.reverse,
            *sweep.strides,
            SINGLE_STEP=True,
            **sweep.constants,
            **sweep.options,
        )
