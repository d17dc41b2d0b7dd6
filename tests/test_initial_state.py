"""`InitialState`: shapes, gradients, and that training finds it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn.initial_state import InitialState

DOUBLE = {"dtype": torch.float64}
LAYERS = [
    fastrnn.RNN(2, 3, **DOUBLE),
    fastrnn.RNN(2, 3, 2, bidirectional=True, nonlinearity="sigmoid", **DOUBLE),
    fastrnn.LSTM(2, 3, **DOUBLE),
    fastrnn.LSTM(2, 3, 2, bidirectional=True, **DOUBLE),
    fastrnn.LSTM(2, 3, 2, proj_size=2, **DOUBLE),
    nn.RNN(2, 3, **DOUBLE),
    nn.LSTM(2, 3, 2, proj_size=2, **DOUBLE),
    nn.GRU(2, 3, bidirectional=True, **DOUBLE),
]


def of_layer(layer, **how):
    torch.manual_seed(0)
    return InitialState(layer, "normal", std=0.7, **how)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_is_what_the_layer_takes(layer):
    initial = of_layer(layer)
    x = torch.randn(4, 5, 2, **DOUBLE)
    _, final = layer(x)
    state = as_tuple(initial(5))
    assert len(state) == len(as_tuple(final)) == len(list(initial.parameters()))
    for given, like, own in zip(state, as_tuple(final), initial.parameters(), strict=True):
        assert given.shape == like.shape
        assert given.is_contiguous()  # else cuDNN refuses it
        assert torch.equal(given, own.expand_as(given))
    output, final = layer(x, initial(5))
    for row, alone in ((0, layer(x[:, 0], initial())), (4, layer(x[:, 4], initial(None)))):
        torch.testing.assert_close(alone[0], output[:, row])
        for one, many in zip(as_tuple(alone[1]), as_tuple(final), strict=True):
            torch.testing.assert_close(one, many[:, row])
    packed = pack_sequence([x[:2, 0], x[:, 1]], enforce_sorted=False)
    _, final = layer(packed, initial(int(packed.batch_sizes[0])))
    torch.testing.assert_close(as_tuple(final)[0][:, 1], as_tuple(layer(x[:, 1], initial())[1])[0])


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradients(layer):
    initial = of_layer(layer)
    x = torch.randn(3, 2, 2, **DOUBLE)
    names = [name for name, _ in initial.named_parameters()]

    def run(*states):
        hx = torch.func.functional_call(initial, dict(zip(names, states, strict=True)), (2,))
        output, final = layer(x, hx)
        return (output, *as_tuple(final))

    assert torch.autograd.gradcheck(run, tuple(initial.parameters()))


@pytest.mark.parametrize(
    "layer",
    [
        fastrnn.RNN(2, 3, nonlinearity="sigmoid", bidirectional=True, **DOUBLE),
        fastrnn.RNN(2, 3, 2, **DOUBLE),
        fastrnn.LSTM(2, 3, bidirectional=True, **DOUBLE),
        fastrnn.LSTM(2, 3, 2, proj_size=2, **DOUBLE),
    ],
    ids=str,
)
def test_every_reset_adds_to_the_gradient(layer):
    """Against a row at a time and, within it, one part after another from the learned state."""
    initial = of_layer(layer)
    x = torch.randn(6, 2, 2, **DOUBLE)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[2, 0] = resets[4, 0] = resets[5, 1] = True
    output, _ = layer(x, initial(2), resets=resets)
    ours = torch.autograd.grad(output.square().sum(), list(initial.parameters()))
    loss = 0
    for row in range(2):
        for start, end in parts(resets[:, row]):
            loss = loss + layer(x[start:end, row], initial())[0][..., :3].square().sum()
        if layer.bidirectional:  # where the state of t + 1 is not what enters step t
            for start, end in parts(resets[:, row].roll(1)):
                loss = loss + layer(x[start:end, row], initial())[0][..., 3:].square().sum()
    expected = torch.autograd.grad(loss, list(initial.parameters()))
    torch.testing.assert_close(ours, expected)


def parts(resets):
    starts = sorted({0, *resets.nonzero().flatten().tolist()})
    return zip(starts, [*starts[1:], len(resets)], strict=True)


def test_a_loop_in_python():
    """The same of two layers, step by step, where each starts over from its own state."""
    layer = fastrnn.LSTM(2, 3, 2, **DOUBLE)
    initial = of_layer(layer)
    x = torch.randn(5, 1, 2, **DOUBLE)
    resets = torch.tensor([True, False, False, True, False]).unsqueeze(1)
    ours = layer(x, initial(1), resets=resets)[0]
    outputs, state = [], initial(1)
    for t in range(5):
        step, state = layer(x[t : t + 1], initial(1) if resets[t] else state)
        outputs.append(step)
    expected = torch.cat(outputs)
    torch.testing.assert_close(ours, expected)
    weights = list(initial.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
    )


def test_training_finds_the_state():
    """A linear unit that keeps what it has: only the initial state can make it 0.7."""
    rnn = fastrnn.RNN(1, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(1)
    rnn.requires_grad_(False)
    initial = InitialState(rnn, "normal", std=1e-3)
    with torch.no_grad():
        initial.h0.abs_()
    optimizer = torch.optim.SGD(initial.parameters(), lr=0.05)
    for _ in range(60):
        output, _ = rnn(torch.zeros(3, 4, 1), initial(4))
        optimizer.zero_grad()
        (output - 0.7).square().sum(0).mean().backward()
        optimizer.step()
    assert initial.h0.item() == pytest.approx(0.7, abs=1e-3)


def test_is_no_owner_of_the_layer():
    layer = fastrnn.LSTM(2, 3, bidirectional=True, proj_size=2)
    initial = InitialState(layer)
    assert {name: tuple(value.shape) for name, value in initial.state_dict().items()} == {
        "h0": (2, 1, 2),
        "c0": (2, 1, 3),
    }
    model = nn.ModuleDict({"layer": layer, "initial": initial})
    count = sum(1 for _ in layer.parameters())
    assert sum(1 for _ in model.parameters()) == count + 2


def test_options():
    layer = fastrnn.LSTM(2, 400, dtype=torch.bfloat16)
    assert not any(state.any() for state in InitialState(layer)(1))
    drawn = InitialState(layer, init="normal")
    assert drawn.h0.dtype == torch.bfloat16
    for state in drawn.parameters():
        assert 0.08 < state.float().std() < 0.12
    fixed = InitialState(layer, trainable=False)
    assert list(fixed.state_dict()) == ["h0", "c0"]
    assert not any(state.requires_grad for state in (*fixed.parameters(), *fixed(2)))
    assert drawn(0)[0].shape == (1, 0, 400)
    assert repr(InitialState(fastrnn.RNN(2, 3))) == "InitialState(h0=(1, 1, 3))"
    assert repr(InitialState(nn.LSTM(2, 3), "normal", False)) == (
        "InitialState(h0=(1, 1, 3), c0=(1, 1, 3), init=normal, std=0.1, trainable=False)"
    )


def test_of_a_layer_with_computed_weights():
    layer = nn.utils.parametrizations.weight_norm(fastrnn.RNN(2, 3, **DOUBLE), "weight_hh_l0")
    assert InitialState(layer).h0.dtype == torch.float64


def test_compiles_without_regard_to_the_batch():
    torch._dynamo.reset()
    layer = fastrnn.LSTM(2, 3, 2)
    initial = of_layer(layer)
    compiled = torch.compile(
        lambda x: layer(x, initial(x.shape[1])), backend="eager", fullgraph=True, dynamic=True
    )
    for batch in (2, 5):
        x = torch.randn(4, batch, 2)
        torch.testing.assert_close(compiled(x), layer(x, initial(batch)))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "layer should be .* got: Linear", {"layer": nn.Linear(1, 1)}),
        (TypeError, "layer should be .* got: LSTMCell", {"layer": fastrnn.LSTMCell(1, 1)}),
        (ValueError, "Unknown init 'ones'", {"init": "ones"}),
        (TypeError, "trainable should be of type bool, got: int", {"trainable": 1}),
        (ValueError, "std should not be negative, got: -1", {"std": -1}),
    ],
)
def test_refuses_arguments(error, message, arguments):
    with pytest.raises(error, match=message):
        InitialState(**{"layer": LAYERS[0], **arguments})


def test_refuses_batch_sizes():
    initial = InitialState(LAYERS[0])
    with pytest.raises(ValueError, match="batch_size should not be negative, got: -1"):
        initial(-1)
    with pytest.raises(TypeError, match="batch_size should be of type int, got: Tensor"):
        initial(torch.zeros(3, 2, 2))
