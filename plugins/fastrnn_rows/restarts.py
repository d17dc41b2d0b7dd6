"""Rows that start over within their sequence, left as they lie: where, and what enters there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Restarts:
    """Of B rows of T steps the R places where one starts over, in the order of memory.

    Not where it starts anyway, at the first step or, backwards in time, at the last.

    Attributes:
        places: (R,), step * B + row.
        rows: (R,)
        counts: (T,), how many of them each step has.
        at: (T,), the rows that start over at each step, (n,), or None.
    """

    def __init__(self, resets: Tensor, *, reverse: bool) -> None:
        """Those of a mask (T, B)."""
        batch = resets.shape[1]
        within = resets[:-1] if reverse else resets[1:]
        counts = within.sum(1).tolist()
        places = within.flatten().nonzero().squeeze(1)
        self.places = places if reverse else places + batch
        self.rows = places.remainder(batch)
        self.counts = [*counts, 0] if reverse else [0, *counts]
        self.at = self.by_step(self.rows)

    def by_step(self, values: Tensor) -> list[Tensor | None]:
        """(R, ...) of all places, as (n, ...) of those of each of T steps; None where n is 0."""
        parts = iter(values.split_with_sizes([count for count in self.counts if count]))
        return [next(parts) if count else None for count in self.counts]


def taken_(gradient: Tensor, rows: Tensor) -> Tensor:
    """(n, H): those rows of a gradient, (B, H), which are 0 in it from then on."""
    taken = gradient.index_select(0, rows)
    gradient.index_fill_(0, rows, 0)
    return taken
