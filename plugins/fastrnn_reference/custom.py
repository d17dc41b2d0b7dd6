"""The recurrence of any `Cell` over one group, and its gradient, from the cell's step alone.

With a(t) = gates_x(t) + W_hh h(t-1), split into K gates,

    h(t), c(t) = step(a(t), c(t-1), weights)

The step is point-wise, so that each of h and c has one derivative with respect to each gate, and to
c(t-1), of its own unit. They depend on no gradient: torch differentiates the steps of all times at
once, before the loop back through time, which is then

    dgates(t) = dh(t) dh/da + dc(t) dc/da     dc(t-1) = dh(t) dh/dc(t-1) + dc(t) dc/dc(t-1)
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastrnn.products import entering
from fastrnn_reference.time import (
    Rows,
    clipped_,
    hidden_from,
    in_order,
    mixed,
    not_started,
    output_gradients,
    plus,
    restarted,
    split,
    started,
    starting_states,
    starting_steps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from fastrnn.cell import Cell
    from fastrnn_reference.time import Group


def forward(
    cell: Cell, weights: tuple[Tensor, ...], group: Group,
    gates_x: Tensor, output: Tensor, pre: Tensor, cells: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Fill `output` (T, B, H), `pre` (T, B, K*H) and `cells` (T, B, H); return h_n, c_n.

    Args:
        cell: what is run.
        weights: Q tensors (H,).
        group: weights, initial states and options.
        gates_x: (T, B, K*H), W_ih x + b of every step.
        output: written; zero past a row's length. Of stride 0 in time if only the last step is of
            use, and so are the next two.
        pre: written; the pre-activations.
        cells: written; c after each step, zero past a row's length. None: the cell has none.
    """
    h0, c0, weight = group.h0, group.c0, group.weight_hh.mT
    rows = Rows.of(group, gates_x)
    keeps_h, keeps_c = output.stride(0) > 0, cells is None or cells.stride(0) > 0
    ends = None if rows is None or (keeps_h and keeps_c) else rows.ends()
    h, c = h_n, c_n = h0, h0.new_zeros(()) if c0 is None else c0
    every_start = starting_steps(group, rows, gates_x)
    for a, own, h_out, c_out, h_kept, c_kept, starts, own_h0, own_c0, is_last in in_order(
        group.reverse, gates_x, pre, output, cells, group.zoneout_h, group.zoneout_c,
        every_start, starting_states(h0, every_start),
        None if c0 is None else starting_states(c0, every_start), ends,
    ):  # fmt: skip
        h_before = restarted(h, starts, own_h0)
        c_before = c if c0 is None else restarted(c, starts, own_c0)
        torch.addmm(a, hidden_from(h_before, group.recurrent_mask), weight, out=own)
        h_new, c_new = cell.step(own.chunk(cell.gates, 1), c_before, weights)
        h = h_out.copy_(mixed(h_kept, h_before, h_new))
        c = c if c_out is None else c_out.copy_(mixed(c_kept, c_before, c_new))
        if is_last is not None:
            h_n, c_n = torch.where(is_last, h, h_n), torch.where(is_last, c, c_n)
    if rows is None:
        return h, None if c0 is None else c
    if keeps_h:
        h_n = rows.final(rows.zero_past_(output), h0)
    if cells is not None and c0 is not None and keeps_c:
        c_n = rows.final(rows.zero_past_(cells), c0)
    return h_n, None if c0 is None else c_n


class Gradients(NamedTuple):
    """What `backward` returns beside the `d_gates` it fills."""

    d_h0: Tensor
    """(B, H)"""
    d_c0: Tensor | None
    """(B, H)"""
    d_weights: Tensor | None
    """(Q, H)"""


def backward(
    cell: Cell, weights: tuple[Tensor, ...], group: Group,
    d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, d_cells: Tensor | None,
    output: Tensor, pre: Tensor, cells: Tensor | None, d_gates: Tensor,
) -> Gradients:  # fmt: skip
    """Fill `d_gates` (T, B, K*H), zero past a row's length.

    Args:
        cell: the forward's, and so are weights, group, output, pre and cells.
        weights: Q tensors (H,).
        group: weights, initial states and options.
        d_output: (T, B, H) or None.
        d_h_n: (B, H) or None.
        d_c_n: (B, H) or None.
        d_cells: (T, B, H) or None.
        output: (T, B, H).
        pre: (T, B, K*H).
        cells: (T, B, H), or None of a cell without cell state.
        d_gates: written.
    """
    c0, (steps, batch, hidden) = group.c0, output.shape
    rows = Rows.of(group, output)
    if cells is None or c0 is None:
        c_before = output.new_zeros(steps, batch, hidden)
    else:
        c_before = entering(cells, c0, group.lengths, group.resets, group.reverse)
    made = _Steps(cell, pre, c_before, weights)
    if rows is not None:
        made.end(rows)
    d_outputs = output_gradients(d_output, output)
    d_h, d_c = torch.zeros_like(output[0]), torch.zeros_like(output[0])
    d_h0, d_c0 = torch.zeros_like(d_h), torch.zeros_like(d_h)
    d_c = d_c if d_c_n is None else d_c_n
    if rows is None:
        d_h = d_h if d_h_n is None else d_h_n
    else:
        d_outputs = rows.zero_past_(d_outputs.clone())
        d_cells = None if d_cells is None else rows.zero_past_(d_cells.clone())
        d_h0 = d_h0 if d_h_n is None else rows.inject(d_h_n, d_outputs)
    # what reached the h and c that the cell made, kept for its weights
    d_made = torch.zeros(2, *output.shape, dtype=output.dtype, device=output.device)
    for d_out, d_cell, by_h, by_c, d_gate, kept_d, h_kept, c_kept, starts in in_order(
        not group.reverse, d_outputs, d_cells, made.by_h, made.by_c, d_gates,
        d_made.transpose(0, 1), group.zoneout_h, group.zoneout_c,
        starting_steps(group, rows, output),
    ):  # fmt: skip
        d_h_here, d_h_kept = split(h_kept, d_h + d_out)
        d_c_here, d_c_kept = split(c_kept, plus(d_c, d_cell))
        kept_d[0], kept_d[1] = d_h_here, d_c_here
        through = by_h * d_h_here + by_c * d_c_here  # (K + 1, B, H)
        torch.cat(through[:-1].unbind(0), 1, out=d_gate)
        clipped_(d_gate, group.error_clip)
        d_h = plus(hidden_from(d_gate @ group.weight_hh, group.recurrent_mask), d_h_kept)
        d_c = plus(through[-1], d_c_kept)
        d_h0, d_h = started(d_h, starts, d_h0), not_started(d_h, starts)
        d_c0, d_c = started(d_c, starts, d_c0), not_started(d_c, starts)
    d_weights = made.weight_gradient(d_made, rows)
    return Gradients(d_h0 + d_h, None if c0 is None else d_c0 + d_c, d_weights)


@contextmanager
def _recording() -> Iterator[None]:
    """Record operations below a dispatch mode, too, as that is which counts them.

    There torch has switched autograd off.
    """
    with torch.enable_grad(), torch._C._PreserveDispatchKeyGuard():
        autograd = torch._C.DispatchKey.AutogradFunctionality
        torch._C._dispatch_tls_set_dispatch_key_excluded(autograd, False)
        yield


class _Steps:
    """All steps of a group at once, and their derivatives.

    Attributes:
        by_h: (T, K + 1, B, H), of h with respect to the K gates, and to the c before.
        by_c: the same of c.
    """

    def __init__(
        self, cell: Cell, pre: Tensor, c_before: Tensor, weights: Sequence[Tensor]
    ) -> None:
        self._weights = tuple(weight.detach().requires_grad_() for weight in weights)
        inputs = [part.detach().requires_grad_() for part in (*pre.chunk(cell.gates, 2), c_before)]
        with _recording():
            h, c = cell.step(tuple(inputs[:-1]), inputs[-1], self._weights)
        self._made = (h, c)
        self.by_h, self.by_c = (self._derivatives(one, inputs) for one in self._made)

    @staticmethod
    def _derivatives(made: Tensor, inputs: list[Tensor]) -> Tensor:
        found = torch.autograd.grad(
            made, inputs, torch.ones_like(made), retain_graph=True,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return torch.stack(found, 1)

    def end(self, rows: Rows) -> None:
        """Past a row's end nothing reaches the gates, and dc is handed on, untouched."""
        over = ~rows.alive.unsqueeze(1)  # (T, 1, B, 1)
        self.by_h.masked_fill_(over, 0)
        self.by_c.masked_fill_(over, 0)
        self.by_c[:, -1:].masked_fill_(over, 1)

    def weight_gradient(self, d_made: Tensor, rows: Rows | None) -> Tensor | None:
        """(Q, H), from the gradients (T, B, H) that reached h and c; None if there is no weight."""
        if not self._weights:
            return None
        if rows is not None:
            d_made.masked_fill_(~rows.alive, 0)
        used = [(m, d) for m, d in zip(self._made, d_made, strict=True) if m.requires_grad]
        found = torch.autograd.grad(
            [m for m, _ in used], self._weights, [d for _, d in used],
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return torch.stack(found)
