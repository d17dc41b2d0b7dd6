"""A healthy third party: the LSTM's time loop in NumPy, for equal lengths without a projection."""

from __future__ import annotations

import numpy as np
import torch

from fastrnn.backend import LayerOutput, Recurrence, RecurrenceBackend
from fastrnn.hookspecs import hookimpl
from fastrnn.request import Cost


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


class NumpyLSTM(RecurrenceBackend):
    name = "numpy"
    summary = "LSTM time steps in NumPy"
    contract = 1

    def can_run(self, request):
        reasons = [] if request.cell == "lstm" else [f"cell is {request.cell}; needs lstm"]
        reasons += [] if request.device == "cpu" else [f"device is {request.device}; needs cpu"]
        reasons += ["proj_size is not supported"] if request.proj_size else []
        reasons += ["needs equal lengths"] if request.varlen else []
        if request.dtype not in (torch.float32, torch.float64):
            reasons.append(f"dtype is {request.dtype}; needs float32 or float64")
        return reasons

    def cost(self, request):
        return Cost(3600.0, "never a first choice")

    def recurrence_forward(self, gates_x, weight_hh, layer):
        weights, a_x = weight_hh.detach().numpy(), gates_x.detach().numpy()
        steps, batch, groups, _ = a_x.shape
        output = np.empty((steps, batch, groups, layer.hidden_size), a_x.dtype)
        gates, cells = np.empty_like(a_x), np.empty_like(output)
        h_n, c_n = layer.h0.detach().numpy().copy(), layer.c0.detach().numpy().copy()
        for group, reverse in enumerate(layer.reverse):
            h, c = h_n[group], c_n[group]
            for t in range(steps)[:: -1 if reverse else 1]:
                a = a_x[t, :, group] + h @ weights[group].T
                i, f, g, o = np.split(a, 4, axis=1)
                i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
                c = f * c + i * g
                h = o * np.tanh(c)
                gates[t, :, group] = np.concatenate((i, f, g, o), axis=1)
                cells[t, :, group], output[t, :, group] = c, h
            h_n[group], c_n[group] = h, c
        saved = (torch.from_numpy(cells), torch.from_numpy(gates)) if layer.save else ()
        return LayerOutput(*map(torch.from_numpy, (output, h_n, c_n)), saved)

    def recurrence_backward(self, grad, weight_hh, layer, output, saved, wanted):
        cells, gates = (tensor.numpy() for tensor in saved[:2])
        weights, c0 = weight_hh.detach().numpy(), layer.c0.detach().numpy()
        d_gates = np.empty_like(gates)
        d_output, d_h0, d_c0 = (
            np.zeros_like(like) if given is None else given.numpy().copy()
            for given, like in zip(grad[:3], (cells, c0, c0), strict=True)
        )
        steps = gates.shape[0]
        for group, reverse in enumerate(layer.reverse):
            d_h, d_c = d_h0[group], d_c0[group]
            for t in range(steps)[:: 1 if reverse else -1]:
                i, f, g, o = np.split(gates[t, :, group], 4, axis=1)
                before = t + 1 if reverse else t - 1
                c_before = cells[before, :, group] if 0 <= before < steps else c0[group]
                tanh_c = np.tanh(cells[t, :, group])
                d_h = d_h + d_output[t, :, group]
                d_c = d_c + d_h * o * (1 - tanh_c**2)
                d = (d_c * g * i * (1 - i), d_c * c_before * f * (1 - f), d_c * i * (1 - g**2))
                d_gates[t, :, group] = np.concatenate((*d, d_h * tanh_c * o * (1 - o)), axis=1)
                d_h, d_c = d_gates[t, :, group] @ weights[group], d_c * f
            d_h0[group], d_c0[group] = d_h, d_c
        return Recurrence(*map(torch.from_numpy, (d_gates, d_h0, d_c0)))


@hookimpl
def fastrnn_backends():
    return [NumpyLSTM()]
