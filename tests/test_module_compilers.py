"""`LSTM` and `RNN` as modules: torch.compile, torch.export and TorchScript."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastrnn
from module_cases import CELLS, Halved, X


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "kwargs"), [("LSTM", {}), ("RNN", {"nonlinearity": "sigmoid"})])
def test_compiles_into_one_graph(cell, kwargs, bidirectional):
    torch._dynamo.reset()
    ours = getattr(fastrnn, cell)(4, 5, 2, bidirectional=bidirectional, **kwargs)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for x in (X, torch.randn(7, 2, 4)):
        torch.testing.assert_close(compiled(x)[0], ours(x)[0])
    compiled(X)[0].sum().backward()
    assert ours.weight_hh_l0.grad is not None


@pytest.mark.parametrize("surgery", ["parametrized", "plain tensor"])
def test_compiles_with_computed_weights(surgery):
    torch._dynamo.reset()
    ours = fastrnn.LSTM(4, 5)
    if surgery == "parametrized":
        parametrize.register_parametrization(ours, "weight_hh_l0", Halved())
    else:
        weight = ours.weight_hh_l0.detach()
        del ours.weight_hh_l0
        ours.weight_hh_l0 = weight / 2
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X)[0], ours(X)[0])


def test_compiled_module_sees_edits():
    torch._dynamo.reset()
    ours = fastrnn.LSTM(4, 5)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    compiled(X)
    ours.batch_first = True
    assert compiled(X)[1][0].shape == (1, 5, 5)
    ours.weight_hh_l0 = nn.Parameter(torch.zeros_like(ours.weight_hh_l0))
    torch.testing.assert_close(compiled(X)[0], ours(X)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict):
    ours = fastrnn.LSTM(4, 5)
    program = torch.export.export(ours, (X,), strict=strict)
    torch.testing.assert_close(program.module()(X)[0], ours(X)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS)
def test_torchscript_is_refused_with_a_way_out(cell):
    model = nn.Sequential(getattr(fastrnn, cell)(4, 5))
    with pytest.raises(RuntimeError, match=rf"fastrnn\.{cell} cannot be .*fastrnn\.revert"):
        torch.jit.script(model)
    assert type(model[0]) is getattr(fastrnn, cell)
    scripted = torch.jit.script(fastrnn.revert(copy.deepcopy(model)))
    torch.testing.assert_close(scripted(X)[0], model(X)[0])
