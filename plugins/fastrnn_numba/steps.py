"""Which rows each step has, and where they lie: padded rows and packed ones alike.

The row b of step t is at place offsets[t] + b of N. Step t has the first counts[t] rows of `order`,
in which rows that go on for longer come first; so a row's steps are one after the other, in either
direction of time, and whether it has the one before is a look at that one's count.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fastrnn_numba.compiled import compiled

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
        seq_len: T.
        batch: B.
        lengths: (B,) int64 of padded rows, or None.
        mask: (T, B) bool, where padded rows start over, or None.
        batch_sizes: (T,) int64 of a PackedSequence, or None of padded rows.
        counts: (T,), how many rows each step has.
        order: (B,), the rows.
        offsets: (T,), where each step begins.
        resets: (T, B) bool, or (0, 0) if no row starts over.
        has_gaps: whether there are places that no row has a step at.
    """

    def __init__(
        self, seq_len: int, batch: int, lengths: Tensor | None = None, mask: Tensor | None = None,
        batch_sizes: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.seq_len, self.batch = seq_len, batch
        self.lengths, self.mask, self.batch_sizes = lengths, mask, batch_sizes
        self.order, self.counts, self.offsets = _equal(seq_len, batch)
        if batch_sizes is not None:
            self.counts = batch_sizes.numpy()
            self.offsets = np.cumsum(self.counts) - self.counts
        if lengths is not None:
            self.order, self.counts = _going_on(_array(lengths), seq_len)
        self.has_gaps = lengths is not None and bool(self.counts[-1] < batch)
        self.resets = NEVER if mask is None else _array(mask)

    @cached_property
    def gaps(self) -> Tensor:
        """(N,) bool: those places."""
        assert self.lengths is not None
        return (torch.arange(self.seq_len, device="cpu").unsqueeze(1) >= self.lengths).flatten()

    def new(self, like: Tensor, width: int) -> Tensor:
        """(N, width), as many places as `like`: to be written where rows have a step, else 0."""
        make = like.new_zeros if self.has_gaps else like.new_empty
        return make(like.shape[0], width)

    @cached_property
    def in_rows(self) -> InRows | None:
        """Where packed rows would lie if they were padded; None of padded ones."""
        if self.batch_sizes is None:
            return None
        reached = torch.arange(self.batch, device="cpu") < self.batch_sizes.unsqueeze(1)
        return InRows(reached.flatten().nonzero().squeeze(1), reached.numel(), reached.sum(0))

    def shares(self, number: int) -> list[tuple[Any, Any]]:
        """`order` and `counts` of so many parts of the rows, of which each has as many steps."""
        if number == 1:
            return [(self.order, self.counts)]
        orders = (np.ascontiguousarray(self.order[k::number]) for k in range(number))
        return [(own, (self.counts + number - 1 - k) // number) for k, own in enumerate(orders)]


def _array(marks: Tensor) -> Any:
    """The numbers; those of what `torch.func.grad` has wrapped have no memory to be read in."""
    if torch._C._are_functorch_transforms_active():
        kind = np.bool_ if marks.dtype == torch.bool else np.int64
        return np.array(marks.tolist(), kind).reshape(tuple(marks.shape))
    return marks.contiguous().numpy()


@lru_cache(maxsize=8)
def _equal(seq_len: int, batch: int) -> tuple[Any, Any, Any]:
    """`order`, `counts` and `offsets` of rows of one length, which nobody writes."""
    return np.arange(batch), np.full(seq_len, batch), np.arange(seq_len) * batch


@compiled
def _going_on(lengths: Any, seq_len: int) -> Any:
    """`order` and `counts` of rows of these lengths; of equal ones the first stays first."""
    begins = np.zeros(seq_len + 1, np.int64)
    for length in lengths:
        begins[length] += 1
    longer = 0
    for length in range(seq_len, -1, -1):
        begins[length], longer = longer, longer + begins[length]
    counts, order = begins[:seq_len].copy(), np.empty(len(lengths), np.int64)
    for b in range(len(lengths)):
        order[begins[lengths[b]]] = b
        begins[lengths[b]] += 1
    return order, counts
