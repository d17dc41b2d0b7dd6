"""How long `import fastrnn` takes on top of `import torch`.

    python -m benchmarks.import_time --repeats 15

Each sample is a process of its own that imports torch, then fastrnn, and times both; the first is
not counted, since it writes or reads bytecode that the others find. At most 50 ms of torch's own is
what fastrnn promises; on a disk that is cold, or without bytecode, it is more.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence

SCRIPT = """
import time
begin = time.perf_counter()
import torch
between = time.perf_counter()
import fastrnn
print(between - begin, time.perf_counter() - between)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print medians and the 20th and 80th percentile, in milliseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="5 or more")
    samples = measure(parser.parse_args(arguments).repeats)
    for name, times in zip(("torch", "fastrnn after it"), zip(*samples, strict=True), strict=True):
        tenths = statistics.quantiles(times, n=10, method="inclusive")
        low, middle, high = (1e3 * tenths[index] for index in (1, 4, 7))
        print(f"{name:16} {middle:8.1f} ms  ({low:.1f}..{high:.1f})")
    return 0


def measure(repeats: int) -> list[tuple[float, float]]:
    """Seconds that torch takes and that fastrnn takes after it, of each of several processes."""
    return [sample() for _ in range(repeats + 1)][1:]


def sample() -> tuple[float, float]:
    """Those of one process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    torch, fastrnn = map(float, done.stdout.split())
    return torch, fastrnn


if __name__ == "__main__":
    raise SystemExit(main())
