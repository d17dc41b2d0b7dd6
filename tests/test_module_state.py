"""`LSTM` and `RNN` as modules: checkpoints, copies, devices, dtypes and shared memory."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import recurrent
from module_cases import CELLS, X, pair, same


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("cell", "kwargs"),
    [
        ("LSTM", {}),
        ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": False}),
        ("RNN", {"num_layers": 2, "bidirectional": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_checkpoints_go_both_ways(cell, kwargs, assign):
    theirs, ours = getattr(nn, cell)(4, 5, **kwargs), getattr(fastrnn, cell)(4, 5, **kwargs)
    ours.backend = "aten"
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=assign)
    assert same(theirs, ours)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=assign)
    assert same(theirs, ours)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata


def round_trip(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, round_trip, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("cell", CELLS)
def test_copies(cell, copied):
    ours = getattr(fastrnn, cell)(4, 5, 2, batch_first=True, backend="reference").eval()
    other = copied(ours)
    assert type(other) is type(ours)
    assert repr(other) == repr(ours)
    assert not other.training
    assert torch.equal(other(X)[0], ours(X)[0])
    other.num_layers = 1  # a copy derives its own spec
    assert not torch.equal(other(X)[0], ours(X)[0])


def test_what_can_be_derived_is_not_pickled():
    state = fastrnn.LSTM(4, 5).__getstate__()
    assert not set(recurrent.DERIVED) & set(state)


def test_deepcopy_shares_nothing():
    ours = fastrnn.LSTM(4, 5)
    other = copy.deepcopy(ours)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in ours.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_on_meta(cell):
    """Of what torch's own path has not, too."""
    ours, x = getattr(fastrnn, cell)(4, 5, device="meta"), torch.randn(3, 2, 4, device="meta")
    for backend in ("auto", "reference"):
        ours.backend = backend
        output, _, _ = ours(x, return_all_states=True)
        assert output.device.type == "meta"
        assert output.shape == (3, 2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x)[0].dtype == torch.float32
    with pytest.raises(RuntimeError, match="tensors are not at the same device"):
        getattr(fastrnn, cell)(4, 5, backend="reference")(x)


@pytest.mark.parametrize("cell", CELLS)
def test_meta_to_empty(cell):
    theirs = getattr(nn, cell)(4, 5)
    ours = getattr(fastrnn, cell)(4, 5, device="meta", backend="aten")
    ours = ours.to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    assert same(theirs, ours)


def test_skip_init():
    ours = nn.utils.skip_init(fastrnn.LSTM, 4, 5, num_layers=2)
    assert ours(X)[0].shape == (5, 3, 5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda m: m.double(), torch.float64),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.to(torch.float64), torch.float64),
    ],
)
def test_moves_between_dtypes(cell, move, dtype):
    theirs, ours = (move(module) for module in pair(cell, 4, 5))
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert same(theirs, ours, X.to(dtype))


def test_share_memory():
    ours = fastrnn.LSTM(4, 5).share_memory()
    assert all(parameter.is_shared() for parameter in ours.parameters())
    ours(X)
