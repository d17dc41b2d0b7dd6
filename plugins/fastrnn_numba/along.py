"""What the loops of all cells share: rows that start, that go on, and that have ended."""

from __future__ import annotations

from typing import Any

from fastrnn_numba.compiled import compiled


@compiled
def copy(into: Any, at: int, of: Any, row: int) -> None:
    """into(at) = of(row), as wide as `into`."""
    for j in range(into.shape[1]):
        into[at, j] = of[row, j]


@compiled
def add(into: Any, at: int, of: Any, row: int) -> None:
    """into(at) += of(row), as wide as `into`."""
    for j in range(into.shape[1]):
        into[at, j] += of[row, j]


@compiled
def start_over(state: Any, initial: Any, rows: Any, resets: Any, t: int) -> None:
    """Where rows start over, (T, B) bool, their state, (B, H), is the initial one."""
    for b in rows:
        if resets[t, b]:
            copy(state, b, initial, b)


@compiled
def started(d_state: Any, d_initial: Any, rows: Any, resets: Any, t: int) -> None:
    """Its gradient: what reaches the states that entered goes to the initial ones of those rows."""
    for b in rows:
        if resets[t, b]:
            add(d_initial, b, d_state, b)
            for j in range(d_state.shape[1]):
                d_state[b, j] = 0


@compiled
def came_from(
    offsets: Any, order: Any, counts: Any, resets: Any, t: int, earlier: int, i: int
) -> int:
    """The place at which the i-th row was a step earlier, or -1 if it starts at this one."""
    b = order[i]
    goes_on = 0 <= earlier < len(counts) and i < counts[earlier]
    if not goes_on or (len(resets) > 0 and resets[t, b]):
        return -1
    return offsets[earlier] + b  # type: ignore[no-any-return] # arrays are Any here


@compiled
def entering(
    made: Any, states: Any, initial: Any, offsets: Any, order: Any, counts: Any, resets: Any,
    reverse: bool,
) -> None:  # fmt: skip
    """The states that enter all steps, of those that left them; (N, H) both."""
    for t in range(len(counts)):
        earlier = t + 1 if reverse else t - 1
        for i in range(counts[t]):
            place = offsets[t] + order[i]
            before = came_from(offsets, order, counts, resets, t, earlier, i)
            if before < 0:
                copy(made, place, initial, order[i])
            else:
                copy(made, place, states, before)
