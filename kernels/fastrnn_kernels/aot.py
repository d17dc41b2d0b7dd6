"""Compile kernels for a GPU without one: ``python -m fastrnn_kernels.aot --target sm_90``.

Uses the heuristic's own configurations and the launcher's own compile-time arguments, so that what
compiles here is what a GPU would be given. A spill or a shared-memory overrun shows up here first.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import table
from .cells import CELLS
from .configs import TARGET_LIMITS, Direction, LaunchConfig, Problem, heuristic
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
_INT32 = ("T", "B", "G", "t_begin", "t_end", "index")


@dataclass(frozen=True)
class Spec:
    """One kernel to compile: what `launch.py` would ask for, given these sizes.

    Attributes:
        cell: name in `CELLS`.
        direction: "forward" or "backward".
        dtype: key of `DTYPES`.
        H: hidden units.
        B: batch, which decides the configuration.
        precision: of float32 products.
        from_table: the variant for CUDA graphs.
    """

    cell: str
    direction: Direction
    dtype: str
    H: int
    B: int = 16
    precision: str = "ieee"
    from_table: bool = False

    def __str__(self) -> str:
        """As a test id: ``lstm-forward-bf16-H512-B16``."""
        parts = [self.cell, self.direction, self.dtype, f"H{self.H}", f"B{self.B}"]
        parts += [self.precision] if self.dtype == "fp32" else []
        return "-".join([*parts, *(["table"] if self.from_table else [])])

    @property
    def problem(self) -> Problem:
        """The sizes that a configuration depends on."""
        dtype = DTYPES[self.dtype]
        cell = CELLS[self.cell]
        return problem_of(cell, self.direction, self.H, self.B, 1, dtype, self.precision)


@dataclass(frozen=True)
class Report:
    """What the compiler made of a `Spec`.

    Attributes:
        config: the heuristic's choice.
        shared: bytes of shared memory of a program.
        registers: of a thread; None where the target's tools do not say.
        spilled: bytes of a thread that went to local memory; None likewise.
        seconds: compile time; near zero if Triton's cache had it.
        asm: PTX or AMDGCN text.
    """

    config: LaunchConfig
    shared: int
    registers: int | None
    spilled: int | None
    seconds: float
    asm: str


def specs(
    dtypes: Sequence[str] = ("bf16", "fp16", "fp32"),
    sizes: Sequence[int] = (70, 128, 512, 1024),
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


def compile_spec(spec: Spec, target: str) -> Report:
    """Compile one kernel for one of `GPU_TARGETS`.

    Raises:
        ValueError: no configuration fits the target.
    """
    config = heuristic(spec.problem, TARGET_LIMITS[target])
    compile_time = constants(
        CELLS[spec.cell],
        spec.H,
        DTYPES[spec.dtype],
        config,
        spec.direction,
        precision=spec.precision,
    )
    compile_time["ALIGN"] = min(16, spec.H & -spec.H)
    if spec.from_table:
        kernel = _TABLE_KERNELS[spec.direction]
        compile_time["DTYPE"] = getattr(triton.language, _TRITON_NAMES[spec.dtype])
    else:
        kernel = KERNELS[spec.direction]
        compile_time["SINGLE_STEP"] = True

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
            elif name == "carry":
                element = "fp64" if spec.dtype == "fp64" else "fp32"
            signature[name] = f"*{element}"
            # Triton passes this on for every pointer that is a multiple of 16 bytes.
            aligned[(position,)] = [["tt.divisibility", 16]]

    began = time.perf_counter()
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=compile_time, attrs=aligned),
        target=GPU_TARGETS[target],
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    seconds = time.perf_counter() - began
    registers, spilled = _resources(compiled.asm)
    text = compiled.asm["ptx" if "ptx" in compiled.asm else "amdgcn"]
    return Report(config, compiled.metadata.shared, registers, spilled, seconds, text)


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
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    local = re.search(r"LOCAL:(\d+)", text)
    if usage is None or local is None:
        return None, None
    return int(usage[1]), int(usage[2]) + int(local[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and print a table; the exit status counts kernels that spill or fail, up to 255."""
    parser = argparse.ArgumentParser("python -m fastrnn_kernels.aot", description=__doc__)
    parser.add_argument("--target", choices=GPU_TARGETS, action="append", help="default: sm_90")
    parser.add_argument("--match", default="", help="only kernels whose name contains this")
    chosen = parser.parse_args(arguments)
    header = f"{'kernel':<46} {'b':>3} {'h':>3} {'k':>3} {'warps':>5} {'stages':>6}"
    header += f" {'smem':>7} {'regs':>4} {'spill':>5} {'seconds':>7}"
    bad = 0
    for target in chosen.target or ["sm_90"]:
        print(f"{target}, Triton {triton.__version__}\n{header}")
        for spec in specs():
            if chosen.match not in str(spec):
                continue
            try:
                report = compile_spec(spec, target)
            except Exception as error:
                bad += 1
                print(f"{spec!s:<46} {type(error).__name__}: {error}")
                continue
            bad += bool(report.spilled)
            c = report.config
            print(
                f"{spec!s:<46} {c.block_b:>3} {c.block_h:>3} {c.block_k:>3} {c.num_warps:>5} "
                f"{c.num_stages:>6} {report.shared:>7} {report.registers!s:>4} "
                f"{report.spilled!s:>5} {report.seconds:>7.2f}",
                flush=True,
            )
    return min(bad, 255)  # 256 would wrap round to success


if __name__ == "__main__":
    raise SystemExit(main())
