"""Is `auto` ever slower than torch.nn on this CPU? A grid of shapes, in pairs, with its own noise.

    python -m benchmarks.auto_cpu --threads 1 --out benchmarks/results/cpu/FILE.json

Every round runs two layers of torch.nn and two of fastrnn, all with the same values in weights of
their own, in random order: whoever shares memory, or runs more often, finds more in the caches.
Figures are medians over rounds: `ratio` of the geometric means, `noise` of one torch.nn to the
other, which is how far a ratio can be off for no reason. A case that looks behind is measured
twice more with new layers, since where memory happens to lie counts for some per cent, and the
median of the three ratios stands. A case is behind if that is above 1.03 and its excess over 1
more than twice its noise.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import fastrnn
from fastrnn.bench import as_installed
from fastrnn.doctor import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRID: dict[str, Sequence[Any]] = {
    "cell": ("lstm", "rnn_tanh"),
    "mode": ("forward", "train"),
    "T": (1, 20, 100),
    "B": (1, 8, 32, 128),
    "H": (32, 128, 512),
}
BEHIND = 1.03
SAMPLE_SECONDS = 2e-3
"""Least length of a sample; shorter calls are repeated within one."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; exits with 1 if a case is behind."""
    parser = argparse.ArgumentParser(prog="auto_cpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.5, help="per case, at least 7 rounds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    with as_installed():
        for values in itertools.product(*GRID.values()):
            case = dict(zip(GRID, values, strict=True))
            row = {**case, **measure_again_if_behind(case, options.seconds)}
            rows.append(row)
            print(line(row), flush=True)
    behind = [row for row in rows if row["behind"]]
    print(summary(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "environment": environment(), "threads": options.threads, "rows": rows,
            "behind": len(behind),
        }  # fmt: skip
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(bool(behind))


def measure_again_if_behind(case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The first measurement, or the middle one of three where the first looks behind."""
    found = [measure(case, seconds)]
    while found[0]["behind"] and len(found) < 3:
        found.append(measure(case, seconds))
    middle = sorted(found, key=lambda row: row["ratio"])[len(found) // 2]
    return {**middle, "ratios": [row["ratio"] for row in found]}


def measure(case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Ratios of `auto` and of torch.nn itself to torch.nn, and which backend `auto` took."""
    torch.manual_seed(0)
    size, training = case["H"], case["mode"] == "train"
    theirs, ours = (nn.LSTM, fastrnn.LSTM) if case["cell"] == "lstm" else (nn.RNN, fastrnn.RNN)
    modules = [kind(size, size).train(training) for kind in (theirs, ours, theirs, ours)]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    x = torch.randn(case["T"], case["B"], size)
    with torch.set_grad_enabled(training):
        backend = fastrnn.explain(modules[1], x).backend
    calls = [call(module, x, training) for module in modules]
    for function in calls * 2:
        function()
    once = min(sample(calls[0], 1) for _ in range(3))
    count = max(1, math.ceil(SAMPLE_SECONDS / once))
    rounds = max(7, min(200, round(seconds / (4 * once * count))))
    ratios: list[tuple[float, float]] = []
    base = []
    order = random.Random(0)
    gc.collect()
    gc.disable()  # a collection would fall into somebody's sample
    for _ in range(rounds):
        times = [0.0] * 4
        for which in order.sample(range(4), 4):
            times[which] = sample(calls[which], count)
        base.append(times[0])
        ratio = math.sqrt(times[1] * times[3] / (times[0] * times[2]))
        ratios.append((ratio, times[2] / times[0]))
    gc.enable()
    ratio = statistics.median(r for r, _ in ratios)
    noise = abs(statistics.median(n for _, n in ratios) - 1)
    return {
        "backend": backend,
        "torch_nn_us": 1e6 * statistics.median(base),
        "ratio": ratio,
        "noise": noise,
        "rounds": rounds,
        "behind": ratio > BEHIND and ratio - 1 > 2 * noise,
    }


def call(module: nn.Module, x: torch.Tensor, training: bool) -> Callable[[], object]:
    """The forward pass without gradients, or forward and backward."""
    if not training:

        def forward() -> object:
            with torch.no_grad():
                return module(x)

        return forward
    leaves = list(module.parameters())
    upstream = torch.randn_like(module(x)[0])

    def train() -> object:
        return torch.autograd.grad(module(x)[0], leaves, upstream)

    return train


def sample(function: Callable[[], object], count: int) -> float:
    """Seconds per call."""
    begin = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - begin) / count


def line(row: dict[str, Any]) -> str:
    """One case for a person."""
    case = f"{row['cell']:9}{row['mode']:8} T={row['T']:<4} B={row['B']:<4} H={row['H']:<4}"
    figures = f"torch.nn {row['torch_nn_us']:10.1f} us  auto/torch.nn {row['ratio']:.3f}"
    mark = "  BEHIND" if row["behind"] else ""
    return f"{case} {figures} (noise {row['noise']:.3f}) {row['backend']}{mark}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric means, and how many cases are behind."""
    lines = []
    for cell, mode in itertools.product(GRID["cell"], GRID["mode"]):
        ratios = [row["ratio"] for row in rows if (row["cell"], row["mode"]) == (cell, mode)]
        mean = statistics.geometric_mean(ratios)
        lines.append(f"{cell} {mode}: {1 / mean:.2f}x torch.nn, worst ratio {max(ratios):.3f}")
    behind = sum(row["behind"] for row in rows)
    return "\n".join([*lines, f"{behind} of {len(rows)} cases are behind"])


if __name__ == "__main__":
    sys.exit(main())
