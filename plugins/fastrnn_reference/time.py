"""What both recurrences share: one group of a layer, and walking along time."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn import select
from fastrnn.cell import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from fastrnn.backend import Layer


class Group(NamedTuple):
    """A layer's fields of one group; see `fastrnn.backend.Layer`.

    Or of all of them, where `are_alike` says so: then every tensor has G before B, sequences as
    (T, G, B, N), and a step is one batched product.
    """

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

    @classmethod
    def of_all(cls, layer: Layer) -> Group:
        """All groups of a layer at once."""
        return cls(
            layer.cell, layer.weight_hh, None, layer.h0, layer.c0, None, None, layer.reverse[0],
            None, None, None, layer.error_clip,
        )  # fmt: skip


SMALL = 2048
"""Gates of a group at a step, of all its rows, up to which a CPU takes longer to call an operation
than to do it."""


def are_alike(layer: Layer) -> bool:
    """Whether all groups are stepped at once: more than a layer's two directions, and small.

    As those of ensembles are, and of gradients sample by sample.
    """
    rows = layer.lengths is None and layer.resets is None
    plain = layer.recurrent_mask is None and layer.zoneout_h is None and layer.zoneout_c is None
    alike = layer.cell in BUILTIN and layer.weight_hr is None and len(set(layer.reverse)) == 1
    work = layer.h0.shape[1] * layer.weight_hh.shape[1]
    small = layer.x.device.type != "cpu" or work <= SMALL
    return layer.groups > 2 and alike and small and rows and plain


def add_product(weight: Tensor) -> Callable[..., Tensor]:
    """The function that forms a + h W, of one group or of all."""
    return torch.addmm if weight.dim() == 2 else torch.baddbmm


Starts = tuple["Tensor | None", ...]
"""Of each step the rows that the initial state enters though steps were taken before it: their
numbers, on other devices than the CPU a (B, 1) mask, or None if there is none."""


def in_order(
    reverse: bool, first: Tensor, *others: Tensor | Starts | None
) -> Iterator[tuple[Any, ...]]:
    """Walk along the first dim of several sequences together, backwards if `reverse`.

    One unbind makes the views of all steps at once: cheaper than an index per step. In place of a
    sequence that is not there every step has None.
    """
    length = first.shape[0]

    def steps(sequence: Tensor | Starts | None) -> Iterable[Any]:
        if sequence is None:
            return repeat(None, length)
        parts = sequence if isinstance(sequence, tuple) else sequence.unbind(0)
        return reversed(parts) if reverse else parts

    return zip(*map(steps, (first, *others)), strict=True)


class Rows(NamedTuple):
    """Where rows of different lengths begin and end, in a group's direction of time.

    A row that has ended goes through the motions: what the loop makes of it is set to zero after
    it, all steps at once, and its gradients are zero before the loop.
    """

    alive: Tensor
    """(T, B, 1) bool: is step t within its row's length?"""
    last: Tensor
    """(B,): each row's last step; of a row of no steps, any."""
    empty: Tensor
    """(B, 1) bool: has the row no step?"""

    @classmethod
    def of(cls, group: Group, like: Tensor) -> Rows | None:
        """Those of a group whose sequences are (T, B, ...) as `like`; None if every row has T."""
        if group.lengths is None:
            return None
        lengths = group.lengths.to(like.device)
        time = torch.arange(like.shape[0], device=like.device).unsqueeze(1)
        last = torch.zeros_like(lengths) if group.reverse else (lengths - 1).clamp(min=0)
        return cls((time < lengths).unsqueeze(2), last, (lengths == 0).unsqueeze(1))

    def zero_past_(self, sequence: Tensor) -> Tensor:
        """A sequence (T, B, N) with zeros past the end of each row, in place."""
        return select.zero_(sequence, ~self.alive.squeeze(2))

    def ends(self) -> Tensor:
        """(T, B, 1) bool: is step t its row's last?"""
        time = torch.arange(self.alive.shape[0], device=self.last.device).unsqueeze(1)
        return (time == self.last).unsqueeze(2) & self.alive

    def final(self, states: Tensor, initial: Tensor) -> Tensor:
        """(B, N) of states (T, B, N): each row's last, or its initial one."""
        index = torch.arange(len(self.last), device=self.last.device)
        return torch.where(self.empty, initial, states[self.last, index])

    def inject(self, d_final: Tensor, d_states: Tensor) -> Tensor:
        """Add dL/dfinal (B, N) to those of the states, (T, B, N), in place: the inverse of `final`.

        Returns what is left of it for the initial state.
        """
        index = torch.arange(len(self.last), device=self.last.device)
        d_states[self.last, index] += d_final.masked_fill(self.empty, 0)
        return d_final.masked_fill(~self.empty, 0)


def starting_steps(group: Group, rows: Rows | None, like: Tensor) -> Starts | None:
    """Where the initial state enters, in sequences (T, B, ...) as `like`; None if at no such step.

    Copying the few rows is what costs least on a CPU, where most steps have none and looking up
    their numbers waits for nothing.
    """
    starts = group.resets
    if group.lengths is not None and group.reverse:
        first = group.lengths.to(like.device) - 1
        own = torch.arange(like.shape[0], device=like.device).unsqueeze(1) == first
        starts = own if starts is None else starts | own
    if starts is None:
        return None
    if rows is not None:
        starts = starts & rows.alive.squeeze(2)
    if not _is_numbered(like.device):
        return starts.unsqueeze(2).unbind(0)
    steps, numbers = starts.nonzero(as_tuple=True)
    found = torch.split(numbers, steps.bincount(minlength=len(starts)).tolist())
    return tuple(here if len(here) else None for here in found)


def starting_states(initial: Tensor, starts: Starts | None) -> Starts | None:
    """For `restarted`, of each step: `initial`, (B, N), or the rows of it that enter there."""
    numbered = [here for here in starts or () if here is not None]
    if starts is None or not numbered:
        return None
    if numbered[0].dtype == torch.bool:
        return (initial,) * len(starts)
    rows = initial.index_select(0, torch.cat(numbered))
    parts = iter(torch.split(rows, [len(here) for here in numbered]))
    return tuple(None if here is None else next(parts) for here in starts)


def _is_numbered(device: torch.device) -> bool:
    return device.type == "cpu"


def restarted(state: Tensor, starts: Tensor | None, own: Tensor) -> Tensor:
    """The state that enters a step, (B, N): in the rows that start there, their own initial one."""
    if starts is None:
        return state
    if starts.dtype == torch.bool:
        return torch.where(starts, own, state)
    return state.index_copy(0, starts, own)


def not_started(gradient: Tensor, starts: Tensor | None) -> Tensor:
    """(B, N): what is left for the step before, which has no part in rows that started here."""
    if starts is None:
        return gradient
    if starts.dtype == torch.bool:
        return gradient.masked_fill(starts, 0)
    return gradient.index_fill(0, starts, 0)


def started(gradient: Tensor, starts: Tensor | None, d_initial: Tensor) -> Tensor:
    """dL/dinitial (B, N), which may be changed in place, with that of the rows that start here."""
    if starts is None:
        return d_initial
    if starts.dtype == torch.bool:
        return d_initial + gradient.masked_fill(~starts, 0)
    return d_initial.index_add_(0, starts, gradient.index_select(0, starts))


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
