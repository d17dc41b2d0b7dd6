"""Modules, inputs and losses for tests of `torch.func`, and what the backend was asked to run."""

# mypy: ignore-errors

from __future__ import annotations

import torch
from torch.func import functional_call

import fastrnn
from fastrnn_reference.backend import ReferenceBackend

MANY, T, B, I, H = 3, 4, 2, 3, 4
MODULES = {
    "lstm": lambda: fastrnn.LSTM(I, H),
    "lstm, two layers in two directions": lambda: fastrnn.LSTM(I, H, 2, bidirectional=True),
    "lstm, projected": lambda: fastrnn.LSTM(I, H, proj_size=2),
    "tanh": lambda: fastrnn.RNN(I, H),
    "relu in two directions": lambda: fastrnn.RNN(I, H, nonlinearity="relu", bidirectional=True),
    "sigmoid, two layers": lambda: fastrnn.RNN(I, H, 2, nonlinearity="sigmoid", bias=False),
}
X = torch.randn(MANY, T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def maker(name):
    """Makes the named module, another one each time, the same ones in every test."""
    torch.manual_seed(1)
    return lambda: MODULES[name]().double()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def weights_of(module):
    return dict(module.named_parameters())


def loss_of(module):
    """A function of weights and input that uses all that a module returns."""

    def loss(weights, x):
        output, state = functional_call(module, weights, (x,))
        states = state if isinstance(state, tuple) else (state,)
        return output.square().sum() + sum(each.sin().sum() for each in states)

    return loss


def layers_run(monkeypatch):
    """A list that grows by the layers that the backend is asked to run: (pass, rows, groups)."""
    seen = []

    def spy(name):
        run = getattr(ReferenceBackend, name)

        def counted(self, first, *rest):
            layer = first if name == "layer_forward" else rest[0]
            seen.append((name.removeprefix("layer_"), layer.x.shape[1], layer.groups))
            return run(self, first, *rest)

        monkeypatch.setattr(ReferenceBackend, name, counted)

    spy("layer_forward")
    spy("layer_backward")
    return seen
