"""Which rows each step has, and where they lie: padded rows and packed ones alike.

The row b of step t is at place offsets[t] + b of N. Step t has the first counts[t] rows of `order`,
in which rows that go on for longer come first; so a row's steps are one after the other, in either
direction of time, and whether it has the one before is a look at that one's count.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

NEVER = np.zeros((0, 0), np.bool_)


class InRows(NamedTuple):
    """Packed rows as padded ones."""

    places: Tensor
    """(N,), of T * B."""
    rows: int
    """T * B."""
    lengths: Tensor
    """(B,)"""


class Steps:
    """T steps of B rows, in both directions of time.

    Attributes:
        places: N.
        batch: B.
        offsets: (T,)
        order: (B,)
        counts: (T,)
        resets: (T, B) bool, or (0, 0) if no row starts over.
        lengths: (B,) int64 of padded rows, or None.
        mask: what `resets` is made of.
    """

    def __init__(
        self, offsets: Any, order: Any, counts: Any, places: int,
        lengths: Tensor | None = None, mask: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.offsets, self.order, self.counts = offsets, order, counts
        self.places, self.batch = places, len(order)
        self.lengths, self.mask = lengths, mask
        self.resets = NEVER if mask is None else mask.contiguous().numpy()

    @classmethod
    def padded(
        cls, seq_len: int, batch: int, lengths: Tensor | None, resets: Tensor | None
    ) -> Steps:
        """Rows (T, B); resets (T, B) bool, or None."""
        order, counts = np.arange(batch), np.full(seq_len, batch)
        if lengths is not None:
            own = lengths.numpy()
            order = np.argsort(-own, kind="stable")
            counts = batch - np.searchsorted(np.sort(own), np.arange(seq_len), side="right")
        return cls(np.arange(seq_len) * batch, order, counts, seq_len * batch, lengths, resets)

    @classmethod
    def packed(cls, batch_sizes: Tensor) -> Steps:
        """Those of a PackedSequence."""
        counts = batch_sizes.numpy()
        ends = np.cumsum(counts)
        return cls(ends - counts, np.arange(counts[0]), counts, int(ends[-1]))

    @property
    def has_gaps(self) -> bool:
        """Whether there are places that no row has a step at."""
        return self.lengths is not None and bool(self.counts[-1] < self.batch)

    @cached_property
    def gaps(self) -> Tensor:
        """(N,) bool: those places."""
        assert self.lengths is not None
        return (torch.arange(len(self.counts)).unsqueeze(1) >= self.lengths).flatten()

    def new(self, like: Tensor, width: int) -> Tensor:
        """(N, width), to be written where rows have a step, and 0 elsewhere."""
        make = like.new_zeros if self.has_gaps else like.new_empty
        return make(self.places, width)

    @cached_property
    def in_rows(self) -> InRows | None:
        """Where packed rows would lie if they were padded; None of padded ones."""
        if self.places == len(self.counts) * self.batch:
            return None
        counts = torch.from_numpy(self.counts)
        reached = torch.arange(self.batch) < counts.unsqueeze(1)
        return InRows(reached.flatten().nonzero().squeeze(1), reached.numel(), reached.sum(0))

    def shares(self, number: int) -> list[tuple[Any, Any]]:
        """`order` and `counts` of so many parts of the rows, of which each has as many steps."""
        if number == 1:
            return [(self.order, self.counts)]
        orders = (np.ascontiguousarray(self.order[k::number]) for k in range(number))
        return [(own, (self.counts + number - 1 - k) // number) for k, own in enumerate(orders)]
