"""Zeros, or other rows, in place of rows of a sequence: what a mask hides, NaN too.

By the bits of numbers rather than by `masked_fill_` and `where`, which take a nanosecond an element
on a CPU where the mask has fewer dimensions than the tensor: ten times as long.
"""

# mypy: allow-untyped-calls
# (torch.autograd.Function is not annotated)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def zero_(sequence: Tensor, hidden: Tensor) -> Tensor:
    """Put zeros where `hidden` is true, in place.

    Args:
        sequence: (T, B, N), floating-point.
        hidden: (T, B) bool.
    """
    bits = sequence.view(_INTEGERS[sequence.dtype.itemsize])
    bits &= hidden.unsqueeze(2).to(bits.dtype) - 1  # all ones, or none
    return sequence


def put_(sequence: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
    """Put `rows` where `chosen` is true, in place.

    Args:
        sequence: (T, B, N), floating-point.
        chosen: (T, B) bool.
        rows: (B, N), of the same dtype.
    """
    zero_(sequence, chosen)
    integers = _INTEGERS[sequence.dtype.itemsize]
    bits = sequence.view(integers)
    bits |= rows.view(integers) & -chosen.unsqueeze(2).to(integers)
    return sequence


def zeroed(sequence: Tensor, hidden: Tensor) -> Tensor:
    """A copy of what `zero_` takes, with the zeros; can be differentiated, backwards only."""
    return cast("Tensor", _Zeroed.apply(sequence, hidden))


class _Zeroed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sequence: Tensor, hidden: Tensor) -> Tensor:
        ctx.hidden = hidden
        return zero_(sequence.clone(), hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # in torch's own words, which it can differentiate and batch
        return grad.masked_fill(ctx.hidden.unsqueeze(2), 0), None
