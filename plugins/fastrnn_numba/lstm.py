"""LSTM steps, one row after another.

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of gates_x(t) + W_hh h(t-1)
    c(t) = f c(t-1) + i g
    h(t) = o tanh(c(t))

Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000.
A loop over units writes one array each: of more LLVM does not see that they lie apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn_numba.along import add, came_from, copy, start_over, started
from fastrnn_numba.compiled import compiled
from fastrnn_numba.points import sigmoid, tanh
from fastrnn_numba.products import product


@compiled
def _step(gates: Any, place: int, a: Any, i: int, h: Any, c: Any, b: int) -> None:
    """One row's.

    Args:
        gates: (N, 4H), gates_x; written over with the gates.
        place: of the row, there.
        a: (_, 4H), W_hh h(t-1).
        i: the row, there.
        h: (B, H), written.
        c: (B, H), written over.
        b: the row, there.
    """
    hidden = h.shape[1]
    f, g, o = hidden, 2 * hidden, 3 * hidden
    for j in range(g):
        gates[place, j] = sigmoid(gates[place, j] + a[i, j])
    for j in range(hidden):
        gates[place, g + j] = tanh(gates[place, g + j] + a[i, g + j])
    for j in range(hidden):
        gates[place, o + j] = sigmoid(gates[place, o + j] + a[i, o + j])
    for j in range(hidden):
        new = gates[place, j] * gates[place, g + j]
        c[b, j] = gates[place, f + j] * c[b, j] + new
    for j in range(hidden):
        h[b, j] = gates[place, o + j] * tanh(c[b, j])


@compiled
def _step_back(
    gates: Any, place: int, cells: Any, before: Any, earlier: int, tanh_c: Any, d_h: Any, d_c: Any,
    b: int, d_gates: Any,
) -> None:  # fmt: skip
    """One row's.

    Args:
        gates: (N, 4H)
        place: of the row, there.
        cells: (N, H)
        before: c(t-1), in one row of it,
        earlier: this one.
        tanh_c: (H,), written.
        d_h: (B, H)
        d_c: (B, H), what reaches c(t) but through h(t); written over with what reaches c(t-1).
        b: the row, there.
        d_gates: (N, 4H), written.
    """
    hidden = len(tanh_c)
    f, g, o = hidden, 2 * hidden, 3 * hidden
    for j in range(hidden):
        tanh_c[j] = tanh(cells[place, j])
    for j in range(hidden):
        of_o = gates[place, o + j]
        d_c[b, j] += d_h[b, j] * (of_o - of_o * tanh_c[j] * tanh_c[j])
    for j in range(hidden):
        of_i = gates[place, j]
        d_gates[place, j] = d_c[b, j] * gates[place, g + j] * (of_i - of_i * of_i)
    for j in range(hidden):
        of_f = gates[place, f + j]
        d_gates[place, f + j] = d_c[b, j] * before[earlier, j] * (of_f - of_f * of_f)
    for j in range(hidden):
        of_i, of_g = gates[place, j], gates[place, g + j]
        d_gates[place, g + j] = d_c[b, j] * (of_i - of_i * of_g * of_g)
    for j in range(hidden):
        of_o = gates[place, o + j]
        d_gates[place, o + j] = d_h[b, j] * tanh_c[j] * (of_o - of_o * of_o)
    for j in range(hidden):
        d_c[b, j] *= gates[place, f + j]


@compiled
def forward(
    gates: Any, by: Any, h: Any, c: Any, h0: Any, c0: Any, offsets: Any, order: Any, counts: Any,
    resets: Any, reverse: bool, output: Any, cells: Any,
) -> None:  # fmt: skip
    """All steps of some rows.

    Args:
        gates: (N, 4H), W_ih x + b; written over with the gates.
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
        cells: (N, H), written with c of each step; (0, H) if of no use.
    """
    steps = len(counts)
    products = np.empty((len(order), by.shape[0] * by.shape[2]), h.dtype)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        begin, count = offsets[t], counts[t]
        if len(resets) > 0:
            start_over(h, h0, order[:count], resets, t)
            start_over(c, c0, order[:count], resets, t)
        product(products, h, 0, order, count, 0, by)
        for i in range(count):
            b = order[i]
            _step(gates, begin + b, products, i, h, c, b)
            copy(output, begin + b, h, b)
            if len(cells) > 0:
                copy(cells, begin + b, c, b)


@compiled
def backward(
    d_output: Any, gates: Any, cells: Any, by: Any, c0: Any, d_h: Any, d_c: Any, d_h0: Any,
    d_c0: Any, offsets: Any, order: Any, counts: Any, resets: Any, reverse: bool, d_gates: Any,
) -> None:  # fmt: skip
    """All steps of some rows, from the last to the first.

    Args:
        d_output: (N, H)
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
    tanh_c = np.empty(hidden, d_h.dtype)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        earlier = t + 1 if reverse else t - 1
        begin, count = offsets[t], counts[t]
        for i in range(count):
            b = order[i]
            place = begin + b
            before = came_from(offsets, order, counts, resets, t, earlier, i)
            add(d_h, b, d_output, place)
            if before < 0:
                _step_back(gates, place, cells, c0, b, tanh_c, d_h, d_c, b, d_gates)
            else:
                _step_back(gates, place, cells, cells, before, tanh_c, d_h, d_c, b, d_gates)
        product(products, d_gates, begin, order, count, 0, by)
        for i in range(count):
            copy(d_h, order[i], products, i)
        if len(resets) > 0:
            started(d_h, d_h0, order[:count], resets, t)
            started(d_c, d_c0, order[:count], resets, t)
