"""W_hh in memory as the product of a step reads it fastest, once for all steps.

A step has few rows, so what its product takes is for the most part how BLAS gets at the weights.
Forward it needs W_hh^T: turned over beforehand, it takes 1.1 to 2.4 times less. And rows that lie a
multiple of 2,048 bytes apart push one another out of the cache: with a few elements between them,
large layers gain up to 1.7 times both ways.

When a copy pays was measured with MKL on an x86 machine, by `benchmarks/rows_products.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastrnn_rows.steps import Steps

GAP = 16
"""Elements between two rows."""
STEPS = 16
"""Fewer do not pay for a copy."""
FEW = 4
"""Rows of a step from which W_hh^T is read faster if turned over."""
NEAR, NEAR_STEPS = 1.1e6, 64
"""Of a single row: bytes of float32 weights up to which it is, too, and steps that pay for it."""
LARGE, SEVERAL = 4.5e6, 8
"""Bytes of weights above which reading them is all that counts, unless a step has so many rows."""
WIDE = 1e7
"""Bytes of float64 weights above which it loses, however many rows a step has."""
ALIASED, FAR, MANY = 2048, 1.5e6, 32
"""Bytes between rows, or a multiple, at which caches have few places for them, and bytes of weights
and rows of a step above which that shows."""
STRIP, WHOLE = 64, 6e5
"""Columns that are turned over at a time, and bytes of weights up to which that gains nothing."""


def turns(gates: int, hidden: int, itemsize: int, steps: int, rows: float) -> bool:
    """Whether a copy of W_hh^T pays.

    Args:
        gates: K*H, rows of W_hh.
        hidden: H.
        itemsize: bytes of an element.
        steps: that read it.
        rows: of a step, on average.
    """
    size = gates * hidden * itemsize
    if rows < 2:
        return itemsize == 4 and steps >= NEAR_STEPS and size <= NEAR
    if itemsize > 4 and size > WIDE:
        return False
    return steps >= STEPS and rows >= (SEVERAL if size > LARGE else FEW)


def spreads(gates: int, hidden: int, itemsize: int, steps: int, rows: float) -> bool:
    """Whether a copy of W_hh with gaps between its rows pays; arguments as of `turns`."""
    aliased = hidden * itemsize % ALIASED == 0 and gates * hidden * itemsize > FAR
    return aliased and steps >= STEPS and rows >= MANY


def forward(weight_hh: Tensor, steps: Steps) -> Tensor:
    """W_hh^T, (H, K*H), of W_hh (K*H, H); a copy where that pays."""
    size = (*weight_hh.shape, weight_hh.itemsize, len(steps.sizes), steps.rows_a_step)
    return turned(weight_hh) if turns(*size) else weight_hh.mT


def backward(weight_hh: Tensor, steps: Steps) -> Tensor:
    """W_hh, (K*H, H); a copy where that pays."""
    size = (*weight_hh.shape, weight_hh.itemsize, len(steps.sizes), steps.rows_a_step)
    return spread(weight_hh) if spreads(*size) else weight_hh


def turned(weight_hh: Tensor) -> Tensor:
    """A copy of W_hh^T, (H, K*H), with gaps between its rows."""
    room = _with_gaps(weight_hh.mT)
    if weight_hh.nbytes <= WHOLE:
        return room.copy_(weight_hh.mT)
    for begin in range(0, len(weight_hh), STRIP):
        room[:, begin : begin + STRIP].copy_(weight_hh[begin : begin + STRIP].mT)
    return room


def spread(weight_hh: Tensor) -> Tensor:
    """A copy of W_hh, (K*H, H), with gaps between its rows."""
    return _with_gaps(weight_hh).copy_(weight_hh)


def _with_gaps(like: Tensor) -> Tensor:
    rows, columns = like.shape
    return like.new_empty(rows, columns + GAP)[:, :columns]
