"""Rows that enter a sequence in one state and start over from another: `reset_state=` of a call.

A backend knows one initial state. So a row that starts over is two rows of the same call: one that
enters in `hx` and ends before the first reset, and one that is in its reset state from the first
step on, of which what comes after that reset is taken. Of a row that never starts over the second
one has no steps. Which rows those are, only tensors know: nothing waits for a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.stack import Made

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastrnn.request import Spec


class Twice(NamedTuple):
    """A call of 2B rows: those of `hx`, then those of the reset state."""

    input: Tensor
    """(T, 2B, I), or (2B, T, I)."""
    states: tuple[Tensor, ...]
    """(L, 2B, P or H) each."""
    lengths: Tensor
    """(2B,) int64."""
    resets: Tensor
    """(T, 2B) bool."""
    since: Tensor
    """(T, B) bool: whether a row has started over, at this step or before."""
    batch_first: bool

    @classmethod
    def of(
        cls, input: Tensor, states: Sequence[Tensor], reset_states: Sequence[Tensor],
        lengths: Tensor | None, resets: Tensor, *, batch_first: bool,
    ) -> Twice:  # fmt: skip
        """The call for B rows.

        Args:
            input: (T, B, I), or (B, T, I) if `batch_first`.
            states: (L, B, P or H) each, in which rows enter.
            reset_states: the same, from which they start over.
            lengths: (B,) int64, or None.
            resets: (T, B) bool.
            batch_first: of the input.
        """
        steps, batch = resets.shape
        whole = torch.full((batch,), steps, device=resets.device) if lengths is None else lengths
        reached = torch.arange(steps, device=resets.device).unsqueeze(1) < whole
        resets = resets & reached
        since = resets.cumsum(0) > 0
        before = (reached & ~since).sum(0)
        after = torch.where(since.any(0), whole, 0)
        # nobody takes what comes before; NaN there would still reach gradients, since 0 * NaN is
        idle = ~(since.mT if batch_first else since).unsqueeze(2)
        return cls(
            torch.cat((input, input.masked_fill(idle, 0)), 0 if batch_first else 1),
            tuple(torch.cat(pair, 1) for pair in zip(states, reset_states, strict=True)),
            torch.cat((before, after)),
            torch.cat((resets, resets), 1),
            since,
            batch_first,
        )

    def merged(self, made: Made) -> Made:
        """What came of the B rows, of what came of both kinds."""
        since = self.since.unsqueeze(2)  # (T, B, 1)
        ever = self.since.any(0).unsqueeze(1)  # (B, 1)
        output = made.output
        if output is not None:
            by_row = since.transpose(0, 1) if self.batch_first else since
            output = _chosen(by_row, output, 0 if self.batch_first else 1)
        final = tuple(_chosen(ever, state, 1) for state in made.final)
        every = made.every and tuple(_chosen(since, state, 2) for state in made.every)
        return Made(output, final, every)


def _chosen(fresh: Tensor, both: Tensor, rows: int) -> Tensor:
    """The second half of the rows, which are in that dimension, where `fresh`; else the first."""
    entered, started_over = both.chunk(2, rows)
    return torch.where(fresh, started_over, entered)


def as_reset_states(
    spec: Spec, reset_state: Any, batch: int, *, unbatched: bool
) -> tuple[Tensor, ...]:
    """(h,) or (h, c), (L, B, P or H) each.

    Args:
        spec: of the stack.
        reset_state: one tensor, or of a cell with a pair of states a pair; (L, B, P or H), or one
            row for all, (L, 1, P or H); if `unbatched` (L, P or H).
        batch: B.
        unbatched: whether the input had no batch dimension.

    Raises:
        TypeError: it is no tensor, or no pair of them.
        ValueError: one has another shape, or the stack has two directions.
    """
    if spec.bidirectional:
        raise ValueError(
            "reset_state: got one for a layer in two directions, expected one direction, or resets "
            "alone: backwards in time, rows that start over before are not those that do after"
        )
    parts = reset_state if spec.has_cell_state else (reset_state,)
    wanted = "a pair of tensors" if spec.has_cell_state else "a tensor"
    if isinstance(parts, Tensor) or not isinstance(parts, tuple | list):
        raise TypeError(f"reset_state should be {wanted}, got: {type(reset_state).__name__}")
    if [isinstance(part, Tensor) for part in parts] != [True] * (2 if spec.has_cell_state else 1):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"reset_state should be {wanted}, got: {kinds}")
    found = []
    for part, size in zip(parts, (spec.state_size, spec.hidden_size), strict=False):
        state = part.unsqueeze(1) if unbatched and part.dim() == 2 else part
        expected = (spec.num_layers, batch, size)
        if state.shape != expected and state.shape != (spec.num_layers, 1, size):
            raise ValueError(
                f"reset_state: got shape {tuple(part.shape)}, expected {expected}, or one row for "
                f"all, {(spec.num_layers, 1, size)}"
            )
        found.append(state.expand(expected))
    return tuple(found)
