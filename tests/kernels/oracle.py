"""The equations in NumPy float64: slow, obvious, and independent of torch and of the kernels.

Arrays and arguments are those of `fastrnn_kernels.forward` and `backward`; chained groups are
computed one whole layer after another.
"""

import math
from typing import NamedTuple

import numpy as np


class Forward(NamedTuple):
    output: np.ndarray
    h_n: np.ndarray
    c_n: np.ndarray | None
    gates: np.ndarray | None
    cells: np.ndarray | None


class Backward(NamedTuple):
    d_gates: np.ndarray
    d_c0: np.ndarray | None


def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


ELMAN = {  # f, and f' in terms of f
    "rnn_tanh": (np.tanh, lambda h: 1.0 - h * h),
    "rnn_sigmoid": (sigmoid, lambda h: h * (1.0 - h)),
    "rnn_relu": (lambda x: np.where(x <= 0, 0.0, x), lambda h: np.where(h <= 0, 0.0, 1.0)),
}


def order(T, backwards):
    return range(T - 1, -1, -1) if backwards else range(T)


def forward(cell, gates_x, weight_hh, h0, c0, reverse):
    T, B, G, width = gates_x.shape
    H = weight_hh.shape[2]
    output = np.empty((T, B, G, H))
    cells = np.empty((T, B, G, H))
    gates = np.empty((T, B, G, width))
    h_n = h0.copy()
    c_n = None if c0 is None else c0.copy()
    for g in range(G):
        for t in order(T, reverse[g]):
            pre = gates_x[t, :, g] + h_n[g] @ weight_hh[g].T
            if cell == "lstm":
                i, f, z, o = np.moveaxis(pre.reshape(B, 4, H), 1, 0)
                i, f, z, o = sigmoid(i), sigmoid(f), np.tanh(z), sigmoid(o)
                c_n[g] = f * c_n[g] + i * z
                h_n[g] = o * np.tanh(c_n[g])
                gates[t, :, g] = np.concatenate([i, f, z, o], axis=1)
                cells[t, :, g] = c_n[g]
            else:
                h_n[g] = ELMAN[cell][0](pre)
            output[t, :, g] = h_n[g]
    if cell == "lstm":
        return Forward(output, h_n, c_n, gates, cells)
    return Forward(output, h_n, None, None, None)


def backward(
    cell, weight_hh, saved, c0, d_output, d_h_n, d_c_n, reverse, d_cells=None, clip=math.inf
):  # fmt: skip
    T, B, G, H = saved.output.shape
    width = weight_hh.shape[1]
    d_gates = np.empty((T, B, G, width))
    d_h = np.zeros((G, B, H)) if d_h_n is None else d_h_n.copy()
    d_c = np.zeros((G, B, H)) if d_c_n is None else d_c_n.copy()
    for g in range(G):
        steps = list(order(T, reverse[g]))
        for n, t in reversed(list(enumerate(steps))):
            dh = d_h[g] if d_output is None else d_h[g] + d_output[t, :, g]
            if cell == "lstm":
                i, f, z, o = np.moveaxis(saved.gates[t, :, g].reshape(B, 4, H), 1, 0)
                c_prev = saved.cells[steps[n - 1], :, g] if n else c0[g]
                tanh_c = np.tanh(saved.cells[t, :, g])
                dc = d_c[g] + dh * o * (1 - tanh_c**2)
                if d_cells is not None:
                    dc += d_cells[t, :, g]
                parts = [
                    dc * z * i * (1 - i),
                    dc * c_prev * f * (1 - f),
                    dc * i * (1 - z**2),
                    dh * tanh_c * o * (1 - o),
                ]
                d_pre = np.concatenate(parts, axis=1)
                d_c[g] = dc * f
            else:
                d_pre = dh * ELMAN[cell][1](saved.output[t, :, g])
            d_pre = np.clip(d_pre, -clip, clip)
            d_gates[t, :, g] = d_pre
            d_h[g] = d_pre @ weight_hh[g]
    return Backward(d_gates, d_c if cell == "lstm" else None)


def only(g, *arrays):
    """Group g of (G, ..) arrays."""
    return [None if a is None else a[g : g + 1] for a in arrays]


def forward_chain(cell, gates_x, weight_hh, weight_chain, bias_chain, h0, c0, reverse):
    layers = []
    for g in range(len(weight_hh)):
        if g:
            gates_x = layers[-1].output @ weight_chain[g - 1].T + bias_chain[g - 1]
        layers.append(forward(cell, gates_x, *only(g, weight_hh, h0, c0), reverse[g : g + 1]))
    return joined(layers)


def backward_chain(
    cell, weight_hh, weight_chain, saved, c0, d_output, d_h_n, d_c_n, reverse, clip=math.inf
):  # fmt: skip
    layers = []
    for g in reversed(range(len(weight_hh))):
        one = Forward(*(x if x is None or x.ndim < 4 else x[:, :, g : g + 1] for x in saved))
        weight, state, *finals = only(g, weight_hh, c0, d_h_n, d_c_n)
        grads = (d_output, *finals)
        layers.append(backward(cell, weight, one, state, *grads, reverse[g : g + 1], clip=clip))
        d_output = layers[-1].d_gates @ weight_chain[g - 1]  # not used below group 0
    return joined(layers[::-1])


def joined(layers):
    """Results of one group each as those of all: axis 2 of (T, B, G, ..), axis 0 of (G, B, ..)."""
    fields = zip(*layers, strict=True)
    return type(layers[0])(
        *(
            None if f[0] is None else np.concatenate(f, axis=2 if f[0].ndim == 4 else 0)
            for f in fields
        )
    )


def segments(length, resets, backwards):
    """Steps of one row in the order of processing, cut where the state starts anew."""
    found = []
    for t in order(length, backwards):
        if not found or (resets is not None and resets[t]):
            found.append([])
        found[-1].append(t)
    return found


def forward_rows(cell, gates_x, weight_hh, h0, c0, reverse, lengths, resets):
    """Each row for itself, and each of its segments from h0 and c0 on."""
    T, B, G, _ = gates_x.shape
    shape = (T, B, G, weight_hh.shape[2])
    stateful = cell == "lstm"
    made = Forward(
        np.zeros(shape), h0.copy(), c0.copy() if stateful else None,
        np.zeros(gates_x.shape) if stateful else None, np.zeros(shape) if stateful else None,
    )  # fmt: skip
    for g, b, steps in rows_of(T, B, reverse, lengths, resets):
        one = forward(
            cell, gates_x[steps, b : b + 1, g : g + 1], *only(g, weight_hh),
            *(x if x is None else x[g : g + 1, b : b + 1] for x in (h0, c0)), (False,),
        )  # fmt: skip
        for whole, part in zip(made, one, strict=True):
            if part is not None and part.ndim == 4:
                whole[steps, b, g] = part[:, 0, 0]
            elif part is not None:
                whole[g, b] = part[0, 0]  # that of the last segment stays
    return made


def backward_rows(
    cell, weight_hh, saved, c0, d_output, d_h_n, d_c_n, reverse, lengths, resets, d_cells=None,
    clip=math.inf,
):  # fmt: skip
    T, B, G, H = saved.output.shape
    d_gates = np.zeros((T, B, G, weight_hh.shape[1]))
    d_c0 = np.zeros((G, B, H))
    ended = set()
    for g, b, steps in reversed(list(rows_of(T, B, reverse, lengths, resets))):
        at = (steps, slice(b, b + 1), slice(g, g + 1))
        # only the last segment, the first to come here, has a final state that somebody sees
        seen = (g, b) not in ended
        finals = [x[g : g + 1, b : b + 1] if seen and x is not None else None
                  for x in (d_h_n, d_c_n)]  # fmt: skip
        ended.add((g, b))
        one = backward(
            cell, weight_hh[g : g + 1],
            Forward(*(x if x is None or x.ndim < 4 else x[at] for x in saved)),
            None if c0 is None else c0[g : g + 1, b : b + 1],
            None if d_output is None else d_output[at], *finals, (False,),
            None if d_cells is None else d_cells[at], clip,
        )  # fmt: skip
        d_gates[at] = one.d_gates
        if one.d_c0 is not None:
            d_c0[g, b] += one.d_c0[0, 0]
    if d_c_n is not None:
        for g in range(G):
            for b in range(B):
                if (g, b) not in ended:  # no steps: the final state is the initial one
                    d_c0[g, b] = d_c_n[g, b]
    return Backward(d_gates, d_c0 if cell == "lstm" else None)


def rows_of(T, B, reverse, lengths, resets):
    """(group, row, steps of a segment), in the order of processing."""
    for g, backwards in enumerate(reverse):
        for b in range(B):
            length = T if lengths is None else lengths[b]
            own = None if resets is None else resets[:, b]
            for steps in segments(length, own, backwards):
                yield g, b, steps
