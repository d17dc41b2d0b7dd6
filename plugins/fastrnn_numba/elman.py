"""Elman steps: h(t) = f(a(t)), a(t) = gates_x(t) + W_hh h(t-1).

Elman, "Finding structure in time", 1990. Backwards dL/da(t) = f'(a(t)) dL/dh(t), where dL/dh(t) is
dL/doutput(t) + W_hh^T dL/da(t+1), and f' is a function of h(t).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn_numba.along import copy, start_over, started
from fastrnn_numba.compiled import compiled
from fastrnn_numba.points import sigmoid, tanh
from fastrnn_numba.products import product
from fastrnn_numba.vectors import over_units

if TYPE_CHECKING:
    from fastrnn_numba.vectors import Row

TANH, RELU, SIGMOID = 0, 1, 2


@over_units
def _tanh(inputs: Row, bias: Row, a: Row, h: Row, output: Row) -> None:
    h[0] = output[0] = tanh(inputs[0] + bias[0] + a[0])


@over_units
def _relu(inputs: Row, bias: Row, a: Row, h: Row, output: Row) -> None:
    both = inputs[0] + bias[0] + a[0]
    h[0] = output[0] = both.same(0).where(both.is_at_most(0), both)  # NaN stays


@over_units
def _sigmoid(inputs: Row, bias: Row, a: Row, h: Row, output: Row) -> None:
    h[0] = output[0] = sigmoid(inputs[0] + bias[0] + a[0])


@over_units
def _tanh_back(d_output: Row, d_h: Row, h: Row, d_a: Row) -> None:
    of_h = d_h[0] + d_output[0]
    d_a[0] = of_h - of_h * h[0] * h[0]


@over_units
def _relu_back(d_output: Row, d_h: Row, h: Row, d_a: Row) -> None:
    of_h = d_h[0] + d_output[0]
    d_a[0] = of_h.same(0).where(h[0].is_at_most(0), of_h)


@over_units
def _sigmoid_back(d_output: Row, d_h: Row, h: Row, d_a: Row) -> None:
    d_a[0] = (d_h[0] + d_output[0]) * (h[0] - h[0] * h[0])


@compiled
def forward(
    activation: int, inputs: Any, by_x: Any, bias: Any, by: Any, h: Any, h0: Any, offsets: Any,
    order: Any, counts: Any, resets: Any, reverse: bool, output: Any,
) -> None:  # fmt: skip
    """All steps of some rows.

    Args:
        activation: one of the three above.
        inputs: (N, I), x; or (N, H), W_ih x.
        by_x: `panels_turned` of W_ih; or none.
        bias: (1, H), added to either.
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
    steps, hidden = len(counts), h.shape[1]
    products = np.empty((len(order), by.shape[0] * by.shape[2]), h.dtype)
    of_x = np.empty((len(order), by_x.shape[0] * by_x.shape[2]), h.dtype)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        begin, count = offsets[t], counts[t]
        if len(resets) > 0:
            start_over(h, h0, order[:count], resets, t)
        product(of_x, inputs, begin, order, count, 0, by_x)
        product(products, h, 0, order, count, 0, by)
        for i in range(count):
            b = order[i]
            at = begin + b
            own, row = (of_x, i) if len(by_x) > 0 else (inputs, at)
            if activation == TANH:
                _tanh(hidden, own, row, bias, 0, products, i, h, b, output, at)
            elif activation == RELU:
                _relu(hidden, own, row, bias, 0, products, i, h, b, output, at)
            else:
                _sigmoid(hidden, own, row, bias, 0, products, i, h, b, output, at)


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
    steps, hidden = len(counts), d_h.shape[1]
    products = np.empty((len(order), by.shape[0] * by.shape[2]), d_h.dtype)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        begin, count = offsets[t], counts[t]
        for b in order[:count]:
            at = begin + b
            if activation == TANH:
                _tanh_back(hidden, d_output, at, d_h, b, output, at, d_gates, at)
            elif activation == RELU:
                _relu_back(hidden, d_output, at, d_h, b, output, at, d_gates, at)
            else:
                _sigmoid_back(hidden, d_output, at, d_h, b, output, at, d_gates, at)
        product(products, d_gates, begin, order, count, 0, by)
        for i in range(count):
            copy(d_h, order[i], products, i)
        if len(resets) > 0:
            started(d_h, d_h0, order[:count], resets, t)
