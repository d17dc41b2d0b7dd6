"""`fastrnn.diagnostics`: total derivatives by finite differences, and some in closed form."""

from __future__ import annotations

import builtins
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn.diagnostics import GradientFlow, gradient_flow, spectral_radius

DOUBLE = {"dtype": torch.float64}
TWO = {"num_layers": 2, "bidirectional": True, **DOUBLE}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def step(layer, x, h, c, weights, kept, delta):
    """One step of one row in NumPy; `delta` is added to what (h, c) would be."""
    w_ih, w_hh, *others = weights
    a = w_ih @ x + w_hh @ h + (sum(others[:2]) if layer.bias else 0)
    if c is None:
        act = {"RNN_TANH": np.tanh, "RNN_RELU": lambda a: np.maximum(a, 0), "RNN_SIGMOID": sigmoid}
        return kept[0] * h + (1 - kept[0]) * act[layer.mode](a) + delta[0], None
    i, f, g, o = np.split(a, 4)
    made = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    # h is made of c: dL/dc goes through it, too. Not of what zoneout makes of c
    seen = made if kept[1] else made + delta[1]
    made_h = sigmoid(o) * np.tanh(seen)
    made_h = others[-1] @ made_h if layer.proj_size else made_h
    h = kept[0] * h + (1 - kept[0]) * made_h + delta[0]
    return h, kept[1] * c + (1 - kept[1]) * made + delta[1]


def shifted_loss(layer, x, hx, loss, kept, where=None, shift=None):
    """The loss where the state of (layer, direction, t, row) is shifted by (dh, dc)."""
    weights = [[w.detach().numpy() for w in slot] for slot in layer.all_weights]
    directions = 2 if layer.bidirectional else 1
    x, hx = x.numpy(), [state.numpy() for state in hx]
    finals = []
    for depth in range(layer.num_layers):
        outputs = np.zeros((*x.shape[:2], directions, hx[0].shape[2]))
        for direction in range(directions):
            slot, last = depth * directions + direction, []
            for row in range(x.shape[1]):
                h, c = hx[0][slot, row], hx[1][slot, row] if len(hx) == 2 else None
                for t in range(len(x))[:: -1 if direction else 1]:
                    delta = shift if where == (depth, direction, t, row) else (0, 0)
                    h, c = step(layer, x[t, row], h, c, weights[slot], kept, delta)
                    outputs[t, row, direction] = h
                last.append((h, c))
            finals.append(last)
        x = outputs.reshape(*x.shape[:2], -1)
    states = [np.array([[row[k] for row in slot] for slot in finals]) for k in range(len(hx))]
    return loss(x, states)


def weigher(layer, steps, batch):
    """A loss that reads the output of every step and the final states, in NumPy and in torch."""
    generator = torch.Generator().manual_seed(1)
    directions = 2 if layer.bidirectional else 1
    width = layer.proj_size or layer.hidden_size
    shapes = [(steps, batch, directions * width), (layer.num_layers * directions, batch, width)]
    if layer.mode == "LSTM":
        shapes.append((layer.num_layers * directions, batch, layer.hidden_size))
    drawn = [torch.randn(shape, generator=generator, **DOUBLE) for shape in shapes]

    def in_numpy(output, states):
        made = zip([output, *states], drawn, strict=True)
        return sum((w.numpy() * value**2).sum() for value, w in made)

    def in_torch(output, state):
        states = state if isinstance(state, tuple) else (state,)
        made = zip([output, *states], drawn, strict=True)
        return sum((w * value.square()).sum() for value, w in made)

    return in_numpy, in_torch


CASES = [
    (fastrnn.RNN, {"nonlinearity": "tanh", **TWO}),
    (fastrnn.RNN, {"nonlinearity": "relu", **TWO, "bias": False}),
    (fastrnn.RNN, {"nonlinearity": "sigmoid", **DOUBLE}),
    (fastrnn.LSTM, TWO),
    (fastrnn.LSTM, {"proj_size": 1, **TWO}),
    (fastrnn.LSTM, {"proj_size": 1, "bias": False, **DOUBLE}),
    (nn.RNN, {"nonlinearity": "relu", **TWO}),
    (nn.LSTM, TWO),
]


def check_by_differences(layer, kept=(0, 0)):
    torch.manual_seed(3)
    steps, batch, eps = 3, 2, 1e-6
    x = torch.randn(steps, batch, 2, **DOUBLE)
    _, final = layer(x)
    like = final if isinstance(final, tuple) else (final,)
    hx = tuple(torch.randn_like(state.detach()) for state in like)
    in_numpy, in_torch = weigher(layer, steps, batch)
    flow = gradient_flow(layer, x, in_torch, hx if len(hx) == 2 else hx[0])
    assert flow.loss == pytest.approx(shifted_loss(layer, x, hx, in_numpy, kept), rel=1e-10)
    directions = 2 if layer.bidirectional else 1
    found = [torch.zeros(layer.num_layers, directions, steps, **DOUBLE) for _ in hx]
    places = itertools.product(
        range(layer.num_layers), range(directions), range(steps), range(batch)
    )
    for depth, direction, t, row in places:
        where = (depth, direction, t, row)
        for kind, state in enumerate(hx):
            for unit in range(state.shape[2]):
                delta = [np.zeros(each.shape[2]) for each in like] + [0] * (2 - len(hx))
                delta[kind][unit] = eps
                up = shifted_loss(layer, x, hx, in_numpy, kept, where, delta)
                delta[kind][unit] = -eps
                down = shifted_loss(layer, x, hx, in_numpy, kept, where, delta)
                found[kind][depth, direction, t] += ((up - down) / (2 * eps)) ** 2
    torch.testing.assert_close(flow.h, found[0].sqrt(), rtol=1e-6, atol=1e-8)
    if len(hx) == 2:
        torch.testing.assert_close(flow.c, found[1].sqrt(), rtol=1e-6, atol=1e-8)
    else:
        assert flow.c is None


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_total_derivatives_by_finite_differences(kind, how):
    torch.manual_seed(0)
    check_by_differences(kind(2, 2, **how))


@pytest.mark.parametrize(
    ("kind", "how", "zoneout", "kept"),
    [
        (fastrnn.RNN, TWO, 0.3, (0.3, 0.3)),
        (fastrnn.LSTM, TWO, 0.3, (0.3, 0.3)),
        (fastrnn.LSTM, {"proj_size": 1, **DOUBLE}, (0.0, 0.4), (0.0, 0.4)),
        (fastrnn.LSTM, DOUBLE, (0.4, 0.0), (0.4, 0.0)),
    ],
)
def test_zoneout_by_finite_differences(kind, how, zoneout, kept):
    torch.manual_seed(0)
    layer = kind(2, 2, **how)
    layer.zoneout = zoneout
    check_by_differences(layer, kept)


def linear_unit(weight):
    """h(t) = w h(t-1), as long as it is positive."""
    rnn = fastrnn.RNN(1, 1, nonlinearity="relu", bias=False, **DOUBLE)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(weight)
    return rnn


@pytest.mark.parametrize(("weight", "expected"), [(1.1, 490.4), (0.9, 0.00106), (1.0, 1.0)])
def test_65_steps_of_a_linear_unit(weight, expected):
    """The text-book's example: the gradient grows, vanishes or stays by the power of 65."""
    x = torch.zeros(66, 1, 1, **DOUBLE)
    h0 = torch.ones(1, 1, 1, **DOUBLE)
    flow = gradient_flow(linear_unit(weight), x, lambda output, state: output[-1].sum(), h0)
    powers = torch.tensor([weight**k for k in range(65, -1, -1)], **DOUBLE)
    torch.testing.assert_close(flow.h[0, 0], powers)
    assert flow.h[0, 0, 0].item() == pytest.approx(expected, rel=1e-2)
    assert flow.spectral_radius == {"weight_hh_l0": pytest.approx(weight)}
    assert flow.loss == pytest.approx(weight**66)


def test_a_loss_on_every_step_adds_up():
    x, h0 = torch.zeros(5, 1, 1, **DOUBLE), torch.ones(1, 1, 1, **DOUBLE)
    flow = gradient_flow(linear_unit(1.0), x, lambda output, state: output.sum(), h0)
    assert flow.h[0, 0].tolist() == [5, 4, 3, 2, 1]


def test_a_memory_cell_keeps_its_gradient():
    """Keep is 1, write and read are 0: a stored 4.2 stays, and so does its gradient of 1."""
    lstm = fastrnn.LSTM(1, 1, **DOUBLE)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.bias_ih_l0.copy_(torch.tensor([-1e4, 1e4, 0, -1e4]))
    x = torch.randn(1000, 1, 1, **DOUBLE)
    state = (torch.zeros(1, 1, 1, **DOUBLE), torch.full((1, 1, 1), 4.2, **DOUBLE))
    flow = gradient_flow(lstm, x, lambda output, state: state[1].sum(), state)
    assert flow.loss == 4.2
    assert (flow.c == 1).all()
    assert not flow.h.any()


def test_layouts_give_the_same():
    lstm = fastrnn.LSTM(2, 3, bidirectional=True, **DOUBLE)
    x = torch.randn(4, 1, 2, **DOUBLE)
    expected = gradient_flow(lstm, x, lambda output, state: output[2].sum() + state[1].sum())
    lstm.batch_first = True
    turned = gradient_flow(
        lstm, x.transpose(0, 1), lambda output, state: output[:, 2].sum() + state[1].sum()
    )
    alone = gradient_flow(lstm, x[:, 0], lambda output, state: output[2].sum() + state[1].sum())
    for flow in (turned, alone):
        torch.testing.assert_close((flow.h, flow.c), (expected.h, expected.c))
        assert flow.loss == pytest.approx(expected.loss)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.LSTM])
def test_the_loss_gets_what_the_layer_returns(kind, batch_first, dims):
    layer = kind(2, 3, **TWO, batch_first=batch_first)
    x = torch.randn(4, 5, 2, **DOUBLE) if dims == 3 else torch.randn(4, 2, **DOUBLE)
    seen = []

    def loss_fn(*made):
        seen.append(made)
        return made[0].sum()

    gradient_flow(layer, x, loss_fn)
    torch.testing.assert_close(seen[0], layer(x))


def test_changes_nothing_and_heeds_no_mode():
    layer = fastrnn.LSTM(2, 3, 2, dropout=0.5, final_only=True, **DOUBLE)
    layer.weight_hh_l0.requires_grad_(False)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(4, 5, 2, **DOUBLE, requires_grad=True)
    made = []
    for training in (True, False):
        layer.train(training)
        with torch.no_grad():
            made.append(gradient_flow(layer, x, lambda output, state: output.square().sum()))
        assert layer.training == training
    torch.testing.assert_close(made[0].h, made[1].h, rtol=0, atol=0)
    assert made[0].h.all()
    assert x.grad is None
    assert all(weight.grad is None for weight in layer.parameters())
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


def test_frozen_layers_flow_too():
    layer = fastrnn.RNN(2, 3).requires_grad_(False)
    flow = gradient_flow(layer, torch.randn(4, 5, 2), lambda output, state: output[-1].sum())
    assert flow.h.all()


def test_spectral_radius_of_every_gate():
    lstm = fastrnn.LSTM(2, 3, bidirectional=True)
    with torch.no_grad():
        for k, weight in enumerate((lstm.weight_hh_l0, lstm.weight_hh_l0_reverse)):
            for gate, block in enumerate(weight.split(3)):
                # a rotation has no real eigenvalue, and a norm is no radius
                angle = math.pi / 3
                turn = [[math.cos(angle), -4 * math.sin(angle)], [math.sin(angle) / 4, 0.5]]
                block.zero_()
                block[:2, :2] = (4 * k + gate + 1) * torch.tensor(turn)
    found = spectral_radius(lstm)
    names = [f"weight_hh_l0{end}.{gate}" for end in ("", "_reverse") for gate in "ifgo"]
    assert found == {name: pytest.approx(k + 1, rel=1e-5) for k, name in enumerate(names)}


def test_spectral_radius_of_a_projection():
    lstm = fastrnn.LSTM(2, 3, proj_size=2, **DOUBLE)
    product = lstm.weight_hr_l0 @ lstm.weight_hh_l0[3:6]
    assert spectral_radius(lstm)["weight_hh_l0.f"] == pytest.approx(
        torch.linalg.eigvals(product).abs().max().item()
    )


def test_spectral_radius_of_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.GRU(2, 3)
            self.cell = fastrnn.RNNCell(2, 3)
            self.steady = parametrizations.orthogonal(fastrnn.RNN(2, 3), "weight_hh_l0")
            self.readout = nn.Linear(3, 1)

    found = spectral_radius(Model())
    assert list(found) == [
        "encoder.weight_hh_l0.r",
        "encoder.weight_hh_l0.z",
        "encoder.weight_hh_l0.n",
        "cell.weight_hh",
        "steady.weight_hh_l0",
    ]
    assert found["steady.weight_hh_l0"] == pytest.approx(1, rel=1e-5)


@pytest.fixture
def flow():
    lstm = fastrnn.LSTM(2, 3, bidirectional=True)
    return gradient_flow(lstm, torch.randn(6, 2, 2), lambda output, state: output[3].sum())


def test_plots_to_a_file(flow, tmp_path):
    axes = flow.plot(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "h, layer 0",
        "h, layer 0, reverse",
        "c, layer 0",
        "c, layer 0, reverse",
    ]
    assert axes.get_yscale() == "log"
    drawn = [line.get_xydata() for line in axes.lines]
    for points, norms in zip(drawn, [*flow.h[0], *flow.c[0]], strict=True):
        np.testing.assert_allclose(points[:, 0], range(1, 7))
        np.testing.assert_allclose(points[:, 1], norms)
    # later steps have no influence on step 3: zeros, which a logarithm leaves out
    assert not flow.h[0, 0, 4:].any()


def test_plots_into_axes(flow, tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert flow.plot(right) is right
    assert (len(left.lines), len(right.lines)) == (0, 4)
    only_zeros = GradientFlow(0.0, torch.zeros(1, 1, 4), None, {})
    only_zeros.plot(left)
    figure.savefig(tmp_path / "both.svg")


def test_says_what_plotting_needs(flow, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'fastrnn\[bench\]'"):
        flow.plot(tmp_path / "flow.png")


X = torch.zeros(4, 2, 2)


def total(output, state):
    return output.sum()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "layer should be .* got: GRU", (nn.GRU(2, 3), X, total)),
        (TypeError, "got: PackedSequence", (fastrnn.RNN(2, 3), pack_sequence([X[:, 0]]), total)),
        (ValueError, "2D or 3D, got 1D", (fastrnn.RNN(2, 3), X[0, 0], total)),
        (ValueError, "does not match weight dtype", (fastrnn.RNN(2, 3), X.double(), total)),
        (RuntimeError, "Expected 2, got 1", (fastrnn.RNN(2, 3), X[..., :1], total)),
        (RuntimeError, "sequence length to be larger", (fastrnn.RNN(2, 3), X[:0], total)),
        (RuntimeError, "Expected hidden size", (fastrnn.RNN(2, 3), X, total, X[:1])),
        (ValueError, "pair", (fastrnn.LSTM(2, 3), X, total, (X,))),
        (ValueError, r"of shape \(4, 2, 3\)", (fastrnn.RNN(2, 3), X, lambda output, _: output)),
        (TypeError, "return a Tensor, got: float", (fastrnn.RNN(2, 3), X, lambda *_: 0.0)),
        (ValueError, "got a constant", (fastrnn.RNN(2, 3), X, lambda *_: torch.zeros(()))),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=message):
        gradient_flow(*call)


def test_refuses_a_module_without_recurrence():
    with pytest.raises(ValueError, match="a recurrent layer, got: Linear"):
        spectral_radius(nn.Linear(2, 2))
