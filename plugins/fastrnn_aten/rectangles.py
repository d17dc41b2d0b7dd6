"""Rows of different lengths through oneDNN's LSTM, which takes rows of one length only.

torch runs a PackedSequence in a loop of its own, a step at a time, whose backward pass makes for
every step a gradient as long as the sequence: time that is quadratic in T. Here time is cut into a
few rectangles, each a call of `torch.lstm` with the rows that have not ended before it. A row that
ends within one is frozen for the rest of it: one more feature of the input, 1 there and 0
elsewhere, shuts the input gate and opens the forget gate, so that c stays, exactly, and no gradient
of those steps reaches anything. Its h is read off the output at its own last step.

Backwards in time it is the same: rows are turned round within each rectangle, so that each begins
with its own last step and is frozen before its first.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SHUT = 1e30
"""Added to a frozen row's f, and taken from its i, before the sigmoid: more than a network has, but
for one that has shut a gate by an infinite bias."""


class Rectangle(NamedTuple):
    """Steps of packed data, in the order in which `torch.lstm` takes them."""

    rows: int
    data: int
    """Rows of the packed data."""
    taken: Tensor | None
    """(steps * rows,): which row of packed data stands there, `data` for none; None: in order."""
    returned: Tensor | None
    """(data,): at which of the steps * rows places each ended up; None: in order."""
    last: Tensor | None
    """(rows,): the place of each row's last step; None: the last ones."""


def run(
    data: Tensor,
    batch_sizes: Sequence[int],
    hx: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    bidirectional: bool,
    spare: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `torch.lstm` returns for a PackedSequence.

    Args:
        data: (N, I), of a PackedSequence.
        batch_sizes: (T,), of the same.
        hx: (h0, c0), each (num_layers * directions, B, H).
        weights: flat, in torch's order.
        bias: whether biases are among them.
        num_layers: layers.
        dropout: probability, applied to every layer's output but the last's.
        bidirectional: whether each layer has two directions.
        spare: see `cuts`.
    """
    edges = cuts(batch_sizes, spare)
    parts = [batch_sizes[begin:end] for begin, end in pairwise(edges)]
    ways = [[_rectangle(part, reverse=False) for part in parts]]
    if bidirectional:
        ways.append([_rectangle(part, reverse=True) for part in parts])
    per_group = 4 if bias else 2
    states, group = [], 0
    for layer in range(num_layers):
        sizes = [rectangle.data for rectangle in ways[0]]
        pieces = data.split(sizes)  # type: ignore[no-untyped-call] # torch has not typed it
        outputs = []
        for reverse, way in enumerate(ways):
            own = weights[group * per_group : (group + 1) * per_group]
            output, *final = _direction(
                pieces, way, hx[0][group], hx[1][group], own, bias=bias, reverse=bool(reverse)
            )
            outputs.append(output)
            states.append(final)
            group += 1
        data = torch.cat(outputs, 1) if bidirectional else outputs[0]
        if dropout and layer < num_layers - 1:
            data = functional.dropout(data, dropout, training=True)
    h_n, c_n = (torch.stack(each) for each in zip(*states, strict=True))
    return data, h_n, c_n


def cuts(batch_sizes: Sequence[int], spare: float) -> list[int]:
    """The first step of each rectangle, and T.

    Args:
        batch_sizes: (T,), the rows that reach each step.
        spare: how many steps of a row may be frozen before another rectangle begins.
    """
    edges, frozen = [0], 0
    for t, rows in enumerate(batch_sizes):
        frozen += batch_sizes[edges[-1]] - rows
        if frozen > spare:
            edges.append(t)
            frozen = 0
    return [*edges, len(batch_sizes)]


def _rectangle(batch_sizes: Sequence[int], *, reverse: bool) -> Rectangle:
    steps, rows = len(batch_sizes), batch_sizes[0]
    sizes = torch.tensor(batch_sizes, device="cpu")
    number = int(sizes.sum())
    even = number == steps * rows
    if even and not reverse:
        return Rectangle(rows, number, None, None, None)
    begins = sizes.cumsum(0) - sizes
    t = torch.arange(steps, device="cpu").unsqueeze(1)
    b = torch.arange(rows, device="cpu")
    lengths = (b < sizes.unsqueeze(1)).sum(0)
    alive = t < lengths
    step = (lengths - 1 - t).clamp_(min=0) if reverse else t
    taken = torch.where(alive, begins[step] + b, number)  # (steps, rows)
    returned = torch.empty(number, dtype=torch.int64, device="cpu")
    returned[taken[alive]] = (t * rows + b)[alive]
    last = None if even else (lengths - 1) * rows + b
    return Rectangle(rows, number, taken.flatten(), returned, last)


def _direction(
    pieces: Sequence[Tensor],
    way: Sequence[Rectangle],
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    *,
    bias: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (N, H), h_n (B, H) and c_n (B, H) of one layer in one direction."""
    uneven = any(rectangle.last is not None for rectangle in way)
    plain = list(weights)
    freezing = [_freezing(weights[0]), *weights[1:]] if uneven else plain
    outputs, ended = [], []
    h, c = (h0[:0], c0[:0]) if reverse else (h0, c0)
    order = list(zip(pieces, way, strict=True))
    for piece, (rows, number, taken, returned, last) in reversed(order) if reverse else order:
        if reverse:
            on_their_way = h.shape[0]
            h, c = (torch.cat(s) for s in ((h, h0[on_their_way:rows]), (c, c0[on_their_way:rows])))
        elif h.shape[0] > rows:
            ended.append((h[rows:], c[rows:]))
            h, c = h[:rows], c[:rows]
        x, own = piece, plain
        if last is not None:
            x, own = functional.pad(piece, (0, 1, 0, 1)), freezing
            x[number, -1] = 1
        x = (x if taken is None else x.index_select(0, taken)).view(-1, rows, x.shape[1])
        hx = h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()
        output, h_last, c_last = torch.lstm(x, hx, own, bias, 1, 0.0, True, False, False)
        flat = output.flatten(0, 1)
        h, c = h_last[0] if last is None else flat.index_select(0, last), c_last[0]
        outputs.append(flat if returned is None else flat.index_select(0, returned))
    if reverse:
        return torch.cat(outputs[::-1]), h, c
    h_n, c_n = zip(*reversed([*ended, (h, c)]), strict=True)
    return torch.cat(outputs), torch.cat(h_n), torch.cat(c_n)


def _freezing(weight_ih: Tensor) -> Tensor:
    """(4H, I + 1), with the feature that freezes a row."""
    size = weight_ih.shape[0] // 4
    by_gate = weight_ih.new_tensor([-SHUT, SHUT, 0, 0])
    return torch.cat((weight_ih, by_gate.repeat_interleave(size).unsqueeze(1)), 1)
