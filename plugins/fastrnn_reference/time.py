"""What both recurrences share: walking along time, and rows of different lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def in_order(reverse: bool, *sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Walk along the first dim of several tensors together, backwards if `reverse`.

    One unbind makes the views of all steps at once: cheaper than an index per step.
    """
    steps = [sequence.unbind(0) for sequence in sequences]
    return zip(*(reversed(step) if reverse else step for step in steps), strict=True)


def alive_steps(lengths: Tensor, like: Tensor) -> Tensor:
    """(T, B, 1) bool: is step t within its row's length?"""
    time = torch.arange(like.shape[0], device=like.device)
    return (time.unsqueeze(1) < lengths.to(like.device)).unsqueeze(2)


def output_gradients(d_output: Tensor | None, like: Tensor) -> Tensor:
    """dL/doutput, or zeros that take no memory where nobody used the output."""
    return like.new_zeros(()).expand_as(like) if d_output is None else d_output
