"""The backend `numba`: on a CPU, a compiled call a pass, layer and direction."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fastrnn import checks, packing
from fastrnn.backend import LayerBackend, StackBackend
from fastrnn.direction import in_float32, reasons, stack
from fastrnn_numba import cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import (
        Cell,
        Layer,
        LayerGradients,
        LayerOutput,
        OutputGradients,
        StackCall,
        Wanted,
    )
    from fastrnn.direction import Weights
    from fastrnn.request import Cost, Request

CELLS = ("rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm", "gru")


class NumbaBackend(StackBackend, LayerBackend):
    """Rows that have ended take no steps, and rows that start over do so where they stand."""

    name = "numba"
    contract = 1
    options = frozenset({"lengths", "resets", "all_states"})
    summary = "time loops compiled for this CPU by Numba"

    def runs_cell(self, cell: Cell) -> bool:
        """A GRU's weights are those that a call of a stack brings."""
        return cell.name in CELLS

    def unavailable(self) -> list[str]:
        """No Numba, or one that is told not to compile."""
        return _unavailable()

    def can_run(self, request: Request) -> list[str]:
        """What the loops do not cover."""
        return reasons(request, CELLS)

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_numba.cost`."""
        return cost.estimate(request)

    def takes(self, request: Request) -> bool:
        """What no graph holds and no transform sees into: its calls are of Python."""
        return not (request.compiling or request.transformed)

    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        """Rows as they lie, but for padded ones of which much is past their ends."""
        return in_float32(_run, call)

    def layer_forward(self, layer: Layer) -> LayerOutput:
        """Group by group."""
        # as below, Numba is imported where a call first runs
        from fastrnn_numba import layers

        return layers.forward(layer)

    def layer_backward(
        self,
        grad: OutputGradients,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> LayerGradients:
        """Likewise."""
        from fastrnn_numba import layers

        return layers.backward(grad, layer, output, saved, wanted)

    def saved_like(self, layer: Layer) -> tuple[Tensor, ...]:
        """As `layer_forward` saves it."""
        from fastrnn_numba import layers

        return layers.saved_like(layer)


def _run(call: StackCall) -> tuple[Tensor, ...]:
    if call.batch_sizes is not None:
        return _run_packed(call)
    if call.lengths is not None and call.resets is None and _is_better_packed(call):
        return packing.run(_run_packed, _run_padded, call)
    return _run_padded(call)


def _run_packed(call: StackCall) -> tuple[Tensor, ...]:
    assert call.batch_sizes is not None
    checks.check_tensors(call.input, call.hx, call.weights, len(call.batch_sizes))
    return _stack(call, call.input, len(call.batch_sizes), int(call.batch_sizes[0]))


def _run_padded(call: StackCall) -> tuple[Tensor, ...]:
    x = packing.time_major(call)
    seq_len, batch, _ = x.shape
    checks.check_tensors(x, call.hx, call.weights, seq_len)
    output, *final = _stack(call, x.flatten(0, 1), seq_len, batch)
    output = output.view(seq_len, batch, output.shape[1])
    return output.transpose(0, 1) if call.batch_first else output, *final


def _is_better_packed(call: StackCall) -> bool:
    """Where the products around the loops would be of many places that no row has."""
    assert call.lengths is not None
    first, second, _ = call.input.shape
    # numbers in a list: an operation of torch takes ten times as long
    return cost.packs(call.request, first * second - sum(call.lengths.tolist()))


def _stack(call: StackCall, x: Tensor, seq_len: int, batch: int) -> tuple[Tensor, ...]:
    """Every layer in turn; x is (N, I), and so is the output, (N, directions * H)."""
    # Numba is imported where a call first runs: it takes half a second
    from fastrnn_numba.direction import How, run
    from fastrnn_numba.steps import Steps

    asked = call.request
    checks.check_weights(asked, call.weights)
    marks = [call.lengths, call.resets, call.batch_sizes]
    if asked.needs_grad:  # for the way back, before which a caller may write over his own
        marks = [None if each is None else each.clone() for each in marks]
    steps = Steps(seq_len, batch, *marks)
    threads = cost.threads(asked)

    def run_one(
        reverse: bool, x: Tensor, hx: tuple[Tensor, ...], weights: Weights
    ) -> tuple[Tensor, ...]:
        how = How(asked.cell, steps, reverse, threads)
        return run(how, x, hx, weights, save=asked.needs_grad)

    return stack(call, x, run_one)


@lru_cache(maxsize=1)
def _unavailable() -> list[str]:
    if find_spec("numba") is None:
        return ["numba is not installed; fastrnn[numba] brings it"]
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return ["NUMBA_DISABLE_JIT is set, with which Numba compiles nothing"]
    return []
