"""Padded rows in one call of oneDNN's LSTM, wherever they end and start over.

Packing rows, and cutting them up where they start over, is some fifty small operations: more than
all the work of a small call. Here rows stay as they are, and two more features of the input say
what is no step of a row:

- past its end it is frozen, as in `rectangles`;
- before it starts over it is emptied, by a step of its own in which its input and forget gates are
  shut: c and so h are 0 after it, exactly, and no gradient passes. Rows have that step at different
  times, so each goes on by a time of its own, and is frozen once it is through.

Only the state 0 can be started over from in this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from fastrnn import packing
from fastrnn_aten.rectangles import SHUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import StackCall

FROZEN = (-SHUT, SHUT, 0, 0)
EMPTIED = (-SHUT, -SHUT, 0, 0)
"""What each feature adds to i, f, g and o."""


class Rows(NamedTuple):
    """What a call's `lengths` and `resets` come to."""

    taken: int
    """N, steps of the longest row."""
    lengths: Tensor | None
    """(B,), or None if every row has N steps."""
    some_empty: bool
    """Whether a row has no step."""
    later: Tensor | None
    """(N, B): by how many steps a row is behind, by then; None if there are no resets."""
    steps: int
    """S = N + the last of them of any row."""
    idle: int
    """Steps of frozen rows, of all rows."""


class Layout(NamedTuple):
    """Where steps are; a place is step * B + row."""

    flags: Tensor
    """(S * B, 1 or 2): the features."""
    past: Tensor | None
    """Of the N * B places of the input, those past a row's length."""
    places: Tensor | None
    """(N * B,): where each of those is among the S * B; None where it lies."""
    turned: Tensor | None
    """(N * B,): of each row from its end to its beginning; None if there is one direction."""
    last: Tensor
    """(B,): of each row's last step, in either direction."""


def rows_of(lengths: Tensor | None, resets: Tensor | None, steps: int, batch: int) -> Rows:
    """What these come to; one of them at least is there, and one row.

    Args:
        lengths: (B,), or None.
        resets: (T, B) bool, or None.
        steps: T.
        batch: B.
    """
    own = [steps] * batch if lengths is None else lengths.tolist()
    taken, work = max(own), sum(own)
    if resets is None or not taken:
        return Rows(taken, lengths, 0 in own, None, taken, taken * batch - work)
    starts = resets[:taken].clone()
    starts[0] = False  # they start anyway
    if lengths is not None:
        starts &= torch.arange(taken, device="cpu").unsqueeze(1) < lengths
    later = starts.cumsum(0)
    emptied = later[-1].tolist()
    total = taken + max(emptied)
    idle = total * batch - work - sum(emptied)
    return Rows(taken, lengths, 0 in own, later, total, idle)


def run(call: StackCall, rows: Rows) -> tuple[Tensor, ...]:
    """Output, in the form of the input and with zeros past a row's length, h_n and c_n.

    Args:
        call: padded; where rows start over `hx` is 0.
        rows: `rows_of` its marks; the longest has one step at least.
    """
    asked = call.request
    given = packing.time_major(call)
    _, batch, width = given.shape
    layout = _layout(rows, batch, bidirectional=asked.bidirectional)
    flags, past, places = layout.flags.to(given.dtype), layout.past, layout.places
    x = given[: rows.taken].flatten(0, 1)
    if past is not None:
        x = x.index_fill(0, past, 0)  # NaN would reach what is shut
    if places is not None:
        x = x.new_zeros(len(flags), width).index_copy(0, places, x)
    shut = _shut(call.weights[0], flags.shape[1])
    per_group = 4 if asked.bias else 2
    ways = (None, layout.turned) if asked.bidirectional else (None,)
    final: list[Sequence[Tensor]] = []
    for layer in range(asked.num_layers):
        outputs: list[Tensor] = []
        for turned in ways:
            group = layer * len(ways) + len(outputs)
            own = call.weights[group * per_group : (group + 1) * per_group]
            hx = [state[group] for state in call.hx]
            begun = x if turned is None else x.index_select(0, turned)
            output, *ended = _direction(begun, flags, shut, hx, own, layout.last, bias=asked.bias)
            outputs.append(output if turned is None else output.index_select(0, turned))
            final.append(_of_rows_with_steps(rows, ended, hx))
        x = torch.cat(outputs, 1) if len(ways) > 1 else outputs[0]
        if asked.dropout and layer < asked.num_layers - 1:
            x = functional.dropout(x, asked.dropout, training=True)
    x = x if places is None else x.index_select(0, places)
    output = packing.in_form(call, x if past is None else x.index_fill(0, past, 0), batch)
    return output, *(torch.stack(each) for each in zip(*final, strict=True))


def _layout(rows: Rows, batch: int, *, bidirectional: bool) -> Layout:
    over = past = turned = None
    if rows.lengths is None:
        last = torch.arange((rows.taken - 1) * batch, rows.taken * batch, device="cpu")
    else:
        over, past, last = packing.ends(rows.lengths, rows.taken)
    if rows.later is None:
        assert over is not None
        if bidirectional:
            own = torch.arange(rows.taken * batch, device="cpu").view(-1, batch)
            turned = torch.where(over, own, last - own[:, :1]).flatten()
        return Layout(over.view(-1, 1), past, None, turned, last)
    later = rows.later
    places = (
        torch.arange(rows.taken * batch, device="cpu")
        .view(-1, batch)
        .add(later, alpha=batch)
        .flatten()
    )
    ends = later[-1] + (rows.taken if rows.lengths is None else rows.lengths)
    flags = torch.zeros(rows.steps * batch, 2, dtype=torch.bool, device="cpu")
    torch.ge(
        torch.arange(rows.steps, device="cpu").unsqueeze(1), ends, out=flags[:, 0].view(-1, batch)
    )
    starts = later.diff(dim=0).flatten().nonzero().squeeze(1).add_(batch)
    flags[:, 1].index_fill_(0, places.index_select(0, starts).sub_(batch), True)
    return Layout(flags, past, places, None, places.index_select(0, last))


def _shut(weight_ih: Tensor, features: int) -> Tensor:
    """(4H, 1 or 2): what the features weigh."""
    by_gate = weight_ih.new_tensor([FROZEN, EMPTIED][:features])
    return by_gate.repeat_interleave(weight_ih.shape[0] // 4, 1).mT


def _direction(
    x: Tensor, flags: Tensor, shut: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor],
    last: Tensor, *, bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (S * B, H), h_n (B, H) and c_n (B, H) of one layer in one direction."""
    h0, c0 = (state.unsqueeze(0) for state in hx)
    own = [torch.cat((weights[0], shut), 1), *weights[1:]]
    flagged = torch.cat((x, flags), 1).view(-1, len(last), x.shape[1] + flags.shape[1])
    output, _, c_n = torch.lstm(flagged, (h0, c0), own, bias, 1, 0.0, True, False, False)
    flat = output.flatten(0, 1)
    return flat, flat.index_select(0, last), c_n[0]


def _of_rows_with_steps(
    rows: Rows, ended: Sequence[Tensor], begun: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The states that rows end in; of rows without steps those that they begin in."""
    if rows.lengths is None or not rows.some_empty:
        return ended
    none = (rows.lengths == 0).unsqueeze(1)
    return [torch.where(none, *pair) for pair in zip(begun, ended, strict=True)]
