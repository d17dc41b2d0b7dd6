"""Parts of a loop side by side, in the threads that torch's own products run in.

Those wait for the next product by spinning, for milliseconds: beside them, threads of our own would
gain little on as many cores. torch's are OpenMP's, which is asked for a team of them by the entry
point that compilers call, `GOMP_parallel`, which LLVM's and Intel's library have as GNU's has it.
Where torch has none of these, or is of the process that this one was forked from, in which OpenMP
would wait for threads that are gone, Python's threads take their place.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastrnn_numba.process import STARTED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(loop: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
    """Call `loop` with each of these arguments, as many of them at a time as there are."""
    if len(calls) == 1:
        loop(*calls[0])
        return
    parallel = _openmp() if os.getpid() == STARTED else None
    if parallel is None:
        others = [_pool(os.getpid()).submit(loop, *arguments) for arguments in calls[1:]]
        loop(*calls[0])
        for other in others:
            other.result()
        return
    left, failed = list(calls), []

    def work(_: object) -> None:
        # a team may be smaller than asked for: whoever is done takes what is left
        while True:
            try:
                arguments = left.pop()
            except IndexError:
                return
            try:
                loop(*arguments)
            except BaseException as error:
                failed.append(error)  # raised below, in the thread that called

    parallel(_Body(work), None, len(calls), 0)
    if failed:
        raise failed[0]


@cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel(body, data, threads, flags)` of the OpenMP that torch runs on, if it does."""
    try:
        # found in what the library is linked with
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return found


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; one that was forked has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), "fastrnn-numba")
