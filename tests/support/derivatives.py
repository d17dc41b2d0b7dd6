"""Gradients against finite differences, of functions with any number of arguments.

One derivative in a random direction through each argument, not one for every element of it: few
evaluations, and so a bound that a factor of one gate that is wrong by 1e-4 does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]

RTOL, ATOL = 1e-6, 1e-10
"""A central difference over 2e-6 of values about 1 in float64 rounds by some 1e-10."""


def assert_first(function: Function, leaves: Sequence[Tensor]) -> None:
    """The gradients of all that `function` makes of float64 leaves."""
    assert torch.autograd.gradcheck(function, leaves, rtol=RTOL, atol=ATOL, fast_mode=True)


def assert_second(function: Function, leaves: Sequence[Tensor]) -> None:
    """The gradients of those."""
    assert torch.autograd.gradgradcheck(function, leaves, rtol=RTOL, atol=ATOL, fast_mode=True)
