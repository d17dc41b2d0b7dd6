"""`windows`: outputs of one call, gradients of a loop that forgets at every window's start."""

from __future__ import annotations

import weakref
from collections import namedtuple
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastrnn
from fastrnn.streaming import detach, windows

Pair = namedtuple("Pair", ["h", "c"])
DOUBLE = {"dtype": torch.float64}
LAYERS = {
    "lstm": partial(fastrnn.LSTM, 3, 4, 2, **DOUBLE),
    "projected": partial(fastrnn.LSTM, 3, 4, 2, proj_size=2, **DOUBLE),
    "tanh": partial(fastrnn.RNN, 3, 4, 2, **DOUBLE),
    "relu": partial(fastrnn.RNN, 3, 4, 2, "relu", **DOUBLE),
    "sigmoid": partial(fastrnn.RNN, 3, 4, 2, "sigmoid", **DOUBLE),
}


def states(layer, batch):
    """A random hx that wants a gradient, and its tensors."""
    wide = [layer.proj_size or 4] + [4] * isinstance(layer, fastrnn.LSTM)
    flat = [torch.randn(2, batch, size, **DOUBLE).requires_grad_() for size in wide]
    return (tuple(flat) if len(flat) == 2 else flat[0]), flat


def tensors(state):
    return list(state) if isinstance(state, tuple) else [state]


def like(state, parts):
    return tuple(parts) if isinstance(state, tuple) else parts[0]


def loop(layer, x, hx, window, lengths, resets):
    """Outputs and final state of a layer that is called step by step, and detached by `window`.

    Rows that have ended keep their state, and rows that start over take `hx`.
    """
    state, made = hx, []
    for t in range(len(x)):
        if t and t % window == 0:
            state = like(state, [each.detach() for each in tensors(state)])
        reset, alive = resets[t].unsqueeze(1), (t < lengths).unsqueeze(1)
        pairs = zip(tensors(hx), tensors(state), strict=True)
        output, new = layer(
            x[t : t + 1], like(state, [torch.where(reset, *pair) for pair in pairs])
        )
        pairs = zip(tensors(new), tensors(state), strict=True)
        state = like(state, [torch.where(alive, *pair) for pair in pairs])
        made.append(output * alive)
    return torch.cat(made), state


def gradients_by_window(windowed, weight, leaves):
    """Gradients and outputs, with one `backward` in each window."""
    for leaf in leaves:
        leaf.grad = None
    outputs = []
    for window in windowed:
        (window.output * weight[window.start : window.stop]).sum().backward()
        outputs.append(window.output.detach())
    return [leaf.grad for leaf in leaves], torch.cat(outputs), window.state


def zeros_for_none(gradients, leaves):
    """Gradients by `backward` are None where nothing reached a leaf, those of a loop zero."""
    pairs = zip(gradients, leaves, strict=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in pairs]


def assert_equals_loop(layer, T, B, window, lengths, resets):
    x, weight = (torch.randn(T, B, size, **DOUBLE) for size in (3, layer.proj_size or 4))
    hx, flat = states(layer, B)
    leaves = [x.requires_grad_(), *flat, *layer.parameters()]
    how = {"lengths": lengths, "resets": resets, "window": window}
    got, output, state = gradients_by_window(windows(layer, x, hx, **how), weight, leaves)
    ended = torch.full((B,), T) if lengths is None else torch.tensor(lengths)
    over = torch.zeros(T, B, dtype=torch.bool) if resets is None else resets
    want_output, want_state = loop(layer, x, hx, window, ended, over)
    want = torch.autograd.grad((want_output * weight).sum(), leaves)
    near = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(output, want_output, **near)
    torch.testing.assert_close(tensors(state), tensors(want_state), **near)
    torch.testing.assert_close(zeros_for_none(got, leaves), list(want), **near)
    whole, whole_state = layer(x, hx, lengths=lengths, resets=resets)
    torch.testing.assert_close(output, whole, **near)
    torch.testing.assert_close(tensors(state), tensors(whole_state), **near)


def sparse(T, B):
    return torch.rand(T, B) < 0.3


@pytest.mark.parametrize("resets", [False, True], ids=["plain", "resets"])
@pytest.mark.parametrize("lengths", [None, [7, 0, 4]], ids=["equal", "lengths"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_equal_a_loop_that_forgets(kind, window, lengths, resets):
    torch.manual_seed(0)
    assert_equals_loop(LAYERS[kind](), 7, 3, window, lengths, sparse(7, 3) if resets else None)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["lstm", "tanh"]),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3).filter(any),
    window=st.integers(1, 8),
    with_lengths=st.booleans(),
    seed=st.none() | st.integers(0, 1000),
)
def test_equal_a_loop_anywhere(kind, lengths, window, with_lengths, seed):
    torch.manual_seed(seed or 0)
    T, B = max(lengths), len(lengths)
    resets = None if seed is None else sparse(T, B)
    assert_equals_loop(LAYERS[kind](), T, B, window, lengths if with_lengths else None, resets)


@pytest.mark.parametrize("window", [7, 8, 100])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_window_of_all_steps_is_full_bptt_to_the_bit(kind, window):
    layer = LAYERS[kind]()
    hx, flat = states(layer, 2)
    x = torch.randn(7, 2, 3, **DOUBLE, requires_grad=True)
    leaves = [x, *flat, *layer.parameters()]
    (only,) = windows(layer, x, hx, window=window)
    output, state = layer(x, hx)
    assert (only.start, only.stop, only.targets, only.lengths) == (0, 7, None, None)
    assert torch.equal(only.output, output)
    got, want = (
        torch.autograd.grad(sum(each.square().sum() for each in (made, *tensors(final))), leaves)
        for made, final in ((only.output, only.state), (output, state))
    )
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_equal_a_loop_over_torchs_layer():
    """The loop that people write by hand, with an optimizer in it."""
    theirs = nn.LSTM(3, 4, 2, **DOUBLE)
    ours = LAYERS["lstm"]()
    ours.load_state_dict(theirs.state_dict())
    x, y = torch.randn(10, 2, 3, **DOUBLE), torch.randn(10, 2, 4, **DOUBLE)
    optimizers = [torch.optim.SGD(layer.parameters(), 0.5) for layer in (theirs, ours)]
    state, windowed = None, windows(ours, x, window=4, targets=y)
    for start in range(0, 10, 4):
        output, state = theirs(x[start : start + 4], state)
        window = next(windowed)
        assert torch.equal(window.targets, y[start : start + 4])
        losses = nn.functional.mse_loss(output, window.targets), window.output - window.targets
        for optimizer, loss in zip(optimizers, (losses[0], losses[1].square().mean()), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = detach(state)
        torch.testing.assert_close(detach(window.state), state)
    assert next(windowed, None) is None
    torch.testing.assert_close(ours.state_dict(), dict(theirs.state_dict()))


def test_only_the_first_window_reaches_hx():
    layer = LAYERS["lstm"]()
    hx, flat = states(layer, 2)
    reached = []
    for window in windows(layer, torch.randn(6, 2, 3, **DOUBLE), hx, window=2):
        window.output.sum().backward()
        reached.append([leaf.grad.clone() for leaf in flat])
    assert all((grad != 0).all() for grad in reached[0])
    assert all(torch.equal(a, b) for a, b in zip(reached[0], reached[-1], strict=True))


def test_a_learned_state_is_reached_from_every_window_with_a_reset():
    layer, learned = LAYERS["tanh"](), torch.randn(2, 1, 4, **DOUBLE, requires_grad=True)
    resets = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0]], dtype=torch.bool)
    counts = []
    hx = learned.expand(2, 2, 4)
    for window in windows(layer, torch.randn(6, 2, 3, **DOUBLE), hx, window=2, resets=resets):
        learned.grad = None
        window.output.sum().backward()
        counts.append(learned.grad is not None and bool((learned.grad != 0).all()))
    assert counts == [True, True, False]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "tanh"])
def test_layouts(kind, batch_first):
    """(B, T, I), and (T, I), whose steps come first whatever `batch_first` says."""
    plain, layer = LAYERS[kind](), LAYERS[kind](batch_first=batch_first)
    layer.load_state_dict(plain.state_dict())
    x, resets, lengths = torch.randn(7, 2, 3, **DOUBLE), sparse(7, 2), [7, 4]
    resets[4, 0] = True

    def turned(tensor):
        return tensor.transpose(0, 1) if batch_first else tensor

    how = {"window": 3, "lengths": lengths}
    want = list(windows(plain, x, targets=x, resets=resets, **how))
    got = list(windows(layer, turned(x), targets=turned(x), resets=turned(resets), **how))
    for w, g in zip(want, got, strict=True):
        assert (g.start, g.stop) == (w.start, w.stop)
        torch.testing.assert_close(turned(g.output), w.output)
        torch.testing.assert_close(turned(g.targets), w.targets)
        torch.testing.assert_close(g.state, w.state)
        assert torch.equal(g.lengths, w.lengths)
    for row in range(2):
        how["lengths"] = lengths[row]
        alone = windows(layer, x[:, row], targets=x[:, row], resets=resets[:, row], **how)
        for w, g in zip(want, alone, strict=True):
            torch.testing.assert_close(g.output, w.output[:, row])
            torch.testing.assert_close(g.targets, w.targets[:, row])
            assert torch.equal(g.lengths, w.lengths[row : row + 1])
            pairs = zip(tensors(g.state), tensors(w.state), strict=True)
            assert all(torch.allclose(one, all_[:, row]) for one, all_ in pairs)


def test_windows_say_how_long_rows_are():
    layer, x = LAYERS["tanh"](), torch.randn(7, 4, 3, **DOUBLE)
    for lengths in ([7, 0, 4, 3], (7, 0, 4, 3), torch.tensor([7, 0, 4, 3])):
        made = [w.lengths.tolist() for w in windows(layer, x, window=3, lengths=lengths)]
        assert made == [[3, 0, 3, 3], [3, 0, 1, 0], [1, 0, 0, 0]]


def test_a_row_that_has_ended_stays_as_it_is():
    layer, x = LAYERS["lstm"](), torch.randn(6, 2, 3, **DOUBLE)
    made = list(windows(layer, x, window=2, lengths=[6, 3]))
    for h in zip(*(window.state for window in made[1:]), strict=True):
        assert torch.equal(h[0][:, 1], h[1][:, 1])
        assert not torch.equal(h[0][:, 0], h[1][:, 0])
    assert (made[2].output[:, 1] == 0).all()


def test_a_state_that_a_reset_cuts_off_runs_no_further():
    """h would be 1, 1e200 and infinite, and the gradient 0 * infinity."""
    layer = fastrnn.RNN(1, 1, nonlinearity="relu", bias=False, **DOUBLE)
    nn.init.ones_(layer.weight_ih_l0)
    nn.init.constant_(layer.weight_hh_l0, 1e200)
    x, resets = torch.zeros(6, 1, **DOUBLE), torch.zeros(6, dtype=torch.bool)
    x[2], resets[4] = 1, True
    _, second = windows(layer, x, window=3, resets=resets)
    assert second.output.flatten().tolist() == [1e200, 0, 0]
    second.output.sum().backward()
    assert layer.weight_hh_l0.grad == 1


def test_windows_without_a_reset_have_no_second_state():
    layer, calls = LAYERS["tanh"](), []
    layer.register_forward_pre_hook(
        lambda layer, args, kwargs: calls.append(sorted(kwargs)), with_kwargs=True
    )
    resets = torch.zeros(8, 1, dtype=torch.bool)
    resets[[0, 5]] = True
    assert len(list(windows(layer, torch.randn(8, 1, 3, **DOUBLE), window=2, resets=resets))) == 4
    plain = ["lengths"]
    assert calls == [["lengths", "resets"], plain, ["lengths", "reset_state", "resets"], plain]


def test_final_only():
    layer, x, resets = LAYERS["lstm"](), torch.randn(7, 2, 3, **DOUBLE), sparse(7, 2)
    want = [window.state for window in windows(layer, x, window=3, resets=resets)]
    layer.final_only = True
    made = list(windows(layer, x, window=3, resets=resets))
    assert [window.output for window in made] == [None] * 3
    torch.testing.assert_close([window.state for window in made], want)


def test_windows_are_run_when_asked_for_and_forgotten():
    """Once its caller has dropped a window, nothing of it is held while the next one runs."""
    layer, outputs, held = LAYERS["lstm"](), [], []
    layer.register_forward_pre_hook(
        lambda *_: held.append([ref() for ref in outputs if ref() is not None])
    )
    for window in windows(layer, torch.randn(8, 1, 3, **DOUBLE), window=2):
        outputs += [weakref.ref(each) for each in (window.output, *window.state)]
        assert len(held) == len(outputs) / 3
        window.output.sum().backward()
        del window
    assert held == [[]] * 4


def test_memory_is_that_of_a_window(peak_memory):
    layer, x = fastrnn.LSTM(4, 8, backend="reference"), torch.randn(60, 32, 4)

    def train(window):
        layer.zero_grad()
        for each in windows(layer, x, window=window):
            each.output.sum().backward()

    assert peak_memory(lambda: train(6)) < peak_memory(lambda: train(60)) / 4


def test_detach():
    history = torch.ones(2, requires_grad=True) * 2
    state = (history, [history, Pair(history, None)])
    made = detach(state)
    assert isinstance(made[1][1], Pair)
    for tensor in (made[0], made[1][0], made[1][1].h):
        assert not tensor.requires_grad
        assert tensor.data_ptr() == history.data_ptr()
    assert made[1][1].c is None
    assert detach(None) is None
    with pytest.raises(TypeError, match=r"state should be a tensor, or a tuple .* got: str"):
        detach((history, "h"))


X = torch.randn(5, 2, 3, **DOUBLE)


@pytest.mark.parametrize(
    ("error", "told", "arguments", "how"),
    [
        (TypeError, "PackedSequence.* pad it", (nn.utils.rnn.pack_sequence([X[:, 0]]),), {}),
        (TypeError, "window should be of type int, got: bool", (X,), {"window": True}),
        (TypeError, "window should be of type int, got: float", (X,), {"window": 2.0}),
        (ValueError, "window: got 0, expected 1", (X,), {"window": 0}),
        (ValueError, "Expected input to be 2D or 3D, got 1D", (X[0, 0],), {}),
        (ValueError, "lengths: got 6 for row 1, expected 0 to T, 5", (X,), {"lengths": [5, 6]}),
        (ValueError, r"resets: got shape \(2, 5\), expected \(5, 2\)", (X,),
         {"resets": sparse(2, 5)}),
        (TypeError, "resets should be a tensor of torch.bool", (X,), {"resets": [True] * 5}),
        (ValueError, r"targets: got shape \(4, 2, 3\), expected 5 steps in dim 0", (X,),
         {"targets": X[1:]}),
        (ValueError, r"targets: got shape \(\), expected 5 steps", (X,), {"targets": X.sum()}),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(error, told, arguments, how):
    with pytest.raises(error, match=told):
        windows(LAYERS["lstm"](), *arguments, **{"window": 2, **how})


def test_layers_that_cannot_be_streamed_are_refused():
    with pytest.raises(ValueError, match=r"bidirectional.*backwards in time.*the last one"):
        windows(LAYERS["tanh"](bidirectional=True), X, window=2)
    with pytest.raises(TypeError, match=r"layer should be a fastrnn.RNN or LSTM, got: LSTM"):
        windows(nn.LSTM(3, 4), X, window=2)
    layer = LAYERS["tanh"](recompute=2)
    with pytest.raises(ValueError, match="recompute and resets: got recompute=2"):
        windows(layer, X, window=2, resets=sparse(5, 2))


def test_no_steps_are_torchs_error():
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        next(windows(LAYERS["tanh"](backend="reference"), X[:0], window=2))
