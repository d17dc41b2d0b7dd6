"""What `lengths=` and `resets=` cost beside the same call without them, on a CPU.

    python -m benchmarks.marks_cost --threads 1 --out FILE.json

A layer of fastrnn with the backend left to `auto` is compared with itself, in turn (`pairs`):
without marks, with all lengths T, with lengths spread evenly from T to 1, with no row ever reset,
and with resets at random, on average every 100 and every 10 steps of a row. Ratios of the marked
call's time to the plain one's: what is asked is at most 1.10 for lengths and 1.05 for resets. No
figure where the marked call's results differ from the reference backend's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks import auto_cases, pairs
from benchmarks.auto_cpu import positive
from fastrnn import bench_cases, benchmark
from fastrnn.bench import as_installed
from fastrnn.dispatch import AUTO
from fastrnn.doctor import environment
from fastrnn.tables import table

CELLS = ("lstm", "gru", "rnn_tanh")
MODES = ("forward", "train")
SHAPES = tuple(itertools.product((20, 128), (1, 8, 64), (32, 128, 512)))
"""T, B and H."""
MARKS = ("lengths of T", "lengths to T", "no resets", "resets / 100", "resets / 10")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="marks_cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.1, help="per figure, about (see pairs)")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--cell", choices=CELLS, action="append", help="more than once for more")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--mark", choices=MARKS, action="append")
    parser.add_argument("--backend", default=AUTO, help="of the marked calls")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = itertools.product(options.cell or CELLS, options.mode or MODES, SHAPES)
    marks, found = options.mark or MARKS, []
    with as_installed():
        for cell, mode, (T, B, H) in cases:
            case = benchmark.Case(cell, mode, T, B, H, H, 1, False, "float32", "cpu")
            row = {"cell": cell, "mode": mode, "T": T, "B": B, "H": H}
            row |= {mark: measure(case, mark, options) for mark in marks}
            found.append(row)
            print(f"{len(found)}: {cell} {mode} T={T} B={B} H={H}", file=sys.stderr)
    header = ["cell", "mode", "T", "B", "H", *marks]
    print(table(header, [line(row, marks) for row in found], "ll" + "r" * (len(header) - 2)))
    if options.out:
        content = {"environment": environment(), "rows": found}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def line(row: dict[str, Any], marks: Sequence[str]) -> list[str]:
    """A row of the table."""
    sizes = [str(row[name]) for name in ("cell", "mode", "T", "B", "H")]
    return sizes + [f"{row[mark]['ratio']:.2f} {row[mark]['backend']}" for mark in marks]


def measure(case: benchmark.Case, mark: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ratio, its noise and who ran the marked call, and who the plain one."""
    torch.manual_seed(0)
    marks, x = marks_of(case, mark), torch.randn(case.T, case.B, case.I)
    none: dict[str, Any] = {}
    ways = ((AUTO, none), (options.backend, marks))
    with torch.set_grad_enabled(case.mode == "train"):
        backends = [fastrnn.explain(bench_cases.layer(case, b), x, **m).backend for b, m in ways]
    plain, marked = (partial(call, case, x, *way) for way in ways)
    sizes = auto_cases.Case(case.cell, case.mode, "padded", case.T, case.B, case.H)
    auto_cases.assert_agree(sizes, call(case, x, "reference", marks)(), marked()())
    found = pairs.measure(plain, marked, options.seconds)
    return {
        "ratio": found.ratio, "noise": found.noise, "plain_us": found.theirs_us,
        "backend": backends[1], "plain_backend": backends[0],
    }  # fmt: skip


def marks_of(case: benchmark.Case, mark: str) -> dict[str, Any]:
    """The arguments, made before time is taken."""
    kind, _, density = mark.partition(" / ")
    if kind == "lengths of T":
        return {"lengths": torch.full((case.B,), case.T)}
    if kind == "lengths to T":
        return {"lengths": torch.linspace(case.T, 1, case.B).round().long()}
    share = 1 / int(density) if density else 0.0
    return {"resets": torch.rand(case.T, case.B) < share}


def call(
    case: benchmark.Case, x: Tensor, backend: str, marks: dict[str, Any]
) -> Callable[[], object]:
    """A call of a layer of its own: forward without gradients, or forward and backward."""
    torch.manual_seed(1)
    layer: nn.Module = bench_cases.layer(case, backend)
    leaves = list(layer.parameters())

    def forward() -> object:
        with torch.no_grad():
            return layer(x, **marks)

    def train() -> object:
        output, _ = layer(x, **marks)
        return torch.autograd.grad(output.sum(), leaves)

    return train if case.mode == "train" else forward


if __name__ == "__main__":
    sys.exit(main())
