"""The backend `rows` where rows start over, left as they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from derivatives import assert_first, assert_second
from fastrnn import packing
from fastrnn_rows import cost
from rows_cases import CELLS, assert_same, modules, results


@pytest.fixture(autouse=True)
def _left_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "runs_on", lambda *asked: True)
    monkeypatch.setattr(cost, "starts_over", lambda *asked: True)
    monkeypatch.setattr(packing, "cut", lambda *call: pytest.fail("cut up"))


def marks(steps: int, batch: int, density: float = 0.4) -> torch.Tensor:
    return torch.rand(steps, batch, generator=torch.Generator().manual_seed(3)) < density


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    steps=st.integers(1, 7),
    batch=st.sampled_from([1, 2, 3, 17]),
    batch_first=st.booleans(),
    layers=st.integers(1, 2),
    density=st.sampled_from([0.1, 0.6, 1.0]),
    used=st.sampled_from(["yhc", "y", "h"]),
)
def test_equal_the_reference(
    cell: str, bidirectional: bool, steps: int, batch: int, batch_first: bool, layers: int,
    density: float, used: str,
) -> None:  # fmt: skip
    _, ours = modules(cell, 3, 4, layers, batch_first=batch_first, bidirectional=bidirectional)
    x, resets = torch.randn(steps, batch, 3, dtype=torch.float64), marks(steps, batch, density)
    if batch_first:
        x, resets = x.transpose(0, 1), resets.mT
    made = []
    for ours.backend in ("rows", "reference"):
        made.append(results(ours, x, used, resets=resets))
        with torch.no_grad():
            output, _ = ours(x, resets=resets)
        torch.testing.assert_close(output, ours(x, resets=resets)[0])
    assert_same(*made)


@pytest.mark.parametrize("cell", cost.BOUNDED)
@pytest.mark.parametrize("lengths", [[6, 4, 1, 5], [2, 1, 1, 2], [7, 7, 7, 7]])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_past_their_ends_too(cell: str, lengths: list[int], density: float) -> None:
    _, ours = modules(cell, 3, 4, 2)
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    for row, length in enumerate(lengths):
        x[length:, row] = torch.nan  # nobody must care
    made = []
    for ours.backend in ("rows", "reference"):
        made.append(results(ours, x, lengths=lengths, resets=marks(7, 4, density)))
    assert_same(*made)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_derivatives(cell: str, bidirectional: bool) -> None:
    _, ours = modules(cell, 3, 4, bidirectional=bidirectional)
    names, weights = zip(*ours.named_parameters(), strict=True)
    slots = 1 + bidirectional
    hx = [torch.randn(slots, 3, 4).double().requires_grad_() for _ in range(1 + (cell == "lstm"))]
    x, resets = torch.randn(5, 3, 3).double().requires_grad_(), marks(5, 3)

    def made(x: Any, *leaves: Any) -> Any:
        states, own = leaves[: len(hx)], dict(zip(names, leaves[len(hx) :], strict=True))
        given = (x, states if cell == "lstm" else states[0])
        output, final = torch.func.functional_call(ours, own, given, {"resets": resets})
        return output, *(final if cell == "lstm" else (final,))

    assert_first(made, (x, *hx, *weights))
    assert_second(made, (x, *hx, *weights))

    def loss(x: Any) -> Any:
        return made(x, *hx, *weights)[0].square().sum()

    (want,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), want)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_frozen_parts(cell: str, bidirectional: bool) -> None:
    """The gradients of W_hh and b_hh are the same if no others are asked for."""
    _, ours = modules(cell, 3, 4, bidirectional=bidirectional)
    x, resets = torch.randn(5, 3, 3).double(), marks(5, 3)

    def gradients() -> list[Any]:
        output, _ = ours(x, resets=resets)
        leaves = [weight for weight in ours.parameters() if weight.requires_grad]
        return list(torch.autograd.grad(output.square().sum(), leaves))

    want = dict(zip((name for name, _ in ours.named_parameters()), gradients(), strict=True))
    for name, weight in ours.named_parameters():
        weight.requires_grad_("hh" in name)
    own = {name: grad for name, grad in want.items() if "hh" in name}
    for one, grad in zip(gradients(), own.values(), strict=True):
        torch.testing.assert_close(one, grad)


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_of_what_was_before_is_left(cell: str) -> None:
    """A NaN ends where its row starts over, and no gradient goes back beyond."""
    _, ours = modules(cell, 3, 4)
    x, resets = torch.randn(6, 2, 3).double(), torch.zeros(6, 2, dtype=torch.bool)
    resets[3, 0] = True
    x[1, 0] = torch.nan
    x.requires_grad_()
    output, final = ours(x, resets=resets)
    assert output[1:3, 0].isnan().all()
    assert output[3:].isfinite().all()
    assert all(state.isfinite().all() for state in final)
    (d_x,) = torch.autograd.grad(output[3:].sum(), x)
    assert d_x[3:].isfinite().all()
    finite = x.detach().nan_to_num(0).requires_grad_()
    (d_x,) = torch.autograd.grad(ours(finite, resets=resets)[0][3:, 0].sum(), finite)
    assert not d_x[:3].any()
    assert d_x[3:, 0].all()


def test_ends_in_two_directions_are_left_to_others() -> None:
    x, resets = torch.randn(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
    message = "resets cut up rows that end, for each of two directions elsewhere"
    with pytest.raises(fastrnn.BackendError, match=message):
        fastrnn.GRU(3, 4, bidirectional=True, backend="rows")(x, lengths=[5, 2], resets=resets)
