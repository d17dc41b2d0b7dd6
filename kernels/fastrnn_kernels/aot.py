"""Compile kernels for a GPU without one: ``python -m fastrnn_kernels.aot --target sm_90``.

Uses the planner's own configurations and the launcher's own compile-time arguments, so that what
compiles here is what a GPU would be given. A spill or a shared-memory overrun shows up here first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import table
from .arguments import cell_of
from .cells import CELLS, Cell
from .configs import TARGET_LIMITS, Direction, LaunchConfig, Problem, Regime
from .plan import REGIMES, plan, reason_against
from .sweep import KERNELS, constants, problem_of

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

_TABLE_KERNELS: dict[Direction, Any] = {
    "forward": table.forward_from_table,
    "backward": table.backward_from_table,
}
_INT64 = ("reverse", "stride_t", "stride_b", "stride_g")
_INT32 = ("T", "B", "G", "t", "t_begin", "t_end", "done_begin", "done_end", "index")


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

    def __str__(self) -> str:
        """As a test id: ``lstm-forward-bf16-H512-B16-grid``."""
        parts = [cell_of(self.cell).name, self.direction, self.dtype, f"H{self.H}", f"B{self.B}"]
        parts += [self.precision] if self.dtype == "fp32" else []
        parts += [f"L{self.layers}"] if self.layers > 1 else []
        parts += ["marked"] if self.marked else []
        parts += ["cells"] if self.d_cells else []
        parts += ["clip"] if self.clip else []
        return "-".join([*parts, "table" if self.from_table else self.regime])

    @property
    def problem(self) -> Problem:
        """The sizes that a configuration depends on."""
        dtype = DTYPES[self.dtype]
        return problem_of(
            cell_of(self.cell), self.direction, self.H, self.B, self.layers, dtype, self.precision,
            chained=self.layers > 1,
        )  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What the compiler made of a `Spec`.

    Attributes:
        config: the planner's choice.
        blocks: its compile-time arguments.
        shared: bytes of shared memory of a program.
        registers: of a thread; None where the target's tools do not say.
        spilled: bytes of a thread that went to local memory; None likewise.
        instructions: of the whole kernel.
        seconds: compile time; near zero if Triton's cache had it.
        asm: PTX or AMDGCN text.
    """

    config: LaunchConfig
    blocks: dict[str, int]
    shared: int
    registers: int | None
    spilled: int | None
    instructions: int
    seconds: float
    asm: str

    def figures(self) -> dict[str, Any]:
        """What is recorded: the same on every machine for one compiler."""
        return {
            "registers": self.registers,
            "shared": self.shared,
            "spilled": self.spilled,
            "instructions": self.instructions,
            "warps": self.config.num_warps,
            **{name.lower(): size for name, size in self.blocks.items()},
        }


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


def _kernels() -> Iterator[Spec]:
    """What sizes, dtypes, cells and regimes can change.

    Step regime: odd H (masks, narrow loads), tiles from the smallest to the largest (H = 4096, B =
    1024 gives every multiprocessor plenty), ordinary cores (ieee) and tensor cores, with the
    point-wise part of each cell in each direction. On chip: from one program to all of them, one
    batch tile and several, what just fits, layers that are run at the same time, rows with lengths
    or resets, and a way back with gradients of every c and a bound on those of gates.
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
    for direction in directions:
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


def compile_spec(spec: Spec, target: str, *, debug: bool = False) -> Report:
    """Compile one kernel for one of `GPU_TARGETS`; ``debug`` as TRITON_DEBUG=1 would.

    Raises:
        ValueError: no configuration fits the target.
    """
    limits = TARGET_LIMITS[target]
    config = plan(spec.problem, limits, spec.regime).config
    compile_time = constants(
        cell_of(spec.cell),
        spec.H,
        DTYPES[spec.dtype],
        config,
        spec.direction,
        precision=spec.precision,
        chained=spec.layers > 1,
        marked=spec.marked,
        has_d_cells=spec.d_cells,
        clip=spec.clip,
    )
    compile_time["ALIGN"] = min(16, spec.H & -spec.H)
    if not spec.from_table and not compile_time["Q"]:
        compile_time["cell_weight"] = None
    if spec.from_table:
        kernel = _TABLE_KERNELS[spec.direction]
        compile_time["DTYPE"] = getattr(triton.language, _TRITON_NAMES[spec.dtype])
    else:
        kernel = KERNELS[spec.regime, spec.direction]

    signature = {}
    aligned = {}
    for position, name in enumerate(kernel.arg_names):
        if name in compile_time:
            signature[name] = "constexpr"
        elif name in _INT64:
            signature[name] = "i64"
        elif name in _INT32:
            signature[name] = "i32"
        else:
            element = spec.dtype
            if name == "table":
                element = "i64"
            elif name == "counters":
                element = "i32"
            elif name == "marks" and spec.marked:
                element = "u8"
            elif name in ("carry", "parts"):
                element = "fp64" if spec.dtype == "fp64" else "fp32"
            signature[name] = f"*{element}"
            # Triton passes this on for every pointer that is a multiple of 16 bytes.
            aligned[(position,)] = [["tt.divisibility", 16]]

    began = time.perf_counter()
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=compile_time, attrs=aligned),
        target=GPU_TARGETS[target],
        options={**config.options(limits), "debug": debug},
    )
    seconds = time.perf_counter() - began
    registers, spilled = _resources(compiled.asm)
    text = compiled.asm["ptx" if "ptx" in compiled.asm else "amdgcn"]
    count = _instructions(compiled.asm)
    blocks = config.blocks(spec.direction)
    return Report(
        config, blocks, compiled.metadata.shared, registers, spilled, count, seconds, text
    )


_TRITON_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}


def _resources(asm: dict[str, Any]) -> tuple[int | None, int | None]:
    """(registers, spilled bytes) of a thread, from the binary."""
    if "cubin" not in asm:
        found = [
            re.search(rf"\.{key}:\s+(\d+)", asm["amdgcn"])
            for key in ("vgpr_count", "private_segment_fixed_size")
        ]
        registers, spilled = (int(match[1]) if match else None for match in found)
        return registers, spilled
    text = _cuobjdump(asm["cubin"], "-res-usage")
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    local = re.search(r"LOCAL:(\d+)", text)
    if usage is None or local is None:
        return None, None
    return int(usage[1]), int(usage[2]) + int(local[1])


def _instructions(asm: dict[str, Any]) -> int:
    """Machine instructions, which a change that undoes an optimisation shows in."""
    if "cubin" not in asm:
        return len(re.findall(r"^\t[a-z]+_\w+", asm["amdgcn"], re.MULTILINE))
    return len(re.findall(r"/\*[0-9a-f]{4,}\*/ ", _cuobjdump(asm["cubin"], "-sass")))


def _cuobjdump(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def record(path: Path, chosen: Mapping[str, Iterable[Spec]]) -> None:
    """Compile the kernels chosen for each target and write their figures as JSON."""
    figures = {
        target: {str(spec): compile_spec(spec, target).figures() for spec in kernels}
        for target, kernels in chosen.items()
    }
    rows = [
        f' "{target}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in found.items())
        + "\n }"
        for target, found in figures.items()
    ]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and print a table; the exit status counts kernels that spill or fail, up to 255."""
    parser = argparse.ArgumentParser("python -m fastrnn_kernels.aot", description=__doc__)
    parser.add_argument("--target", choices=GPU_TARGETS, action="append", help="default: sm_90")
    parser.add_argument("--match", default="", help="only kernels whose name contains this")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write the figures of the recorded kernels"
    )
    chosen = parser.parse_args(arguments)
    if chosen.record:
        record(chosen.record, gate())
        return 0
    header = f"{'kernel':<46} {'warps':>5} {'smem':>7} {'regs':>4} {'spill':>5} {'instr.':>6}"
    header += f" {'seconds':>7}  blocks"
    bad = 0
    for target in chosen.target or ["sm_90"]:
        print(f"{target}, Triton {triton.__version__}\n{header}")
        for spec in specs():
            if chosen.match not in str(spec) or not fits(spec, target):
                continue
            try:
                report = compile_spec(spec, target)
            except Exception as error:
                bad += 1
                print(f"{spec!s:<46} {type(error).__name__}: {error}")
                continue
            bad += bool(report.spilled)
            blocks = ", ".join(f"{name} {size}" for name, size in report.blocks.items())
            print(
                f"{spec!s:<46} {report.config.num_warps:>5} {report.shared:>7} "
                f"{report.registers!s:>4} {report.spilled!s:>5} {report.instructions:>6} "
                f"{report.seconds:>7.2f}  {blocks}",
                flush=True,
            )
    return min(bad, 255)  # 256 would wrap round to success


if __name__ == "__main__":
    raise SystemExit(main())
