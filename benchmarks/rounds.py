"""How the suite times a call: in a fixed number of rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 15
WARM_UP = 2
SAMPLE_SECONDS = 2e-3
"""Least length of a round; shorter calls are repeated within one."""


def run(benchmark: Any, call: Callable[[], object], device: str = "cpu") -> None:
    """Time a call; on a GPU, each ends when its work is done, so that launches count.

    Args:
        benchmark: pytest-benchmark's fixture.
        call: what is timed.
        device: where it runs.
    """

    def waiting() -> None:
        call()
        torch.cuda.synchronize()

    function = waiting if torch.device(device).type == "cuda" else call
    function()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    count = max(1, math.ceil(SAMPLE_SECONDS / max(min(times), 1e-7)))
    benchmark.pedantic(function, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=count)
