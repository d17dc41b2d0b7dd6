"""Sizes that nobody knows before the graph runs: of what a mask keeps."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch import nn

import fastrnn

X = torch.randn(6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KWARGS = {
    "plain": {},
    "two layers in two directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
    "recompute": {"recompute": 2},
}


@pytest.fixture(autouse=True)
def captured():
    """What torch needs to be told, with any module."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


def marks_of(x, module, marks):
    steps, batch = (1, 0) if module.batch_first else (0, 1)
    if marks == "lengths":
        return {"lengths": x.shape[steps] - torch.arange(x.shape[batch]) % 2}
    if marks == "resets":
        return {"resets": torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) % 3 == 0}
    return {}


class Kept(nn.Module):
    """A layer over the steps, or the rows, that a mask keeps."""

    def __init__(self, module, dim, marks="none"):
        super().__init__()
        self.module, self.dim, self.marks = module, dim, marks

    def forward(self, x, keep):
        x = x[keep] if self.dim == 0 else x[:, keep]
        output, state = self.module(x, **marks_of(x, self.module, self.marks))
        return output, state


def masks(size):
    for kept in (3, size, 1):
        yield torch.arange(size) < kept


def gradients(made, net):
    output, state = made
    states = state if isinstance(state, tuple) else (state,)
    total = output.square().sum() + sum(each.sin().sum() for each in states)
    return torch.autograd.grad(total, [*net.parameters()])


@pytest.mark.parametrize("kwargs", KWARGS)
@pytest.mark.parametrize(
    ("dim", "marks"), [(0, "none"), (1, "none"), (0, "lengths"), (0, "resets")]
)
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_one_graph(cell, dim, kwargs, marks):
    if marks == "resets" and kwargs == "recompute":
        pytest.skip("resets are refused with recompute")
    net = Kept(getattr(fastrnn, cell)(3, 4, **KWARGS[kwargs]).double(), dim, marks)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for keep in masks(X.shape[dim]):
        want, got = net(X, keep), compiled(X, keep)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, net), gradients(want, net))


@pytest.mark.parametrize("compile", ["eager", "aot_eager"])
def test_no_steps_are_found_where_the_graph_runs(compile):
    net = Kept(fastrnn.LSTM(3, 4).double(), 0)
    compiled = torch.compile(net, fullgraph=True, backend=compile)
    compiled(X, torch.ones(6, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"Ne\(u0, 0\)"):
        compiled(X, torch.zeros(6, dtype=torch.bool))


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    net = Kept(fastrnn.LSTM(3, 4).double(), 0)
    program = torch.export.export(net, (X, torch.ones(6, dtype=torch.bool)), strict=strict)
    for keep in masks(6):
        torch.testing.assert_close(program.module()(X, keep), net(X, keep))
    with pytest.raises(RuntimeError, match=r"Ne\(u0, 0\)"):
        program.module()(X, torch.zeros(6, dtype=torch.bool))
