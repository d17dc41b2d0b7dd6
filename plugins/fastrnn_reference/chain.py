"""Chained groups, one after another: group g + 1 takes the output of group g as its input.

Other backends run them at the same time; what comes of it is defined here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fastrnn.backend import LayerOutput, OutputGradients, Recurrence
from fastrnn.products import input_gradient, project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import Layer, RecurrenceBackend, Wanted


def forward(
    backend: RecurrenceBackend, gates_x: Tensor, weight_chain: Tensor, layer: Layer
) -> LayerOutput:
    """Run the time loops; saves the outputs of all groups before what each saves by itself."""
    made: list[LayerOutput] = []
    for g, one in enumerate(_groups(layer)):
        if g > 0:
            gates_x = project(made[-1].output[:, :, 0], weight_chain[g - 1 : g], one.bias)
        made.append(backend.recurrence_forward(gates_x, one.weight_hh, one))
    outputs, h_n, c_n, saved, _ = zip(*made, strict=True)
    return LayerOutput(
        outputs[-1],
        torch.cat(h_n),
        None if layer.c0 is None else torch.cat(c_n),
        (torch.cat(outputs, 2), *(torch.cat(parts, 2) for parts in zip(*saved, strict=True)))
        if layer.save
        else (),
    )


def backward(
    backend: RecurrenceBackend,
    grad: OutputGradients,
    weight_chain: Tensor,
    layer: Layer,
    saved: Sequence[Tensor],
    wanted: Wanted,
) -> Recurrence:
    """Run the time loops backwards, from the last group to the first."""
    outputs, *rest = saved
    d_output = grad.output
    made: list[Recurrence] = []
    for g, one in reversed(list(enumerate(_groups(layer)))):
        own = slice(g, g + 1)
        own_grad = OutputGradients(
            d_output,
            None if grad.h_n is None else grad.h_n[own],
            None if grad.c_n is None else grad.c_n[own],
        )
        own_saved = () if layer.c0 is None else [each[:, :, own] for each in rest[:2]]
        below = backend.recurrence_backward(
            own_grad, one.weight_hh, one, outputs[:, :, own], own_saved, wanted
        )
        made.insert(0, below)
        if g > 0:
            x = outputs[:, :, g - 1]
            d_output = input_gradient(below.d_gates, weight_chain[g - 1 : g], x).unsqueeze(2)
    d_gates, d_h0, d_c0, *_ = zip(*made, strict=True)
    return Recurrence(
        torch.cat(d_gates, 2),
        torch.cat(d_h0) if wanted.h0 else None,
        None if layer.c0 is None else torch.cat(d_c0),
    )


def _groups(layer: Layer) -> list[Layer]:
    """Each group as a layer of its own. Those below are read by those above, whoever else does."""
    return [
        replace(
            layer,
            weight_hh=layer.weight_hh[own],
            bias=None if layer.bias is None else layer.bias[own],
            h0=layer.h0[own],
            c0=None if layer.c0 is None else layer.c0[own],
            reverse=layer.reverse[own],
            final_only=layer.final_only and own.stop == layer.groups,
            weight_chain=None,
        )
        for own in (slice(g, g + 1) for g in range(layer.groups))
    ]
