"""GRU steps as torch.nn has them, one row after another.

    r, z = sigmoid(gates_x(t) + W_hh h(t-1))    of the first two gates
    n = tanh(gates_x(t) + r m), m = W_hn h(t-1) + b_hn
    h(t) = n + z (h(t-1) - n)

Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn_numba.along import add, came_from, copy, start_over, started
from fastrnn_numba.compiled import compiled
from fastrnn_numba.points import sigmoid, tanh
from fastrnn_numba.products import product


@compiled
def _step(
    gates: Any, place: int, a: Any, i: int, bias: Any, m: Any, at: int, h: Any, b: int
) -> None:
    """One row's.

    Args:
        gates: (N, 3H), gates_x; written over with r, z, n.
        place: of the row, there.
        a: (_, 3H), W_hh h(t-1).
        i: the row, there.
        bias: (H,), b_hn.
        m: (_, H), written.
        at: the row, there.
        h: (B, H), written over.
        b: the row, there.
    """
    hidden = len(bias)
    z, n = hidden, 2 * hidden
    for j in range(n):
        gates[place, j] = sigmoid(gates[place, j] + a[i, j])
    for j in range(hidden):
        m[at, j] = a[i, n + j] + bias[j]
    for j in range(hidden):
        gates[place, n + j] = tanh(gates[place, n + j] + gates[place, j] * m[at, j])
    for j in range(hidden):
        of_n = gates[place, n + j]
        h[b, j] = of_n + gates[place, z + j] * (h[b, j] - of_n)


@compiled
def _step_back(
    gates: Any, place: int, m: Any, before: Any, earlier: int, d_h: Any, b: int, d_gates: Any
) -> None:
    """One row's.

    Args:
        gates: (N, 3H): r, z, n.
        place: of the row, there.
        m: (N, H)
        before: h(t-1), in one row of it,
        earlier: this one.
        d_h: (B, H); written over with what reaches h(t-1) beside W_hh.
        b: the row, there.
        d_gates: (N, 4H), written: of n, r, z, m.
    """
    hidden = d_h.shape[1]
    z, n = hidden, 2 * hidden
    to_r, to_z, to_m = hidden, 2 * hidden, 3 * hidden
    for j in range(hidden):
        of_n, kept = gates[place, n + j], gates[place, z + j]
        d_new = d_h[b, j] - d_h[b, j] * kept
        d_gates[place, j] = d_new - d_new * of_n * of_n
    for j in range(hidden):
        of_r = gates[place, j]
        d_gates[place, to_r + j] = d_gates[place, j] * m[place, j] * (of_r - of_r * of_r)
    for j in range(hidden):
        of_z, change = gates[place, z + j], before[earlier, j] - gates[place, n + j]
        d_gates[place, to_z + j] = d_h[b, j] * change * (of_z - of_z * of_z)
    for j in range(hidden):
        d_gates[place, to_m + j] = d_gates[place, j] * gates[place, j]
    for j in range(hidden):
        d_h[b, j] *= gates[place, z + j]


@compiled
def forward(
    gates: Any, by: Any, bias: Any, h: Any, h0: Any, offsets: Any, order: Any, counts: Any,
    resets: Any, reverse: bool, output: Any, m: Any,
) -> None:  # fmt: skip
    """All steps of some rows.

    Args:
        gates: (N, 3H), W_ih x + b, of n without b_hn; written over with r, z, n.
        by: `panels_turned` of W_hh.
        bias: (H,), b_hn.
        h: (B, H), h0; written over with the last of each row.
        h0: (B, H), what rows start over from.
        offsets: these four are of `Steps`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: whether time runs backwards.
        output: (N, H), written.
        m: (N, H), written; (0, H) if of no use.
    """
    steps = len(counts)
    products = np.empty((len(order), by.shape[0] * by.shape[2]), h.dtype)
    spare = np.empty((1, h.shape[1]), h.dtype)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        begin, count = offsets[t], counts[t]
        if len(resets) > 0:
            start_over(h, h0, order[:count], resets, t)
        product(products, h, 0, order, count, 0, by)
        for i in range(count):
            b = order[i]
            if len(m) > 0:
                _step(gates, begin + b, products, i, bias, m, begin + b, h, b)
            else:
                _step(gates, begin + b, products, i, bias, spare, 0, h, b)
            copy(output, begin + b, h, b)


@compiled
def backward(
    d_output: Any, gates: Any, m: Any, output: Any, by: Any, h0: Any, d_h: Any, d_h0: Any,
    offsets: Any, order: Any, counts: Any, resets: Any, reverse: bool, d_gates: Any,
) -> None:  # fmt: skip
    """All steps of some rows, from the last to the first.

    Args:
        d_output: (N, H)
        gates: (N, 3H): r, z, n.
        m: (N, H)
        output: (N, H)
        by: `panels` of W_hh.
        h0: (B, H)
        d_h: (B, H), the gradients of the last states; written over with what reaches h0 through
            the first steps.
        d_h0: (B, H), to which is added what reaches h0 where rows start over.
        offsets: these five as in `forward`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: likewise.
        d_gates: (N, 4H), written: of n, r, z, m. The first three are those of W_ih x, the last
            three those of W_hh h.
    """
    steps, hidden = len(counts), d_h.shape[1]
    products = np.empty((len(order), by.shape[0] * by.shape[2]), d_h.dtype)
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
                _step_back(gates, place, m, h0, b, d_h, b, d_gates)
            else:
                _step_back(gates, place, m, output, before, d_h, b, d_gates)
        product(products, d_gates, begin, order, count, hidden, by)
        for i in range(count):
            add(d_h, order[i], products, i)
        if len(resets) > 0:
            started(d_h, d_h0, order[:count], resets, t)
