"""How Numba compiles what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numba import njit

FAST: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
"""A product and a sum may be one instruction; nothing else of IEEE 754 is given up. Numbers are
divided without a look whether the divisor is 0."""


def _sources() -> tuple[tuple[str, int, int], ...]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    found = ((file.name, file.stat()) for file in files)
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


SOURCES = _sources()
"""What is kept on disk is of these files."""


def compiled(function: Any) -> Any:
    """Compile a function when it is first called, and keep that on disk, beside it if possible.

    It runs without the interpreter's lock, so that other threads go on.
    """
    try:
        made = njit(cache=True, nogil=True, **FAST)(function)
    except RuntimeError:  # there is nowhere that this user may write
        return njit(nogil=True, **FAST)(function)
    # Numba looks at a function's own file only, and would keep what it calls of others
    made._cache._cache_file._source_stamp = SOURCES
    return made
