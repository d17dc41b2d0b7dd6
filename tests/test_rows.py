"""The backend `rows`: steps over packed rows, against torch's own loop in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn.testing import conformance
from fastrnn_rows import direction
from fastrnn_rows.steps import Steps
from rows_cases import CELLS, assert_same, modules, packed_rows, results, start


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


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (fastrnn.RNN(3, 4, nonlinearity="sigmoid"), torch.empty(5, 2, 3), "cell is rnn_sigmoid"),
        (fastrnn.LSTM(3, 4, proj_size=2), torch.empty(5, 2, 3), "proj_size is 2; it has no proj"),
    ],
    ids=["sigmoid", "projection"],
)
def test_what_it_refuses(layer: Any, x: Tensor, message: str) -> None:
    layer.backend = "rows"
    with pytest.raises(fastrnn.BackendError, match=message):
        layer(x)


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
