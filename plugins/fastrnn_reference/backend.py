"""The reference as a backend: every cell, dtype, device and length; one Python step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.backend import LayerOutput, OutputGradients, Recurrence, RecurrenceBackend
from fastrnn_reference import chain, cost, elman, lstm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import Layer, Wanted
    from fastrnn.request import Cost, Request


class ReferenceBackend(RecurrenceBackend):
    """Plain torch, one group and one step at a time; float64 able."""

    name = "reference"
    contract = 1
    resets = True
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
        steps, batch = gates_x.shape[:2]
        groups, size = layer.groups, layer.h0.shape[-1]
        final_only = layer.final_only and not layer.save
        if final_only and layer.c0 is None:
            h_n = [
                elman.final(
                    layer.cell, gates_x[:, :, g], weight_hh[g], layer.h0[g], layer.lengths,
                    layer.resets, layer.reverse[g],
                )
                for g in range(groups)
            ]  # fmt: skip
            nothing = gates_x.new_empty((0, batch, groups, size))
            return LayerOutput(nothing, torch.stack(h_n), None, ())
        # what nobody reads later is that of one step, written over by the next
        output = gates_x.new_empty((1 if final_only else steps, batch, groups, size))
        if layer.c0 is None:
            h_n = [
                elman.forward(
                    layer.cell, gates_x[:, :, g], weight_hh[g], layer.h0[g], layer.lengths,
                    layer.resets, layer.reverse[g], output[:, :, g],
                )
                for g in range(groups)
            ]  # fmt: skip
            return LayerOutput(output, torch.stack(h_n), None, ())
        kept = steps if layer.save else 1
        gates = torch.empty_like(gates_x[:kept], memory_format=torch.contiguous_format)
        cells = gates_x.new_empty((kept, batch, groups, layer.hidden_size))
        states = [
            lstm.forward(
                gates_x[:, :, g], weight_hh[g],
                None if layer.weight_hr is None else layer.weight_hr[g],
                layer.h0[g], layer.c0[g], layer.lengths, layer.resets, layer.reverse[g],
                output[:, :, g].expand(steps, -1, -1),
                gates[:, :, g].expand(steps, -1, -1), cells[:, :, g].expand(steps, -1, -1),
            )
            for g in range(groups)
        ]  # fmt: skip
        h_ns, c_ns = zip(*states, strict=True)
        saved = (gates, cells) if layer.save else ()
        output = output[:0] if final_only else output
        return LayerOutput(output, torch.stack(h_ns), torch.stack(c_ns), saved)

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
        d_output, d_h_n, d_c_n = grad

        def group(tensor: Tensor | None, dim: int, g: int) -> Tensor | None:
            return None if tensor is None else tensor.select(dim, g)

        if layer.c0 is None:
            d_h0 = [
                elman.backward(
                    layer.cell, group(d_output, 2, g), group(d_h_n, 0, g), weight_hh[g],
                    output[:, :, g], layer.lengths, layer.resets, layer.reverse[g], wanted.h0,
                    d_gates[:, :, g],
                )
                for g in range(groups)
            ]  # fmt: skip
            return Recurrence(d_gates, torch.stack(d_h0) if wanted.h0 else None, None)
        gates, cells = saved[:2]
        per_group = [
            lstm.backward(
                group(d_output, 2, g), group(d_h_n, 0, g), group(d_c_n, 0, g), weight_hh[g],
                group(layer.weight_hr, 0, g), layer.c0[g], output[:, :, g], gates[:, :, g],
                cells[:, :, g], layer.lengths, layer.resets, layer.reverse[g], d_gates[:, :, g],
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
