"""`fastrnn.LSTM` and `RNN` against torch.nn's in the same test: what is read at each call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn

X = torch.randn(5, 3, 4)


def test_states_may_be_a_list():
    hx = [torch.randn(1, 3, 6), torch.randn(1, 3, 6)]
    theirs, ours = nn.LSTM(4, 6), fastrnn.LSTM(4, 6, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(X, hx)[0], theirs(X, hx)[0])


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_attributes_are_honoured_when_called(cell):
    """torch reads batch_first, dropout and training at each call; so must we."""
    theirs, ours = getattr(nn, cell)(4, 6, 2), getattr(fastrnn, cell)(4, 6, 2, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.batch_first = True
    assert torch.equal(ours(X)[0], theirs(X)[0])
    for module in (theirs, ours):
        module.dropout = 0.5
    results = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        results.append(module(X)[0])
    assert torch.equal(*results)
    ours.eval()
    assert torch.equal(ours(X)[0], ours(X)[0])
    ours.train()
    assert not torch.equal(ours(X)[0], ours(X)[0])


def test_mode_is_honoured_when_called():
    theirs, ours = nn.RNN(4, 6), fastrnn.RNN(4, 6, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.mode = "RNN_RELU"
    assert torch.equal(ours(X)[0], theirs(X)[0])


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_autocast(cell):
    theirs, ours = getattr(nn, cell)(4, 6), getattr(fastrnn, cell)(4, 6, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = theirs(X)[0], ours(X)[0]
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
