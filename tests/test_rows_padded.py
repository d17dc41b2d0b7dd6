"""The backend `rows` over padded rows: packed, cut up at resets, or left as they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import packing
from rows_cases import CELLS, assert_same, modules, results, rows_of_steps


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


def test_parts_of_rows_run_side_by_side() -> None:
    """Time takes as many steps as the longest part."""
    resets = torch.zeros(100, 2, dtype=torch.bool)
    resets[::10, 0] = resets[40, 1] = resets[90, 1] = True
    assert rows_of_steps(fastrnn.LSTM(3, 4), resets) == [13] * 10 + [2] * 30 + [1] * 10


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_rows_start_over_either(cell: str, bidirectional: bool) -> None:
    _, ours = modules(cell, 3, 4, bidirectional=bidirectional)
    x, resets = torch.randn(5, 0, 3).double(), torch.zeros(5, 0, dtype=torch.bool)
    output, _ = ours(x, resets=resets)
    assert output.shape == (5, 0, 8 if bidirectional else 4)


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
