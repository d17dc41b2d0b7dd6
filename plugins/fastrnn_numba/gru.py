"""GRU steps as torch.nn has them, one row after another.

    r, z = sigmoid(gates_x(t) + W_hh h(t-1))    of the first two gates
    n = tanh(gates_x(t) + r m), m = W_hn h(t-1) + b_hn
    h(t) = n + z (h(t-1) - n)

Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn_numba.along import add, came_from, start_over, started
from fastrnn_numba.compiled import compiled
from fastrnn_numba.points import sigmoid, tanh
from fastrnn_numba.products import product
from fastrnn_numba.vectors import over_units

if TYPE_CHECKING:
    from fastrnn_numba.vectors import Numbers, Row


def _new(inputs: Row, bias_x: Row, a: Row, bias: Row, h: Row, output: Row) -> tuple[Numbers, ...]:
    """r, z, n, m; inputs are W_ih x(t), a is W_hh h(t-1), h is written over."""
    r, z = (sigmoid(inputs[k] + bias_x[k] + a[k]) for k in range(2))
    m = a[2] + bias[0]
    n = tanh(inputs[2] + bias_x[2] + r * m)
    h[0] = output[0] = n + z * (h[0] - n)
    return r, z, n, m


_step = over_units(_new)


@over_units
def _step_kept(
    inputs: Row, bias_x: Row, a: Row, bias: Row, h: Row, output: Row, gates: Row, m: Row
) -> None:
    """For the way back."""
    gates[0], gates[1], gates[2], m[0] = _new(inputs, bias_x, a, bias, h, output)


@over_units
def _step_back(d_output: Row, gates: Row, m: Row, before: Row, d_h: Row, d_gates: Row) -> None:
    """Where `before` is h(t-1); d_h is written over with what reaches that beside W_hh."""
    r, z, n = (gates[k] for k in range(3))
    of_h = d_h[0] + d_output[0]
    of_new = of_h - of_h * z
    of_n = of_new - of_new * n * n
    d_gates[0] = of_n
    d_gates[1] = of_n * m[0] * (r - r * r)
    d_gates[2] = of_h * (before[0] - n) * (z - z * z)
    d_gates[3] = of_n * r
    d_h[0] = of_h * z


@compiled
def forward(
    inputs: Any, by_x: Any, bias_x: Any, by: Any, bias: Any, h: Any, h0: Any, offsets: Any,
    order: Any, counts: Any, resets: Any, reverse: bool, output: Any, gates: Any, m: Any,
) -> None:  # fmt: skip
    """All steps of some rows.

    Args:
        inputs: (N, I), x; or (N, 3H), W_ih x.
        by_x: `panels_turned` of W_ih; or none.
        bias_x: (1, 3H), added to either, without b_hn.
        by: `panels_turned` of W_hh.
        bias: (1, H), b_hn.
        h: (B, H), h0; written over with the last of each row.
        h0: (B, H), what rows start over from.
        offsets: these four are of `Steps`.
        order: likewise.
        counts: likewise.
        resets: likewise.
        reverse: whether time runs backwards.
        output: (N, H), written.
        gates: (N, 3H), written with r, z, n, and may be `inputs`; (0, 0) if of no use.
        m: (N, H), written; (0, 0) likewise.
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
            if len(m) > 0:
                _step_kept(
                    hidden, own, row, bias_x, 0, products, i, bias, 0, h, b, output, at, gates, at,
                    m, at,
                )  # fmt: skip
            else:
                _step(hidden, own, row, bias_x, 0, products, i, bias, 0, h, b, output, at)


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
            at = begin + b
            before = came_from(offsets, order, counts, resets, t, earlier, i)
            if before < 0:
                _step_back(hidden, d_output, at, gates, at, m, at, h0, b, d_h, b, d_gates, at)
            else:
                _step_back(
                    hidden, d_output, at, gates, at, m, at, output, before, d_h, b, d_gates, at
                )
        product(products, d_gates, begin, order, count, hidden, by)
        for i in range(count):
            add(d_h, order[i], products, i)
        if len(resets) > 0:
            started(d_h, d_h0, order[:count], resets, t)
