"""Long sequences, large batches, nothing at all; and the same bits on every run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn

BACKENDS = ("reference", "aten")


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_seventy_thousand_steps(cell):
    """More than the 65,535 that a dimension of a CUDA grid, or 16 bits, can count."""
    torch.manual_seed(0)
    T = 70_001
    layer = getattr(fastrnn, cell)(1, 1, backend="reference")
    theirs = getattr(nn, cell)(1, 1)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(T, 1, 1)
    with torch.set_grad_enabled(cell == "RNN"):
        got, want = layer(x)[0], theirs(x)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if cell == "RNN":
        (d_w,) = torch.autograd.grad(got[-3:].sum(), layer.weight_hh_l0)
        (want_d_w,) = torch.autograd.grad(want[-3:].sum(), theirs.weight_hh_l0)
        torch.testing.assert_close(d_w, want_d_w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_a_hundred_thousand_rows(cell, backend):
    torch.manual_seed(0)
    B = 100_003
    layer = getattr(fastrnn, cell)(1, 2, backend=backend)
    x = torch.randn(2, B, 1)
    output = layer(x)[0]
    for row in (0, 65_535, 65_536, B - 1):
        torch.testing.assert_close(output[:, row], layer(x[:, row])[0])
    output.sum().backward()
    assert layer.weight_hh_l0.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"lengths": []}, {"resets": True}], ids=str)
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_empty_batch(cell, options, backend):
    layer = getattr(fastrnn, cell)(3, 4, 2, bidirectional=True, backend=backend)
    if "resets" in options:
        options = {"resets": torch.zeros(5, 0, dtype=torch.bool)}
    x = torch.randn(5, 0, 3, requires_grad=True)
    if options and backend == "aten":
        with pytest.raises(fastrnn.BackendError, match=next(iter(options))):
            layer(x, **options)
        return
    output, state = layer(x, **options)
    states = state if isinstance(state, tuple) else (state,)
    assert output.shape == (5, 0, 8)
    assert all(each.shape == (4, 0, 4) for each in states)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert all((w.grad == 0).all() for w in layer.parameters())


def test_no_steps_is_torchs_error():
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        fastrnn.LSTM(3, 4)(torch.randn(0, 2, 3))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_same_bits_on_every_run(cell, backend, threads, dtype):
    """Forward and every gradient, with no switch set: sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        layer = getattr(fastrnn, cell)(16, 40, 2, bidirectional=True, backend=backend).to(dtype)
        x = torch.randn(7, 8, 16, dtype=dtype, requires_grad=True)
        runs = []
        for _ in range(4):
            output, state = layer(x)
            h_n = state[0] if isinstance(state, tuple) else state
            grads = torch.autograd.grad(output.square().sum() + h_n.sum(), [x, *layer.parameters()])
            runs.append((output, h_n, *grads))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("option", ["lengths", "resets", "recompute", "all states"])
def test_the_same_bits_with_every_option(option):
    torch.manual_seed(0)
    layer = fastrnn.LSTM(8, 24, 2, backend="reference", recompute=option == "recompute" and 4)
    x = torch.randn(15, 4, 8)
    how = {
        "lengths": {"lengths": [15, 3, 0, 7]},
        "resets": {"resets": torch.rand(15, 4) < 0.2},
        "all states": {"return_all_states": True},
    }.get(option, {})
    runs = []
    for _ in range(3):
        output, (_, c_n), *every = layer(x, **how)
        total = output.square().sum() + c_n.sum() + sum(c.sum() for _, c in every)
        runs.append((output, c_n, *torch.autograd.grad(total, list(layer.parameters()))))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_mixed_dtypes_fail_as_they_do_in_torch(cell, dtype):
    ours, theirs = getattr(fastrnn, cell)(3, 4), getattr(nn, cell)(3, 4)
    ours.to(dtype), theirs.to(dtype)
    other = torch.float32 if dtype != torch.float32 else torch.float64
    x, h0 = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    for given, state in ((x.to(other), None), (x.to(dtype), h0.to(other))):
        hx = state if state is None or cell == "RNN" else (state, state)
        texts = []
        for layer in (theirs, ours):
            with pytest.raises((ValueError, RuntimeError)) as caught:
                layer(given, hx)
            texts.append((type(caught.value), str(caught.value)))
        assert texts[0] == texts[1]


@pytest.mark.parametrize("parameters", DTYPES, ids=str)
@pytest.mark.parametrize("inputs", DTYPES, ids=str)
def test_autocast_takes_any_mix_that_torch_takes(parameters, inputs):
    ours, theirs = fastrnn.LSTM(3, 4).to(parameters), nn.LSTM(3, 4).to(parameters)
    theirs.load_state_dict(ours.state_dict())
    x, found = torch.randn(5, 2, 3).to(inputs), []
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (theirs, ours):
            try:
                found.append(layer(x)[0].dtype)
            except (ValueError, RuntimeError) as error:
                found.append(type(error))
    assert found[0] == found[1]
