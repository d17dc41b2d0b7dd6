"""Padded rows as packed ones: cut up, sorted, run, put back. On a CPU, which waits for nothing.

A row that starts over within its sequence is cut there. The parts depend on nothing but the state
that they start from, so they run side by side, and time takes as many steps as the longest has.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from fastrnn import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import StackCall
    from fastrnn.request import Request

    Run = Callable[[StackCall], tuple[Tensor, ...]]
    RunAsItLies = Callable[[StackCall, Callable[[], "Parts"]], tuple[Tensor, ...] | None]


class Parts(NamedTuple):
    """What B rows are cut up into: S parts, row after row, in the order of time."""

    row: Tensor
    """(S,): which row it is part of."""
    begin: Tensor
    """(S,): row * T + its first step."""
    length: Tensor
    """(S,): its steps; zero of a row of no steps."""
    last: Tensor
    """(B,): which of them ends the row."""


class Ends(NamedTuple):
    """Where rows end that are left as they lie.

    N is the steps of the longest, and step t of row b is at place t * B + b.
    """

    over: Tensor
    """(N, B) bool: whether a step is past its row's length."""
    past: Tensor
    """The places that are."""
    last: Tensor
    """(B,): the place of each row's last step; of a row of no steps that of the first one."""


def reasons(request: Request) -> list[str]:
    """What speaks against rows that are packed here."""
    if request.resets and request.bidirectional:
        return ["resets cut up rows, for each of two directions elsewhere"]
    return []


def run(
    run_packed: Run, run_equal: Run, call: StackCall, run_as_it_lies: RunAsItLies | None = None
) -> tuple[Tensor, ...]:  # fmt: skip
    """What comes of padded rows, with zeros past a row's length.

    Args:
        run_packed: takes the data of a PackedSequence.
        run_equal: takes padded rows, all of T steps, to which the rest of the call comes down.
        call: padded, with `lengths`, of which some may be zero, or `resets`, or both; rows that
            start over in two directions can only be left as they lie.
        run_as_it_lies: takes the call itself, of one row at least, and what its parts would be; it
            returns what comes of it, or None if its rows are better packed.
    """
    first, second, _ = call.input.shape
    steps, batch, _ = time_major(call).shape
    checks.check_tensors(call.input, call.hx, call.weights, steps)
    if batch and _are_equal(call, steps):
        return run_equal(call._replace(lengths=None, resets=None))
    parts_of = cache(lambda: cut(call.lengths, call.resets, steps, batch))
    if batch and run_as_it_lies is not None:
        made = run_as_it_lies(call, parts_of)
        if made is not None:
            return made
    parts = parts_of()
    lengths, order = parts.length.sort(descending=True, stable=True)
    in_place = order.argsort().index_select(0, parts.last)
    row, begin = parts.row.index_select(0, order), parts.begin.index_select(0, order)
    t = torch.arange(int(lengths[0]) if batch else 0, device="cpu").unsqueeze(1)
    reached = t < lengths  # (longest, S)
    sizes = reached.sum(1)
    stride = 1
    if not call.batch_first:
        begin, stride = (begin - row * steps) * batch + row, batch
    places = torch.add(begin, t, alpha=stride).masked_select(reached)
    rows = int(sizes[0]) if len(sizes) else 0
    data = call.input.flatten(0, 1).index_select(0, places)
    states = [state.index_select(1, row) for state in call.hx]
    hx = [state[:, :rows] for state in states]
    if rows == 0:  # a row of zeros, for the sake of the graph; nothing of it is kept
        data, *hx = (functional.pad(each, (0, 0, 0, 1)) for each in (data, *hx))
        sizes = torch.ones(1, dtype=torch.int64, device="cpu")
    data, *final = run_packed(
        call._replace(input=data, batch_sizes=sizes, hx=tuple(hx), lengths=None, resets=None)
    )
    output = data.new_zeros(first * second, data.shape[1])
    output = output.index_copy(0, places, data[: len(places)])
    if rows < len(row):  # rows of no steps stay where they start
        pairs = zip(final, states, strict=True)
        final = [torch.cat((own[:, :rows], start[:, rows:]), 1) for own, start in pairs]
    final = [state.index_select(1, in_place) for state in final]
    return output.view(first, second, data.shape[1]), *final


def time_major(call: StackCall) -> Tensor:
    """The padded input, (T, B, I)."""
    return call.input.transpose(0, 1) if call.batch_first else call.input


def ends(lengths: Tensor, longest: int) -> Ends:
    """Where rows of these lengths, (B,), end; N is that of the longest."""
    batch = len(lengths)
    over = torch.arange(longest, device="cpu").unsqueeze(1) >= lengths
    last = (lengths - 1).clamp_(min=0).mul_(batch).add_(torch.arange(batch, device="cpu"))
    return Ends(over, over.flatten().nonzero().squeeze(1), last)


def in_form(call: StackCall, made: Tensor, batch: int) -> Tensor:
    """What B rows made, (N * B, P), in the form of the input, with zeros from step N up to T."""
    output = made.view(-1, batch, made.shape[1])
    missing = call.input.shape[1 if call.batch_first else 0] - len(output)
    if missing:
        output = functional.pad(output, (0, 0, 0, 0, 0, missing))
    return output.transpose(0, 1) if call.batch_first else output


def _are_equal(call: StackCall, steps: int) -> bool:
    """Whether every row has all steps, and none starts over but where it starts anyway."""
    if call.lengths is not None and int(call.lengths.min()) < steps:
        return False
    if call.resets is None:
        return True
    within = call.resets if call.request.bidirectional else call.resets[1:]
    return not within.any()


def cut(lengths: Tensor | None, resets: Tensor | None, steps: int, batch: int) -> Parts:
    """The parts of rows of these lengths, or of all steps, which start over where `resets` says.

    Args:
        lengths: (B,), or None.
        resets: (T, B) bool, or None.
        steps: T, one at least.
        batch: B.
    """
    every = torch.arange(batch, device="cpu")
    if resets is None:
        ends = torch.full((batch,), steps, device="cpu") if lengths is None else lengths
        return Parts(every, every * steps, ends, every)
    starts = resets.mT.clone(memory_format=torch.contiguous_format)
    if lengths is not None:
        starts &= torch.arange(steps, device="cpu") < lengths.unsqueeze(1)
    starts.select(1, 0).fill_(True)  # a row of no steps is a part, too
    begin = starts.flatten().nonzero().squeeze(1)
    row = begin.div(steps, rounding_mode="floor")
    end = torch.cat((begin[1:], begin.new_full((min(batch, 1),), batch * steps)))
    last = starts.sum(1).cumsum(0) - 1
    if lengths is not None:
        end = torch.minimum(end, (every * steps + lengths).index_select(0, row))
    return Parts(row, begin, end - begin, last)
