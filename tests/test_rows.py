"""The backend `rows`: steps over packed rows, against torch's own loop in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import packing
from fastrnn.testing import conformance
from fastrnn_rows import cost, direction, laid_out
from fastrnn_rows.steps import Steps

CELLS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}


def modules(cell: str, *sizes: int, **how: Any) -> list[Any]:
    """Torch's and ours, with the same weights, in float64."""
    name, own = CELLS[cell]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*sizes, **own, **how).double()
    ours = getattr(fastrnn, name)(*sizes, backend="rows", **own, **how).double()
    ours.load_state_dict(theirs.state_dict())
    return [theirs, ours]


def packed_rows(lengths: list[int], width: int = 3) -> PackedSequence:
    x = torch.randn(
        max(lengths), len(lengths), width, generator=torch.Generator().manual_seed(0)
    ).double()
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def start(module: Any, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    slots = module.num_layers * (1 + module.bidirectional)
    shape = (slots, batch, module.hidden_size)
    number = 2 if isinstance(module, torch.nn.LSTM | fastrnn.LSTM) else 1
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(number)
    ]


def results(module: Any, rows: PackedSequence | Tensor, used: str = "yhc", **how: Any) -> Any:
    """Outputs and final states, and the gradients of those that are used."""
    packed = isinstance(rows, PackedSequence)
    data = (rows.data if packed else rows).detach().clone().requires_grad_()
    batch = int(rows.batch_sizes[0]) if packed else rows.shape[0 if module.batch_first else 1]
    states = start(module, batch)
    hx = tuple(states) if len(states) == 2 else states[0]
    output, final = module(rows._replace(data=data) if packed else data, hx, **how)
    made = [output.data if packed else output, *(final if isinstance(final, tuple) else (final,))]
    leaves = [data, *states, *module.parameters()]
    chosen = [m for m, name in zip(made, "yhc", strict=False) if name in used]
    upstream = [
        torch.randn(m.shape, generator=torch.Generator().manual_seed(2)).double() for m in chosen
    ]
    return made, torch.autograd.grad(chosen, leaves, upstream, allow_unused=True)


def assert_same(got: Any, want: Any) -> None:
    for parts in zip(got, want, strict=True):
        for one, other in zip(*parts, strict=True):
            if one is None or other is None:  # nothing that is used depends on it
                assert (one if other is None else other) is None or not (one or other).any()
                continue
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    equal=st.booleans(),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    used=st.sampled_from(["yhc", "y", "h", "yh", "hc"]),
)
def test_packed_rows_are_torchs(
    cell: str, lengths: list[int], equal: bool, layers: int, bidirectional: bool, bias: bool,
    used: str,
) -> None:  # fmt: skip
    if equal:
        lengths = [lengths[0]] * len(lengths)
    rows = packed_rows(lengths)
    how = {"bias": bias, "bidirectional": bidirectional}
    theirs, ours = (
        results(module, rows, used) for module in modules(cell, 3, 4, layers, **how)
    )  # fmt: skip
    assert_same(ours, theirs)
    with torch.no_grad():
        output, _ = modules(cell, 3, 4, layers, **how)[1](rows, start_of(cell, rows, layers, how))
    torch.testing.assert_close(output.data, ours[0][0], rtol=1e-9, atol=1e-11)


def start_of(cell: str, rows: PackedSequence, layers: int, how: dict[str, bool]) -> Any:
    states = start(modules(cell, 3, 4, layers, **how)[0], int(rows.batch_sizes[0]))
    return tuple(states) if len(states) == 2 else states[0]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 3), (2, 1), (7, 2)])
@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_one_length_are_torchs(
    cell: str, T: int, B: int, bidirectional: bool, batch_first: bool
) -> None:
    x = torch.randn(*((B, T) if batch_first else (T, B)), 3, dtype=torch.float64)
    how = {"bidirectional": bidirectional, "batch_first": batch_first}
    theirs, ours = (results(module, x) for module in modules(cell, 3, 4, 2, **how))
    assert_same(ours, theirs)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lengths", [[5, 0, 3, 1], [0, 0, 0, 0], [5, 5, 5, 5], [2, 3, 0, 3]])
def test_padded_rows(lengths: list[int], cell: str) -> None:
    _, ours = modules(cell, 3, 4, 2, bidirectional=True)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    for row, length in enumerate(lengths):
        x[length:, row] = torch.nan  # nobody must care
    got = results(ours, x, lengths=lengths)
    ours.backend = "reference"
    want = results(ours, x, lengths=lengths)
    assert_same(got, want)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    steps=st.integers(1, 7),
    lengths=st.none() | st.lists(st.integers(0, 7), min_size=1, max_size=4),
    batch_first=st.booleans(),
    layers=st.integers(1, 2),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    used=st.sampled_from(["yhc", "y", "h"]),
)
def test_rows_that_start_over(
    cell: str, steps: int, lengths: list[int] | None, batch_first: bool, layers: int,
    density: float, used: str,
) -> None:  # fmt: skip
    _, ours = modules(cell, 3, 4, layers, batch_first=batch_first)
    batch = 3 if lengths is None else len(lengths)
    lengths = None if lengths is None else [min(n, steps) for n in lengths]
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    resets = torch.rand(steps, batch) < density
    if batch_first:
        x, resets = x.transpose(0, 1), resets.mT
    made = []
    for ours.backend in ("rows", "reference"):
        made.append(results(ours, x, used, lengths=lengths, resets=resets))
        with torch.no_grad():
            output, _ = ours(x, lengths=lengths, resets=resets)
        torch.testing.assert_close(output, ours(x, lengths=lengths, resets=resets)[0])
    assert_same(*made)


@pytest.mark.parametrize("cell", ["gru", "rnn_tanh"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    batch_first=st.booleans(),
    layers=st.integers(1, 2),
    used=st.sampled_from(["yhc", "y", "h"]),
)
def test_rows_that_run_on_past_their_ends(
    cell: str, lengths: list[int], batch_first: bool, layers: int, used: str
) -> None:
    _, ours = modules(cell, 3, 4, layers, batch_first=batch_first)
    x = torch.randn(8, len(lengths), 3, dtype=torch.float64)
    for row, length in enumerate(lengths):
        x[length:, row] = torch.nan  # nobody must care
    x = x.transpose(0, 1) if batch_first else x
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "cut", lambda *call: pytest.fail("packed"))
        for ours.backend in ("rows", "reference"):
            made.append(results(ours, x, used, lengths=lengths))
    assert_same(*made)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_only_bounded_rows_run_on_and_few_steps(
    cell: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = []
    monkeypatch.setattr(packing, "cut", lambda *call, cut=packing.cut: cuts.append(1) or cut(*call))
    _, ours = modules(cell, 3, 4, bidirectional=bidirectional)
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    ours(x, lengths=[6, 2, 4])
    assert (not cuts) == (cell in ("gru", "rnn_tanh") and not bidirectional)
    cuts.clear()
    ours(x, lengths=[6, 0, 4])  # whose h_n is h_0
    wide = fastrnn.GRU(256, 256, backend="rows")
    wide(torch.randn(200, 16, 256), lengths=[200] + [1] * 15)
    assert len(cuts) == 2


def test_estimates_know_which_rows_run_on() -> None:
    for (steps, batch, hidden), runs_on in (((20, 8, 32), True), ((200, 64, 256), False)):
        layer, x = fastrnn.GRU(hidden, hidden, backend="rows"), torch.empty(steps, batch, hidden)
        plain, padded = (
            next(each.cost.seconds for each in fastrnn.explain(layer, x, **how).candidates
                 if each.name == "rows" and each.cost is not None)
            for how in ({}, {"lengths": [steps] * batch})
        )  # fmt: skip
        assert (padded == pytest.approx(plain + cost.MARGIN * cost.RUNNING_ON)) == runs_on


def test_a_relu_that_would_blow_up_past_an_end_does_not() -> None:
    _, ours = modules("rnn_relu", 1, 1)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.fill_(30.0)
    x = torch.ones(300, 2, 1, dtype=torch.float64)
    output, h_n = ours(x, lengths=[2, 1])
    h_n.sum().backward()
    assert output[:2].isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in ours.parameters())


def test_parts_of_rows_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time takes as many steps as the longest part."""
    ran = []
    monkeypatch.setattr(
        direction, "run", lambda cell, steps, *rest, run=direction.run, **how: (
            ran.append(steps.sizes) or run(cell, steps, *rest, **how)
        ),
    )  # fmt: skip
    resets = torch.zeros(100, 2, dtype=torch.bool)
    resets[::10, 0] = resets[40, 1] = resets[90, 1] = True
    _, ours = modules("lstm", 3, 4)
    ours(torch.randn(100, 2, 3).double(), resets=resets)
    assert ran == [[13] * 10 + [2] * 30 + [1] * 10]


@pytest.mark.parametrize("lengths", [[4, 2, 1], [3, 3]])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_gradients(cell: str, bidirectional: bool, lengths: list[int]) -> None:
    rows, found = packed_rows(lengths), []
    for module in modules(cell, 3, 4, bidirectional=bidirectional):
        data = rows.data.clone().requires_grad_()
        hx = start(module, len(lengths))
        output, final = module(rows._replace(data=data), tuple(hx) if len(hx) == 2 else hx[0])
        final = final if isinstance(final, tuple) else (final,)
        loss = output.data.sin().sum() + sum(state.cos().sum() for state in final)
        leaves = [data, *hx, *module.parameters()]
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        penalty = sum(one.square().sum() for one in first)
        found.append((first, torch.autograd.grad(penalty, leaves)))
    assert_same(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_that_is_retained_gives_the_same_bits_twice(cell: str) -> None:
    _, ours = modules(cell, 3, 4, 2, bidirectional=True)
    output, _ = ours(packed_rows([5, 3, 1]))
    loss = output.data.square().sum()
    weights = list(ours.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_gradient_is_the_same_tensor_as_another() -> None:
    _, ours = modules("rnn_tanh", 3, 4)
    output, _ = ours(packed_rows([5, 3, 1]))
    found = torch.autograd.grad(output.data.sum(), list(ours.parameters()))
    assert len({gradient.data_ptr() for gradient in found}) == len(found)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_as_torch_does(cell: str) -> None:
    rows, made = packed_rows([6, 4, 1]), []
    for module in modules(cell, 3, 8, 2, dropout=0.5):
        torch.manual_seed(3)
        made.append(module(rows)[0].data)
        assert not torch.equal(module(rows)[0].data, made[-1])
    torch.testing.assert_close(made[1], made[0])


@pytest.mark.parametrize("cell", CELLS)
def test_what_nobody_wants_is_not_computed(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights cost no product, and an input without a gradient none either."""
    _, ours = modules(cell, 3, 4)
    made = []
    own = direction._sums

    def spy(*arguments: Any) -> Any:
        made.append(own(*arguments))
        return made[-1]

    monkeypatch.setattr(direction, "_sums", spy)
    ours.weight_hh_l0.requires_grad_(False)
    ours.bias_ih_l0.requires_grad_(False)
    ours(packed_rows([5, 3, 1]))[0].data.sum().backward()
    ((d_x, d_h0, d_c0, d_ih, d_hh, d_bias_ih, d_bias_hh),) = made
    assert d_x is d_h0 is d_c0 is d_hh is d_bias_ih is None
    assert d_ih is not None
    assert d_bias_hh is not None


def test_an_infinite_gradient_ends_where_relu_is_zero() -> None:
    found = []
    for module in modules("rnn_relu", 1, 1):
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(1.0)
        x = torch.tensor([[[-9.0]], [[1.0]]], dtype=torch.float64, requires_grad=True)
        output, _ = module(x)
        found.append(torch.autograd.grad(output, x, torch.full_like(output, torch.inf)))
    assert torch.equal(*(each[0] for each in found))
    assert found[1][0][0] == 0


@settings(deadline=None, derandomize=True, database=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_where_rows_are(lengths: list[int]) -> None:
    """Places are looked up in the packed numbers of (step, row)."""
    lengths = sorted(lengths, reverse=True)
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    places = [(t, b) for t, size in enumerate(sizes) for b in range(size)]
    numbers = torch.tensor([100 * t + b for t, b in places])
    for reverse in (False, True):
        steps = Steps(sizes, reverse=reverse)
        firsts = [0 if not reverse else n - 1 for n in lengths]
        lasts = [n - 1 if not reverse else 0 for n in lengths]
        assert steps.first(numbers).tolist() == [100 * t + b for b, t in enumerate(firsts)]
        assert steps.last(numbers).tolist() == [100 * t + b for b, t in enumerate(lasts)]
        before = steps.entering(numbers.unsqueeze(1), -1 - torch.arange(len(lengths)).unsqueeze(1))
        one = 1 if reverse else -1
        for (t, b), found in zip(places, before.flatten().tolist(), strict=True):
            at_start = t == firsts[b]
            assert found == (-1 - b if at_start else 100 * (t + one) + b)
        later, entered = steps.pairs(numbers, numbers)
        assert len(later) == len(numbers) - len(lengths)
        assert torch.equal(entered - later, torch.full_like(later, 100 * one))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("hidden", [64, 512])
def test_auto_takes_it_for_training_and_where_the_product_of_a_step_counts(
    kind, hidden, packed, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = torch.empty(100, 8, hidden)
    if packed:
        rows = pack_padded_sequence(rows, [100, 90, 80, 70, 60, 50, 40, 30])
    layer = kind(hidden, hidden)
    assert fastrnn.explain(layer, rows).backend == "rows"
    with torch.no_grad():
        # in small layers what a step has beside its product counts, of which ATen's loop, in C++,
        # has less, unless it slices packed rows
        takes = hidden == 512 or (packed and kind is fastrnn.RNN)
        assert (fastrnn.explain(layer, rows).backend == "rows") == takes


@pytest.mark.parametrize(
    ("kind", "steps", "batch", "hidden", "one_thread", "two_threads"),
    [
        (fastrnn.RNN, 100, 8, 1024, "rows", "aten"),  # a step has few rows
        (fastrnn.RNN, 100, 32, 1024, "rows", "rows"),
        (fastrnn.LSTM, 100, 32, 512, "rows", "rows"),  # torch's path for it is ATen's loop
        (fastrnn.LSTM, 512, 32, 256, "rows", "onednn"),
    ],
)
def test_two_threads_choose_anew(
    kind: Any, steps: int, batch: int, hidden: int, one_thread: str, two_threads: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lengths = torch.linspace(steps, 1, batch).round().long()
    packed = pack_padded_sequence(torch.empty(steps, batch, hidden), lengths)
    layer = kind(hidden, hidden)
    for threads, backend in ((1, one_thread), (2, two_threads)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with torch.no_grad():
            assert fastrnn.explain(layer, packed).backend == backend


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (fastrnn.RNN(3, 4, nonlinearity="sigmoid"), torch.empty(5, 2, 3), "cell is rnn_sigmoid"),
        (fastrnn.LSTM(3, 4, proj_size=2), torch.empty(5, 2, 3), "proj_size is 2; it has no proj"),
        (fastrnn.GRU(3, 4).bfloat16(), torch.empty(5, 2, 3).bfloat16(), "dtype is torch.bfloat16"),
    ],
    ids=["sigmoid", "projection", "bfloat16"],
)
def test_what_it_refuses(layer: Any, x: Tensor, message: str) -> None:
    layer.backend = "rows"
    with pytest.raises(fastrnn.BackendError, match=message):
        layer(x)


def test_two_directions_would_be_cut_up_in_different_places() -> None:
    x, resets = torch.randn(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
    for layer, name in ((fastrnn.GRU, "rows"), (fastrnn.LSTM, "onednn")):
        message = "resets cut up rows, for each of two directions elsewhere"
        with pytest.raises(fastrnn.BackendError, match=message):
            layer(3, 4, bidirectional=True, backend=name)(x, resets=resets)
        layer(3, 4, backend=name)(x, resets=resets)


def test_the_dtypes_must_agree_as_they_must_in_torch() -> None:
    theirs, ours = modules("gru", 3, 4)
    texts = []
    for module in (theirs, ours):
        with pytest.raises((ValueError, RuntimeError)) as raised:
            module(torch.empty(5, 2, 3))
        texts.append(str(raised.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("check", conformance.checks(), ids=lambda check: check.name)
def test_conforms(check: conformance.Check) -> None:
    outcome = conformance.perform(check, conformance.subject("rows", "cpu"))
    assert outcome.status in ("passed", "not claimed"), outcome.text


# Weights that lie in memory otherwise than the parameter: by steps and rows enough, and by size.
@pytest.mark.parametrize(
    ("T", "B", "H", "turned", "spread"),
    [
        (15, 4, 20, False, False),
        (16, 4, 20, True, False),
        (16, 3, 20, False, False),
        (200, 1, 20, False, False),  # float64
        (16, 5, 280, True, False),  # in strips, the last one short
        (16, 33, 512, True, True),
        (15, 33, 512, False, False),
        (16, 31, 512, True, False),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_weights_change_no_result(cell, T, B, H, turned, spread, monkeypatch):
    made = []
    for name in ("turned", "spread"):
        copy = getattr(laid_out, name)
        monkeypatch.setattr(
            laid_out, name, lambda weight, name=name, copy=copy: made.append(name) or copy(weight)
        )
    theirs, ours = modules(cell, 3, H)
    x = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(3)).double()
    assert_same(results(ours, x), results(theirs, x))
    assert made == [*["turned"] * turned, *["spread"] * spread]


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (800, 200), (300, 513)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_weights_are_the_weights(shape, dtype):
    for weight in (torch.randn(shape, dtype=dtype), torch.randn(shape[::-1], dtype=dtype).mT):
        assert torch.equal(laid_out.turned(weight), weight.mT)
        assert torch.equal(laid_out.spread(weight), weight)
        for copy in (laid_out.turned(weight), laid_out.spread(weight)):
            assert copy.stride() == (copy.shape[1] + laid_out.GAP, 1)


def test_rows_that_end_count_for_what_they_are():
    """Sixteen steps of four rows on average, or fewer."""
    weight = torch.randn(20, 20)
    for sizes, copied in (([7] + [4] * 14 + [1], True), ([4] * 15 + [3], False)):
        found = laid_out.forward(weight, Steps(sizes, reverse=False))
        assert (found.data_ptr() != weight.data_ptr()) == copied
    single = Steps([1] * 64, reverse=False)
    assert laid_out.forward(weight, single).data_ptr() != weight.data_ptr()
    assert laid_out.forward(weight.double(), single).stride() == (1, 20)
    assert laid_out.forward(weight, Steps([1] * 63, reverse=False)).stride() == (1, 20)
    for rows, copied in ((7, False), (8, True)):
        assert laid_out.turns(2000, 1000, 4, 16, rows) == copied


@pytest.mark.parametrize("cell", CELLS)
def test_what_gradients_are_made_of_is_left_as_it_was(cell):
    _, ours = modules(cell, 3, 4)
    x = torch.randn(20, 5, 3).double()
    output, final = ours(x)
    made = (output, *(final if isinstance(final, tuple) else (final,)))
    upstream = [torch.randn_like(each) for each in made]
    before = [each.clone() for each in (x, *made, *upstream, *ours.parameters())]
    torch.autograd.grad(made, list(ours.parameters()), upstream)
    after = (x, *made, *upstream, *ours.parameters())
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("steps", [1, 3, 70])
@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_no_rows(cell, steps):
    for how in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True}):
        theirs, ours = modules(cell, 3, 4, **how)
        x = torch.randn((0, steps, 3) if how else (steps, 0, 3), dtype=torch.float64)
        made, gradients = results(ours, x)
        want, _ = results(theirs, x)
        assert [each.shape for each in made] == [each.shape for each in want]
        assert made[0].shape == (*x.shape[:2], 8 if how else 4)
        assert all(not each.any() for each in gradients)
        with torch.no_grad():
            assert ours(x)[0].shape == made[0].shape
