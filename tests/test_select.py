"""Rows hidden or replaced by a mask."""

from __future__ import annotations

import pytest
import torch

from fastrnn import select

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN = float("nan")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_those_of_where(dtype: torch.dtype) -> None:
    sequence = torch.randn(5, 3, 4).to(dtype)
    sequence[1, 2] = NAN
    rows = torch.randn(3, 4).to(dtype)
    rows[0, 1] = -torch.inf
    chosen = torch.rand(5, 3) < 0.5
    chosen[1, 2], chosen[2, 0] = True, True
    want = torch.where(chosen.unsqueeze(2), rows, sequence)
    assert torch.equal(select.put_(sequence.clone(), chosen, rows), want)
    nothing = torch.zeros_like(rows)
    assert torch.equal(
        select.zero_(sequence.clone(), chosen), torch.where(chosen.unsqueeze(2), nothing, sequence)
    )


def test_writes_in_place_through_strides() -> None:
    groups = torch.ones(5, 3, 2, 4)
    chosen = torch.zeros(5, 3, dtype=torch.bool)
    chosen[4, 1] = True
    assert select.zero_(groups[:, :, 1], chosen).data_ptr() == groups[:, :, 1].data_ptr()
    select.put_(groups[:, :, 0], chosen, torch.full((4, 3), 2.0).mT)
    want = torch.ones(5, 3, 2, 4)
    want[4, 1, 0], want[4, 1, 1] = 2.0, 0.0
    assert torch.equal(groups, want)


def test_zeroed_is_differentiable_twice_and_takes_no_gradient_from_what_is_hidden() -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    hidden = torch.rand(4, 3) < 0.5
    assert torch.autograd.gradcheck(lambda a: select.zeroed(a, hidden), x)
    assert torch.autograd.gradgradcheck(lambda a: select.zeroed(a, hidden) ** 2, x)
    poisoned = torch.where(hidden.unsqueeze(2), NAN, x.detach()).requires_grad_()
    select.zeroed(poisoned, hidden).square().sum().backward()
    assert poisoned.grad is not None
    assert torch.equal(poisoned.grad, torch.where(hidden.unsqueeze(2), 0.0, 2 * x.detach()))
