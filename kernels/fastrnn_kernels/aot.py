"""Compile kernels for a GPU without one: ``python -m fastrnn_kernels.aot --target sm_90``.

Uses the planner's own configurations and the launcher's own compile-time arguments, so that what
compiles here is what a GPU would be given. A spill or a shared-memory overrun shows up here first.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.compiler import ASTSource

from . import table
from .aot_specs import DTYPES, GPU_TARGETS, Spec, fits, gate, specs
from .arguments import cell_of
from .configs import TARGET_LIMITS, Direction, LaunchConfig
from .plan import plan
from .sweep import KERNELS, constants

_TABLE_KERNELS: dict[Direction, Any] = {
    "forward": table.forward_from_table,
    "backward": table.backward_from_table,
}
_INSTRUCTION_BYTES = 16
"""Of each machine instruction, on every NVIDIA GPU from Volta on."""
_EXECUTABLE = 0x4
"""The flag of an ELF file's section that is code."""
_INT64 = ("reverse", "stride_t", "stride_b", "stride_g")
_INT32 = ("T", "B", "G", "t", "t_begin", "t_end", "done_begin", "done_end", "index")


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


def compile_spec(spec: Spec, target: str, *, debug: bool = False) -> Report:
    """Compile one kernel for one of `GPU_TARGETS`; ``debug`` as TRITON_DEBUG=1 would.

    Raises:
        ValueError: no configuration fits the target.
    """
    limits = TARGET_LIMITS[target]
    config = plan(spec.problem, limits, spec.regime).config
    cell = cell_of(spec.cell)
    compile_time = constants(
        cell,
        spec.H,
        DTYPES[spec.dtype],
        config,
        spec.direction,
        precision=spec.precision,
        chained=spec.layers > 1,
        marked=spec.marked,
        has_d_cells=spec.d_cells,
        clip=spec.clip,
        dropout=spec.noise,
        zoneout_h=spec.noise,
        zoneout_c=spec.noise and cell.has_cell_state,
    )
    compile_time["ALIGN"] = min(16, spec.H & -spec.H)
    if not spec.from_table:
        compile_time |= dict.fromkeys(_absent(compile_time, spec), None)
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
            elif name == "counters" or (name == "marks" and spec.marked):
                element = "i32"
            elif name in ("carry", "carry_h", "parts"):
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


def _absent(compile_time: Mapping[str, Any], spec: Spec) -> list[str]:
    """Optional tensors that such a kernel is launched without."""
    back = spec.direction == "backward"
    zoneout_h, zoneout_c = compile_time["ZONEOUT_H"], compile_time["ZONEOUT_C"]
    given = {
        "cell_weight": compile_time["Q"],
        "recurrent_mask": compile_time["DROPOUT"],
        "seen": compile_time["DROPOUT"] and spec.regime != "resident",
        "zoneout_h": zoneout_h,
        "zoneout_c": zoneout_c,
        "made": zoneout_c if back else compile_time["MADE"],
        "carry_h": zoneout_h,
    }
    own = KERNELS[spec.regime, spec.direction].arg_names
    return [name for name, is_given in given.items() if name in own and not is_given]


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
    text = _resource_usage(asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    local = re.search(r"LOCAL:(\d+)", text)
    if usage is None or local is None:
        return None, None
    return int(usage[1]), int(usage[2]) + int(local[1])


def _resource_usage(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _instructions(asm: dict[str, Any]) -> int:
    """Machine instructions, which a change that undoes an optimisation shows in."""
    if "cubin" not in asm:
        return len(re.findall(r"^\t[a-z]+_\w+", asm["amdgcn"], re.MULTILINE))
    return _executable_bytes(asm["cubin"]) // _INSTRUCTION_BYTES


def _executable_bytes(elf: bytes) -> int:
    """Size of a 64-bit ELF file's code; disassembling it, to count, takes as long as the rest."""
    (table_begin,) = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, entries = struct.unpack_from("<HH", elf, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQ", elf, table_begin + number * entry_bytes)
        for number in range(entries)
    ]
    return sum(size for _, _, flags, _, _, size in sections if flags & _EXECUTABLE)


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
