"""Gradients against finite differences, of functions with any number of arguments.

One derivative in a random direction through all arguments at once, not each for itself: some
evaluations rather than two for every element, and a bound as tight as finite differences are, by
which an error in any one of them shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]

RTOL = 1e-6
"""Of a central difference over 2e-6 in float64, which is right to some 1e-9."""


def assert_first(function: Function, leaves: Sequence[Tensor]) -> None:
    """The gradients of all that `function` makes of float64 leaves."""
    assert torch.autograd.gradcheck(function, leaves, rtol=RTOL, atol=1e-7, fast_mode=True)


def assert_second(function: Function, leaves: Sequence[Tensor]) -> None:
    """The gradients of those."""
    assert torch.autograd.gradgradcheck(function, leaves, rtol=RTOL, atol=1e-7, fast_mode=True)
