"""Elman recurrence over one group: h(t) = f(gates_x(t) + W_hh h(t-1)), and its gradient.

Elman, "Finding structure in time", 1990; the gradient is backpropagation through time.
"""

from __future__ import annotations

from functools import partial
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


_aten = torch.ops.aten
GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "rnn_tanh": _aten.tanh_backward.grad_input,
    "rnn_relu": partial(_aten.threshold_backward.grad_input, threshold=0),
    "rnn_sigmoid": _aten.sigmoid_backward.grad_input,
}
"""dh f'(a), written in terms of f(a): 1 - f^2, f > 0, f (1 - f)."""


def forward(
    group: Group, gates_x: Tensor, output: Tensor | None, activated: Tensor | None
) -> Tensor:
    """Fill `output` (T, B, H) and return h_n (B, H).

    Args:
        group: weights, initial state and options.
        gates_x: (T, B, H), W_ih x + b of every step.
        output: (T, B, H), written; zero past a row's length. None: nobody reads it.
        activated: (T, B, H), written: f(a) of every step, which zoneout keeps apart from h. None
            if nobody reads it.
    """
    activation, weight = ACTIVATIONS[group.cell], group.weight_hh.mT
    add = add_product(weight)
    rows = Rows.of(group, gates_x)
    every_start = starting_steps(group, rows, gates_x)
    h = h_n = h0 = group.h0
    entering = starting_states(h0, every_start)
    if _is_plain(group) and output is not None:
        for a, h_new, starts, own_h0 in in_order(
            group.reverse, gates_x, output, every_start, entering
        ):
            h = activation(add(a, restarted(h, starts, own_h0), weight, out=h_new))
    else:
        ends = None if rows is None or output is not None else rows.ends()
        for a, h_out, f_out, kept, starts, own_h0, is_last in in_order(
            group.reverse, gates_x, output, activated, group.zoneout_h, every_start, entering, ends
        ):
            h_before = restarted(h, starts, own_h0)
            f_a = activation(add(a, hidden_from(h_before, group.recurrent_mask), weight))
            if f_out is not None:
                f_out.copy_(f_a)
            h = mixed(kept, h_before, f_a)
            if h_out is not None:
                h_out.copy_(h)
            if is_last is not None:
                h_n = torch.where(is_last, h, h_n)
    if rows is None:
        return h
    if output is None:
        return h_n
    return rows.final(rows.zero_past_(output), h0)


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
    gradient, weight_hh, bound = GRADIENTS[group.cell], group.weight_hh, group.error_clip
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
    if _is_plain(group):
        d_later = None
        for d_out, f_t, d_gate, starts in in_order(
            not group.reverse, d_outputs, f_a, d_gates, every_start
        ):
            d_h = d_h + d_out if d_later is None else add(d_out, d_later, weight_hh)
            d_later = not_started(clipped_(gradient(d_h, f_t, grad_input=d_gate), bound), starts)
        if not wants_h0:
            return d_h0
        d_first = of_first_steps(d_gates, group.lengths, group.resets, group.reverse)
        return add(d_h0, d_first, weight_hh)
    for d_out, f_t, d_gate, kept, starts in in_order(
        not group.reverse, d_outputs, f_a, d_gates, group.zoneout_h, every_start
    ):
        d_new, d_kept = split(kept, d_h + d_out)
        clipped_(gradient(d_new, f_t, grad_input=d_gate), bound)
        d_h = plus(hidden_from(d_gate @ weight_hh, group.recurrent_mask), d_kept)
        d_h0, d_h = started(d_h, starts, d_h0), not_started(d_h, starts)
    return d_h0 + d_h


def _is_plain(group: Group) -> bool:
    """Whether every step is the formula above and nothing else."""
    return group.recurrent_mask is None and group.zoneout_h is None
