"""One layer written out in differentiable torch operations, step by step.

Slow, and only for derivatives of derivatives: where a backward pass is itself to be
differentiated (`create_graph=True`: gradient penalties, Hessian-vector products), the gradient is
taken of this form, whatever backend ran the forward pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fastrnn.products import project

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.backend import Layer

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rnn_tanh": torch.tanh,
    "rnn_relu": torch.relu,
    "rnn_sigmoid": torch.sigmoid,
}


def run(layer: Layer) -> tuple[Tensor, ...]:
    """Output (T, B, G, P), h_n (G, B, P) and, for an LSTM, c_n (G, B, H).

    Of chained groups the output is that of the last, (T, B, 1, P).
    """
    if layer.weight_chain is not None:
        return _run_chain(layer, layer.weight_chain)
    gates_x = project(layer.x, layer.weight_ih, layer.bias)
    per_group = [_run_group(layer, gates_x[:, :, g], g) for g in range(layer.groups)]
    outputs, *states = zip(*per_group, strict=True)
    return (torch.stack(outputs, 2), *(torch.stack(state) for state in states))


def _run_chain(layer: Layer, weight_chain: Tensor) -> tuple[Tensor, ...]:
    x, weight_ih = layer.x, layer.weight_ih
    finals = []
    for g in range(layer.groups):
        own = slice(g, g + 1)
        one = replace(
            layer,
            x=x,
            weight_ih=weight_ih if g == 0 else weight_chain[g - 1 : g],
            weight_hh=layer.weight_hh[own],
            bias=None if layer.bias is None else layer.bias[own],
            h0=layer.h0[own],
            c0=None if layer.c0 is None else layer.c0[own],
            reverse=layer.reverse[own],
            weight_chain=None,
        )
        output, *final = run(one)
        x = output.squeeze(2)
        finals.append(final)
    return (output, *(torch.cat(states) for states in zip(*finals, strict=True)))


def _run_group(layer: Layer, gates_x: Tensor, g: int) -> tuple[Tensor, ...]:
    steps = gates_x.shape[0]
    h0, weight_hh = layer.h0[g], layer.weight_hh[g]
    c0 = None if layer.c0 is None else layer.c0[g]
    h, c = h0, c0
    outputs: list[Tensor] = [h] * steps
    for t in reversed(range(steps)) if layer.reverse[g] else range(steps):
        h_before, c_before = h, c
        if layer.resets is not None:
            starts = layer.resets[t].unsqueeze(1)
            h_before = torch.where(starts, h0, h)
            c_before = None if c is None or c0 is None else torch.where(starts, c0, c)
        h_new, c_new = _step(layer, gates_x[t] + h_before @ weight_hh.mT, c_before, g)
        if layer.lengths is None:
            outputs[t], h, c = h_new, h_new, c_new
            continue
        alive = (t < layer.lengths).unsqueeze(1)
        outputs[t] = torch.where(alive, h_new, 0)
        h = torch.where(alive, h_new, h)
        c = None if c is None or c_new is None else torch.where(alive, c_new, c)
    output = torch.stack(outputs)
    return (output, h) if c is None else (output, h, c)


def _step(layer: Layer, a: Tensor, c: Tensor | None, g: int) -> tuple[Tensor, Tensor | None]:
    if c is None:
        return _ACTIVATIONS[layer.cell](a), None
    a_i, a_f, a_g, a_o = a.chunk(4, 1)
    c = a_f.sigmoid() * c + a_i.sigmoid() * a_g.tanh()
    h = a_o.sigmoid() * c.tanh()
    return (h if layer.weight_hr is None else h @ layer.weight_hr[g].mT), c
