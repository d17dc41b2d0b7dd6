"""LSTM steps, one row after another.

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of gates_x(t) + W_hh h(t-1)
    c(t) = f c(t-1) + i g
    h(t) = o tanh(c(t))

Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn_numba.along import add, came_from, copy, start_over, started
from fastrnn_numba.compiled import compiled
from fastrnn_numba.points import sigmoid, tanh
from fastrnn_numba.products import product
from fastrnn_numba.vectors import over_units

if TYPE_CHECKING:
    from fastrnn_numba.vectors import Numbers, Row


def _new(inputs: Row, bias: Row, a: Row, h: Row, c: Row, output: Row) -> tuple[Numbers, ...]:
    """The gates; inputs are W_ih x(t), a is W_hh h(t-1), h and c are written over."""
    i, f, o = (sigmoid(inputs[k] + bias[k] + a[k]) for k in (0, 1, 3))
    g = tanh(inputs[2] + bias[2] + a[2])
    c[0] = f * c[0] + i * g
    h[0] = output[0] = o * tanh(c[0])
    return i, f, g, o


_step = over_units(_new)


@over_units
def _step_kept(
    inputs: Row, bias: Row, a: Row, h: Row, c: Row, output: Row, gates: Row, cells: Row
) -> None:
    """For the way back."""
    gates[0], gates[1], gates[2], gates[3] = _new(inputs, bias, a, h, c, output)
    cells[0] = c[0]


@over_units
def _step_back(
    d_output: Row, gates: Row, cells: Row, before: Row, d_h: Row, d_c: Row, d_gates: Row
) -> None:
    """Where `before` is c(t-1), and d_c, what reaches c(t) but through h(t), is written over."""
    i, f, g, o = (gates[k] for k in range(4))
    of_h, tanh_c = d_h[0] + d_output[0], tanh(cells[0])
    of_c = d_c[0] + of_h * (o - o * tanh_c * tanh_c)
    d_gates[0] = of_c * g * (i - i * i)
    d_gates[1] = of_c * before[0] * (f - f * f)
    d_gates[2] = of_c * (i - i * g * g)
    d_gates[3] = of_h * tanh_c * (o - o * o)
    d_c[0] = of_c * f


@compiled
def forward(
    inputs: Any, by_x: Any, bias: Any, by: Any, h: Any, c: Any, h0: Any, c0: Any, offsets: Any,
    order: Any, counts: Any, resets: Any, reverse: bool, output: Any, gates: Any, cells: Any,
) -> None:  # fmt: skip
    """All steps of some rows.

    Args:
        inputs: (N, I), x; or (N, 4H), W_ih x.
        by_x: `panels_turned` of W_ih; or none.
        bias: (1, 4H), added to either.
        by: `panels_turned` of W_hh.
        h: (B, H), h0; written over with the last of each row.
        c: (B, H), likewise.
        h0: (B, H), what rows start over from.
        c0: (B, H), likewise.
        offsets: these four are of `Steps`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: whether time runs backwards.
        output: (N, H), written.
        gates: (N, 4H), written, and may be `inputs`; (0, 0) if of no use.
        cells: (N, H), written with c of each step; (0, 0) likewise.
    """
    steps, hidden = len(counts), h.shape[1]
    products = np.empty((len(order), by.shape[0] * by.shape[2]), h.dtype)
    of_x = np.empty((len(order), by_x.shape[0] * by_x.shape[2]), h.dtype)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        begin, count = offsets[t], counts[t]
        if len(resets) > 0:
            start_over(h, h0, order[:count], resets, t)
            start_over(c, c0, order[:count], resets, t)
        product(of_x, inputs, begin, order, count, 0, by_x)
        product(products, h, 0, order, count, 0, by)
        for i in range(count):
            b = order[i]
            at = begin + b
            own, row = (of_x, i) if len(by_x) > 0 else (inputs, at)
            if len(cells) > 0:
                _step_kept(
                    hidden, own, row, bias, 0, products, i, h, b, c, b, output, at, gates, at,
                    cells, at,
                )  # fmt: skip
            else:
                _step(hidden, own, row, bias, 0, products, i, h, b, c, b, output, at)


@compiled
def backward(
    d_output: Any, d_cells: Any, gates: Any, cells: Any, by: Any, c0: Any, d_h: Any, d_c: Any,
    d_h0: Any, d_c0: Any, offsets: Any, order: Any, counts: Any, resets: Any, reverse: bool,
    d_gates: Any,
) -> None:  # fmt: skip
    """All steps of some rows, from the last to the first.

    Args:
        d_output: (N, H)
        d_cells: (N, H), of c of each step; (0, 0) of none.
        gates: (N, 4H)
        cells: (N, H)
        by: `panels` of W_hh.
        c0: (B, H)
        d_h: (B, H), the gradients of the last states; written over with what reaches h0 through
            the first steps.
        d_c: (B, H), likewise.
        d_h0: (B, H), to which is added what reaches h0 where rows start over.
        d_c0: (B, H), likewise.
        offsets: these five as in `forward`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: likewise.
        d_gates: (N, 4H), written.
    """
    steps, hidden = len(counts), d_h.shape[1]
    products = np.empty((len(order), by.shape[0] * by.shape[2]), d_h.dtype)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        earlier = t + 1 if reverse else t - 1
        begin, count = offsets[t], counts[t]
        for i in range(count):
            b = order[i]
            at = begin + b
            if len(d_cells) > 0:
                add(d_c, b, d_cells, at)
            before = came_from(offsets, order, counts, resets, t, earlier, i)
            if before < 0:
                _step_back(
                    hidden, d_output, at, gates, at, cells, at, c0, b, d_h, b, d_c, b, d_gates, at
                )
            else:
                _step_back(
                    hidden, d_output, at, gates, at, cells, at, cells, before, d_h, b, d_c, b,
                    d_gates, at,
                )  # fmt: skip
        product(products, d_gates, begin, order, count, 0, by)
        for i in range(count):
            copy(d_h, order[i], products, i)
        if len(resets) > 0:
            started(d_h, d_h0, order[:count], resets, t)
            started(d_c, d_c0, order[:count], resets, t)
