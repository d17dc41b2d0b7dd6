"""Packed rows along time: which of them a step has, and where they begin and end.

Rows lie as in a PackedSequence: step after step, at each step those that have not ended, the
longest first. So the rows that two steps have in common are the first ones of both, views of
either, and nothing is masked anywhere. N places in all; a row starts at the first step, or
backwards in time at its last one.
"""

from __future__ import annotations

from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from fastrnn_rows.restarts import Restarts


class Steps:
    """One direction of time over the rows of a PackedSequence.

    Attributes:
        sizes: (T,), rows of each step in memory.
        reverse: whether time runs backwards.
        rows: B.
        rows_a_step: of the T steps, on average.
        equal: whether all rows have T steps.
        restarts: where some of equal rows start over, or None.
    """

    def __init__(
        self, sizes: list[int], *, reverse: bool, restarts: Restarts | None = None
    ) -> None:
        self.sizes = sizes
        self.reverse = reverse
        self.restarts = restarts
        self.rows = sizes[0]
        self.rows_a_step = sum(sizes) / len(sizes)
        self.equal = sizes[-1] == sizes[0]

    @cached_property
    def ends(self) -> Tensor:
        """(B,): the place of each row's last step in memory."""
        found: list[int] = []
        begin = sum(self.sizes)
        for size in reversed(self.sizes):
            begin -= size
            found.extend(range(begin + len(found), begin + size))
        return torch.tensor(found, device="cpu")

    @cached_property
    def linked(self) -> Tensor:
        """(N - B,): of each place from B on, that of the same row a step earlier in memory."""
        sizes = torch.tensor(self.sizes, device="cpu")
        back = sizes[:-1].repeat_interleave(sizes[1:])  # by as many places as that step has rows
        return torch.arange(self.rows, self.rows + len(back), device="cpu") - back

    def first(self, sequence: Tensor) -> Tensor:
        """(B, ...) of (N, ...): each row at the first step that it takes."""
        return self._at_ends(sequence) if self.reverse else sequence[: self.rows]

    def last(self, sequence: Tensor) -> Tensor:
        """(B, ...) of (N, ...): each row at the last step that it takes."""
        return sequence[: self.rows] if self.reverse else self._at_ends(sequence)

    def add_to_first_(self, sequence: Tensor, values: Tensor) -> None:
        """Add (B, ...) to `first` of (N, ...), in place."""
        self._add_(sequence, values, at_ends=self.reverse)

    def add_to_last_(self, sequence: Tensor, values: Tensor) -> None:
        """Add (B, ...) to `last` of (N, ...), in place."""
        self._add_(sequence, values, at_ends=not self.reverse)

    def pairs(self, d_steps: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """(N - B, ...) twice: what belongs to a step, and the state that the step before left.

        Of all steps but the first ones, in an order that suits memory.
        """
        rows = self.rows
        if self.equal:
            pair = d_steps[rows:], states[: len(states) - rows]
            return (d_steps[:-rows], states[rows:]) if self.reverse else pair
        if self.reverse:
            return d_steps.index_select(0, self.linked), states[rows:]
        return d_steps[rows:], states.index_select(0, self.linked)

    def entering(self, states: Tensor, initial: Tensor) -> Tensor:
        """(N, H): the state that enters each step, of (N, H) and (B, H)."""
        rows = self.rows
        if self.equal:
            parts = (states[rows:], initial) if self.reverse else (initial, states[:-rows])
            found = torch.cat(parts)
            if self.restarts is not None:
                own = initial.index_select(0, self.restarts.rows)
                found.index_copy_(0, self.restarts.places, own)
            return found
        if not self.reverse:
            return torch.cat((initial, states.index_select(0, self.linked)))
        found = torch.empty_like(states).index_copy_(0, self.linked, states[rows:])
        return found.index_copy_(0, self.ends, initial)

    def walk(self, *sequences: Tensor, back: bool = False) -> Iterator[tuple[Any, ...]]:
        """Of each step in turn, how many rows the one before it has, how many it has, its parts.

        Args:
            sequences: (N, ...) each.
            back: from the last step to the first.
        """
        rows = self.sizes
        parts: list[Sequence[Tensor]] = [each.split_with_sizes(rows) for each in sequences]
        if self.reverse != back:
            rows, parts = rows[::-1], [each[::-1] for each in parts]
        return zip((0, *rows[:-1]), rows, *parts, strict=True)

    def starts(self, *initial: Tensor) -> Iterable[tuple[Tensor, ...] | None]:
        """Of each step in turn the rows that start over there, (n,), and what with; or None.

        Args:
            initial: states, (B, H) each, of which those rows' are given, (n, H).
        """
        found = self.restarts
        if found is None:
            return repeat(None, len(self.sizes))
        own = (found.by_step(each.index_select(0, found.rows)) for each in initial)
        parts = [None if step[0] is None else step for step in zip(found.at, *own, strict=True)]
        return reversed(parts) if self.reverse else parts

    def starts_back(self) -> Iterable[Tensor | None]:
        """The rows that start over, (n,) or None, of each step from the last to the first."""
        if self.restarts is None:
            return repeat(None, len(self.sizes))
        return self.restarts.at if self.reverse else reversed(self.restarts.at)

    def add_started_(self, d_initial: Tensor, taken: list[Tensor]) -> None:
        """Add to (B, H), in place, what was taken of rows in the order of `starts_back`."""
        if self.restarts is not None and taken:
            d_own = torch.cat(taken if self.reverse else taken[::-1])
            d_initial.index_add_(0, self.restarts.rows, d_own)

    def _at_ends(self, sequence: Tensor) -> Tensor:
        return sequence[-self.rows :] if self.equal else sequence.index_select(0, self.ends)

    def _add_(self, sequence: Tensor, values: Tensor, *, at_ends: bool) -> None:
        if not at_ends:
            sequence[: self.rows].add_(values)
        elif self.equal:
            sequence[-self.rows :].add_(values)
        else:
            sequence.index_add_(0, self.ends, values)


def top(part: Tensor, there: int, rows: int) -> Tensor:
    """The first rows of as many as are there; of all of them the same tensor, which is quicker."""
    return part if there == rows else part[:rows]


def into_step(states: Tensor, initial: Tensor, before: int, rows: int) -> Tensor:
    """(rows, H): the states that enter a step, of what the step before made of its rows.

    Args:
        states: (before, H), or before the first step anything.
        initial: (B, H), of rows that start here.
        before: rows of the step before.
        rows: of this one.
    """
    return states[:rows] if rows < before else torch.cat((states[:before], initial[before:rows]))
