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


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("marks", [{}, {"lengths": [5, 3, 2]}, {"resets": X[:, :, 0] > 1}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("cell", ["LSTM", "RNN", "GRU"])
def test_dtype_under_autocast(cell, backend, marks, given):
    """Torch's, whatever runs: of a GRU on a CPU that of the input."""
    ours, x = getattr(fastrnn, cell)(4, 6, backend=backend), X.to(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, (want_h, *_) = getattr(nn, cell)(4, 6)(x)
        output, (h, *_), every = ours(x, return_all_states=True, **marks)
        plain, _ = ours(x, **marks)
    states = every if cell == "LSTM" else (every,)
    assert {output.dtype, plain.dtype, h.dtype, *(e.dtype for e in states)} == {want.dtype}
    assert want_h.dtype == want.dtype
    (gradient,) = torch.autograd.grad(plain.float().sum(), ours.weight_hh_l0)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("marks", [{}, {"lengths": [5, 5, 5]}], ids=str)
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")], ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_dtype_of_a_gru_under_autocast_that_is_given_a_state(backend, dtypes, marks):
    given, state = (getattr(torch, dtype) for dtype in dtypes)
    x, hx = X.to(given), torch.zeros(1, 3, 6, dtype=state)
    for kind in (torch.float32, torch.bfloat16):
        ours, theirs = fastrnn.GRU(4, 6, backend=backend).to(kind), nn.GRU(4, 6).to(kind)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            want, got = theirs(x, hx), ours(x, hx, **marks)
        assert [each.dtype for each in got] == [each.dtype for each in want]


@pytest.mark.parametrize("marks", [{}, {"lengths": [5, 3, 2]}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("cell", ["LSTM", "RNN", "GRU", "projected"])
def test_autocast_leaves_float64_alone(cell, backend, marks):
    kwargs = {"proj_size": 2} if cell == "projected" else {}
    name = "LSTM" if cell == "projected" else cell
    ours = getattr(fastrnn, name)(4, 6, backend=backend, **kwargs).double()
    want = ours(X.double(), **marks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(X.double(), **marks)
    torch.testing.assert_close(got, want)


SIZES = torch.tensor([3, 3, 2, 1, 1])
CALLED = {
    "padded": lambda module: module(X),
    "list of lengths": lambda module: module(X, lengths=[5, 3, 0]),
    "lengths": lambda module: module(X, lengths=torch.tensor([2, 5, 1], device="cpu")),
    "resets": lambda module: module(X, resets=X[:, :, 0] > 0.5),
    "both": lambda module: module(X, lengths=[5, 3, 2], resets=X[:, :, 0] > 0.5),
    "packed": lambda module: module(nn.utils.rnn.PackedSequence(X.flatten(0, 1)[:10], SIZES)),
    "one packed row": lambda module: module(
        nn.utils.rnn.PackedSequence(X[:, 0], SIZES.clamp(max=1))
    ),
}


@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("backend", ["auto", "reference", "rows", "onednn"])
@pytest.mark.parametrize("cell", ["LSTM", "RNN", "GRU"])
def test_tensors_are_where_the_inputs_are(cell, backend, bidirectional, train, called):
    """And not on the device that is the default, which a program may have set to a GPU."""
    module = getattr(fastrnn, cell)(4, 6, bidirectional=bidirectional, backend=backend)

    def results():
        with torch.set_grad_enabled(train):
            output, states = CALLED[called](module)
            output = output.data if called.endswith(("packed", "row")) else output
            gradients = torch.autograd.grad(output.sum(), module.weight_hh_l0) if train else ()
        return output, *(states if cell == "LSTM" else (states,)), *gradients

    try:
        want = results()
    except fastrnn.BackendError as error:
        pytest.skip(next(line for line in str(error).splitlines() if f"- {backend}:" in line))
    module.__dict__["_plans"].clear()
    with torch.device("meta"):
        got = results()
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)
