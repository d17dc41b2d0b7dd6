"""`LSTM` and `RNN` as modules: weights wrapped, replaced, deleted or tied, and sizes edited."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn
from module_cases import CELLS, Halved, X, pair, same


@pytest.mark.parametrize("cell", CELLS)
def test_parametrize(cell):
    theirs, ours = pair(cell, 4, 5)
    plain = ours(X)[0]
    for module in (theirs, ours):
        parametrize.register_parametrization(module, "weight_hh_l0", Halved())
        with torch.no_grad():
            module.parametrizations.weight_hh_l0.original.mul_(3)
    assert same(theirs, ours)
    assert not torch.equal(ours(X)[0], plain)
    ours(X)[0].sum().backward()
    assert ours.parametrizations.weight_hh_l0.original.grad is not None
    assert same(theirs, copy.deepcopy(ours))
    for module in (theirs, ours):
        parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(ours) is getattr(fastrnn, cell)
    assert same(theirs, ours)


def old(function):
    """torch.nn.utils' forms that work with a forward pre-hook; one of them is deprecated."""

    def call(module, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(module, name)

    return call


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        old(nn.utils.weight_norm),
        old(nn.utils.spectral_norm),
        lambda module, name: prune.l1_unstructured(module, name, amount=0.5),
        lambda module, name: prune.custom_from_mask(module, name, getattr(module, name) > 0),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_wrapped_weights_train_as_torchs_do(cell, wrap):
    theirs, ours = pair(cell, 4, 5)
    histories = []
    for module in (theirs, ours):
        torch.manual_seed(0)
        wrap(module, "weight_hh_l0")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        history = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = module(X)[0].square().sum()
            loss.backward()
            optimizer.step()
            history.append(loss.detach())
        histories.append(torch.stack(history))
    assert torch.equal(*histories)
    assert len(set(histories[0].tolist())) == 3
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("cell", CELLS)
def test_computed_weight_is_computed_once_a_call(cell):
    """torch.nn's layers compute it four times, and with it as many power iterations."""
    theirs, ours = pair(cell, 4, 5)
    for module in (theirs, ours):
        torch.manual_seed(0)
        parametrizations.spectral_norm(module, "weight_hh_l0")
    norm = ours.parametrizations.weight_hh_l0[0]
    calls = []
    norm.register_forward_hook(lambda module, args, output: calls.append(module))
    ours(X)
    assert len(calls) == 1
    theirs.load_state_dict(ours.state_dict())
    assert same(theirs.eval(), ours.eval())  # no power iterations in eval mode


@pytest.mark.parametrize("cell", CELLS)
def test_replaced_parameter(cell):
    theirs, ours = pair(cell, 4, 5)
    new = nn.Parameter(torch.randn_like(ours.weight_hh_l0))
    theirs.weight_hh_l0 = new
    ours.weight_hh_l0 = new
    assert same(theirs, ours)
    ours(X)[0].sum().backward()
    assert new.grad is not None


@pytest.mark.parametrize("cell", CELLS)
def test_weight_drop(cell):
    """A parameter deleted and set as a plain tensor, anew for every call."""
    theirs, ours = pair(cell, 4, 5)
    raw = nn.Parameter(ours.weight_hh_l0.detach().clone())
    for module in (theirs, ours):
        del module.weight_hh_l0
    for scale in (1.0, 0.5):
        for module in (theirs, ours):
            module.weight_hh_l0 = raw * scale
        assert same(theirs, ours)
    ours(X)[0].sum().backward()
    assert raw.grad is not None
    assert "weight_hh_l0" not in dict(ours.named_parameters())


def test_tensor_put_among_the_parameters():
    """Old weight-drop code writes computed tensors into `_parameters`."""
    ours = fastrnn.LSTM(4, 5)
    raw = nn.Parameter(ours.weight_hh_l0.detach().clone())
    ours._parameters["weight_hh_l0"] = raw * 0.5
    ours(X)[0].sum().backward()
    assert raw.grad is not None


def test_missing_parameter_is_named():
    ours = fastrnn.LSTM(4, 5)
    del ours.weight_hh_l0
    with pytest.raises(AttributeError, match="weight_hh_l0"):
        ours(X)


@pytest.mark.parametrize("cell", CELLS)
def test_tied_weights(cell):
    theirs, ours = pair(cell, 5, 5, 2)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
    x = torch.randn(5, 3, 5)
    assert same(theirs, ours, x)
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    for module in (theirs, ours):
        module(x)[0].sum().backward()
    assert torch.equal(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("input_size", 6), ("bias", False), ("num_layers", 1), ("bidirectional", False)],
)
def test_the_spec_follows_the_attributes(attribute, value):
    """Tools that cut a model edit sizes and weights together; torch reads both when called."""
    arguments = {"input_size": 4, "num_layers": 2, "bidirectional": True, "bias": True}
    ours = fastrnn.LSTM(hidden_size=5, **arguments)
    fresh = fastrnn.LSTM(hidden_size=5, **{**arguments, attribute: value})
    setattr(ours, attribute, value)
    for name, parameter in fresh.named_parameters():
        setattr(ours, name, parameter)
    x = torch.randn(5, 3, ours.input_size)
    assert torch.equal(ours(x)[0], fresh(x)[0])
    assert len(ours.all_weights) == len(fresh.all_weights)
