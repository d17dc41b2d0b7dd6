"""`reset_state=`: rows enter in one state and start over from another; against a loop of steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastrnn
from fastrnn import functional
from fastrnn_rows import direction

LAYERS = {
    "lstm": fastrnn.LSTM,
    "projection": partial(fastrnn.LSTM, proj_size=2),
    "gru": fastrnn.GRU,
    "rnn_tanh": fastrnn.RNN,
    "peephole_lstm": partial(fastrnn.CellRNN, "peephole_lstm"),
}
State = tuple[Tensor, ...]


def layer_of(kind: str, layers: int = 1, **how: Any) -> Any:
    torch.manual_seed(0)
    return LAYERS[kind](3, 4, layers, **how).double()


def states_of(layer: Any, batch: int, seed: int) -> State:
    widths = [layer.proj_size or layer.hidden_size]
    widths += [layer.hidden_size] if layer._spec.has_cell_state else []
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(layer.num_layers, batch, width, generator=generator, dtype=torch.float64)
        .requires_grad_()
        for width in widths
    )  # fmt: skip


def as_hx(states: State) -> Any:
    return states if len(states) == 2 else states[0]


def as_tuple(state: Any) -> State:
    return state if isinstance(state, tuple) else (state,)


def by_steps(
    layer: Any, x: Tensor, hx: State, fresh: State, resets: Tensor, lengths: list[int]
) -> tuple[Tensor, State, list[State]]:
    """Output (T, B, .), final states and those of every step, a step of all rows at a time."""
    state, outputs, every = hx, [], []
    ends = torch.tensor(lengths)
    for t in range(len(x)):
        goes_on = (ends > t).unsqueeze(1)
        starts = resets[t].unsqueeze(1) & goes_on
        entering = tuple(torch.where(starts, *pair) for pair in zip(fresh, state, strict=True))
        output, made = layer(x[t : t + 1], as_hx(entering))
        outputs.append(torch.where(goes_on, output[0], 0))
        pairs = zip(as_tuple(made), state, strict=True)
        state = tuple(torch.where(goes_on, *pair) for pair in pairs)
        every.append(tuple(torch.where(goes_on, each, 0) for each in state))
    return torch.stack(outputs), state, every


def gradients(made: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(m.shape, generator=generator, dtype=m.dtype) for m in made]
    return torch.autograd.grad(made, leaves, upstream, allow_unused=True, materialize_grads=True)


def assert_same(got: list[Tensor], want: list[Tensor], leaves: list[Tensor]) -> None:
    got, want = [*got, *gradients(got, leaves)], [*want, *gradients(want, leaves)]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def random_resets(T: int, B: int, density: float = 0.3, seed: int = 0) -> Tensor:
    return torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    T=st.integers(1, 6),
    lengths=st.none() | st.lists(st.integers(0, 6), min_size=1, max_size=4),
    layers=st.integers(1, 2),
    batch_first=st.booleans(),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    one_for_all=st.booleans(),
    backend=st.sampled_from(["auto", "reference", "rows,reference"]),
    seed=st.integers(0, 100),
)
def test_equal_a_loop_of_steps(
    kind: str, T: int, lengths: list[int] | None, layers: int, batch_first: bool, density: float,
    one_for_all: bool, backend: str, seed: int,
) -> None:  # fmt: skip
    B = 3 if lengths is None else len(lengths)
    lengths = None if lengths is None else [min(n, T) for n in lengths]
    layer = layer_of(kind, layers, batch_first=batch_first, backend=backend)
    plain = layer_of(kind, layers)
    plain._parameters = layer._parameters
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, B, 3, generator=generator, dtype=torch.float64).requires_grad_()
    resets = random_resets(T, B, density, seed)
    hx, fresh = states_of(layer, B, 1), states_of(layer, 1 if one_for_all else B, 2)
    given_x, given_resets = (x.transpose(0, 1), resets.mT) if batch_first else (x, resets)
    output, final = layer(
        given_x, as_hx(hx), lengths=lengths, resets=given_resets, reset_state=as_hx(fresh)
    )
    got = [output.transpose(0, 1) if batch_first else output, *as_tuple(final)]
    expanded = tuple(each.expand(-1, B, -1) for each in fresh)
    want, last, _ = by_steps(plain, x, hx, expanded, resets, lengths or [T] * B)
    assert_same(got, [want, *last], [x, *hx, *fresh, *layer.parameters()])


@pytest.mark.parametrize("lengths", [None, [7, 0, 4]])
@pytest.mark.parametrize("kind", ["lstm", "rnn_tanh"])
def test_states_of_every_step(kind: str, lengths: list[int] | None) -> None:
    layer = layer_of(kind, 2)
    x, resets = torch.randn(7, 3, 3, dtype=torch.float64), random_resets(7, 3)
    hx, fresh = states_of(layer, 3, 1), states_of(layer, 3, 2)
    how = {"lengths": lengths, "resets": resets, "reset_state": as_hx(fresh)}
    _, _, every = layer(x, as_hx(hx), return_all_states=True, **how)
    *_, want = by_steps(layer, x, hx, fresh, resets, lengths or [7] * 3)
    stacked = [torch.stack(each, 1) for each in zip(*want, strict=True)]
    assert_same(list(as_tuple(every)), stacked, [*hx, *fresh, *layer.parameters()])


def test_onednn_takes_it() -> None:
    torch.manual_seed(0)
    layer = fastrnn.LSTM(3, 4, 2, backend="onednn")
    x, resets = torch.randn(9, 4, 3), random_resets(9, 4)
    hx, fresh = ([each.detach().float() for each in states_of(layer, 4, seed)] for seed in (1, 2))
    made = []
    for layer.backend in ("onednn", "reference"):
        output, final = layer(x, tuple(hx), resets=resets, reset_state=tuple(fresh))
        made.append([output, *final, *torch.autograd.grad(output.sum(), list(layer.parameters()))])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_that_never_start_over_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(
        direction, "run", lambda cell, steps, *rest, run=direction.run, **how: (
            ran.append(steps.sizes) or run(cell, steps, *rest, **how)
        ),
    )  # fmt: skip
    layer, resets = layer_of("gru", backend="rows"), torch.zeros(9, 3, dtype=torch.bool)
    resets[4, 1] = True
    layer(torch.randn(9, 3, 3).double(), resets=resets, reset_state=states_of(layer, 1, 2)[0])
    # two whole rows, and 4 steps, 4 that nobody takes, and 5
    assert ran == [[5] * 4 + [3] + [2] * 4]


def test_unbatched_and_final_only() -> None:
    layer = layer_of("lstm")
    x, resets = torch.randn(6, 1, 3, dtype=torch.float64), random_resets(6, 1, seed=3)
    hx, fresh = states_of(layer, 1, 1), states_of(layer, 1, 2)
    output, final = layer(x, hx, resets=resets, reset_state=fresh)
    alone, last = layer(
        x[:, 0], tuple(each[:, 0] for each in hx), resets=resets[:, 0],
        reset_state=tuple(each[:, 0] for each in fresh),
    )  # fmt: skip
    torch.testing.assert_close(alone, output[:, 0])
    torch.testing.assert_close(last, tuple(each[:, 0] for each in final))
    layer.final_only = True
    nothing, only = layer(x, hx, resets=resets, reset_state=fresh)
    assert nothing is None
    torch.testing.assert_close(only, final)


def test_functional() -> None:
    for kind, function in (("lstm", functional.lstm), ("rnn_tanh", functional.rnn)):
        layer = layer_of(kind)
        x, resets = torch.randn(5, 2, 3, dtype=torch.float64), random_resets(5, 2)
        hx, fresh = as_hx(states_of(layer, 2, 1)), as_hx(states_of(layer, 2, 2))
        want = layer(x, hx, resets=resets, reset_state=fresh)
        got = function(x, hx, list(layer.parameters()), resets=resets, reset_state=fresh)
        torch.testing.assert_close(got, want)
    gru = layer_of("gru")
    hx, fresh = states_of(gru, 2, 1)[0], states_of(gru, 2, 2)[0]
    got = functional.gru(x, hx, list(gru.parameters()), resets=resets, reset_state=fresh)
    torch.testing.assert_close(got, gru(x, hx, resets=resets, reset_state=fresh))


def test_what_comes_before_a_reset_reaches_nothing_after_it() -> None:
    """NaN in an episode that has ended, or in what it entered in, stays there."""
    layer = layer_of("gru")
    x, resets = torch.randn(6, 2, 3, dtype=torch.float64), torch.zeros(6, 2, dtype=torch.bool)
    resets[3, 0] = True
    fresh = states_of(layer, 1, 2)[0]
    hx = torch.zeros(1, 2, 4, dtype=torch.float64)
    clean, _ = layer(x, hx, resets=resets, reset_state=fresh)
    x[1, 0] = torch.nan
    output, h_n = layer(x, hx, resets=resets, reset_state=fresh)
    assert output[1:3, 0].isnan().all()
    assert torch.equal(output[3:], clean[3:])
    assert not h_n.isnan().any()
    (d_fresh,) = torch.autograd.grad(output[3:].sum(), fresh)
    assert not d_fresh.isnan().any()


@pytest.mark.parametrize("dynamic", [False, True])
def test_in_one_graph(dynamic: bool) -> None:
    layer = layer_of("lstm")
    hx, fresh = states_of(layer, 2, 1), states_of(layer, 1, 2)

    def call(x: Tensor, resets: Tensor) -> Any:
        return layer(x, hx, resets=resets, reset_state=fresh)

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (5, 8) if dynamic else (5,):
        x, resets = torch.randn(T, 2, 3, dtype=torch.float64), random_resets(T, 2)
        torch.testing.assert_close(compiled(x, resets), call(x, resets))


def test_per_sample_gradients() -> None:
    layer = layer_of("rnn_tanh", backend="reference")
    x, resets = torch.randn(4, 5, 1, 3, dtype=torch.float64), random_resets(5, 1)
    hx, fresh = (states_of(layer, 1, seed)[0].detach() for seed in (1, 2))
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        how = {"resets": resets, "reset_state": fresh}
        output, _ = torch.func.functional_call(layer, parameters, (x, hx), how)
        return output.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(4):
        want = torch.func.grad(loss)(parameters, x[row])
        for name, gradient in want.items():
            torch.testing.assert_close(found[name][row], gradient)


def test_explain_knows_what_the_call_is() -> None:
    layer, x = fastrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    resets, fresh = torch.zeros(5, 2, dtype=torch.bool), (torch.zeros(1, 1, 4),) * 2
    decision = fastrnn.explain(layer, x, resets=resets, reset_state=fresh)
    assert (decision.request.batch, decision.request.padded, decision.request.resets) == (4, 1, 1)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert not fastrnn.explain(layer, x, resets=resets, reset_state=fresh).request.needs_grad
    learned = tuple(each.clone().requires_grad_() for each in fresh)
    assert fastrnn.explain(layer, x, resets=resets, reset_state=learned).request.needs_grad


ZEROS = torch.zeros(1, 2, 4)


@pytest.mark.parametrize(
    ("layer", "how", "error", "text"),
    [
        (fastrnn.GRU(3, 4), {"reset_state": ZEROS, "resets": None}, ValueError,
         "reset_state: got one without resets, expected None"),
        (fastrnn.GRU(3, 4), {"reset_state": (ZEROS, ZEROS)}, TypeError,
         "reset_state should be a tensor, got: tuple"),
        (fastrnn.LSTM(3, 4), {"reset_state": ZEROS}, TypeError,
         "reset_state should be a pair of tensors, got: Tensor"),
        (fastrnn.LSTM(3, 4), {"reset_state": (ZEROS,)}, TypeError,
         "reset_state should be a pair of tensors, got: Tensor"),
        (fastrnn.LSTM(3, 4), {"reset_state": (ZEROS, 0.0)}, TypeError,
         "reset_state should be a pair of tensors, got: Tensor, float"),
        (fastrnn.GRU(3, 4), {"reset_state": torch.zeros(1, 3, 4)}, ValueError,
         r"reset_state: got shape \(1, 3, 4\), expected \(1, 2, 4\), or one row for all, \(1"),
        (fastrnn.GRU(3, 4), {"reset_state": torch.zeros(2, 4)}, ValueError,
         r"reset_state: got shape \(2, 4\), expected \(1, 2, 4\)"),
        (fastrnn.GRU(3, 4, bidirectional=True), {"reset_state": torch.zeros(2, 2, 4)}, ValueError,
         "reset_state: got one for a layer in two directions, expected one direction, or resets"),
        (fastrnn.GRU(3, 4), {"reset_state": ZEROS.double()}, RuntimeError,
         "hidden tensors are not the same dtype"),
        (fastrnn.GRU(3, 4, recompute=2), {"reset_state": ZEROS}, ValueError,
         "recompute and resets: got recompute=2 and resets"),
    ],
)  # fmt: skip
def test_refused(layer: Any, how: dict[str, Any], error: type[Exception], text: str) -> None:
    how = {"resets": torch.zeros(5, 2, dtype=torch.bool), **how}
    with pytest.raises(error, match=text):
        layer(torch.randn(5, 2, 3), **how)


def test_a_packed_sequence_has_no_resets() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    with pytest.raises(ValueError, match="reset_state: got one without resets, expected None"):
        fastrnn.GRU(3, 4)(packed, reset_state=ZEROS)


@pytest.mark.parametrize("steps", [0, 4])
def test_nothing_to_run(steps: int) -> None:
    """No steps is torch's error; a batch of no rows gives empty results."""
    layer, fresh = fastrnn.GRU(3, 4), torch.zeros(1, 1, 4)
    if steps == 0:
        resets = torch.zeros(0, 2, dtype=torch.bool)
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
            layer(torch.randn(0, 2, 3), resets=resets, reset_state=fresh)
    else:
        resets = torch.zeros(4, 0, dtype=torch.bool)
        output, h_n = layer(torch.randn(4, 0, 3), resets=resets, reset_state=fresh)
        assert (output.shape, h_n.shape) == ((4, 0, 4), (1, 0, 4))
