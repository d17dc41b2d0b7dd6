"""The reference as a backend: every cell, dtype, device and length; one Python step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.backend import LayerOutput, OutputGradients, Recurrence, RecurrenceBackend
from fastrnn.request import OPTIONS
from fastrnn_reference import chain, cost, elman, lstm
from fastrnn_reference.time import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import Layer, Wanted
    from fastrnn.request import Cost, Request


class ReferenceBackend(RecurrenceBackend):
    """Plain torch, one group and one step at a time; float64 able."""

    name = "reference"
    contract = 1
    options = frozenset(OPTIONS)
    summary = "plain torch time steps and hand-written BPTT; any device, any float dtype"

    def can_run(self, request: Request) -> list[str]:
        """It runs whatever has floating-point numbers."""
        if not request.dtype.is_floating_point:
            return [f"dtype is {request.dtype}; needs a floating-point dtype"]
        return []

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_reference.cost`."""
        return cost.estimate(request)

    def recurrence_forward(self, gates_x: Tensor, weight_hh: Tensor, layer: Layer) -> LayerOutput:
        """Run the time loop, a group after the other."""
        if layer.weight_chain is not None:
            return chain.forward(self, gates_x, layer.weight_chain, layer)
        if layer.c0 is None:
            return _elman_forward(gates_x, layer)
        return _lstm_forward(gates_x, layer.c0, layer)

    def recurrence_backward(
        self,
        grad: OutputGradients,
        weight_hh: Tensor,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> Recurrence:
        """Run the time loop backwards, a group after the other."""
        if layer.weight_chain is not None:
            return chain.backward(self, grad, layer.weight_chain, layer, saved, wanted)
        steps, batch, groups, _ = output.shape
        d_gates = output.new_empty((steps, batch, groups, weight_hh.shape[1]))
        d_output, d_h_n, d_c_n, d_cells = grad

        def own(tensor: Tensor | None, dim: int, g: int) -> Tensor | None:
            return None if tensor is None else tensor.select(dim, g)

        if layer.c0 is None:
            activated = saved[0] if layer.zoneout_h is not None else None
            d_h0 = [
                elman.backward(
                    Group.of(layer, g), own(d_output, 2, g), own(d_h_n, 0, g), output[:, :, g],
                    own(activated, 2, g), wanted.h0, d_gates[:, :, g],
                )
                for g in range(groups)
            ]  # fmt: skip
            return Recurrence(d_gates, torch.stack(d_h0) if wanted.h0 else None, None)
        cells, gates = saved[:2]
        per_group = [
            lstm.backward(
                Group.of(layer, g), own(d_output, 2, g), own(d_h_n, 0, g), own(d_c_n, 0, g),
                own(d_cells, 2, g), output[:, :, g], gates[:, :, g], cells[:, :, g],
                d_gates[:, :, g],
            )
            for g in range(groups)
        ]  # fmt: skip
        d_h0s, d_c0s, d_weight_hrs = zip(*per_group, strict=True)
        return Recurrence(
            d_gates,
            torch.stack(d_h0s),
            torch.stack(d_c0s),
            None if layer.weight_hr is None else torch.stack(d_weight_hrs),
        )


def _elman_forward(gates_x: Tensor, layer: Layer) -> LayerOutput:
    steps, batch, groups, size = gates_x.shape
    final_only = layer.final_only and not layer.save
    output = gates_x.new_empty((0 if final_only else steps, batch, groups, size))
    activated = None
    if layer.save and layer.zoneout_h is not None:
        activated = torch.empty_like(output)
    h_n = [
        elman.forward(
            Group.of(layer, g), gates_x[:, :, g], None if final_only else output[:, :, g],
            None if activated is None else activated[:, :, g],
        )
        for g in range(groups)
    ]  # fmt: skip
    return LayerOutput(output, torch.stack(h_n), None, () if activated is None else (activated,))


def _lstm_forward(gates_x: Tensor, c0: Tensor, layer: Layer) -> LayerOutput:
    steps, batch, groups, _ = gates_x.shape
    final_only = layer.final_only and not layer.save

    def kept(by_anybody: bool, width: int) -> Tensor:
        # what nobody reads later is that of one step, written over by the next
        made = gates_x.new_empty((steps if by_anybody else 1, batch, groups, width))
        return made.expand(steps, -1, -1, -1)

    zoned = layer.zoneout_h is not None or layer.zoneout_c is not None  # looks at the one before
    output = kept(zoned or not final_only, layer.h0.shape[2])
    cells = kept(zoned or layer.save or layer.all_states, c0.shape[2])
    gates = kept(layer.save, gates_x.shape[3])
    states = [
        lstm.forward(
            Group.of(layer, g), gates_x[:, :, g], output[:, :, g], gates[:, :, g], cells[:, :, g]
        )
        for g in range(groups)
    ]
    h_n, c_n = zip(*states, strict=True)
    return LayerOutput(
        output[:0] if final_only else output,
        torch.stack(h_n),
        torch.stack(c_n),
        ((gates,) if layer.all_states else (cells, gates)) if layer.save else (),
        cells if layer.all_states else None,
    )
