"""oneDNN's LSTM, which torch uses on CPUs, for rows that torch does not give it.

Rows of different lengths, and such as start over within the sequence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fastrnn import packing
from fastrnn.backend import StackBackend
from fastrnn_aten import one_call, onednn_cost, rectangles
from fastrnn_aten.backend import AtenBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import StackCall
    from fastrnn.packing import Parts
    from fastrnn.request import Cost, Request


class OnednnBackend(StackBackend):
    """Rows that are packed, padded with lengths or start over; rows of one length are `aten`'s."""

    name = "onednn"
    contract = 1
    options = frozenset({"lengths", "resets"})
    summary = "torch's LSTM on CPUs (oneDNN) for rows of different lengths, and for resets"

    def unavailable(self) -> list[str]:
        """Some builds of torch have no oneDNN."""
        there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # torch's
        return [] if there else ["this torch has no oneDNN"]

    def can_run(self, request: Request) -> list[str]:
        """What `torch.lstm` gives to oneDNN, where there are lengths."""
        reasons = packing.reasons(request)
        if request.device != "cpu":
            reasons.append(f"device is {request.device}; needs cpu")
        if request.cell != "lstm" or request.proj_size:
            cell = f"{request.cell} with a projection" if request.proj_size else request.cell
            reasons.append(f"cell is {cell}; oneDNN has lstm")
        if request.dtype != torch.float32:
            reasons.append(f"dtype is {request.dtype}; needs torch.float32")
        if not (request.varlen or request.resets):
            reasons.append("all rows have the same length, which is aten's work")
        if request.compiling:
            reasons.append("rows are sorted and cut up by their lengths, which no graph knows")
        return reasons

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_aten.onednn_cost`."""
        return onednn_cost.estimate(request)

    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        """Packed rows in rectangles; padded ones in one call, unless packing them is worth it."""
        if call.batch_sizes is not None:
            return _run_packed(call)
        return packing.run(_run_packed, AtenBackend().run, call, _run_as_it_lies)


def _run_as_it_lies(call: StackCall, _parts_of: Callable[[], Parts]) -> tuple[Tensor, ...] | None:
    """See `one_call`; None where that would waste too many steps, or cannot be."""
    steps, batch, _ = packing.time_major(call).shape
    rows = one_call.rows_of(call.lengths, call.resets, steps, batch)
    if rows.taken == 0 or rows.idle > onednn_cost.affordable(call.request):
        return None
    if rows.later is not None and not _start_empty(rows.later[-1], call.hx):
        return None
    made = one_call.run(call, rows)
    if rows.later is not None and not math.isfinite(made[0].detach().sum().item()):
        return None  # a NaN outlives a gate that is shut, and must not outlive its episode
    return made


def _start_empty(times: Tensor, hx: tuple[Tensor, ...]) -> bool:
    """Whether rows that start over do so from 0, of which no gradient is asked."""
    if torch.is_grad_enabled() and any(state.requires_grad for state in hx):
        return False
    states = hx[:1] if hx[0] is hx[1] else hx
    return not any(state.any() and (state * times.unsqueeze(1)).any() for state in states)


def _run_packed(call: StackCall) -> tuple[Tensor, ...]:
    request = call.request
    assert call.batch_sizes is not None
    return rectangles.run(
        call.input, call.batch_sizes.tolist(), call.hx, call.weights, request.bias,
        request.num_layers, request.dropout, request.bidirectional, onednn_cost.spare(request),
    )  # fmt: skip
