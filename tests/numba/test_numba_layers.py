"""The backend `numba`, padded and packed, against the reference in float64."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.testing import conformance
from fastrnn_numba import cost
from numba_cases import CELLS, layer, rows_and_marks
from rows_cases import CELLS as OF_TORCH
from rows_cases import assert_same, modules, packed_rows, results


@pytest.mark.parametrize("check", conformance.checks(), ids=lambda check: check.name)
def test_conforms(check: conformance.Check) -> None:
    outcome = conformance.perform(check, conformance.subject("numba", "cpu"))
    assert outcome.status in ("passed", "not claimed"), outcome.text


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    steps=st.integers(1, 7),
    batch=st.sampled_from([1, 2, 3, 4, 5, 17]),
    has_lengths=st.booleans(),
    density=st.sampled_from([None, 0.0, 0.2, 1.0]),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    used=st.sampled_from(["yhc", "y", "h"]),
    threads=st.integers(1, 3),
    packs=st.booleans(),
    data=st.data(),
)
def test_padded_rows(
    cell: str, steps: int, batch: int, has_lengths: bool, density: float | None,
    batch_first: bool, bidirectional: bool, layers: int, bias: bool, used: str, threads: int,
    packs: bool, data: Any,
) -> None:  # fmt: skip
    how = {"batch_first": batch_first, "bidirectional": bidirectional, "bias": bias}
    ours = layer(cell, 3, 5, layers, **how)
    lengths = None
    if has_lengths:
        lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    x, marks = rows_and_marks(steps, batch, lengths, density, batch_first=batch_first)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "threads", lambda request: threads)
        patch.setattr(cost, "packs", lambda request, idle: packs)
        for ours.backend in ("numba", "reference"):
            made.append(results(ours, x, used, **marks))
            with torch.no_grad():
                output, _ = ours(x, **marks)
            torch.testing.assert_close(output, ours(x, **marks)[0])
    assert_same(*made)


@pytest.mark.parametrize("cell", OF_TORCH)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    used=st.sampled_from(["yhc", "y", "h", "yh", "hc"]),
    threads=st.integers(1, 3),
)
def test_packed_rows_are_torchs(
    cell: str, lengths: list[int], layers: int, bidirectional: bool, bias: bool, used: str,
    threads: int,
) -> None:  # fmt: skip
    rows, how = packed_rows(lengths), {"bias": bias, "bidirectional": bidirectional}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "threads", lambda request: threads)
        theirs, ours = (
            results(module, rows, used)
            for module in modules(cell, 3, 4, layers, backend="numba", **how)
        )
    assert_same(ours, theirs)


@pytest.mark.parametrize("hidden", [33, 64, 130])
@pytest.mark.parametrize("cell", OF_TORCH)
def test_more_units_than_a_tile_has(cell: str, hidden: int) -> None:
    x = torch.randn(3, 17, 40, dtype=torch.float64)
    theirs, ours = (results(each, x) for each in modules(cell, 40, hidden, backend="numba"))
    assert_same(ours, theirs)


@pytest.mark.parametrize("cell", OF_TORCH)
def test_float32_is_no_further_from_the_truth_than_torch(cell: str) -> None:
    both, x = modules(cell, 40, 60, backend="numba"), torch.randn(100, 5, 40)
    truth = everything(both[0], x)
    theirs, ours = (everything(module.float(), x) for module in both)
    for true, their, our in zip(truth, theirs, ours, strict=True):
        assert distance(our, true) < 2 * distance(their, true) + 1e-7


def everything(module: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of x and of the parameters, in the module's dtype."""
    parameters = list(module.parameters())
    x = x.to(parameters[0].dtype).requires_grad_()
    output, _ = module(x)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(output, [x, *parameters], upstream.to(x.dtype))
    return [output.detach(), *found]


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_bit(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, x = layer(cell, 20, 40, backend="numba"), torch.randn(9, 11, 20).double()
    ours.backend = "numba"
    found = []
    for threads in (1, 2, 3, 11):
        monkeypatch.setattr(cost, "threads", lambda request, threads=threads: threads)
        found.append(results(ours, x, lengths=[9, 1, 3, 3, 0, 9, 8, 2, 5, 9, 4]))
    for other in found[1:]:
        for parts in zip(found[0], other, strict=True):
            assert all(map(torch.equal, *parts))


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "threads", lambda request: 2)
    ours, x = layer("lstm", 3, 4, backend="numba"), torch.randn(5, 8, 3).double()
    want = ours(x)[0].detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: threads are about
        pid = os.fork()
    if pid == 0:
        os._exit(0 if torch.equal(ours(x)[0].detach(), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
