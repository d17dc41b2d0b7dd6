"""One layer written out in differentiable torch operations, step by step.

Slow, and only for derivatives of derivatives: where a backward pass is itself to be
differentiated (`create_graph=True`: gradient penalties, Hessian-vector products), the gradient is
taken of this form, whatever backend ran the forward pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.cell import cell_of
from fastrnn.products import project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import Layer


def run(layer: Layer) -> tuple[Tensor, ...]:
    """Output (T, B, G, P), h_n (G, B, P) and, with a cell state, c_n (G, B, H), cells (T, B, G, H).

    Of chained groups the output is that of the last, (T, B, 1, P).
    """
    if layer.weight_chain is not None:
        return _run_chain(layer, layer.weight_chain)
    gates_x = project(layer.x, layer.weight_ih, layer.bias)
    clip = _Clip(layer.error_clip)
    per_group = [_run_group(layer, gates_x[:, :, g], g, clip) for g in range(layer.groups)]
    output, h_n, c_n, cells = zip(*per_group, strict=True)
    made = [torch.stack(output, 2), torch.stack(h_n)]
    if layer.c0 is not None:
        made += [torch.stack(c_n), torch.stack(cells, 2)]
    clip.enter_by(made)
    return tuple(made)


class _Clip:
    """The bound on errors, of backward passes that come in by the layer's outputs.

    A pass that differentiates the gradient of another comes in by the steps, which that gradient
    is made of, and what it finds there has no bound of its own. What comes in by the outputs is
    clipped in such a pass, too: autograd does not say which of them differentiates another.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.task = -1

    def enter_by(self, outputs: Sequence[Tensor]) -> None:
        """A pass through one of these is one that clips."""
        for output in outputs if self.bound else ():
            if output.requires_grad:
                output.register_hook(self._enter)  # type: ignore[no-untyped-call] # torch leaves it unannotated

    def at(self, a: Tensor) -> None:
        """Bound the gradient of a pre-activation."""
        if self.bound and a.requires_grad:
            a.register_hook(self._clipped)  # type: ignore[no-untyped-call] # as above

    def _enter(self, _: Tensor) -> None:
        self.task = torch._C._current_graph_task_id()

    def _clipped(self, d_a: Tensor) -> Tensor:
        entered = self.task == torch._C._current_graph_task_id()
        return d_a.clamp(-self.bound, self.bound) if entered else d_a


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
        output, *final = run(one)[:3]
        x = output.squeeze(2)
        finals.append(final)
    return (output, *(torch.cat(states) for states in zip(*finals, strict=True)))


def _run_group(layer: Layer, gates_x: Tensor, g: int, clip: _Clip) -> tuple[Any, ...]:
    """Output (T, B, P), h_n, and c_n and cells (T, B, H), or None twice."""
    steps = gates_x.shape[0]
    h0, weight_hh = layer.h0[g], layer.weight_hh[g]
    c0 = None if layer.c0 is None else layer.c0[g]
    mask = None if layer.recurrent_mask is None else layer.recurrent_mask[g]
    h, c = h0, c0
    outputs: list[Tensor] = [h] * steps
    cells: list[Any] = [c] * steps
    for t in reversed(range(steps)) if layer.reverse[g] else range(steps):
        h_before, c_before = h, c
        if layer.resets is not None:
            starts = layer.resets[t].unsqueeze(1)
            h_before = torch.where(starts, h0, h)
            c_before = None if c is None or c0 is None else torch.where(starts, c0, c)
        masked = h_before if mask is None else mask * h_before
        a = gates_x[t] + masked @ weight_hh.mT
        clip.at(a)
        h_new, c_new = _step(layer, a, c_before, g)
        if layer.zoneout_h is not None:
            h_new = _mixed(layer.zoneout_h[t, :, g], h_before, h_new)
        if layer.zoneout_c is not None and c_before is not None and c_new is not None:
            c_new = _mixed(layer.zoneout_c[t, :, g], c_before, c_new)
        if layer.lengths is None:
            outputs[t], cells[t], h, c = h_new, c_new, h_new, c_new
            continue
        alive = (t < layer.lengths).unsqueeze(1)
        outputs[t], h = torch.where(alive, h_new, 0), torch.where(alive, h_new, h)
        if c is not None and c_new is not None:
            cells[t], c = torch.where(alive, c_new, 0), torch.where(alive, c_new, c)
    return torch.stack(outputs), h, c, None if c is None else torch.stack(cells)


def _mixed(kept: Tensor, before: Tensor, new: Tensor) -> Tensor:
    return kept * before + (1 - kept) * new


def _step(layer: Layer, a: Tensor, c: Tensor | None, g: int) -> tuple[Tensor, Tensor | None]:
    weights = () if layer.cell_weight is None else layer.cell_weight[g].unbind(0)
    before = a.new_zeros(()) if c is None else c
    h, c_new = cell_of(layer.cell).step(a.chunk(layer.gates, 1), before, weights)
    h = h if layer.weight_hr is None else h @ layer.weight_hr[g].mT
    return h, None if c is None else c_new
