"""cuDNN's memory layout: when `LSTM` and `RNN` ask for it, and that cuDNN finds it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import recurrent
from module_cases import X


@pytest.fixture
def flattened(monkeypatch):
    """As on a GPU: what would be handed to cuDNN to lay out, a list of argument tuples."""
    calls = []
    monkeypatch.setattr(
        recurrent,
        "_is_for_cudnn",
        lambda weight: isinstance(weight, torch.Tensor) and not recurrent._is_sharded(weight),
    )
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *args: calls.append(args))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", lambda mode: mode)
    return calls


def test_flattened_when_made_moved_or_replaced(flattened):
    ours = fastrnn.LSTM(4, 5, 2, bidirectional=True, proj_size=3, batch_first=True)
    weights, *rest = flattened.pop()
    assert [w.data_ptr() for w in weights] == [p.data_ptr() for p in ours.parameters()]
    assert rest == [5, 4, "LSTM", 5, 3, 2, True, True]
    ours.double()
    assert flattened.pop()[0][0].dtype == torch.float64
    ours.weight_hh_l0 = nn.Parameter(torch.randn_like(ours.weight_hh_l0))
    assert flattened.pop()[0][1] is ours.weight_hh_l0
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    ours.eval()
    assert not flattened
    ours.flatten_parameters()
    assert len(flattened) == 1


@pytest.mark.parametrize("why", ["sigmoid", "tied", "mixed dtypes", "missing"])
def test_not_flattened(flattened, why):
    ours = fastrnn.RNN(5, 5, 2, "sigmoid" if why == "sigmoid" else "tanh")
    if why == "tied":
        ours.weight_hh_l1 = ours.weight_hh_l0
    elif why == "mixed dtypes":
        ours.weight_hh_l1 = nn.Parameter(ours.weight_hh_l1.double())
    elif why == "missing":
        del ours.weight_hh_l1
    flattened.clear()
    ours.flatten_parameters()
    assert not flattened


class Sharded(torch.Tensor):
    """As FSDP2 keeps parameters while they are not in use."""


def test_not_flattened_while_sharded_weights_are_gathered(flattened):
    """FSDP2 gathers into memory of its own, step after step, and sets one weight after another."""
    ours = fastrnn.LSTM(4, 5)
    whole = dict(ours.named_parameters())
    flattened.clear()
    for _ in range(2):
        for name, weight in whole.items():
            shard = nn.Parameter(weight.detach().as_subclass(Sharded))
            setattr(ours, name, shard)
        for name, weight in whole.items():
            setattr(ours, name, weight)
    assert not flattened
    ours.weight_hh_l0 = nn.Parameter(torch.randn_like(ours.weight_hh_l0))
    assert len(flattened) == 1


def test_flatten_parameters_is_harmless_on_the_cpu():
    ours = fastrnn.LSTM(4, 5)
    before = [p.data_ptr() for p in ours.parameters()]
    ours.flatten_parameters()
    assert [p.data_ptr() for p in ours.parameters()] == before


@pytest.mark.gpu
@pytest.mark.parametrize("made", ["on the device", "moved", "replaced"])
def test_cudnn_finds_the_weights_in_one_block(made):
    """Or else it warns, and warnings are errors here."""
    ours = fastrnn.LSTM(4, 5, 2, device="cuda" if made == "on the device" else "cpu")
    ours.backend = "aten"
    ours = ours.cuda()
    if made == "replaced":
        ours.weight_hh_l0 = nn.Parameter(torch.randn_like(ours.weight_hh_l0))
    assert len({p.untyped_storage().data_ptr() for p in ours.parameters()}) == 1
    ours(X.cuda())
