"""LSTM recurrence over one group, and its gradient.

With a(t) = gates_x(t) + W_hh h(t-1), split into the gates i, f, g, o:

    i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)
    c(t) = f c(t-1) + i g
    h(t) = o tanh(c(t)), or W_hr (o tanh(c(t))) with a projection

Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al.,
2000; the projection is Sak et al., 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from fastrnn import select
from fastrnn.products import entering
from fastrnn_reference.time import (
    Rows,
    add_product,
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
    from torch import Tensor

    from fastrnn_reference.time import Group


def forward(
    group: Group, gates_x: Tensor, output: Tensor, gates: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill `output` (T, B, P), `gates` (T, B, 4H) and `cells` (T, B, H); return h_n, c_n.

    Args:
        group: weights, initial states and options.
        gates_x: (T, B, 4H), W_ih x + b of every step.
        output: written; zero past a row's length. Of stride 0 in time if only the last step is of
            use, and so are the next two.
        gates: written; the activated gates.
        cells: written; c after each step, zero past a row's length.
    """
    h0, c0 = group.h0, group.c0
    assert c0 is not None
    hidden, weight = c0.shape[-1], group.weight_hh.mT
    add = add_product(weight)
    rows = Rows.of(group, gates_x)
    keeps_h, keeps_c = output.stride(0) > 0, cells.stride(0) > 0
    ends = None if rows is None or (keeps_h and keeps_c) else rows.ends()
    h, c = h_n, c_n = h0, c0
    every_start = starting_steps(group, rows, gates_x)
    for a, gate, c_new, h_new, h_kept, c_kept, starts, own_h0, own_c0, is_last in in_order(
        group.reverse, gates_x, gates, cells, output, group.zoneout_h, group.zoneout_c,
        every_start, starting_states(h0, every_start), starting_states(c0, every_start), ends,
    ):  # fmt: skip
        h_before, c_before = restarted(h, starts, own_h0), restarted(c, starts, own_c0)
        add(a, hidden_from(h_before, group.recurrent_mask), weight, out=gate)
        gate[..., : 2 * hidden].sigmoid_()  # i and f in one go
        i, f, g, o = gate.chunk(4, -1)
        torch.mul(f, c_before, out=c_new).addcmul_(i, g.tanh_())
        if group.weight_hr is None:
            torch.mul(o.sigmoid_(), c_new.tanh(), out=h_new)
        else:
            torch.mm(o.sigmoid_() * c_new.tanh(), group.weight_hr.mT, out=h_new)
        if h_kept is not None:
            h_new.copy_(mixed(h_kept, h_before, h_new))
        if c_kept is not None:
            c_new.copy_(mixed(c_kept, c_before, c_new))
        h, c = h_new, c_new
        if is_last is not None:
            h_n = h_n if keeps_h else torch.where(is_last, h, h_n)
            c_n = c_n if keeps_c else torch.where(is_last, c, c_n)
    if rows is None:
        return h, c
    if keeps_h:
        h_n = rows.final(rows.zero_past_(output), h0)
    if keeps_c:
        c_n = rows.final(rows.zero_past_(cells), c0)
    return h_n, c_n


class Gradients(NamedTuple):
    """What `backward` returns beside the `d_gates` it fills."""

    d_h0: Tensor
    """(B, P)"""
    d_c0: Tensor
    """(B, H)"""
    d_weight_hr: Tensor | None
    """(P, H)"""


def backward(
    group: Group,
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    d_cells: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    d_gates: Tensor,
) -> Gradients:
    """Fill `d_gates` (T, B, 4H).

    With dh(t) the gradient that reaches o tanh(c), the loop is

        dc(t) = dL/dcells(t) + dh(t) o (1 - tanh(c)^2) + f(t+1) dc(t+1)
        dgates(t) = [dc g i(1-i), dc c(t-1) f(1-f), dc i (1-g^2), dh tanh(c) o(1-o)]

    whose factors on the right depend on no gradient: they are formed for all steps before it.

    Args:
        group: the forward's.
        d_output: (T, B, P) or None.
        d_h_n: (B, P) or None.
        d_c_n: (B, H) or None.
        d_cells: (T, B, H) or None.
        output: (T, B, P), the forward's.
        gates: (T, B, 4H), the forward's.
        cells: (T, B, H), the forward's.
        d_gates: written; zero past a row's length.
    """
    c0, weight_hh, weight_hr = group.c0, group.weight_hh, group.weight_hr
    assert c0 is not None
    hidden = cells.shape[-1]
    i, f, g, o = gates.chunk(4, -1)
    c_before = entering(cells, c0, group.lengths, group.resets, group.reverse)
    # with zoneout, what the cell made is not what was kept
    tanh_c = (cells if group.zoneout_c is None else f * c_before + i * g).tanh()
    factors = torch.stack(
        (g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)), -2
    )  # (T, B, 4, H)
    through_o = o * (1 - tanh_c * tanh_c)
    d_outputs = output_gradients(d_output, output)
    d_h, d_c = torch.zeros_like(output[0]), torch.zeros_like(c0) if d_c_n is None else d_c_n
    d_h0, d_c0 = torch.zeros_like(d_h), torch.zeros_like(d_c)
    rows = Rows.of(group, cells)
    if rows is None:
        d_h = d_h if d_h_n is None else d_h_n
    else:
        rows.zero_past_(factors.flatten(2))
        rows.zero_past_(through_o)
        f = select.put_(f.clone(), ~rows.alive.squeeze(2), torch.ones_like(c0))  # hands dc on
        d_outputs = rows.zero_past_(d_outputs.clone())
        d_cells = None if d_cells is None else rows.zero_past_(d_cells.clone())
        d_h0 = d_h0 if d_h_n is None else rows.inject(d_h_n, d_outputs)

    # kept for dW_hr, one product after the loop
    d_projected = torch.empty_like(output) if weight_hr is not None else output
    for d_out, d_cell, factor, dc_dh, f_t, d_gate, d_proj, h_kept, c_kept, starts in in_order(
        not group.reverse, d_outputs, d_cells, factors, through_o, f, d_gates, d_projected,
        group.zoneout_h, group.zoneout_c, starting_steps(group, rows, cells),
    ):  # fmt: skip
        d_h_here, d_h_kept = split(h_kept, d_h + d_out)
        d_c_here, d_c_kept = split(c_kept, plus(d_c, d_cell))
        if weight_hr is not None:
            d_proj.copy_(d_h_here)
            d_h_here = d_h_here @ weight_hr
        d_c_here = torch.addcmul(d_c_here, d_h_here, dc_dh)
        by_gate = d_gate.unflatten(-1, (4, hidden))
        torch.mul(factor[..., :3, :], d_c_here.unsqueeze(-2), out=by_gate[..., :3, :])
        torch.mul(factor[..., 3, :], d_h_here, out=by_gate[..., 3, :])
        clipped_(d_gate, group.error_clip)
        d_h = plus(hidden_from(d_gate @ weight_hh, group.recurrent_mask), d_h_kept)
        d_c = plus(d_c_here * f_t, d_c_kept)
        d_h0, d_h = started(d_h, starts, d_h0), not_started(d_h, starts)
        d_c0, d_c = started(d_c, starts, d_c0), not_started(d_c, starts)
    d_h0, d_c0 = d_h0 + d_h, d_c0 + d_c
    if weight_hr is None:
        return Gradients(d_h0, d_c0, None)
    projected_from = o * tanh_c
    if rows is not None:
        rows.zero_past_(projected_from)
    d_weight_hr = d_projected.flatten(0, 1).mT @ projected_from.flatten(0, 1)
    return Gradients(d_h0, d_c0, d_weight_hr)
