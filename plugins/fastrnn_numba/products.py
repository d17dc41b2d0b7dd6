"""The product that a step has, of the rows that go on, and the form that it wants W_hh in."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn_numba.compiled import compiled
from fastrnn_numba.tile import PANELS, ROWS, VECTORS, four_rows, one_long_row, one_row
from fastrnn_numba.turned import turned_square
from fastrnn_numba.vectors import BYTES


@compiled
def _width(weight: Any) -> int:
    """Columns of a panel."""
    return int(VECTORS * (BYTES // weight.itemsize))


@compiled
def panels(weight: Any) -> Any:
    """(K, N) as (P, K, width): side by side columns that a product takes at once; 0 past N."""
    length, columns = weight.shape
    width = _width(weight)
    made = np.empty((-(-columns // width), length, width), weight.dtype)
    for p in range(len(made)):
        for k in range(length):
            if (p + 1) * width <= columns:
                for n in range(width):
                    made[p, k, n] = weight[k, p * width + n]
            else:
                for n in range(width):
                    made[p, k, n] = weight[k, p * width + n] if p * width + n < columns else 0
    return made


@compiled
def panels_turned(weight: Any) -> Any:
    """The same of W^T, of (N, K)."""
    columns, length = weight.shape
    width, side = _width(weight), BYTES // weight.itemsize
    made = np.zeros((-(-columns // width), length, width), weight.dtype)
    for first in range(0, columns, side):
        p, at = first // width, first % width
        own, whole = min(side, columns - first), 0
        if own == side:
            whole = length - length % side
            for k in range(0, whole, side):
                turned_square(made, p, k, at, weight, first)
        for n in range(own):
            for k in range(whole, length):
                made[p, k, at + n] = weight[first + n, k]
    return made


@compiled
def product(into: Any, of: Any, begin: int, order: Any, count: int, k_begin: int, by: Any) -> None:
    """into(i) = of(begin + order(i), k_begin to k_begin + K) W, of the first `count` rows.

    Args:
        into: (R, N), N that of all panels.
        of: (_, _)
        begin: the place of the step's first row.
        order: (R,), its rows.
        count: how many of them.
        k_begin: column of `of`.
        by: W, (K, N), as `panels`.
    """
    width, whole = by.shape[2], count - count % ROWS
    for p in range(len(by)):
        for i in range(0, whole, ROWS):
            four_rows(
                into, i, p * width, of, begin + order[i], begin + order[i + 1],
                begin + order[i + 2], begin + order[i + 3], k_begin, by, p,
            )  # fmt: skip
    several = len(by) - len(by) % PANELS
    for i in range(whole, count):
        b = begin + order[i]
        for p in range(0, several, PANELS):
            one_long_row(into, i, p * width, of, b, b, b, b, k_begin, by, p)
        for p in range(several, len(by)):
            one_row(into, i, p * width, of, b, b, b, b, k_begin, by, p)
