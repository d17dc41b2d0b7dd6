"""Elman steps: h(t) = f(a(t)), a(t) = gates_x(t) + W_hh h(t-1).

Elman, "Finding structure in time", 1990. Backwards dL/da(t) = f'(a(t)) dL/dh(t), where dL/dh(t) is
dL/doutput(t) + W_hh^T dL/da(t+1), and f' is a function of h(t).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn_numba.along import add, copy, start_over, started
from fastrnn_numba.compiled import compiled
from fastrnn_numba.points import sigmoid, tanh
from fastrnn_numba.products import product

TANH, RELU, SIGMOID = 0, 1, 2


@compiled
def _step(activation: int, gates_x: Any, place: int, a: Any, i: int, h: Any, b: int) -> None:
    """h(b) = f(gates_x(place) + a(i)); a is W_hh h(t-1)."""
    if activation == TANH:
        for j in range(h.shape[1]):
            h[b, j] = tanh(gates_x[place, j] + a[i, j])
    elif activation == RELU:
        zero = h.dtype.type(0)
        for j in range(h.shape[1]):
            both = gates_x[place, j] + a[i, j]
            h[b, j] = zero if both < zero else both  # NaN stays
    else:
        for j in range(h.shape[1]):
            h[b, j] = sigmoid(gates_x[place, j] + a[i, j])


@compiled
def _step_back(activation: int, d_h: Any, b: int, h: Any, d_a: Any, place: int) -> None:
    """d_a(place) = f'(a) d_h(b), where h(place) = f(a)."""
    if activation == TANH:
        for j in range(d_h.shape[1]):
            d_a[place, j] = d_h[b, j] - d_h[b, j] * h[place, j] * h[place, j]
    elif activation == RELU:
        zero = h.dtype.type(0)
        for j in range(d_h.shape[1]):
            d_a[place, j] = zero if h[place, j] <= zero else d_h[b, j]
    else:
        for j in range(d_h.shape[1]):
            d_a[place, j] = d_h[b, j] * (h[place, j] - h[place, j] * h[place, j])


@compiled
def forward(
    activation: int, gates_x: Any, by: Any, h: Any, h0: Any, offsets: Any, order: Any, counts: Any,
    resets: Any, reverse: bool, output: Any,
) -> None:  # fmt: skip
    """All steps of some rows.

    Args:
        activation: one of the three above.
        gates_x: (N, H), W_ih x + b.
        by: `panels_turned` of W_hh.
        h: (B, H), h0; written over with the last of each row.
        h0: (B, H), what rows start over from.
        offsets: these four are of `Steps`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: whether time runs backwards.
        output: (N, H), written.
    """
    steps = len(counts)
    products = np.empty((len(order), by.shape[0] * by.shape[2]), h.dtype)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        begin, count = offsets[t], counts[t]
        if len(resets) > 0:
            start_over(h, h0, order[:count], resets, t)
        product(products, h, 0, order, count, 0, by)
        for i in range(count):
            b = order[i]
            _step(activation, gates_x, begin + b, products, i, h, b)
            copy(output, begin + b, h, b)


@compiled
def backward(
    activation: int, d_output: Any, output: Any, by: Any, d_h: Any, d_h0: Any, offsets: Any,
    order: Any, counts: Any, resets: Any, reverse: bool, d_gates: Any,
) -> None:  # fmt: skip
    """All steps of some rows, from the last to the first.

    Args:
        activation: as in `forward`.
        d_output: (N, H)
        output: (N, H)
        by: `panels` of W_hh.
        d_h: (B, H), the gradients of the last states; written over with what reaches h0 through
            the first steps.
        d_h0: (B, H), to which is added what reaches h0 where rows start over.
        offsets: these five as in `forward`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: likewise.
        d_gates: (N, H), written.
    """
    steps = len(counts)
    products = np.empty((len(order), by.shape[0] * by.shape[2]), d_h.dtype)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        begin, count = offsets[t], counts[t]
        for b in order[:count]:
            add(d_h, b, d_output, begin + b)
            _step_back(activation, d_h, b, output, d_gates, begin + b)
        product(products, d_gates, begin, order, count, 0, by)
        for i in range(count):
            copy(d_h, order[i], products, i)
        if len(resets) > 0:
            started(d_h, d_h0, order[:count], resets, t)
