"""Padded rows as packed ones: sorted, packed, run, put back. On a CPU, which waits for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fastrnn import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import StackCall


def run(
    run_packed: Callable[[StackCall], tuple[Tensor, ...]], call: StackCall
) -> tuple[Tensor, ...]:
    """What `run_packed` returns for padded rows, with zeros past a row's length.

    Args:
        run_packed: takes the data of a PackedSequence.
        call: padded, with `lengths`, of which some may be zero.
    """
    lengths = call.lengths
    assert lengths is not None
    first, second, _ = call.input.shape
    batch, steps = (first, second) if call.batch_first else (second, first)
    checks.check_tensors(call.input, call.hx, call.weights, steps)
    order = lengths.argsort(descending=True, stable=True)
    in_place = order.argsort()
    t = torch.arange(steps).unsqueeze(1)
    reached = t < lengths[order]  # (T, B)
    batch_sizes = reached.sum(1)[: int(lengths.max())]
    places = (order * steps + t if call.batch_first else t * batch + order)[reached]
    data = call.input.flatten(0, 1).index_select(0, places)
    rows = int(reached[0].sum())
    if rows == 0:  # a step of zeros, for the sake of the graph; nothing of it is kept
        data, batch_sizes = functional.pad(data, (0, 0, 0, 1)), torch.ones(1, dtype=torch.int64)
    states = [state.index_select(1, order) for state in call.hx]
    hx = tuple(state[:, : max(rows, 1)] for state in states)
    data, *final = run_packed(
        call._replace(input=data, batch_sizes=batch_sizes, hx=hx, lengths=None)
    )
    output = data.new_zeros(first * second, data.shape[1])
    output = output.index_copy(0, places, data[: len(places)])
    if rows < batch:  # rows of no steps stay where they start
        pairs = zip(final, states, strict=True)
        final = [torch.cat((own[:, :rows], start[:, rows:]), 1) for own, start in pairs]
    return output.view(first, second, -1), *(state.index_select(1, in_place) for state in final)
