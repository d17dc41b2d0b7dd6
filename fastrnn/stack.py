"""Layers x directions x dropout over a backend that runs one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.backend import Layer
from fastrnn.ops import layer_forward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.request import Spec


def run(
    spec: Spec,
    x: Tensor,
    hx: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None,
    dropout: float,
    precision: str,
    save: bool,
    backend: str,
    final_only: bool = False,
    recompute: int = 0,
) -> tuple[Tensor, ...]:
    """Run every layer in turn; the directions of a layer are one call with G = 2.

    Args:
        spec: the stack's static shape.
        x: (T, B, I).
        hx: (h0,) or (h0, c0), each (num_layers * directions, B, P or H).
        weights: flat, in torch's order.
        lengths: (B,) int64, or None.
        dropout: probability applied to every layer's output but the last's; 0 in eval mode.
        precision: `ieee`, `tf32` or `tf32x3`.
        save: whether a backward pass may follow.
        backend: the name of a `LayerBackend`.
        final_only: whether nobody reads the output.
        recompute: `Layer.recompute`.

    Returns:
        output (T, B, directions * P), h_n and, for an LSTM, c_n, shaped as in `hx`. With
        `final_only` the output is whatever the last layer returns there.
    """
    groups = spec.directions
    per_direction = len(weights) // (spec.num_layers * groups)
    reverse = (False, True)[:groups]
    h_n, c_n = [], []
    for layer in range(spec.num_layers):
        first = layer * groups
        own = weights[first * per_direction : (first + groups) * per_direction]
        # the same kind of weight of every direction, (G, ...)
        stacked = [_stack(own[kind::per_direction]) for kind in range(per_direction)]
        states = [state[first : first + groups] for state in hx]
        output, h_last, c_last = layer_forward(
            Layer(
                cell=spec.cell,
                x=x,
                weight_ih=stacked[0],
                weight_hh=stacked[1],
                bias=_summed_bias(own, per_direction) if spec.bias else None,
                h0=states[0],
                c0=states[1] if len(states) == 2 else None,
                weight_hr=stacked[-1] if spec.proj_size else None,
                lengths=lengths,
                reverse=reverse,
                precision=precision,
                save=save,
                final_only=final_only and layer == spec.num_layers - 1,
                recompute=recompute,
            ),
            backend,
        )
        x = output.flatten(2)
        if dropout and layer < spec.num_layers - 1:
            x = torch.nn.functional.dropout(x, dropout, training=True)
        h_n.append(h_last)
        if c_last is not None:
            c_n.append(c_last)
    return (x, _join(h_n), _join(c_n)) if c_n else (x, _join(h_n))


def _summed_bias(own: Sequence[Tensor], per_direction: int) -> Tensor:
    """b_ih + b_hh of every direction, (G, K*H).

    Added before they are stacked: the gradients of a sum of stacked biases would be two views of
    one memory, and whoever scales or clips gradients in place would do so twice.
    """
    pairs = zip(own[2::per_direction], own[3::per_direction], strict=True)
    return _stack([b_ih + b_hh for b_ih, b_hh in pairs])


def _stack(per_group: Sequence[Tensor]) -> Tensor:
    return per_group[0].unsqueeze(0) if len(per_group) == 1 else torch.stack(tuple(per_group))


def _join(per_layer: list[Tensor]) -> Tensor:
    return per_layer[0] if len(per_layer) == 1 else torch.cat(per_layer)
