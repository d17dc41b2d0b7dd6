"""An independent transcription of the equations in NumPy float64: one of the two oracles.

Written from the formulas alone, one scalar step at a time, sharing no code with the library.
Weights come as torch stores them: gate order i, f, g, o, all rows of a gate together.
"""

from __future__ import annotations

import numpy as np


def sigmoid(a):
    with np.errstate(over="ignore"):  # exp(1e4) is inf, and 1 / (1 + inf) is the right 0
        return 1.0 / (1.0 + np.exp(-a))


ACTIVATIONS = {
    "rnn_tanh": np.tanh,
    "rnn_relu": lambda a: np.maximum(a, 0.0),
    "rnn_sigmoid": sigmoid,
}


def run_direction(
    cell, x, w_ih, w_hh, b, h0, c0=None, w_hr=None, reverse=False, lengths=None, resets=None
):
    """One layer, one direction. x (T, B, I); b is the sum of both biases; returns y, h, c."""
    steps, batch = x.shape[:2]
    lengths = [steps] * batch if lengths is None else list(lengths)
    y = np.zeros((steps, batch, h0.shape[1]))
    h_n, c_n = h0.copy(), None if c0 is None else c0.copy()
    for row in range(batch):
        h, c = h0[row], None if c0 is None else c0[row]
        times = range(lengths[row])
        for t in reversed(times) if reverse else times:
            if resets is not None and resets[t, row]:
                h, c = h0[row], None if c0 is None else c0[row]
            a = w_ih @ x[t, row] + w_hh @ h + b
            if cell == "lstm":
                i, f, g, o = np.split(a, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                if w_hr is not None:
                    h = w_hr @ h
            else:
                h = ACTIVATIONS[cell](a)
            y[t, row] = h
        h_n[row] = h
        if c0 is not None:
            c_n[row] = c
    return y, h_n, c_n


def run_stack(
    cell, x, weights, hx, num_layers, bidirectional, bias, proj=False, lengths=None, resets=None
):
    """A whole stack, with weights flat in torch's order; hx is (h0,) or (h0, c0)."""
    directions = 2 if bidirectional else 1
    per_slot = len(weights) // (num_layers * directions)
    h_n, c_n = [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            slot = layer * directions + direction
            own = weights[slot * per_slot : (slot + 1) * per_slot]
            b = own[2] + own[3] if bias else np.zeros(own[0].shape[0])
            y, h, c = run_direction(
                cell, x, own[0], own[1], b, hx[0][slot],
                hx[1][slot] if cell == "lstm" else None,
                own[-1] if proj else None, direction == 1, lengths, resets,
            )  # fmt: skip
            outputs.append(y)
            h_n.append(h)
            c_n.append(c)
        x = np.concatenate(outputs, axis=2)
    states = (np.stack(h_n), np.stack(c_n)) if cell == "lstm" else (np.stack(h_n),)
    return (x, *states)
