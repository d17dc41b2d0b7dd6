"""How Numba compiles what is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import njit
from numba.extending import overload, register_jitable

if TYPE_CHECKING:
    from collections.abc import Callable

FAST: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
"""A product and a sum may be one instruction; nothing else of IEEE 754 is given up. Numbers are
divided without a look whether the divisor is 0."""


def compiled(function: Any) -> Any:
    """Compile a function when it is first called, and keep that beside it, on disk.

    It runs without the interpreter's lock, so that other threads go on.
    """
    return njit(cache=True, nogil=True, **FAST)(function)


def part(function: Any) -> Any:
    """Compile a function with those that call it."""
    return register_jitable(**FAST)(function)


def chosen_by_types(function: Any) -> Callable[[Any], Any]:
    """Of what chooses, by the types of its arguments, what `function` is compiled as."""
    found: Callable[[Any], Any] = overload(function, jit_options=FAST)
    return found
