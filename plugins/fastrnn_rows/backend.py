"""The backend `rows`: whole stacks on a CPU, one operation of autograd a layer and direction."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from fastrnn import checks, packing
from fastrnn.backend import StackBackend
from fastrnn.direction import in_float32, reasons, stack, ways
from fastrnn_rows import cost, direction
from fastrnn_rows.direction import LOOPS
from fastrnn_rows.restarts import Restarts
from fastrnn_rows.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn.backend import Cell, StackCall
    from fastrnn.direction import Weights
    from fastrnn.packing import Parts
    from fastrnn.request import Cost, Request


class RowsBackend(StackBackend):
    """Plain torch, as few operations a step as there are; rows that have ended take none."""

    name = "rows"
    contract = 1
    options = frozenset({"lengths", "resets"})
    summary = "plain torch time steps on CPUs, over the rows that have not ended"

    def runs_cell(self, cell: Cell) -> bool:
        """A GRU's weights are those that a call of a stack brings."""
        return super().runs_cell(cell) or cell.name in LOOPS

    def can_run(self, request: Request) -> list[str]:
        """What the loops do not cover."""
        against = reasons(request, LOOPS)
        if request.resets and request.padded and request.bidirectional:
            against.append("resets cut up rows that end, for each of two directions elsewhere")
        if request.compiling:
            against.append("its steps are Python, which a graph would have one by one")
        return against

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_rows.cost`."""
        return cost.estimate(request)

    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        """Packed rows as they are, rows of one length as if they were packed."""
        return in_float32(_run, call)


def _run(call: StackCall) -> tuple[Tensor, ...]:
    if call.lengths is not None or call.resets is not None:
        return packing.run(_run_packed, _run_equal, call, _run_as_it_lies)
    return _run_packed(call) if call.batch_sizes is not None else _run_equal(call)


def _run_packed(call: StackCall) -> tuple[Tensor, ...]:
    batch_sizes = call.batch_sizes
    assert batch_sizes is not None
    checks.check_tensors(call.input, call.hx, call.weights, len(batch_sizes))
    return _stack(call, call.input, batch_sizes.tolist())


def _run_equal(call: StackCall) -> tuple[Tensor, ...]:
    x = packing.time_major(call)
    steps, rows, _ = x.shape
    checks.check_tensors(x, call.hx, call.weights, steps)
    output, *final = _stack(call, x.flatten(0, 1), [rows] * steps)
    output = output.view(steps, rows, output.shape[1])
    return output.transpose(0, 1) if call.batch_first else output, *final


def _run_as_it_lies(call: StackCall, parts_of: Callable[[], Parts]) -> tuple[Tensor, ...] | None:
    """Rows run on past their ends, and start over where they stand.

    What they make past their ends is zero afterwards, and so are its gradients. None where packing
    is better, or they might blow up there.
    """
    asked, lengths = call.request, call.lengths
    if lengths is not None and not cost.may_run_on(asked):
        return None
    x = packing.time_major(call)
    steps, rows, _ = x.shape
    own = [steps] * rows if lengths is None else lengths.tolist()
    longest, restarts = max(own), []
    if 0 in own:
        return None
    if call.resets is not None:
        resets = call.resets[:longest]
        restarts = [Restarts(resets, reverse=reverse) for reverse in ways(asked)]
    if not _stays(call, longest * rows - sum(own), restarts, parts_of):
        return None
    data, sizes = x[:longest].flatten(0, 1), [rows] * longest
    if lengths is None:
        output, *final = _stack(call, data, sizes, restarts)
        return packing.in_form(call, output, rows), *final
    _, past, last = packing.ends(lengths, longest)
    data = data.index_fill(0, past, 0)  # NaN would reach dW: 0 * NaN
    output, h_n = _stack(call, data, sizes, restarts, last)
    return packing.in_form(call, output.index_fill(0, past, 0), rows), h_n


def _stays(
    call: StackCall, idle: int, restarts: list[Restarts], parts_of: Callable[[], Parts]
) -> bool:
    """Whether the rows are better left as they lie; `idle` as of `cost.runs_on`."""
    asked = call.request
    if not restarts:
        return cost.runs_on(asked, idle)
    if asked.bidirectional:  # of which each would be cut up in other places
        return True
    steps, rows, _ = packing.time_major(call).shape
    (own,) = restarts
    number = sum(map(bool, own.counts))
    parts = rows + len(own.rows)
    if cost.starts_over(asked, idle, number, steps * rows / parts):  # if all were equally long
        return True
    return cost.starts_over(asked, idle, number, int(parts_of().length.max()))


def _stack(
    call: StackCall, x: Tensor, sizes: list[int], restarts: Sequence[Restarts] = (),
    last: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Every layer in turn; x is (N, I), and so is the output, (N, directions * H).

    Args:
        call: the weights and states are taken from it.
        x: of the first layer.
        sizes: (T,), rows of each step.
        restarts: where rows start over, of each direction, or empty.
        last: (B,), places where rows in one direction end before those do, of cells without c.
    """
    asked = call.request
    both = [
        Steps(sizes, reverse=reverse, restarts=own)
        for reverse, own in zip_longest(ways(asked), restarts)
    ]

    def run_one(
        reverse: bool, x: Tensor, hx: tuple[Tensor, ...], weights: Weights
    ) -> Sequence[Tensor]:
        made = direction.run(asked.cell, both[reverse], x, hx, weights, save=asked.needs_grad)
        return made if last is None else (made[0], made[0].index_select(0, last))

    return stack(call, x, run_one)
