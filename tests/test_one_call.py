"""fastrnn_aten.one_call: padded rows in one call of oneDNN, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastrnn
from fastrnn import packing, testing
from fastrnn_aten import one_call, onednn, onednn_cost

NAN = float("nan")
CUT = packing.cut


@pytest.fixture(autouse=True)
def never_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that means one call gets one, however many steps that wastes."""
    monkeypatch.setattr(onednn_cost, "affordable", lambda request: 1e9)
    monkeypatch.setattr(packing, "cut", lambda *call: pytest.fail("packed"))


def modules(*sizes: int, **how: Any) -> list[Any]:
    """Ours in float32, and the reference in float64."""
    torch.manual_seed(0)
    ours = fastrnn.LSTM(*sizes, backend="onednn", **how)
    truth = fastrnn.LSTM(*sizes, backend="reference", **how).double()
    truth.load_state_dict(ours.state_dict())
    return [ours, truth]


def results(lstm: Any, x: Tensor, hx: list[Tensor], marks: dict[str, Any]) -> list[Tensor]:
    """Output, final states, and the gradients of what goes in."""
    dtype = lstm.weight_hh_l0.dtype
    x = x.to(dtype).requires_grad_()
    states = [state.to(dtype).requires_grad_() for state in hx]
    output, final = lstm(x, tuple(states) or None, **marks)
    made = [output, *final]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(each.shape, generator=generator).to(dtype) for each in made]
    leaves = [x, *states, *lstm.parameters()]
    return [each.detach() for each in (*made, *torch.autograd.grad(made, leaves, upstream))]


def assert_same(got: list[Tensor], want: list[Tensor], steps: int) -> None:
    allowed = testing.tolerance(torch.float32, steps).gradient
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, atol=allowed, rtol=allowed)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(
        lambda lengths: any(lengths) and min(lengths) < 7
    ),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    hx=st.booleans(),
)
def test_rows_that_end(
    lengths: list[int], layers: int, bidirectional: bool, batch_first: bool, bias: bool, hx: bool
) -> None:
    steps, batch = 7, len(lengths)
    how = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    pair = modules(3, 4, layers, **how)
    x = torch.randn(steps, batch, 3)
    for row, length in enumerate(lengths):
        x[length:, row] = NAN  # nobody must care
    x = x.transpose(0, 1) if batch_first else x
    start = [torch.randn(layers * (1 + bidirectional), batch, 4) for _ in "hc"] if hx else []
    assert_same(*(results(each, x, start, {"lengths": lengths}) for each in pair), steps)
    with torch.no_grad():
        made = [each(x.to(each.weight_hh_l0.dtype), lengths=lengths)[0] for each in pair]
    assert_same(made[:1], made[1:], steps)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.none() | st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),
    layers=st.integers(1, 2),
    batch_first=st.booleans(),
    density=st.sampled_from([0.1, 0.4, 1.0]),
    seed=st.integers(0, 100),
)
def test_rows_that_start_over(
    lengths: list[int] | None, layers: int, batch_first: bool, density: float, seed: int
) -> None:
    steps, generator = 9, torch.Generator().manual_seed(seed)
    resets = torch.rand(steps, 3, generator=generator) < density
    resets[1, 0] = True  # never none at all, which is another path
    x = torch.randn(steps, 3, 4, generator=generator)
    if lengths is not None:
        for row, length in enumerate(lengths):
            x[length:, row] = NAN
    before = resets.clone()
    how = {"lengths": lengths, "resets": resets.mT if batch_first else resets}
    x = x.transpose(0, 1) if batch_first else x
    pair = modules(4, 5, layers, batch_first=batch_first)
    assert_same(*(results(each, x, [], how) for each in pair), steps)
    assert torch.equal(resets, before), "the user's own"


@pytest.mark.parametrize("marks", [{"lengths": [200, 5]}, {"resets": True}], ids=["end", "empty"])
def test_what_comes_after_an_end_or_before_a_start_shows_nowhere(marks: dict[str, Any]) -> None:
    """To the bit: shut gates are 0 and open ones 1, not nearly."""
    lstm, _ = modules(3, 4)
    x = torch.randn(200, 2, 3)
    if "resets" in marks:
        marks = {"resets": torch.zeros(200, 2, dtype=torch.bool)}
        marks["resets"][150] = True
        hidden, shown = slice(0, 150), slice(150, 200)
    else:
        hidden, shown = slice(5, 200), slice(0, 5)
    other = x.clone()
    other[hidden, 1] = 1e3 * torch.randn_like(other[hidden, 1])
    one, two = (lstm(each, **marks) for each in (x, other))
    assert torch.equal(one[0][shown, 1], two[0][shown, 1])
    for state, same in zip(one[1], two[1], strict=True):
        assert torch.equal(state[:, 1], same[:, 1])


def test_gradients_of_an_episode_end_with_it() -> None:
    lstm, _ = modules(3, 4)
    x = torch.randn(9, 2, 3, requires_grad=True)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[5, 1] = True
    output, _ = lstm(x, resets=resets)
    output[5:, 1].sum().backward()
    assert x.grad is not None
    reached = x.grad.ne(0).any(2)
    assert reached[5:, 1].all()
    assert not reached[:5].any()
    assert not reached[:, 0].any()


def test_a_gradient_can_be_differentiated_again() -> None:
    made = []
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[2, 1] = resets[4, 0] = True
    for lstm in modules(3, 4):
        torch.manual_seed(1)
        x = torch.randn(6, 3, 3).to(lstm.weight_hh_l0.dtype).requires_grad_()
        output, _ = lstm(x, lengths=[6, 5, 3], resets=resets)
        (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        made.append(torch.autograd.grad(d_x.square().sum(), list(lstm.parameters())))
    for got, want in zip(*made, strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("hx", "why"),
    [
        ("none", None),
        ("zeros", None),
        ("where no row starts over", None),
        ("other", "rows start over from something"),
        ("learned", "a gradient is asked of what they start over from"),
    ],
)
def test_rows_start_over_from_zero_or_are_packed(
    hx: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    real = one_call.run
    monkeypatch.setattr(one_call, "run", lambda *call: ran.append(1) or real(*call))
    monkeypatch.setattr(packing, "cut", CUT)
    lstm, truth = modules(3, 4)
    x, resets = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    resets[3, 0] = True
    states = [torch.zeros(1, 2, 4) for _ in "hc"]
    if hx == "where no row starts over":
        states[1][0, 1] = 1.0
    if hx == "other":
        states[1][0, 0] = 1.0
    if hx == "learned":
        states[0].requires_grad_()
    given = None if hx == "none" else tuple(states)
    got = lstm(x, given, resets=resets)
    assert bool(ran) == (why is None)
    want = truth(x.double(), given and tuple(s.double() for s in given), resets=resets)
    assert_same([got[0].detach(), *got[1]], [want[0].detach(), *want[1]], 6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_nan_stays_in_its_row(bidirectional: bool) -> None:
    lstm, _ = modules(3, 4, 2, bidirectional=bidirectional)
    x, lengths = torch.randn(6, 3, 3), [6, 2, 4]
    want, states = lstm(x, lengths=lengths)
    x[0, 0] = NAN
    got, own = lstm(x, lengths=lengths)
    assert got[:, 0].isnan().any()
    for one, other in zip((got, *own), (want, *states), strict=True):
        assert torch.equal(one[:, 1:], other[:, 1:])


def test_a_nan_ends_with_its_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "cut", CUT)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[3] = True
    x = torch.randn(6, 2, 3)
    x[1, 0] = NAN
    made = [lstm(x.to(lstm.weight_hh_l0.dtype), resets=resets) for lstm in modules(3, 4)]
    assert made[0][0][1:3, 0].isnan().all()
    rest = [[output[3:].detach(), *final] for output, final in made]
    assert_same(*rest, 6)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.none() | st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any),
    density=st.sampled_from([None, 0.0, 0.4]),
    seed=st.integers(0, 100),
)
def test_idle_steps_are_counted(
    lengths: list[int] | None, density: float | None, seed: int
) -> None:
    """Those of all rows, less those that the rows have, and those that empty them."""
    steps, batch, resets = 6, 3, None
    if density is not None:
        generator = torch.Generator().manual_seed(seed)
        resets = torch.rand(steps, batch, generator=generator) < density
    own = [steps] * batch if lengths is None else lengths
    if lengths is None and resets is None:
        return
    given = None if lengths is None else torch.tensor(lengths)
    rows = one_call.rows_of(given, resets, steps, batch)
    emptied = [
        0 if resets is None else int(resets[1 : max(length, 1), row].sum())
        for row, length in enumerate(own)
    ]
    assert rows.steps == max(own) + max(emptied)
    assert rows.idle == rows.steps * batch - sum(own) - sum(emptied)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_where_packing_is_worth_it_rows_are_packed(
    needs_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    ran = []
    monkeypatch.setattr(onednn, "_run_packed", lambda call, real=onednn._run_packed: (
        ran.append(call.input.shape[0]) or real(call)
    ))  # fmt: skip
    lstm = fastrnn.LSTM(64, 64, backend="onednn")
    x = torch.randn(200, 16, 64)
    with torch.set_grad_enabled(needs_grad):
        lstm(x, lengths=[200] * 15 + [199])
        assert not ran
        lstm(x, lengths=[200] + [1] * 15)
        assert ran == [215]


@pytest.mark.parametrize(
    ("T", "B", "H", "marks", "one"),
    [
        (20, 8, 32, "lengths", True),
        (128, 8, 32, "resets", True),
        (20, 64, 128, "resets", True),
        (512, 64, 128, "lengths", False),
        (512, 512, 128, "resets", False),
    ],
)
def test_estimates_tell_one_call_from_rectangles(
    T: int, B: int, H: int, marks: str, one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    x, lstm = torch.empty(T, B, H), fastrnn.LSTM(H, H, backend="onednn")
    made = {"lengths": [T] * B, "resets": torch.zeros(T, B, dtype=torch.bool)}
    decision = fastrnn.explain(lstm, x, **{marks: made[marks]})
    (own,) = (each for each in decision.candidates if each.name == "onednn")
    assert own.cost is not None
    assert ("one call" in own.cost.why) == one
    assert ("rectangles" in own.cost.why) != one
