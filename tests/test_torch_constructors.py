"""`fastrnn.LSTM` and `RNN` against torch.nn's in the same test: what a constructor makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn

PROJECTED_ON_CPU = "ignore:LSTM with projections is not supported with oneDNN"
pytestmark = pytest.mark.filterwarnings(PROJECTED_ON_CPU)

PAIRS = [(nn.LSTM, fastrnn.LSTM), (nn.RNN, fastrnn.RNN)]
CONSTRUCTORS = [
    {},
    {"num_layers": 2},
    {"num_layers": 3, "dropout": 0.25, "bidirectional": True},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True, "bias": False, "num_layers": 2},
    {"dtype": torch.float64},
    {"device": "meta"},
    {"num_layers": 2, "dropout": 1},
    {"num_layers": 2, "dropout": 0},
]
LSTM_ONLY = [{"proj_size": 2}, {"proj_size": 3, "bidirectional": True, "num_layers": 2}]
RNN_ONLY = [{"nonlinearity": "relu"}, {"nonlinearity": "tanh", "bias": False}]
VALID = [(pair, kwargs) for pair in PAIRS for kwargs in CONSTRUCTORS]
VALID += [(PAIRS[0], kwargs) for kwargs in LSTM_ONLY]
VALID += [(PAIRS[1], kwargs) for kwargs in RNN_ONLY]


@pytest.mark.parametrize(("pair", "kwargs"), VALID)
def test_same_module(pair, kwargs):
    """Parameters (bit for bit, by the same draws), their order, attributes, repr, all_weights."""
    modules = []
    after = []
    for cls in pair:
        torch.manual_seed(3)
        modules.append(cls(4, 5, **kwargs))
        after.append(torch.rand(3))
    theirs, ours = modules
    assert torch.equal(*after)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for want, got in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert type(got) is type(want)
        assert (got.shape, got.dtype, got.device) == (want.shape, want.dtype, want.device)
        assert got.is_meta or torch.equal(got, want)
    attributes = [
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional", "proj_size", "training",
    ]  # fmt: skip
    for name in [*attributes, *(["nonlinearity"] if pair[0] is nn.RNN else [])]:
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    names = {p: name for name, p in ours.named_parameters()}
    their_names = {p: name for name, p in theirs.named_parameters()}
    assert [[names[p] for p in group] for group in ours.all_weights] == [
        [their_names[p] for p in group] for group in theirs.all_weights
    ]


def test_positional_arguments_have_torchs_order():
    arguments = (4, 5, 2, False, True, 0.5, True, 3)
    assert repr(fastrnn.LSTM(*arguments)) == repr(nn.LSTM(*arguments))
    arguments = (4, 5, 2, "relu", False, True, 0.5, True)
    ours, theirs = fastrnn.RNN(*arguments), nn.RNN(*arguments)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode
