"""torch's own path: whole stacks through torch.lstm, gru, rnn_tanh and rnn_relu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from fastrnn.backend import StackBackend
from fastrnn_aten import cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import Cell, StackCall
    from fastrnn.request import Cost, Request

# torch types these as builtins with one overload; the packed one differs in its arguments
_FUNCTIONS: dict[str, Callable[..., Any]] = {
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
        cell, _, _, _, _, _, num_layers, bidirectional, bias, dropout, *_ = call.request
        # cuDNN keeps what its backward pass needs only in training mode; with dropout already 0
        # in eval mode, the flag changes nothing else, so a module in eval mode can be trained
        training = call.request.training or (
            call.request.needs_grad and call.request.device == "cuda"
        )
        function = _FUNCTIONS[cell]
        hx: Any = call.hx if cell == "lstm" else call.hx[0]
        if call.batch_sizes is None:
            result = function(
                call.input, hx, call.weights, bias, num_layers, dropout, training,
                bidirectional, call.batch_first,
            )  # fmt: skip
        else:
            result = function(
                call.input, call.batch_sizes, hx, call.weights, bias, num_layers, dropout,
                training, bidirectional,
            )  # fmt: skip
        return cast("tuple[Tensor, ...]", result)
