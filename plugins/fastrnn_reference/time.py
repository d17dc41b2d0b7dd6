"""What both recurrences share: one group of a layer, and walking along time."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fastrnn.backend import Layer


class Group(NamedTuple):
    """A layer's fields of one group; see `fastrnn.backend.Layer`."""

    cell: str
    weight_hh: Tensor
    """(K*H, P)"""
    weight_hr: Tensor | None
    """(P, H)"""
    h0: Tensor
    """(B, P)"""
    c0: Tensor | None
    """(B, H)"""
    lengths: Tensor | None
    """(B,)"""
    resets: Tensor | None
    """(T, B)"""
    reverse: bool
    recurrent_mask: Tensor | None
    """(B, P)"""
    zoneout_h: Tensor | None
    """(T, B, P)"""
    zoneout_c: Tensor | None
    """(T, B, H)"""
    error_clip: float

    @classmethod
    def of(cls, layer: Layer, g: int) -> Group:
        """Group g of a layer."""

        def own(tensor: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if tensor is None else tensor.select(dim, g)

        return cls(
            layer.cell, layer.weight_hh[g], own(layer.weight_hr), layer.h0[g], own(layer.c0),
            layer.lengths, layer.resets, layer.reverse[g], own(layer.recurrent_mask),
            own(layer.zoneout_h, 2), own(layer.zoneout_c, 2), layer.error_clip,
        )  # fmt: skip


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


def hidden_from(h: Tensor, mask: Tensor | None) -> Tensor:
    """What W_hh sees of h, or what of a gradient comes back that way."""
    return h if mask is None else mask * h


def mixed(kept: Tensor | None, before: Tensor, new: Tensor) -> Tensor:
    """Zoneout: kept of the state before, and the rest of the new one."""
    return new if kept is None else kept * before + (1 - kept) * new


def split(kept: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient of `mixed` with respect to the new state, and to the one before."""
    return (gradient, None) if kept is None else ((1 - kept) * gradient, kept * gradient)


def plus(gradient: Tensor, other: Tensor | None) -> Tensor:
    """Their sum, where there is another."""
    return gradient if other is None else gradient + other


def clipped_(gradient: Tensor, bound: float) -> Tensor:
    """The gradient, cut in place to +-bound if there is one."""
    return gradient.clamp_(-bound, bound) if bound else gradient


def output_gradients(d_output: Tensor | None, like: Tensor) -> Tensor:
    """dL/doutput, or zeros that take no memory where nobody used the output."""
    return like.new_zeros(()).expand_as(like) if d_output is None else d_output
