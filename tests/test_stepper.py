"""`Stepper`: the numbers of the layer, a step at a time, with no memory asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import testing
from fastrnn.stepper import Stepper
from fastrnn.streaming import windows

I, H = 5, 6
LAYERS = {
    "lstm": partial(fastrnn.LSTM, I, H),
    "deep lstm": partial(fastrnn.LSTM, I, H, 3, dropout=0.5),
    "no bias": partial(fastrnn.LSTM, I, H, 2, bias=False),
    "projected": partial(fastrnn.LSTM, I, H, 2, proj_size=3, backend="reference"),
    "gru": partial(fastrnn.GRU, I, H),
    "deep gru": partial(fastrnn.GRU, I, H, 3, bias=False),
    "tanh": partial(fastrnn.RNN, I, H, 2),
    "relu": partial(fastrnn.RNN, I, H, 2, "relu"),
    "sigmoid": partial(fastrnn.RNN, I, H, 2, "sigmoid", bias=False),
    "zoneout lstm": partial(fastrnn.LSTM, I, H, 2, proj_size=3, zoneout=(0.3, 0.1)),
    "zoneout gru": partial(fastrnn.GRU, I, H, 2, zoneout=0.3, backend="reference"),
    "zoneout rnn": partial(fastrnn.RNN, I, H, 2, "relu", zoneout=0.3),
}
CELLS = ["lstm", "gru", "tanh"]


def tensors(state):
    return list(state) if isinstance(state, tuple) else [state]


def steps(stepper, x):
    return torch.stack([stepper(row).clone() for row in x])


def copied(state):
    return tuple(each.clone() for each in state) if isinstance(state, tuple) else state.clone()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_equal_the_layer(kind, batch):
    layer = LAYERS[kind](dtype=torch.float64).eval()
    x = torch.randn(9, batch, I, dtype=torch.float64)
    output, state = layer(x)
    layer.train()  # which is not heeded: neither dropout nor gradients
    stepper = Stepper(layer, batch)
    near = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(steps(stepper, x), output.detach(), **near)
    assert not stepper(x[0].requires_grad_()).requires_grad
    stepper.load_state(state)
    pairs = zip(tensors(stepper.state), tensors(state), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    torch.testing.assert_close(steps(stepper, x), layer.eval()(x, state)[0].detach(), **near)


@pytest.fixture
def apart(monkeypatch):
    """Have the products of any GRU formed one by one."""
    monkeypatch.setattr(fastrnn.stepper, "APART", 0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["gru", "deep gru", "zoneout gru"])
def test_a_large_gru_reads_no_zeros(kind, batch, apart):
    stepper = Stepper(LAYERS[kind](), batch)
    for level in stepper._levels:
        read = sum(weight.numel() for _, _, weight, _ in level.products)
        assert read == level.weight.count_nonzero() < level.weight.numel()
    test_equal_the_layer(kind, batch)
    test_nothing_is_allocated(kind, batch, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_within_the_tolerances(kind, dtype):
    layer = LAYERS[kind](dtype=dtype).eval()
    x = torch.randn(20, 3, I, dtype=dtype)
    got = steps(Stepper(layer, 3), x)
    assert got.dtype == dtype
    want = layer.double()(x.double())[0]
    allowed = testing.tolerance(dtype, 20).output * max(want.abs().max().item(), 1)
    torch.testing.assert_close(got.double(), want.detach(), rtol=0, atol=allowed)


def asked_for(function):
    """What torch asked its allocator for meanwhile, in bytes."""
    cpu = torch.profiler.ProfilerActivity.CPU
    settings = {"profile_memory": True, "acc_events": True}  # torch 2.11 warns without these
    with torch.profiler.profile(activities=[cpu], **settings) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    assert events
    return [event.nbytes() for event in events if event.name() == "[memory]"]


@pytest.mark.parametrize(
    ("kind", "batch", "dtype"),
    [
        *((kind, 3, torch.float32) for kind in LAYERS),
        *((kind, 1, torch.float32) for kind in ("projected", "relu")),
        *(("projected", 3, dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
    ],
)
def test_nothing_is_allocated(kind, batch, dtype):
    stepper = Stepper(LAYERS[kind](dtype=dtype), batch)
    x, fresh = torch.randn(batch, I, dtype=dtype), torch.tensor([True, False, True])[:batch]
    addresses = set()

    def loop():
        for number in range(25):
            output, state = stepper(x), tensors(stepper.state)
            addresses.add((output.data_ptr(), *(each.data_ptr() for each in state)))
            if number % 10 == 0:
                stepper.reset(fresh)

    assert asked_for(loop) == []
    assert len(addresses) == 1
    assert asked_for(lambda: torch.ones(1))  # it would have told


@pytest.mark.parametrize("kind", CELLS)
def test_one_row_with_and_without_a_batch(kind):
    layer = LAYERS[kind]()
    x = torch.randn(4, I)
    output, state = layer(x)
    stepper = Stepper(layer)
    got = steps(stepper, x)
    assert got.shape == (4, H)
    torch.testing.assert_close(got, output.detach())
    stepper.reset()
    torch.testing.assert_close(steps(stepper, x.unsqueeze(1)), output.detach().unsqueeze(1))
    with_batch = [each.detach().unsqueeze(1) for each in tensors(state)]
    torch.testing.assert_close(tensors(stepper.state), with_batch)
    stepper.reset()
    stepper.load_state(state)
    torch.testing.assert_close(tensors(stepper.state), with_batch)


def test_the_output_is_a_view_of_the_state():
    stepper = Stepper(LAYERS["lstm"](), 2)
    first, (h, c) = stepper(torch.randn(2, I)), stepper.state
    kept = first.clone()
    second = stepper(torch.randn(2, I))
    assert first.data_ptr() == second.data_ptr() == h[-1].data_ptr()
    assert torch.equal(first, second)
    assert not torch.equal(first, kept)
    assert (h.shape, c.shape) == ((1, 2, H), (1, 2, H))


@pytest.mark.parametrize("kind", CELLS)
def test_rows_that_start_over(kind):
    """As `resets=` of the layer; a row with NaN for a state starts over as well."""
    layer = LAYERS[kind]()
    x, resets = torch.randn(8, 3, I), torch.rand(8, 3) < 0.3
    resets[1:4, 0] = torch.tensor([False, False, True])
    x[2, 0] = float("nan")
    want, _ = layer(x, resets=resets)
    stepper, made = Stepper(layer, 3), []
    for row, rows in zip(x, resets, strict=True):
        stepper.reset(rows)
        made.append(stepper(row).clone())
    torch.testing.assert_close(torch.stack(made), want.detach(), equal_nan=True)
    stepper.reset()
    assert all((each == 0).all() for each in tensors(stepper.state))


@pytest.mark.parametrize("kind", CELLS)
def test_rows_that_take_a_state(kind):
    stepper = Stepper(LAYERS[kind](), 3)
    stepper(torch.randn(3, I))
    before = copied(stepper.state)
    other = copied(stepper.state)
    for each in tensors(other):
        each.normal_()
        each[:, 1] = float("nan")
    given = tuple(each.double() for each in other) if kind == "lstm" else other.double()
    stepper.load_state(given, torch.tensor([True, False, False]))
    triples = zip(tensors(stepper.state), tensors(before), tensors(other), strict=True)
    for own, old, new in triples:
        assert torch.equal(own[:, 1:], old[:, 1:])
        assert torch.equal(own[:, 0], new[:, 0])


def test_goes_on_where_a_window_ended():
    layer, x = LAYERS["deep lstm"]().eval(), torch.randn(7, 2, I)
    want, _ = layer(x)
    *_, last = windows(layer, x[:4], window=3)
    stepper = Stepper(layer, 2)
    stepper.load_state(last.state)
    torch.testing.assert_close(steps(stepper, x[4:]), want[4:].detach())


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_are_a_snapshot_until_refreshed(kind):
    layer, x = LAYERS[kind]().eval(), torch.randn(3, 2, I)
    stepper = Stepper(layer, 2)
    old = steps(stepper, x)
    state = copied(stepper.state)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    stepper.reset()
    assert torch.equal(steps(stepper, x), old)
    stepper.refresh()
    pairs = zip(tensors(stepper.state), tensors(state), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    stepper.reset()
    torch.testing.assert_close(steps(stepper, x), layer(x)[0].detach())


def test_zoneout_is_taken_when_refreshed():
    layer, x = LAYERS["tanh"]().eval(), torch.randn(3, 2, I)
    stepper = Stepper(layer, 2)
    for layer.zoneout in (0.5, 0.0):
        stepper.refresh()
        stepper.reset()
        torch.testing.assert_close(steps(stepper, x), layer(x)[0].detach())


def test_computed_weights():
    layer, x = LAYERS["lstm"](), torch.randn(3, 2, I)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(steps(Stepper(layer, 2), x), layer(x)[0].detach())


def test_inference_mode_and_autocast_change_nothing():
    layer, x = LAYERS["lstm"](), torch.randn(3, 2, I)
    want = steps(Stepper(layer, 2), x)
    with torch.inference_mode():
        stepper = Stepper(layer, 2)
        assert torch.equal(steps(stepper, x), want)
    stepper.reset()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(steps(stepper, x), want)


@pytest.mark.parametrize(
    ("error", "told", "call"),
    [
        (ValueError, r"x: got torch.float32 \(3, 5\) on cpu, expected torch.float32 \(2, 5\) on",
         lambda s: s(torch.zeros(3, I))),
        (ValueError, r"x: got torch.float32 \(5,\)", lambda s: s(torch.zeros(I))),
        (ValueError, r"x: got torch.float64 \(2, 5\)", lambda s: s(torch.zeros(2, I).double())),
        (ValueError, "on meta, expected", lambda s: s(torch.zeros(2, I, device="meta"))),
        (TypeError, "rows should be a tensor of torch.bool, got: list", lambda s: s.reset([True])),
        (TypeError, "got: torch.int64", lambda s: s.reset(torch.tensor([0, 1]))),
        (ValueError, r"rows: got shape \(1,\), expected \(2,\)",
         lambda s: s.reset(torch.tensor([True]))),
        (RuntimeError, "For batched 3-D input, hx and cx should also be 3-D",
         lambda s: s.load_state((torch.zeros(1, H),) * 2)),
        (RuntimeError, r"Expected hidden\[0\] size \(1, 2, 6\)",
         lambda s: s.load_state((torch.zeros(1, 3, H),) * 2)),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(error, told, call):
    with pytest.raises(error, match=told):
        call(Stepper(LAYERS["lstm"](), 2))


def test_one_row_may_be_without_a_batch_and_says_so():
    with pytest.raises(ValueError, match=r"expected torch.float32 \(1, 5\) or \(5,\) on cpu"):
        Stepper(LAYERS["tanh"]())(torch.zeros(4))


def test_layers_and_batches_that_cannot_be_stepped():
    with pytest.raises(ValueError, match=r"bidirectional.*those after it, and there are none"):
        Stepper(LAYERS["lstm"](bidirectional=True))
    with pytest.raises(TypeError, match=r"layer should be a fastrnn.RNN or LSTM, got: LSTM"):
        Stepper(nn.LSTM(I, H))
    with pytest.raises(TypeError, match="batch should be of type int, got: float"):
        Stepper(LAYERS["lstm"](), 2.0)
    with pytest.raises(ValueError, match="batch: got 0, expected 1"):
        Stepper(LAYERS["lstm"](), 0)
