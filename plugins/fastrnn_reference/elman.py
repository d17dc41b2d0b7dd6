"""Elman recurrence over one group: h(t) = f(gates_x(t) + W_hh h(t-1)), and its gradient.

Elman, "Finding structure in time", 1990; the gradient is backpropagation through time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.products import of_first_steps
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
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn_reference.time import Group

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rnn_tanh": torch.tanh_,
    "rnn_relu": torch.relu_,
    "rnn_sigmoid": torch.sigmoid_,
}
"""f, in place."""

SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rnn_tanh": lambda f, out: torch.addcmul(f.new_ones(()), f, f, value=-1, out=out),
    "rnn_sigmoid": lambda f, out: torch.sub(f.new_ones(()), f, out=out).mul_(f),
}
"""f'(a) in terms of f(a), written to `out`: 1 - f^2 and f (1 - f)."""
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


def forward(
    group: Group, sequence: Tensor, activated: Tensor | None, *, final_only: bool
) -> Tensor:
    """Make the outputs of gates_x, in place, and return h_n (B, H).

    Args:
        group: weights, initial state and options.
        sequence: (T, B, H), W_ih x + b of every step; h after each step is written over it, zero
            past a row's length.
        activated: (T, B, H), written: f(a) of every step, which zoneout keeps apart from h. None
            if nobody reads it.
        final_only: nobody reads the outputs, which need not be zero anywhere.
    """
    activation, weight = ACTIVATIONS[group.cell], group.weight_hh.mT
    add_ = torch.Tensor.addmm_ if weight.dim() == 2 else torch.Tensor.baddbmm_
    rows = Rows.of(group, sequence)
    every_start = starting_steps(group, rows, sequence)
    h = h0 = group.h0
    entering = starting_states(h0, every_start)
    for a, f_out, kept, starts, own_h0 in in_order(
        group.reverse, sequence, activated, group.zoneout_h, every_start, entering
    ):
        h_before = restarted(h, starts, own_h0)
        h = activation(add_(a, hidden_from(h_before, group.recurrent_mask), weight))
        if f_out is not None:
            f_out.copy_(h)
        if kept is not None:
            h.copy_(mixed(kept, h_before, h))
    if rows is None:
        return h
    return rows.final(sequence if final_only else rows.zero_past_(sequence), h0)


def backward(
    group: Group,
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    output: Tensor,
    activated: Tensor | None,
    wants_h0: bool,
    d_gates: Tensor,
) -> Tensor:
    """Fill `d_gates` (T, B, H) and return dL/dh0 (B, H), which means nothing unless wanted.

    dL/dh(t) = dL/doutput(t) + W_hh^T dgates(t+1), and dgates(t) = f'(a(t)) dL/dh(t): one matrix
    product and one point-wise product a step.

    Args:
        group: the forward's.
        d_output: (T, B, H) or None.
        d_h_n: (B, H) or None.
        output: (T, B, H), the forward's.
        activated: (T, B, H), the forward's; None where that is the output.
        wants_h0: whether dL/dh0 is worth a matrix product.
        d_gates: (T, B, H), written; zero past a row's length.
    """
    weight_hh, bound = group.weight_hh, group.error_clip
    add = add_product(weight_hh)
    f_a = output if activated is None else activated
    d_outputs = output_gradients(d_output, output)
    d_h = d_h0 = torch.zeros_like(output[0])
    rows = Rows.of(group, output)
    if rows is None:
        d_h = d_h if d_h_n is None else d_h_n
    else:
        d_outputs = rows.zero_past_(d_outputs.clone())
        d_h0 = d_h0 if d_h_n is None else rows.inject(d_h_n, d_outputs)
    every_start = starting_steps(group, rows, output)
    through = _gradient(group.cell, f_a, d_gates)
    if group.recurrent_mask is None and group.zoneout_h is None:
        d_later = None
        for d_out, f_t, d_gate, starts in in_order(
            not group.reverse, d_outputs, f_a, d_gates, every_start
        ):
            d_h = d_h + d_out if d_later is None else add(d_out, d_later, weight_hh)
            d_later = not_started(clipped_(through(d_gate, d_h, f_t), bound), starts)
        if not wants_h0:
            return d_h0
        d_first = of_first_steps(d_gates, group.lengths, group.resets, group.reverse)
        return add(d_h0, d_first, weight_hh)
    for d_out, f_t, d_gate, kept, starts in in_order(
        not group.reverse, d_outputs, f_a, d_gates, group.zoneout_h, every_start
    ):
        d_new, d_kept = split(kept, d_h + d_out)
        clipped_(through(d_gate, d_new, f_t), bound)
        d_h = plus(hidden_from(d_gate @ weight_hh, group.recurrent_mask), d_kept)
        d_h0, d_h = started(d_h, starts, d_h0), not_started(d_h, starts)
    return d_h0 + d_h


def _gradient(cell: str, f_a: Tensor, d_gates: Tensor) -> Callable[..., Tensor]:
    """What writes f'(a) dL/dh of a step to its part of `d_gates`, given that, dL/dh and f(a).

    The slopes of all steps are written there at once, so that a step only multiplies. Not those of
    relu: where it is 0 a gradient must end, though it be infinite.
    """
    if cell in SLOPES:
        SLOPES[cell](f_a, d_gates)
        return lambda d_gate, d_h, _: d_gate.mul_(d_h)
    return lambda d_gate, d_h, f_t: _threshold_backward(d_h, f_t, 0, grad_input=d_gate)
