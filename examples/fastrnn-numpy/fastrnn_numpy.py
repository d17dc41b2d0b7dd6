"""A backend for fastrnn: the time loops of the LSTM and the Elman RNN in NumPy, and their BPTT.

Letters are fastrnn's: T steps, B rows of the batch, H hidden units, G groups, which are the two
directions of a bidirectional layer, K gates per unit (LSTM 4, in the order i, f, g, o; Elman 1).
"""

from __future__ import annotations

import numpy as np
import torch

from fastrnn.backend import LayerOutput, Recurrence, RecurrenceBackend
from fastrnn.hookspecs import hookimpl
from fastrnn.request import Cost
from fastrnn.roofline import cpu_step, steps


def sigmoid(a):
    return 0.5 + 0.5 * np.tanh(0.5 * a)  # exp(-a) would overflow


# f, and its derivative in terms of y = f(a)
ELMAN = {
    "rnn_tanh": (np.tanh, lambda y: 1 - y * y),
    "rnn_relu": (lambda a: np.maximum(a, 0), lambda y: (y > 0).astype(y.dtype)),
    "rnn_sigmoid": (sigmoid, lambda y: y * (1 - y)),
}


class NumpyBackend(RecurrenceBackend):
    name = "numpy"
    summary = "LSTM and Elman time steps in NumPy"
    contract = 1

    def can_run(self, request):
        reasons = []
        if request.cell not in ("lstm", *ELMAN):
            reasons.append(f"cell is {request.cell}; needs lstm or {', '.join(ELMAN)}")
        if request.device != "cpu":
            reasons.append(f"device is {request.device}; needs cpu")
        if request.dtype not in (torch.float32, torch.float64):
            reasons.append(f"dtype is {request.dtype}; needs float32 or float64")
        if request.proj_size:
            reasons.append(f"proj_size is {request.proj_size}; needs 0")
        if request.varlen:
            reasons.append("sequences have different lengths; needs equal ones")
        return reasons

    def cost(self, request):
        # Rather too high than too low: `auto` takes whoever promises most.
        calls = 30e-6 if request.cell == "lstm" else 6e-6
        step = (calls + 5 * cpu_step(request)) * (3 if request.needs_grad else 1)
        loop = steps(request) * request.directions
        return Cost(2e-4 + loop * step, "NumPy calls and five times torch's product a step")

    def recurrence_forward(self, gates_x, weight_hh, layer):
        a = gates_x.numpy()  # (T, B, G, K*H)
        W = weight_hh.numpy()  # (G, K*H, H)
        h_n = layer.h0.numpy().copy()  # (G, B, H)
        y = np.empty((*a.shape[:3], layer.hidden_size), a.dtype)
        if layer.c0 is None:
            f, _ = ELMAN[layer.cell]
            for g, time in groups(layer):
                h_n[g] = elman_forward(f, a[time, :, g], W[g], h_n[g], y[time, :, g])
            return LayerOutput(torch.from_numpy(y), torch.from_numpy(h_n), None, ())
        c_n, c, gates = layer.c0.numpy().copy(), np.empty_like(y), np.empty_like(a)
        for g, time in groups(layer):
            kept = y[time, :, g], c[time, :, g], gates[time, :, g]
            h_n[g], c_n[g] = lstm_forward(a[time, :, g], W[g], h_n[g], c_n[g], *kept)
        saved = (torch.from_numpy(c), torch.from_numpy(gates)) if layer.save else ()
        return LayerOutput(*map(torch.from_numpy, (y, h_n, c_n)), saved)

    def recurrence_backward(self, grad, weight_hh, layer, output, saved, wanted):
        y, W = output.numpy(), weight_hh.numpy()
        dy = np.zeros_like(y) if grad.output is None else grad.output.numpy()
        dh0 = np.zeros_like(layer.h0.numpy()) if grad.h_n is None else grad.h_n.numpy().copy()
        da = np.empty((*y.shape[:3], W.shape[1]), y.dtype)
        if layer.c0 is None:
            _, df = ELMAN[layer.cell]
            for g, time in groups(layer):
                of_group = dy[time, :, g], dh0[g], W[g], y[time, :, g], da[time, :, g]
                dh0[g] = elman_backward(df, *of_group)
            return Recurrence(torch.from_numpy(da), torch.from_numpy(dh0), None)
        c, gates, c0 = saved[0].numpy(), saved[1].numpy(), layer.c0.numpy()
        dc0 = np.zeros_like(c0) if grad.c_n is None else grad.c_n.numpy().copy()
        for g, time in groups(layer):
            kept = c[time, :, g], gates[time, :, g], da[time, :, g]
            dh0[g], dc0[g] = lstm_backward(dy[time, :, g], dh0[g], dc0[g], W[g], c0[g], *kept)
        return Recurrence(*map(torch.from_numpy, (da, dh0, dc0)))


def groups(layer):
    """Each group's number, and the slice that turns its sequences into its own order of time."""
    return [(g, slice(None, None, -1 if back else 1)) for g, back in enumerate(layer.reverse)]


def elman_forward(f, a, W, h, y):
    """h(t) = f(a(t) + W h(t-1)). Fills y, returns the last h."""
    for t in range(len(a)):
        y[t] = h = f(a[t] + h @ W.T)
    return h


def elman_backward(df, dy, dh, W, y, da):
    """Fills da, returns dL/dh0."""
    for t in reversed(range(len(y))):
        da[t] = df(y[t]) * (dy[t] + dh)
        dh = da[t] @ W
    return dh


def lstm_forward(a, W, h, c, y, cells, gates):
    """c(t) = f c(t-1) + i g, h(t) = o tanh(c(t)). Fills y, cells and gates."""
    for t in range(len(a)):
        i, f, g, o = np.split(a[t] + h @ W.T, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        cells[t] = c = f * c + i * g
        y[t] = h = o * np.tanh(c)
        gates[t] = np.concatenate((i, f, g, o), axis=1)
    return h, c


def lstm_backward(dy, dh, dc, W, c0, cells, gates, da):
    """Fills da, returns dL/dh0 and dL/dc0."""
    for t in reversed(range(len(gates))):
        i, f, g, o = np.split(gates[t], 4, axis=1)
        c_before, tanh_c = cells[t - 1] if t else c0, np.tanh(cells[t])
        dh = dh + dy[t]
        dc = dc + dh * o * (1 - tanh_c**2)
        di, df = dc * g * i * (1 - i), dc * c_before * f * (1 - f)
        dg, do = dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
        da[t] = np.concatenate((di, df, dg, do), axis=1)
        dh, dc = da[t] @ W, dc * f
    return dh, dc


@hookimpl
def fastrnn_backends():
    return [NumpyBackend()]
