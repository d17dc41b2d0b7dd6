"""torch's own path: whole stacks through torch.lstm, gru, rnn_tanh and rnn_relu."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.backend import StackBackend
from fastrnn_aten import cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import Cell, StackCall
    from fastrnn.request import Cost, Request

# torch types these as builtins with one overload; the packed one differs in its arguments
_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "lstm": torch.lstm,
    "gru": torch.gru,
    "rnn_tanh": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}


class AtenBackend(StackBackend):
    """cuDNN, MIOpen, oneDNN, MPS or ATen's own loop, as torch chooses."""

    name = "aten"
    contract = 1
    summary = "torch's own path: cuDNN, MIOpen, oneDNN, MPS or ATen's loop"

    def runs_cell(self, cell: Cell) -> bool:
        """Torch has a GRU, too, whose weights are those that a call of a stack brings."""
        return super().runs_cell(cell) or cell.name in _FUNCTIONS

    def can_run(self, request: Request) -> list[str]:
        """Torch has no sigmoid RNN, and takes rows of different lengths only packed."""
        reasons = []
        if request.cell not in _FUNCTIONS:
            known = ", ".join(_FUNCTIONS)
            reasons.append(f"torch has no {request.cell} (it has {known})")
        if not request.dtype.is_floating_point:
            reasons.append(f"dtype is {request.dtype}; needs a floating-point dtype")
        work = "sort, pack and copy the rows, and wait for the device"
        if request.padded:
            reasons.append(
                f"lengths of padded rows were given; torch would have to {work} (pass a "
                "PackedSequence if it may)"
            )
        if request.resets:
            reasons.append(
                f"resets were given; torch would have to cut up, {work} (pass every episode as a "
                "row of its own if it may)"
            )
        if request.all_states:
            reasons.append("states of every step were asked for; torch returns the last ones")
        for option in ("recurrent_dropout", "zoneout", "error_clip"):
            if getattr(request, option):
                reasons.append(f"{option} was asked for; torch has none")
        return reasons

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_aten.cost`."""
        return cost.estimate(request)

    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        """Call torch as torch.nn's layers do."""
        asked, x, batch_sizes, states, weights, batch_first, *_ = call
        # cuDNN keeps what its backward pass needs only in training mode; with dropout already 0
        # in eval mode, the flag changes nothing else, so a module in eval mode can be trained
        training = asked.training or (asked.needs_grad and asked.device == "cuda")
        function = _FUNCTIONS[asked.cell]
        hx = states if asked.cell == "lstm" else states[0]
        if batch_sizes is None:
            return function(
                x, hx, weights, asked.bias, asked.num_layers, asked.dropout, training,
                asked.bidirectional, batch_first,
            )  # fmt: skip
        return function(
            x, batch_sizes, hx, weights, asked.bias, asked.num_layers, asked.dropout, training,
            asked.bidirectional,
        )  # fmt: skip
