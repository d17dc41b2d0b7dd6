"""Whoever is given final states may write to them, also where gradients are needed."""

from __future__ import annotations

import pytest
import torch

import fastrnn

X = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "lstm": lambda **how: fastrnn.LSTM(3, 4, **how),
    "lstm, projected": lambda **how: fastrnn.LSTM(3, 4, proj_size=2, **how),
    "tanh": lambda **how: fastrnn.RNN(3, 4, **how),
    "sigmoid": lambda **how: fastrnn.RNN(3, 4, nonlinearity="sigmoid", **how),
    "gru": lambda **how: fastrnn.GRU(3, 4, **how),
}
OPTIONS = {
    "plain": {},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "zoneout": {"zoneout": 0.1},
    "recompute": {"recompute": 3},
    "final only": {"final_only": True},
}
CALLS = {
    "plain": {},
    "lengths": {"lengths": [6, 2, 1, 0]},
    "all states": {"return_all_states": True},
}


def states_of(made):
    return made[1] if isinstance(made[1], tuple) else (made[1],)


def gradients(module, made, states):
    output = 0 if made[0] is None else made[0].square().sum()
    total = output + sum(state.square().sum() for state in states)
    return torch.autograd.grad(total, [*module.parameters()])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_final_states_are_written_to(backend, layer, options, call):
    torch.manual_seed(0)
    module = LAYERS[layer](backend=backend, **OPTIONS[options]).double().eval()
    made = module(X, **CALLS[call])
    want = gradients(module, made, [state * 2 + 1 for state in states_of(made)])
    made = module(X, **CALLS[call])
    for state in states_of(made):
        state.mul_(2).add_(1)
    torch.testing.assert_close(gradients(module, made, states_of(made)), want)


@pytest.mark.parametrize("layer", LAYERS)
def test_final_states_are_detached_in_place(layer):
    module = LAYERS[layer](backend="reference")
    for state in states_of(module(X.float())):
        state.detach_()
        assert not state.requires_grad
