"""The product that a step has, of the rows that go on, and the form that it wants W_hh in."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn_numba.compiled import compiled
from fastrnn_numba.tile import (
    MANY,
    PANELS,
    ROWS,
    VECTORS,
    four_rows,
    many_rows,
    one_long_row,
    one_row,
    three_rows,
    two_long_rows,
    two_rows,
)
from fastrnn_numba.turned import turned_square
from fastrnn_numba.vectors import BYTES


@compiled
def _width(weight: Any) -> int:
    """Columns of a panel."""
    return int(VECTORS * (BYTES // weight.itemsize))


@compiled
def _new(weight: Any, columns: int, length: int) -> Any:
    """Panels of so many columns, each vector in a line of cache of its own."""
    width = _width(weight)
    number = -(-columns // width)
    raw = np.empty(number * length * width + BYTES // weight.itemsize, weight.dtype)
    begin = -raw.ctypes.data % BYTES // weight.itemsize
    return raw[begin : begin + number * length * width].reshape(number, length, width)


@compiled
def panels(weight: Any) -> Any:
    """(K, N) as (P, K, width): side by side columns that a product takes at once; 0 past N."""
    length, columns = weight.shape
    width = _width(weight)
    made = _new(weight, columns, length)
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
    made = _new(weight, columns, length)
    if columns % width:
        made[-1] = 0
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
    left = count % ROWS
    whole, most = count - left, count - count % MANY
    for first in range(0, len(by), PANELS):  # of which rows beyond whole tiles come to cached ones
        end = min(first + PANELS, len(by))
        for p in range(first, end):
            for i in range(0, most, MANY):
                many_rows(into, i, of, begin, order, k_begin, by, p)
            for i in range(most, whole, ROWS):
                four_rows(into, i, of, begin, order, k_begin, by, p)
        if left == 3:
            for p in range(first, end):
                three_rows(into, whole, of, begin, order, k_begin, by, p)
        elif left == 2:
            for p in range(first, end - 1, 2):
                two_long_rows(into, whole, of, begin, order, k_begin, by, p)
            if (end - first) % 2:
                two_rows(into, whole, of, begin, order, k_begin, by, end - 1)
        elif left == 1 and end - first == PANELS:
            one_long_row(into, whole, of, begin, order, k_begin, by, first)
        elif left == 1:
            for p in range(first, end):
                one_row(into, whole, of, begin, order, k_begin, by, p)
