"""What both recurrences share: walking along time, rows of different lengths, and resets."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def in_order(reverse: bool, first: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Walk along the first dim of several tensors together, backwards if `reverse`.

    One unbind makes the views of all steps at once: cheaper than an index per step. In place of a
    tensor that is not there every step has None.
    """
    steps = [None if sequence is None else sequence.unbind(0) for sequence in (first, *others)]
    return zip(
        *(
            repeat(None, first.shape[0]) if step is None else reversed(step) if reverse else step
            for step in steps
        ),
        strict=True,
    )


def alive_steps(lengths: Tensor | None, like: Tensor) -> Tensor | None:
    """(T, B, 1) bool: is step t within its row's length? None if all are."""
    if lengths is None:
        return None
    time = torch.arange(like.shape[0], device=like.device)
    return (time.unsqueeze(1) < lengths.to(like.device)).unsqueeze(2)


def starting_steps(resets: Tensor | None, alive: Tensor | None) -> Tensor | None:
    """(T, B, 1) bool: does step t start over from the initial state? None if no step does."""
    if resets is None:
        return None
    starts = resets.unsqueeze(2)
    return starts if alive is None else starts & alive


def restarted(state: Tensor, initial: Tensor, starts: Tensor | None) -> Tensor:
    """The state that enters a step, (B, N): where `starts`, (B, 1), the initial one."""
    return state if starts is None else torch.where(starts, initial, state)


def output_gradients(d_output: Tensor | None, like: Tensor) -> Tensor:
    """dL/doutput, or zeros that take no memory where nobody used the output."""
    return like.new_zeros(()).expand_as(like) if d_output is None else d_output
