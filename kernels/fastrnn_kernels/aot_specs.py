"""Which kernels are compiled without a GPU to see what they take; `aot.py` compiles them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from triton.backends.compiler import GPUTarget

from .arguments import cell_of
from .cells import CELLS, Cell
from .configs import TARGET_LIMITS, Direction, Problem, Regime
from .plan import REGIMES, reason_against
from .sweep import problem_of

GPU_TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


@dataclass(frozen=True)
class Spec:
    """One kernel to compile: what `launch.py` would ask for, given these sizes.

    Attributes:
        cell: name in `CELLS`, or another `Cell`.
        direction: "forward" or "backward".
        dtype: key of `DTYPES`.
        H: hidden units.
        B: batch, which decides the configuration.
        precision: of float32 products.
        from_table: the variant for CUDA graphs, of the step regime.
        regime: "step", "resident" or "grid".
        layers: groups that are chained, if there are several.
        marked: rows have lengths or resets.
        d_cells: every c has a gradient of its own (backward, cells with c).
        clip: bound on gate gradients (backward), or 0.
        noise: recurrent dropout, and zoneout of h and c.
    """

    cell: str | Cell
    direction: Direction
    dtype: str
    H: int
    B: int = 16
    precision: str = "ieee"
    from_table: bool = False
    regime: Regime = "step"
    layers: int = 1
    marked: bool = False
    d_cells: bool = False
    clip: float = 0.0
    noise: bool = False

    def __str__(self) -> str:
        """As a test id: ``lstm-forward-bf16-H512-B16-grid``."""
        parts = [cell_of(self.cell).name, self.direction, self.dtype, f"H{self.H}", f"B{self.B}"]
        parts += [self.precision] if self.dtype == "fp32" else []
        parts += [f"L{self.layers}"] if self.layers > 1 else []
        parts += ["marked"] if self.marked else []
        parts += ["cells"] if self.d_cells else []
        parts += ["clip"] if self.clip else []
        parts += ["noise"] if self.noise else []
        return "-".join([*parts, "table" if self.from_table else self.regime])

    @property
    def problem(self) -> Problem:
        """The sizes that a configuration depends on."""
        dtype = DTYPES[self.dtype]
        return problem_of(
            cell_of(self.cell), self.direction, self.H, self.B, self.layers, dtype, self.precision,
            chained=self.layers > 1,
        )  # fmt: skip


def specs(
    dtypes: Sequence[str] = ("bf16", "fp16", "fp32"),
    sizes: Sequence[int] = (64, 70, 128, 512, 1024),
    batches: Sequence[int] = (16, 256),
    precisions: Sequence[str] = ("ieee", "tf32"),
) -> Iterator[Spec]:
    """The kernels worth having compiled before a GPU session."""
    directions: tuple[Direction, ...] = ("forward", "backward")
    for cell, direction, dtype, H, B in itertools.product(
        CELLS, directions, dtypes, sizes, batches
    ):
        for precision in precisions if dtype == "fp32" else ("ieee",):
            for from_table in (False, True):
                yield Spec(cell, direction, dtype, H, B, precision, from_table)
            for regime in REGIMES:
                if regime != "step":
                    yield Spec(cell, direction, dtype, H, B, precision, regime=regime)


def gate() -> dict[str, list[Spec]]:
    """The kernels whose figures are recorded, by target.

    All of them for sm_90. Of the others each has every third, starting at another, and the first of
    each kind that is not among those.
    """
    others = [target for target in GPU_TARGETS if target != "sm_90"]
    chosen: dict[str, list[Spec]] = {}
    for target in GPU_TARGETS:
        kernels = list(_kernels())
        share = kernels[others.index(target) :: 3] if target in others else kernels
        seen = {kind for spec in share if fits(spec, target) for kind in _kinds(spec)}
        chosen[target] = []
        for spec in kernels:
            if fits(spec, target) and (spec in share or not seen.issuperset(_kinds(spec))):
                chosen[target].append(spec)
                seen.update(_kinds(spec))
    return chosen


def _kinds(spec: Spec) -> Iterator[tuple[object, ...]]:
    """What source and constants a kernel is made of, sizes apart."""
    yield spec.direction, spec.regime, spec.from_table
    yield spec.direction, spec.cell
    yield spec.direction, spec.regime, spec.marked
    yield spec.direction, spec.layers > 1
    yield spec.regime, spec.dtype, spec.precision
    yield spec.regime, spec.d_cells
    yield spec.direction, spec.regime, spec.noise


def _kernels() -> Iterator[Spec]:
    """What sizes, dtypes, cells and regimes can change.

    Step regime: odd H (masks, narrow loads), tiles from the smallest to the largest (H = 4096, B =
    1024 gives every multiprocessor plenty), ordinary cores (ieee) and tensor cores, with the
    point-wise part of each cell in each direction. On chip: from one program to all of them, one
    batch tile and several, what just fits, layers that are run at the same time, rows with lengths
    or resets, masks of regularisers, and a way back with gradients of every c and a bound on those
    of gates.
    """
    directions: tuple[Direction, ...] = ("forward", "backward")
    for direction in directions:
        for cell, dtype, H, B, precision, from_table in (
            ("lstm", "bf16", 512, 16, "ieee", False),
            ("lstm", "bf16", 1024, 256, "ieee", True),
            ("lstm", "fp16", 70, 256, "ieee", False),
            ("lstm", "fp32", 1024, 256, "ieee", True),
            ("lstm", "fp32", 4096, 1024, "ieee", False),
            ("lstm", "bf16", 4096, 1024, "ieee", True),
            ("lstm", "fp32", 1024, 16, "tf32", False),
            ("lstm", "fp32", 70, 256, "tf32x3", False),
            ("rnn_tanh", "bf16", 4096, 1024, "ieee", False),
            ("rnn_relu", "bf16", 33, 16, "ieee", True),
            ("rnn_sigmoid", "fp32", 4096, 1024, "ieee", False),
        ):
            yield Spec(cell, direction, dtype, H, B, precision, from_table)
    on_chip: tuple[tuple[Regime, str, str, int, int, str], ...] = (
        ("grid", "lstm", "bf16", 256, 16, "ieee"),
        ("grid", "lstm", "bf16", 512, 16, "ieee"),
        ("grid", "lstm", "fp16", 768, 16, "ieee"),
        ("grid", "lstm", "bf16", 1024, 16, "ieee"),
        ("grid", "lstm", "bf16", 1024, 128, "ieee"),
        ("grid", "lstm", "bf16", 1536, 64, "ieee"),
        ("grid", "lstm", "bf16", 70, 40, "ieee"),
        ("grid", "lstm", "fp32", 512, 16, "tf32"),
        ("grid", "lstm", "fp32", 1024, 64, "tf32"),
        ("grid", "lstm", "fp32", 512, 16, "tf32x3"),
        ("grid", "rnn_tanh", "bf16", 1024, 64, "ieee"),
        ("grid", "rnn_tanh", "fp32", 512, 16, "tf32"),
        ("grid", "rnn_relu", "fp16", 2048, 16, "ieee"),
        ("grid", "rnn_sigmoid", "bf16", 33, 17, "ieee"),
        ("resident", "lstm", "bf16", 128, 16, "ieee"),
        ("resident", "lstm", "bf16", 64, 64, "ieee"),
        ("resident", "lstm", "fp32", 64, 16, "tf32"),
        ("resident", "lstm", "fp32", 32, 16, "tf32x3"),
        ("resident", "lstm", "fp32", 32, 16, "ieee"),
        ("resident", "rnn_tanh", "bf16", 256, 64, "ieee"),
        ("resident", "rnn_tanh", "fp32", 128, 16, "tf32"),
        ("resident", "rnn_relu", "fp16", 70, 3, "ieee"),
        ("resident", "rnn_sigmoid", "fp32", 20, 3, "ieee"),
    )
    chained = (
        ("lstm", "bf16", 256, 16, "ieee", 2),
        ("lstm", "bf16", 512, 16, "ieee", 4),
        ("lstm", "bf16", 768, 16, "ieee", 2),
        ("lstm", "fp16", 70, 40, "ieee", 3),
        ("lstm", "fp32", 512, 16, "tf32", 2),
        ("rnn_tanh", "bf16", 1024, 64, "ieee", 2),
        ("rnn_relu", "fp32", 200, 16, "tf32x3", 2),
    )
    marked: tuple[tuple[Regime, str, str, int, int, str], ...] = (
        ("step", "lstm", "bf16", 1024, 256, "ieee"),
        ("grid", "lstm", "bf16", 512, 16, "ieee"),
        ("grid", "lstm", "bf16", 1024, 128, "ieee"),
        ("grid", "lstm", "fp32", 512, 16, "tf32"),
        ("grid", "rnn_tanh", "bf16", 1024, 64, "ieee"),
        ("resident", "lstm", "bf16", 32, 64, "ieee"),
        ("resident", "rnn_relu", "fp16", 70, 3, "ieee"),
    )
    optional: tuple[tuple[Regime, int, int, bool], ...] = (
        ("step", 1024, 256, False),
        ("grid", 512, 16, False),
        ("grid", 1024, 128, True),
        ("resident", 64, 64, False),
    )
    noisy: tuple[tuple[Regime, str, str, int, int, str, bool], ...] = (
        ("step", "lstm", "bf16", 1024, 256, "ieee", False),
        ("step", "rnn_relu", "bf16", 33, 16, "ieee", True),
        ("grid", "lstm", "bf16", 512, 16, "ieee", False),
        ("grid", "lstm", "bf16", 1024, 128, "ieee", True),
        ("grid", "lstm", "fp32", 512, 16, "tf32", False),
        ("grid", "rnn_tanh", "bf16", 1024, 64, "ieee", False),
        ("resident", "lstm", "bf16", 64, 64, "ieee", False),
        ("resident", "lstm", "bf16", 128, 16, "ieee", True),
        ("resident", "rnn_tanh", "fp32", 128, 16, "tf32", False),
    )
    for direction in directions:
        for regime, cell, dtype, H, B, precision, ends in noisy:
            yield Spec(
                cell, direction, dtype, H, B, precision, regime == "step", regime, marked=ends,
                noise=True,
            )  # fmt: skip
        for regime, cell, dtype, H, B, precision in marked:
            yield Spec(cell, direction, dtype, H, B, precision, regime=regime, marked=True)
        for regime, cell, dtype, H, B, precision in on_chip:
            yield Spec(cell, direction, dtype, H, B, precision, regime=regime)
        for cell, dtype, H, B, precision, layers in chained:
            yield Spec(cell, direction, dtype, H, B, precision, regime="grid", layers=layers)
    for regime, H, B, ends in optional:
        yield Spec(
            "lstm", "backward", "bf16", H, B, regime=regime, marked=ends, d_cells=True, clip=1.0
        )


def fits(spec: Spec, target: str) -> bool:
    """Whether the regime, in this precision, can run the problem on the target at all."""
    if spec.precision == "tf32x3" and target.startswith("gfx"):
        return False  # exists on NVIDIA only; launch.py refuses it elsewhere
    return reason_against(spec.regime, spec.problem, TARGET_LIMITS[target]) is None
