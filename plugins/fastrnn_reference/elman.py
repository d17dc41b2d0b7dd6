"""Elman recurrence over one group: h(t) = f(gates_x(t) + W_hh h(t-1)), and its gradient.

Elman, "Finding structure in time", 1990; the gradient is backpropagation through time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from fastrnn_reference.time import (
    alive_steps,
    in_order,
    output_gradients,
    restarted,
    starting_steps,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

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
"""dh f'(a), written in terms of h = f(a): 1 - h^2, h > 0, h (1 - h)."""


def forward(
    cell: str,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    output: Tensor,
) -> Tensor:
    """Fill `output` (T, B, H) and return h_n (B, H).

    Args:
        cell: `rnn_tanh`, `rnn_relu` or `rnn_sigmoid`.
        gates_x: (T, B, H), W_ih x + b of every step.
        weight_hh: (H, H).
        h0: (B, H).
        lengths: (B,) or None.
        resets: (T, B) or None.
        reverse: whether time runs from T-1 to 0.
        output: (T, B, H), written; zero past a row's length.
    """
    activation, weight = ACTIVATIONS[cell], weight_hh.mT
    h = h0
    alive = alive_steps(lengths, gates_x)
    every_start = starting_steps(resets, alive)
    if alive is None:
        for a, h_new, starts in in_order(reverse, gates_x, output, every_start):
            torch.addmm(a, restarted(h, h0, starts), weight, out=h_new)
            h = activation(h_new)
        return h
    for a, h_out, is_alive, starts in in_order(reverse, gates_x, output, alive, every_start):
        h_new = activation(torch.addmm(a, restarted(h, h0, starts), weight))
        h = torch.where(is_alive, h_new, h)
        h_out.copy_(h_new.masked_fill_(~is_alive, 0))
    return h


def final(
    cell: str,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Return h_n (B, H) and keep no other step; arguments as for `forward`."""
    activation, weight = ACTIVATIONS[cell], weight_hh.mT
    h = h0
    alive = alive_steps(lengths, gates_x)
    for a, is_alive, starts in in_order(reverse, gates_x, alive, starting_steps(resets, alive)):
        h_new = activation(torch.addmm(a, restarted(h, h0, starts), weight))
        h = h_new if is_alive is None else torch.where(is_alive, h_new, h)
    return h


def backward(
    cell: str,
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    weight_hh: Tensor,
    output: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    wants_h0: bool,
    d_gates: Tensor,
) -> Tensor:
    """Fill `d_gates` (T, B, H) and return dL/dh0 (B, H), which means nothing unless wanted.

    dL/dh(t) = dL/doutput(t) + W_hh^T dgates(t+1), and dgates(t) = f'(a(t)) dL/dh(t): one matrix
    product and one point-wise product a step.

    Args:
        cell: `rnn_tanh`, `rnn_relu` or `rnn_sigmoid`.
        d_output: (T, B, H) or None.
        d_h_n: (B, H) or None.
        weight_hh: (H, H).
        output: (T, B, H), the forward's.
        lengths: (B,) or None.
        resets: (T, B) or None.
        reverse: the forward's.
        wants_h0: whether dL/dh0 is worth a matrix product.
        d_gates: (T, B, H), written; zero past a row's length.
    """
    gradient = GRADIENTS[cell]
    d_outputs = output_gradients(d_output, output)
    d_h = torch.zeros_like(output[0]) if d_h_n is None else d_h_n
    if lengths is None and resets is None:
        d_later = None
        for d_out, h, d_gate in in_order(not reverse, d_outputs, output, d_gates):
            d_h = d_h + d_out if d_later is None else torch.addmm(d_out, d_later, weight_hh)
            d_later = gradient(d_h, h, grad_input=d_gate)
        assert d_later is not None
        return d_later @ weight_hh if wants_h0 else d_later
    alive = alive_steps(lengths, output)
    every_start = starting_steps(resets, alive)
    d_h0 = torch.zeros_like(d_h)
    for d_out, h, d_gate, is_alive, starts in in_order(
        not reverse, d_outputs, output, d_gates, alive, every_start
    ):
        gradient(d_h + d_out, h, grad_input=d_gate)
        if is_alive is None:
            d_h = d_gate @ weight_hh
        else:
            # a row that is past its end hands the gradient of its state on, untouched
            d_h = torch.where(is_alive, d_gate.masked_fill_(~is_alive, 0) @ weight_hh, d_h)
        if starts is not None:
            # a step that started over leaves nothing to the one before
            d_h0 += d_h.masked_fill(~starts, 0)
            d_h = d_h.masked_fill(starts, 0)
    return d_h0 + d_h
