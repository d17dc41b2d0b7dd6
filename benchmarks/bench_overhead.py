"""What fastrnn costs beside the work: its import, the choice of a backend, and a tiny call."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import auto_cases, import_time, pairs, rounds
from fastrnn.bench_cases import request_for
from fastrnn.benchmark import Case
from fastrnn.dispatch import AUTO, decide, decide_anew

IMPORT_SECONDS = 0.05
"""What `import fastrnn` is to take at most, on top of `import torch`."""
CALL_US, CALL_SHARE = 5.0, 0.1
"""What a call is to take at most on top of torch.nn's: the larger of microseconds and a share."""
SECONDS = {"quick": 0.4, "full": 2.0}
"""For each comparison of calls."""
PROCESSES = {"quick": 5, "full": 15}

pytestmark = pytest.mark.benchmark(disable_gc=True)


class Elapsed:
    """A clock that stands still but for what it is told: another process has measured it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds, as of time.perf_counter."""
        return self.now


ELAPSED = Elapsed()


@pytest.mark.benchmark(group="import fastrnn, on top of torch", timer=ELAPSED)
def test_import(
    benchmark: Any, target: Callable[[str, bool], None], request: pytest.FixtureRequest
) -> None:
    """In processes of their own; the first may write bytecode, and is not counted."""
    seconds: list[float] = []

    def once() -> None:
        seconds.append(import_time.sample()[1])
        ELAPSED.now += seconds[-1]

    processes = PROCESSES[request.config.getoption("--grid")]
    benchmark.pedantic(once, rounds=processes, warmup_rounds=1)
    median = statistics.median(seconds[1:] or seconds)
    target(
        f"import fastrnn takes {1e3 * median:.0f} ms on top of torch, at most "
        f"{1e3 * IMPORT_SECONDS:.0f}",
        median <= IMPORT_SECONDS,
    )


@pytest.mark.parametrize("how", ["cached", "anew"])
@pytest.mark.benchmark(group="decide")
def test_decide(benchmark: Any, how: str) -> None:
    """Which backend runs a call: what every call does, and what the first of its kind does."""
    request = request_for(Case("lstm", "train", 20, 8, 64, 64, 1, False, "float32", "cpu"))
    if how == "cached":
        rounds.run(benchmark, lambda: decide(request))
    else:
        rounds.run(benchmark, lambda: decide_anew(request, AUTO, None))


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("cell", auto_cases.CELLS)
def test_tiny_call(
    benchmark: Any, target: Callable[[str, bool], None], request: pytest.FixtureRequest,
    cell: str, mode: str,
) -> None:  # fmt: skip
    """A layer at T = B = 1, H = 8, and in pairs how much longer it takes than torch.nn's."""
    theirs, ours, backend = auto_cases.pair(auto_cases.Case(cell, mode, "padded", 1, 1, 8))
    found = pairs.measure(theirs, ours, SECONDS[request.config.getoption("--grid")])
    difference = found.theirs_us * (found.ratio - 1)
    benchmark.group = f"tiny call, {cell} {mode}"
    benchmark.extra_info.update(
        backend=backend,
        torch_nn_us=found.theirs_us,
        difference_us=difference,
        difference_percent=100 * (found.ratio - 1),
        noise_percent=100 * found.noise,
    )
    target(
        f"a tiny call of {cell}, {mode}, takes {difference:+.1f} us ({found.ratio - 1:+.1%}, "
        f"noise {found.noise:.1%}) on top of torch.nn's {found.theirs_us:.1f} us, at most "
        f"{CALL_US:g} us or {CALL_SHARE:.0%}",
        difference <= max(CALL_US, CALL_SHARE * found.theirs_us),
    )
    rounds.run(benchmark, ours())
