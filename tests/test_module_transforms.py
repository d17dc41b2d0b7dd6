"""`LSTM` and `RNN` as modules: functional calls, hooks, and data in parallel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state

import fastrnn
from module_cases import CELLS, X, pair, same


@pytest.mark.parametrize("cell", CELLS)
def test_functional_call(cell):
    theirs, ours = pair(cell, 4, 5)
    other = {name: torch.randn_like(p, requires_grad=True) for name, p in ours.named_parameters()}
    want, got = (functional_call(module, other, (X,))[0] for module in (theirs, ours))
    assert torch.equal(got, want)
    (gradient,) = torch.autograd.grad(got.sum(), other["weight_ih_l0"])
    assert gradient.abs().sum() > 0
    assert same(theirs, ours)


def test_ensemble_by_functional_call():
    modules = [fastrnn.LSTM(4, 5) for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    for i, module in enumerate(modules):
        own = {name: stacked[i] for name, stacked in parameters.items()}
        assert torch.equal(functional_call(skeleton, (own, buffers), (X,))[0], module(X)[0])


def test_hooks():
    seen = []
    ours = fastrnn.LSTM(4, 5)
    ours.register_forward_pre_hook(lambda module, args: seen.append("pre"))
    ours.register_forward_hook(lambda module, args, output: seen.append("forward"))
    ours.register_full_backward_hook(lambda module, d_in, d_out: seen.append("backward"))
    ours(X.clone().requires_grad_())[0].sum().backward()
    assert seen == ["pre", "forward", "backward"]


def test_data_parallel_replica():
    """nn.DataParallel gives replicas plain tensors instead of parameters."""
    ours = fastrnn.LSTM(4, 5)
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours.named_parameters():
        setattr(replica, name, parameter * 1)
    assert torch.equal(replica(X)[0], ours(X)[0])
    replica(X)[0].sum().backward()
    assert ours.weight_hh_l0.grad is not None
