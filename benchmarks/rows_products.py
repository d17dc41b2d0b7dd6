"""What the product of a step takes by how W_hh lies in memory: the reasons for `rows`' copies.

    python -m benchmarks.rows_products --threads 1

Microseconds, the best of several rounds: forward as torch.nn's parameter lies, turned over, and
turned over with a gap between its rows; backward as it lies and with a gap; and how many steps pay
for the forward copy, `-` if none do. `fastrnn_rows.laid_out` says which of them it makes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn.tables import table
from fastrnn_rows import laid_out

GATES, SIZES, BATCHES = (1, 3, 4), (64, 256, 512, 1024), (1, 2, 4, 8, 32, 128)
ROUND_SECONDS, ROUNDS = 0.02, 5


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="rows_products")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.dtype}, microseconds")
    header = ["K", "H", "B", "as it is", "turned", "with gaps", "pays after", "copied from",
              "backward", "with gaps", "copied"]  # fmt: skip
    print(table(header, rows(getattr(torch, options.dtype)), "r" * len(header)))
    return 0


def rows(dtype: torch.dtype) -> list[list[str]]:
    """A row for each size."""
    return [
        row(gates, hidden, batch, dtype)
        for gates, hidden, batch in itertools.product(GATES, SIZES, BATCHES)
    ]


def row(gates: int, hidden: int, batch: int, dtype: torch.dtype) -> list[str]:
    """What is measured of W_hh (gates * hidden, hidden) and a step of `batch` rows."""
    weight = torch.randn(gates * hidden, hidden, dtype=dtype) / hidden**0.5
    h, a = (torch.randn(batch, width * hidden, dtype=dtype) for width in (1, gates))
    forward = [weight.mT, weight.mT.contiguous(), laid_out.turned(weight)]
    backward = [weight, laid_out.spread(weight)]
    calls: list[Callable[[], Tensor]] = [lambda w=w: torch.mm(h, w) for w in forward]  # type: ignore[misc]
    calls += [lambda w=w: torch.mm(a, w) for w in backward]  # type: ignore[misc]
    as_is, turned, gaps, back, back_gaps, copy = best([*calls, lambda: laid_out.turned(weight)])
    size = (gates * hidden, hidden, dtype.itemsize)
    first = next((T for T in range(1, 1000) if laid_out.turns(*size, T, batch)), None)
    spreads = laid_out.spreads(*size, 1000, batch)
    return [
        *(f"{value}" for value in (gates, hidden, batch)),
        *(f"{value:.1f}" for value in (as_is, turned, gaps)),
        f"{copy / (as_is - gaps):.0f}" if as_is > 1.02 * gaps else "-",
        "-" if first is None else str(first),
        f"{back:.1f}",
        f"{back_gaps:.1f}",
        "yes" if spreads else "-",
    ]


def best(calls: list[Callable[[], Tensor]]) -> list[float]:
    """Microseconds of each call, in turns."""
    counts = []
    for call in calls:
        seconds(call, 1)
        counts.append(max(3, int(ROUND_SECONDS / seconds(call, 1))))
    found = [
        [seconds(call, count) / count for call, count in zip(calls, counts, strict=True)]
        for _ in range(ROUNDS)
    ]
    return [1e6 * min(each) for each in zip(*found, strict=True)]


def seconds(call: Callable[[], Tensor], count: int) -> float:
    """Of so many calls."""
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
