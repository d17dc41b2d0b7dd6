"""`fastrnn.init`: what each initialiser promises of the matrices and biases, gate by gate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastrnn
from fastrnn import init
from fastrnn.jordan import JordanRNN

MAKERS = [
    lambda: fastrnn.RNN(3, 8),
    lambda: fastrnn.LSTM(3, 8, 2, bidirectional=True, dtype=torch.float64),
    lambda: fastrnn.RNNCell(3, 8),
    lambda: fastrnn.LSTMCell(3, 8),
    lambda: fastrnn.GRUCell(3, 8),
    lambda: nn.RNN(3, 8, 2),
    lambda: nn.LSTM(3, 8, bidirectional=True),
    lambda: nn.GRU(3, 8),
    lambda: nn.LSTMCell(3, 8),
    lambda: JordanRNN(3, 8, 2, hidden_feedback=True),
]
LSTMS = [
    lambda: fastrnn.LSTM(3, 4, 2, bidirectional=True),
    lambda: fastrnn.LSTM(3, 4, proj_size=2),
    lambda: fastrnn.LSTMCell(3, 4),
    lambda: nn.LSTM(3, 4),
    lambda: nn.LSTMCell(3, 4),
]
FORGET, INPUT = slice(4, 8), slice(0, 4)


def named(module, kind):
    return {name: value for name, value in module.named_parameters() if name.startswith(kind)}


def blocks(module, kind="weight_hh"):
    made = [b for w in named(module, kind).values() for b in w.detach().split(module.hidden_size)]
    assert made
    return made


def others(module, *kinds):
    """Copies of the parameters that an initialiser must leave alone."""
    return {
        name: value.detach().clone()
        for name, value in module.named_parameters()
        if not name.startswith(kinds)
    }


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def radius_of(block):
    return torch.linalg.eigvals(block.double()).abs().max().item()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("density", [1.0, 0.6])
def test_spectral_radius(make, density):
    module = make()
    kept = others(module, "weight_hh")
    assert init.spectral_radius_(module, 0.9, density=density, generator=seeded()) is module
    made = blocks(module)
    for block in made:
        assert radius_of(block) == pytest.approx(0.9, rel=1e-4)
    for one, two in itertools.pairwise(made):
        assert not torch.equal(one, two)
    torch.testing.assert_close(others(module, "weight_hh"), kept, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    gates=st.sampled_from([1, 3, 4]),
    size=st.integers(1, 30),
    radius=st.sampled_from([0, 1e-3, 0.5, 1, 7]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_spectral_radius_of_a_matrix(gates, size, radius, dtype):
    weight = nn.Parameter(torch.empty(gates * size, size, dtype=dtype))
    assert init.spectral_radius_(weight, radius, generator=seeded()) is weight
    for block in weight.detach().split(size):
        tolerance = 0.1 if dtype == torch.bfloat16 else 1e-3
        assert radius_of(block) == pytest.approx(radius, rel=tolerance, abs=1e-12)


def test_density():
    weight = init.spectral_radius_(torch.empty(400, 200), 0.9, density=0.1)
    for block in weight.split(200):
        assert 0.08 < (block != 0).float().mean() < 0.12
    assert init.spectral_radius_(torch.empty(50, 50), 0.9).all()


def test_no_cycle_left():
    with pytest.raises(ValueError, match="density=1e-09 leaves 8 units without a cycle"):
        init.spectral_radius_(fastrnn.RNN(3, 8), 0.9, density=1e-9)


def test_a_draw_without_a_cycle_is_drawn_again():
    """A matrix of 3 at density 0.2 has none about every other time."""
    for seed in range(20):
        weight = init.spectral_radius_(torch.empty(3, 3), 0.9, density=0.2, generator=seeded(seed))
        assert radius_of(weight) == pytest.approx(0.9, rel=1e-4)


@pytest.mark.parametrize("make", MAKERS)
def test_identity(make):
    module = make()
    kept = others(module, "weight_hh")
    assert init.identity_(module, 0.5) is module
    for block in blocks(module):
        torch.testing.assert_close(block, 0.5 * torch.eye(8).to(block), rtol=0, atol=0)
    torch.testing.assert_close(others(module, "weight_hh"), kept, rtol=0, atol=0)
    weight = torch.empty(16, 8)
    assert init.identity_(weight) is weight
    assert torch.equal(weight, torch.eye(8).repeat(2, 1))


@pytest.mark.parametrize("make", [*MAKERS, lambda: fastrnn.LSTM(3, 8, 2, proj_size=5)])
def test_orthogonal(make):
    module = make()
    kept = others(module, "weight_hh")
    assert init.orthogonal_(module, 1.5, generator=seeded()) is module
    made = blocks(module)
    for block in made:
        expected = 2.25 * torch.eye(block.shape[1]).to(block)
        torch.testing.assert_close(block.T @ block, expected)
    for one, two in itertools.pairwise(made):
        assert not torch.equal(one, two)
    torch.testing.assert_close(others(module, "weight_hh"), kept, rtol=0, atol=0)


def test_orthogonal_in_half_precision():
    weight = init.orthogonal_(torch.empty(32, 16, dtype=torch.bfloat16))
    for block in weight.float().split(16):
        torch.testing.assert_close(block.T @ block, torch.eye(16), atol=0.05, rtol=0)


@pytest.mark.parametrize("make", MAKERS)
def test_xavier(make):
    module = make()
    kept = others(module, "weight_ih")
    assert init.xavier_uniform_(module, 2, generator=seeded()) is module
    for weight in named(module, "weight_ih").values():
        bound = 2 * math.sqrt(6 / (weight.shape[1] + 8))
        for block in weight.split(8):
            assert 0.7 * bound < block.abs().max() <= bound
            assert block.min() < 0 < block.max()
    torch.testing.assert_close(others(module, "weight_ih"), kept, rtol=0, atol=0)


@pytest.mark.parametrize("make", LSTMS)
@pytest.mark.parametrize("value", [1.0, -2.5])
def test_forget_bias(make, value):
    lstm = make()
    before = others(lstm)
    assert init.forget_bias_(lstm, value) is lstm
    for name, bias in named(lstm, "bias").items():
        assert torch.equal(bias[FORGET], torch.full((4,), value if "ih" in name else 0.0))
        before[name][FORGET] = bias[FORGET].detach()
    torch.testing.assert_close(dict(lstm.named_parameters()), before, rtol=0, atol=0)


def test_tied_biases():
    lstm = fastrnn.LSTM(3, 4, 2)
    lstm.bias_hh_l1 = lstm.bias_hh_l0
    init.forget_bias_(lstm)
    assert all(bias[FORGET].eq(1).all() for bias in (lstm.bias_ih_l0, lstm.bias_ih_l1))
    assert not lstm.bias_hh_l0[FORGET].any()


@pytest.mark.parametrize("make", LSTMS)
def test_chrono(make):
    lstm = make()
    before = others(lstm)
    assert init.chrono_(lstm, 50, generator=seeded()) is lstm
    for name, bias in named(lstm, "bias").items():
        if "ih" in name:
            assert torch.equal(bias[INPUT], -bias[FORGET])
            assert len(set(bias[FORGET].tolist())) == 4
        else:
            assert not bias[INPUT].any()
            assert not bias[FORGET].any()
        before[name][:8] = bias[:8].detach()
    torch.testing.assert_close(dict(lstm.named_parameters()), before, rtol=0, atol=0)


def test_chrono_is_the_log_of_a_uniform_variable():
    lstm = init.chrono_(fastrnn.LSTM(1, 4000), 101, generator=seeded())
    u = lstm.bias_ih_l0[4000:8000].double().exp()
    assert 1 <= u.min() < 1.2
    assert 99.8 < u.max() <= 100.001
    assert u.mean().item() == pytest.approx(50.5, abs=1.5)
    assert u.std().item() == pytest.approx(99 / math.sqrt(12), abs=1)
    assert not init.chrono_(fastrnn.LSTM(1, 4), 2).bias_ih_l0[FORGET].any()


@pytest.mark.parametrize(
    "draw",
    [
        lambda rnn, g: init.spectral_radius_(rnn, 1, density=0.8, generator=g),
        lambda rnn, g: init.orthogonal_(rnn, generator=g),
        lambda rnn, g: init.xavier_uniform_(rnn, generator=g),
        lambda rnn, g: init.chrono_(rnn, 9, generator=g),
    ],
)
def test_generators(draw):
    rnn = fastrnn.LSTM(3, 8)
    state = torch.get_rng_state()
    one, two, three = (others(draw(rnn, seeded(seed))) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_an_echo_state_network_forgets_and_costs_no_gradient():
    reservoir = fastrnn.RNN(1, 50, dtype=torch.float64)
    reservoir = init.spectral_radius_(reservoir, 0.5, generator=seeded()).requires_grad_(False)
    x = torch.rand(60, 1, 1, dtype=torch.float64, generator=seeded())
    one, _ = reservoir(x, torch.zeros(1, 1, 50, dtype=torch.float64))
    two, _ = reservoir(x, torch.ones(1, 1, 50, dtype=torch.float64))
    distance = (one - two).norm(dim=(1, 2))
    assert distance[-1] < 1e-9 * distance[0]
    assert not one.requires_grad
    readout = nn.Linear(50, 1, dtype=torch.float64)
    readout(one).sum().backward()
    assert readout.weight.grad is not None
    assert all(weight.grad is None for weight in reservoir.parameters())


def test_an_irnn_keeps_its_state():
    rnn = init.identity_(fastrnn.RNN(1, 3, nonlinearity="relu", bias=False))
    h0 = torch.rand(1, 2, 3)
    assert torch.equal(rnn(torch.zeros(100, 2, 1), h0)[1], h0)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "radius should be .* got: -1", lambda: init.spectral_radius_(rnn(), -1)),
        (
            ValueError,
            r"density should be in range \(0, 1\], got: 0",
            lambda: init.spectral_radius_(rnn(), 1, density=0),
        ),
        (
            ValueError,
            r"density should be in range \(0, 1\], got: 1.1",
            lambda: init.spectral_radius_(rnn(), 1, density=1.1),
        ),
        (ValueError, r"projected LSTM, \(4, 2\)", lambda: init.spectral_radius_(projected(), 1)),
        (ValueError, r"projected LSTM, \(4, 2\)", lambda: init.identity_(projected())),
        (ValueError, r"shape \(5, 2\)", lambda: init.identity_(torch.empty(5, 2))),
        (ValueError, r"shape \(2, 5\)", lambda: init.orthogonal_(torch.empty(2, 5))),
        (ValueError, r"shape \(5,\)", lambda: init.orthogonal_(torch.empty(5))),
        (TypeError, "a Tensor, weight_hh, got: list", lambda: init.identity_([1])),
        (TypeError, "weight_hh..., got: Linear", lambda: init.identity_(nn.Linear(2, 2))),
        (TypeError, "weight_hh..., got: JordanRNN", lambda: init.identity_(JordanRNN(1, 2, 1))),
        (TypeError, "weight_ih..., got: Tensor", lambda: init.xavier_uniform_(torch.empty(2, 2))),
        (TypeError, "lstm should be .* got: RNN", lambda: init.forget_bias_(rnn())),
        (TypeError, "lstm should be .* got: GRU", lambda: init.chrono_(nn.GRU(1, 1), 9)),
        (ValueError, "bias=False", lambda: init.forget_bias_(fastrnn.LSTM(1, 1, bias=False))),
        (
            ValueError,
            "max_steps should be a number of at least 2, got: 1",
            lambda: init.chrono_(fastrnn.LSTM(1, 1), 1),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=message):
        call()


def rnn():
    return fastrnn.RNN(3, 4)


def projected():
    return fastrnn.LSTM(3, 4, proj_size=2)
