"""How much longer one implementation takes than another, from samples taken in turn.

The noise is measured beside it: how far the baseline is from itself.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

Call = Callable[[], object]

SAMPLE_SECONDS = 2e-3
"""Least length of a sample; shorter calls are repeated within one."""
LONG_SECONDS = 0.2
"""A call above this is measured in three rounds or more, not in seven or more."""
ENDLESS_SECONDS = 1.0
"""A call above this is measured in a single round."""
DECIDED = 0.5
"""Of an endless call of the baseline, what ours is below where no round could say otherwise."""


class Found(NamedTuple):
    """What was measured."""

    theirs_us: float
    """Microseconds of a call of the baseline, the median over rounds."""
    ratio: float
    """Our time over theirs, the median over rounds."""
    noise: float
    """How far a ratio can be off for no reason: of one call to another alike, less 1."""
    rounds: int


def measure(
    theirs: Callable[[], Call], ours: Callable[[], Call], seconds: float,
    compare: Callable[[Any, Any], None] = lambda want, got: None,
) -> Found:  # fmt: skip
    """Time two implementations against each other.

    Short calls: each round runs two modules of either kind, in random order: whoever shares memory,
    or runs more often, finds more in the caches. Calls above `LONG_SECONDS`: theirs, ours twice,
    theirs again, of another module: what drifts evenly hits both alike. Above `ENDLESS_SECONDS`
    the same once, with one module of theirs. The first call of either counts for none: what it
    finds nowhere yet, memory and compiled code, those after it find. But where an endless call of
    theirs takes far longer than ours (`DECIDED`), its first is its only one and counts, and the
    noise is that of ours.

    Args:
        theirs: makes a module of the baseline and returns the call that is timed.
        ours: the same of what is compared with it.
        seconds: to spend, about; short calls take seven rounds at least and 200 at most, long ones
            three at least.
        compare: takes what the first call of either returned, and raises if ours is wrong.
    """
    base, other = theirs(), ours()
    first, want = timed(base)
    second, got = timed(other)
    compare(want, got)
    del want, got  # as large as a call's memory
    if first > ENDLESS_SECONDS and second < DECIDED * first:
        one, two = in_order([other, other])
        return Found(1e6 * first, math.sqrt(one * two) / first, abs(two / one - 1), 1)
    if first > ENDLESS_SECONDS:
        return evaluate([in_order([base, other, other, base])])
    if first > LONG_SECONDS:
        turns = [base, other, other, theirs()]
        turns[-1]()
        rounds = max(3, round(seconds / (4 * first)))
        with no_collection():
            return evaluate([in_order(turns) for _ in range(rounds)])
    turns = [base, other, ours(), theirs()]
    for call in turns * 2:
        call()
    once = min(sample(base, 1) for _ in range(3))
    count = max(1, math.ceil(SAMPLE_SECONDS / once))
    rounds = max(7, min(200, round(seconds / (4 * once * count))))
    order = random.Random(0)
    with no_collection():
        return evaluate([in_turn(turns, order, count) for _ in range(rounds)])


def in_order(turns: list[Call]) -> list[float]:
    """Seconds of a call of each, one after the other."""
    gc.collect()  # what a long call leaves behind is large
    return [sample(call, 1) for call in turns]


def in_turn(turns: list[Call], order: random.Random, count: int) -> list[float]:
    """Seconds per call of each, in random order."""
    times = [0.0] * len(turns)
    for which in order.sample(range(len(turns)), len(turns)):
        times[which] = sample(turns[which], count)
    return times


def evaluate(rounds: list[list[float]]) -> Found:
    """Medians over rounds, each the seconds of theirs, ours, ours and theirs."""
    ratio = statistics.median(math.sqrt(b * c / (a * d)) for a, b, c, d in rounds)
    noise = abs(statistics.median(d / a for a, _, _, d in rounds) - 1)
    return Found(1e6 * statistics.median(times[0] for times in rounds), ratio, noise, len(rounds))


@contextmanager
def no_collection() -> Iterator[None]:
    """Within it no garbage is collected, which would fall into somebody's sample."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def timed(call: Call) -> tuple[float, object]:
    """Seconds of a call, and what it returned."""
    begin = time.perf_counter()
    made = call()
    return time.perf_counter() - begin, made


def sample(call: Call, count: int) -> float:
    """Seconds per call."""
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count
