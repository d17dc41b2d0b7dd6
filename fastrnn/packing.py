"""Padded rows as packed ones: cut up, sorted, run, put back. On a CPU, which waits for nothing.

A row that starts over within its sequence is cut there. The parts depend on nothing but the state
that they start from, so they run side by side, and time takes as many steps as the longest has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from fastrnn import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import StackCall


class Parts(NamedTuple):
    """What B rows are cut up into: S parts, row after row, in the order of time."""

    row: Tensor
    """(S,): which row it is part of."""
    begin: Tensor
    """(S,): its first step."""
    length: Tensor
    """(S,): its steps; zero of a row of no steps."""
    last: Tensor
    """(B,): which of them ends the row."""


def run(
    run_packed: Callable[[StackCall], tuple[Tensor, ...]], call: StackCall
) -> tuple[Tensor, ...]:
    """What `run_packed` returns for padded rows, with zeros past a row's length.

    Args:
        run_packed: takes the data of a PackedSequence.
        call: padded, with `lengths`, of which some may be zero, or `resets`, in one direction then,
            or both.
    """
    first, second, _ = call.input.shape
    batch, steps = (first, second) if call.batch_first else (second, first)
    checks.check_tensors(call.input, call.hx, call.weights, steps)
    parts = cut(call.lengths, call.resets, steps, batch)
    order = parts.length.argsort(descending=True, stable=True)
    in_place = order.argsort()[parts.last]
    lengths, begin, row = parts.length[order], parts.begin[order], parts.row[order]
    t = torch.arange(int(lengths[:1].sum())).unsqueeze(1)
    reached = t < lengths  # (longest, S)
    batch_sizes = reached.sum(1)
    places = row * steps + begin + t if call.batch_first else (begin + t) * batch + row
    places = places[reached]
    data = call.input.flatten(0, 1).index_select(0, places)
    rows = int((lengths > 0).sum())
    states = [state.index_select(1, row) for state in call.hx]
    hx = [state[:, :rows] for state in states]
    if rows == 0:  # a row of zeros, for the sake of the graph; nothing of it is kept
        data, *hx = (functional.pad(each, (0, 0, 0, 1)) for each in (data, *hx))
        batch_sizes = torch.ones(1, dtype=torch.int64)
    data, *final = run_packed(
        call._replace(input=data, batch_sizes=batch_sizes, hx=tuple(hx), lengths=None, resets=None)
    )
    output = data.new_zeros(first * second, data.shape[1])
    output = output.index_copy(0, places, data[: len(places)])
    if rows < len(row):  # rows of no steps stay where they start
        pairs = zip(final, states, strict=True)
        final = [torch.cat((own[:, :rows], start[:, rows:]), 1) for own, start in pairs]
    final = [state.index_select(1, in_place) for state in final]
    return output.view(first, second, data.shape[1]), *final


def cut(lengths: Tensor | None, resets: Tensor | None, steps: int, batch: int) -> Parts:
    """The parts of rows of these lengths, or of all steps, which start over where `resets` says.

    Args:
        lengths: (B,), or None.
        resets: (T, B) bool, or None.
        steps: T, one at least.
        batch: B.
    """
    ends = torch.full((batch,), steps) if lengths is None else lengths
    every = torch.arange(batch)
    if resets is None:
        return Parts(every, torch.zeros_like(every), ends, every)
    starts = resets.mT.clone(memory_format=torch.contiguous_format)
    if lengths is not None:
        starts &= torch.arange(steps) < lengths.unsqueeze(1)
    starts[:, 0] = True  # a row of no steps is a part, too
    row, begin = starts.nonzero(as_tuple=True)
    last = starts.sum(1).cumsum(0) - 1
    end = begin.roll(-1)
    end[last] = ends
    return Parts(row, begin, end - begin, last)
