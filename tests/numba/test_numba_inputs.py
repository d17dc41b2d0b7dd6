"""W_ih x, formed by torch before the loop or in it; and which rows each step has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn_numba import cost, loops
from fastrnn_numba.steps import Steps

MARKS: dict[str, dict[str, Any]] = {
    "padded": {},
    "lengths": {"lengths": [3, 9, 0, 7, 9]},
    "resets": {"resets": torch.arange(45).view(9, 5) % 4 == 0},
}


def results(module: Any, x: torch.Tensor, **marks: Any) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    output, state = module(x, **marks)
    final = state if isinstance(state, tuple) else (state,)
    loss = sum((each.square().sum() for each in final), output.sin().sum())
    grads = torch.autograd.grad(loss, [x, *module.parameters()])
    with torch.no_grad():
        alone, _ = module(x, **marks)
    return [output.detach(), *(each.detach() for each in final), *grads, alone]


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_it_is_the_same_in_the_loop_and_before_it(
    cell: str, bias: bool, marks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = getattr(fastrnn, cell)(
        20, 24, num_layers=2, bidirectional=True, bias=bias, backend="numba", dtype=torch.float64
    )
    x = torch.randn(9, 5, 20, dtype=torch.float64)
    found, asked = [], []
    for within in (True, False):
        rule = SimpleNamespace(forms_inputs=lambda *_, w=within: asked.append(w) or w)
        monkeypatch.setattr(loops, "cost", rule)
        found.append(results(module, x, **MARKS[marks]))
    assert asked.count(True) == asked.count(False) == 2 * 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_nan_past_the_ends_reaches_nothing(cell: str) -> None:
    module = getattr(fastrnn, cell)(6, 7, backend="numba")
    lengths = torch.tensor([2, 9, 0, 5])
    x = torch.randn(9, 4, 6)
    dirty = x.masked_fill((torch.arange(9).unsqueeze(1) >= lengths).unsqueeze(2), torch.nan)
    clean = results(module, x, lengths=lengths)
    for one, other in zip(clean, results(module, dirty, lengths=lengths), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_where_it_is_formed() -> None:
    """In the loop where W_ih stays in cache and a step has as many rows as a tile."""
    assert cost.forms_inputs(4 * 128 * 128, 4, 8, 800)
    assert not cost.forms_inputs(4 * 512 * 512, 4, 8, 800)
    assert not cost.forms_inputs(4 * 128 * 128, 4, 1, 800)
    assert cost.forms_inputs(4 * 32 * 32, 4, 1, 20)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seq_len=st.integers(1, 12), data=st.data())
def test_longer_rows_come_first(seq_len: int, data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(0, seq_len), min_size=1, max_size=9))
    steps = Steps(seq_len, len(lengths), torch.tensor(lengths))
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    np.testing.assert_array_equal(steps.order, order)
    np.testing.assert_array_equal(
        steps.counts, [sum(own > t for own in lengths) for t in range(seq_len)]
    )
    assert steps.has_gaps == (min(lengths) < seq_len)


@pytest.mark.parametrize("marks", ["lengths", "resets", "packed"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_marks_written_over_before_the_way_back(cell: str, marks: str) -> None:
    """A rollout's buffer is used again, whatever is still to be differentiated."""
    torch.manual_seed(0)
    module, x = getattr(fastrnn, cell)(3, 4, backend="numba").double(), torch.randn(9, 4, 3)
    lengths, found = [9, 7, 7, 2], []
    for again in (False, True):
        mark: torch.Tensor
        if marks == "packed":
            packed = torch.nn.utils.rnn.pack_padded_sequence(x.double(), lengths)
            mark, output = packed.batch_sizes, module(packed)[0].data
        else:
            starts = torch.arange(36).view(9, 4) % 5 == 0
            mark = torch.tensor(lengths) if marks == "lengths" else starts
            output = module(x.double(), **{marks: mark})[0]
        if again:
            mark.zero_()
        found.append(torch.autograd.grad(output.sin().sum(), list(module.parameters())))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("weight_ih_l0", (5, 3)), ("weight_hh_l0", (40, 4)), ("weight_hh_l0", (4, 5)),
        ("bias_ih_l0", (11,)), ("bias_hh_l1_reverse", (1,)), ("weight_ih_l1", (4, 4)),
    ],
)  # fmt: skip
def test_weights_of_a_wrong_size_are_refused(cell: str, name: str, size: tuple[int, ...]) -> None:
    """Compiled loops read what is said to be there."""
    module = getattr(fastrnn, cell)(3, 4, 2, bidirectional=True, backend="numba")
    module(torch.randn(5, 2, 3))
    setattr(module, name, torch.nn.Parameter(torch.randn(size)))
    with pytest.raises(RuntimeError, match=rf"Expected {name} size .*, got \[{size[0]}"):
        module(torch.randn(5, 2, 3))


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_steps_are_where_the_inputs_are(cell: str, marks: str) -> None:
    """And not on the device that is the default."""
    module = getattr(fastrnn, cell)(3, 4, 2, bidirectional=True, backend="numba")
    x = torch.randn(9, 5, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [9, 7, 7, 2, 1])
    want = [*results(module, x, **MARKS[marks]), module(packed)[0].data]
    module.__dict__["_plans"].clear()
    with torch.device("meta"):
        got = [*results(module, x, **MARKS[marks]), module(packed)[0].data]
    assert all(map(torch.equal, got, want))
