"""How much memory a call takes, beside its input and the weights; its results are part of it."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """The most bytes that torch holds at a time while a call runs, less those from before.

    Of a GPU by torch's own counter; of a CPU, which has none, added up from what its profiler
    notes of every allocation. Memory that a library allocates past torch is not seen.

    Args:
        call: is run once.
        device: where it runs.

    Returns:
        None where torch was built without its profiler.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not torch.profiler.kineto_available():
        return None
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    )
    with _silence():
        profile.start()
    try:
        call()
    finally:
        with _silence():
            profile.stop()
    recorded: Any = profile.profiler  # its stubs lack what an event of memory has
    found = recorded.kineto_results.events()
    # stable: what happens within a nanosecond stays in the order in which it happened
    changes = sorted(
        ((each.start_ns(), each.nbytes()) for each in found if each.name() == "[memory]"),
        key=lambda change: change[0],
    )
    sizes: list[int] = [size for _, size in changes]
    return max(itertools.accumulate(sizes, initial=0))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on stderr: the profiler writes there that it starts and stops, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
