"""Layers that `convert` and `revert` leave as they are, and the reasons."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastrnn
from fastrnn.weight_drop import weight_drop

X = torch.randn(5, 3, 4)


class Bespoke(nn.LSTM):
    pass


class OurBespoke(fastrnn.LSTM):
    pass


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


def with_forward_replaced():
    layer = nn.LSTM(4, 5)
    layer.forward = lambda input: (input, None)
    return layer


def with_bound_hook():
    layer = nn.LSTM(4, 5)
    layer.register_load_state_dict_pre_hook(lambda module, *rest: None)
    return layer


def compiled_in_place():
    layer = nn.LSTM(4, 5)
    layer.compile(backend="eager")
    return layer


class QuantizedLookalike(nn.Module):
    """torch.ao's quantized classes carry the names of torch.nn's; only those are looked at."""


QuantizedLookalike.__name__ = "LSTM"
QuantizedLookalike.__module__ = "torch.ao.nn.quantized.dynamic.modules.rnn"

LEFT = {
    "complex": (
        lambda: nn.LSTM(4, 5, dtype=torch.complex64),
        "complex weights, which no backend takes",
    ),
    "GRUCell": (lambda: nn.GRUCell(4, 5), "a single time step gains nothing from a backend"),
    "LSTMCell": (lambda: nn.LSTMCell(4, 5), "a single time step gains nothing from a backend"),
    "RNNCell": (lambda: nn.RNNCell(4, 5), "a single time step gains nothing from a backend"),
    "Bespoke": (lambda: Bespoke(4, 5), "a subclass, whose own code a swap would lose"),
    "scripted": (
        lambda: scripted(nn.LSTM(4, 5)),
        "compiled by TorchScript; convert the model before it is scripted",
    ),
    "quantized": (QuantizedLookalike, "quantized"),
    "forward": (with_forward_replaced, "its forward was replaced on the instance"),
    "hook": (with_bound_hook, "a load_state_dict pre-hook is bound to it"),
    "compile()": (compiled_in_place, "compiled by its own compile(); convert the model before"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name):
    make, reason = LEFT[name]
    model = nn.Sequential(make())
    layer = model[0]
    (entry,) = fastrnn.conversion_report(model).with_status("left")
    assert (entry.names, entry.reason) == (("0",), reason)
    assert fastrnn.convert(model)[0] is layer
    assert fastrnn.revert(model)[0] is layer


def test_a_compiled_submodule_is_left():
    """It calls the layer that it was made of."""
    model = nn.ModuleDict({"a": torch.compile(nn.LSTM(4, 5), backend="eager")})
    (entry,) = fastrnn.conversion_report(model).layers
    assert entry.reason == "compiled by torch.compile; convert the model before"
    layer = model["a"]._orig_mod
    assert fastrnn.convert(model)["a"]._orig_mod is layer
    ours = nn.ModuleDict({"a": torch.compile(fastrnn.LSTM(4, 5), backend="eager")})
    assert type(fastrnn.revert(ours)["a"]._orig_mod) is fastrnn.LSTM


def test_a_hook_that_is_not_bound_does_not_stop_a_swap():
    layer = nn.LSTM(4, 5)
    layer._register_load_state_dict_pre_hook(lambda *rest: None)
    assert type(fastrnn.convert(layer)) is fastrnn.LSTM


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastrnn.RNN(4, 5, nonlinearity="sigmoid"),
        lambda: fastrnn.RNNCell(4, 5, nonlinearity="sigmoid"),
        lambda: fastrnn.CellRNN("gru", 4, 5),
        lambda: OurBespoke(4, 5),
    ],
)
def test_revert_leaves_what_torch_lacks(make):
    model = nn.Sequential(make())
    layer = model[0]
    assert fastrnn.revert(model)[0] is layer


@pytest.mark.parametrize(
    ("name", "value"), [("recurrent_dropout", 0.5), ("zoneout", 0.1), ("error_clip", 5.0)]
)
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_revert_leaves_regularised_layers_until_that_is_off(kind, name, value):
    model = nn.Sequential(kind(4, 5, **{name: value}))
    layer = model[0]
    assert fastrnn.revert(model)[0] is layer
    assert getattr(layer, name) == value
    setattr(layer, name, None if name == "error_clip" else 0)
    if name == "zoneout" and kind is fastrnn.LSTM:
        layer.zoneout = (0.0, value)
        assert fastrnn.revert(model)[0] is layer
        layer.zoneout = (0, 0.0)
    weight = layer.weight_hh_l0
    assert type(fastrnn.revert(model)[0]) is getattr(nn, kind.__name__)
    assert model[0].weight_hh_l0 is weight
    assert set(vars(model[0])) == set(vars(getattr(nn, kind.__name__)(4, 5)))


def test_revert_leaves_layers_with_weight_drop_until_it_is_removed():
    model = nn.Sequential(weight_drop(fastrnn.LSTM(4, 5)))
    layer = model[0]
    assert fastrnn.revert(model)[0] is layer
    parametrize.remove_parametrizations(layer, "weight_hh_l0", leave_parametrized=False)
    assert type(fastrnn.revert(model)[0]) is nn.LSTM
