"""The cells against torch.nn's, and the sigmoid cell against its equation."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastrnn

PAIRS = {
    "LSTMCell": (nn.LSTMCell, fastrnn.LSTMCell, {}),
    "GRUCell": (nn.GRUCell, fastrnn.GRUCell, {}),
    "RNNCell tanh": (nn.RNNCell, fastrnn.RNNCell, {"nonlinearity": "tanh"}),
    "RNNCell relu": (nn.RNNCell, fastrnn.RNNCell, {"nonlinearity": "relu"}),
}
pairs = pytest.mark.parametrize("name", PAIRS)


def build(name, *args, **kwargs):
    theirs, ours, options = PAIRS[name]
    result = []
    for cls in (theirs, ours):
        torch.manual_seed(2)
        result.append(cls(*args, **kwargs, **options))
    return result


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(PAIRS)),
    batch=st.sampled_from([None, 0, 1, 3, 17]),
    input_size=st.sampled_from([1, 4, 7]),
    hidden_size=st.sampled_from([1, 5, 16, 33]),
    bias=st.booleans(),
    with_hx=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_same_bits(name, batch, input_size, hidden_size, bias, with_hx, dtype):
    """Weights drawn from the same seed, outputs and gradients."""
    rows = () if batch is None else (batch,)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, input_size, generator=generator).to(dtype)
    h = torch.randn(*rows, hidden_size, generator=generator).to(dtype)
    hx = None if not with_hx else (h, h.flip(-1)) if name == "LSTMCell" else h
    results = []
    for module in build(name, input_size, hidden_size, bias=bias, dtype=dtype):
        leaf = x.clone().requires_grad_()
        outputs = tensors(module(leaf, hx))
        sum(output.cos().sum() for output in outputs).backward()
        results.append([*outputs, leaf.grad, *(p.grad for p in module.parameters())])
    for want, got in zip(*results, strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
        assert torch.equal(got, want)


@pairs
@pytest.mark.parametrize(
    "kwargs", [{}, {"bias": False}, {"dtype": torch.float64}, {"device": "meta"}]
)
def test_same_module(name, kwargs):
    theirs, ours = build(name, 4, 5, **kwargs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for want, got in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert (got.shape, got.dtype, got.device) == (want.shape, want.dtype, want.device)
        assert got.is_meta or torch.equal(got, want)
    assert (ours.bias_ih is None) == (theirs.bias_ih is None)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert repr(copy.deepcopy(ours)) == repr(theirs)


def test_positional_arguments_have_torchs_order():
    arguments = (4, 5, False, "relu", "cpu", torch.float64)
    ours, theirs = fastrnn.RNNCell(*arguments), nn.RNNCell(*arguments)
    assert repr(ours) == repr(theirs)
    assert ours.weight_ih.dtype == torch.float64


def outcome(call, *args):
    with pytest.raises(Exception) as caught:  # noqa: PT011 # type and text are compared
        call(*args)
    return type(caught.value), str(caught.value)


WRONG = {
    "0-D": lambda s: (torch.tensor(1.0), None),
    "3-D": lambda s: (torch.zeros(1, 2, 4), None),
    "features": lambda s: (torch.zeros(2, 3), None),
    "features, unbatched": lambda s: (torch.zeros(3), None),
    "dtype": lambda s: (torch.zeros(2, 4).double(), None),
    "h 3-D": lambda s: (torch.zeros(2, 4), s(1, 2, 5)),
    "h of another batch": lambda s: (torch.zeros(2, 4), s(3, 5)),
    "h of another width": lambda s: (torch.zeros(2, 4), s(2, 6)),
    "h unbatched": lambda s: (torch.zeros(2, 4), s(5)),
    "h batched": lambda s: (torch.zeros(4), s(2, 5)),
}


@pairs
@pytest.mark.parametrize("wrong", WRONG)
def test_same_refusal(name, wrong):
    def state(*shape):
        return (torch.zeros(shape),) * 2 if name == "LSTMCell" else torch.zeros(shape)

    theirs, ours = build(name, 4, 5)
    arguments = WRONG[wrong](state)
    assert outcome(ours, *arguments) == outcome(theirs, *arguments)


@pytest.mark.parametrize("wrong", WRONG)
def test_sigmoid_refuses_as_tanh_does(wrong):
    arguments = WRONG[wrong](torch.zeros)
    sigmoid, tanh = (fastrnn.RNNCell(4, 5, nonlinearity=n) for n in ("sigmoid", "tanh"))
    assert outcome(sigmoid, *arguments) == outcome(tanh, *arguments)


def test_either_lstm_state_is_checked():
    good, bad = torch.zeros(2, 5), torch.zeros(1, 2, 5)
    theirs, ours = build("LSTMCell", 4, 5)
    for hx in ((good, bad), (bad, good), (good, good[:, :4])):
        arguments = (torch.zeros(2, 4), hx)
        assert outcome(ours, *arguments) == outcome(theirs, *arguments)


def test_unknown_nonlinearity_is_refused_when_called():
    """As torch.nn.RNNCell does, which checks nothing when it is made."""
    theirs, ours = (cls(4, 5, nonlinearity="gelu") for cls in (nn.RNNCell, fastrnn.RNNCell))
    assert outcome(ours, torch.zeros(2, 4)) == outcome(theirs, torch.zeros(2, 4))


@pytest.mark.parametrize("bias", [False, True])
def test_sigmoid_follows_its_equation(oracle, bias):
    cell = fastrnn.RNNCell(4, 5, bias, "sigmoid", dtype=torch.float64)
    x, h = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    weights = [p.detach().numpy() for p in cell.parameters()]
    b = weights[2] + weights[3] if bias else 0.0
    want, *_ = oracle.run_direction(
        "rnn_sigmoid", x[None].numpy(), weights[0], weights[1], b, h.numpy()
    )
    torch.testing.assert_close(cell(x, h), torch.from_numpy(want[0]))
    torch.testing.assert_close(cell(x[0], h[0]), torch.from_numpy(want[0, 0]))
    expected = "RNNCell(4, 5, nonlinearity=sigmoid)"
    assert repr(fastrnn.RNNCell(4, 5, nonlinearity="sigmoid")) == expected


def test_a_cell_makes_the_steps_of_a_layer():
    layer, cell = fastrnn.LSTM(4, 5), fastrnn.LSTMCell(4, 5)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x = torch.randn(6, 3, 4)
    state = None
    for step, want in zip(x, layer(x)[0], strict=True):
        state = cell(step, state)
        torch.testing.assert_close(state[0], want)


@pytest.mark.parametrize("make", [fastrnn.LSTMCell, fastrnn.RNNCell, fastrnn.GRUCell])
@pytest.mark.parametrize("compiler", ["torch.jit.script", "torch.compile"])
def test_compilers(make, compiler):
    cell = make(4, 5, **({"nonlinearity": "sigmoid"} if make is fastrnn.RNNCell else {}))
    if compiler == "torch.compile":
        torch._dynamo.reset()
        built = torch.compile(cell, backend="eager", fullgraph=True)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            built = torch.jit.script(cell)
    for x in (torch.randn(3, 4), torch.randn(4)):
        torch.testing.assert_close(built(x), cell(x))
        with torch.no_grad():
            hx = cell(x)
        torch.testing.assert_close(built(x, hx), cell(x, hx))
