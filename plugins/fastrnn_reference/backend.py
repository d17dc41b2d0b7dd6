"""The reference as a backend: every cell, dtype, device and length; one Python step at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.backend import LayerOutput, OutputGradients, Recurrence, RecurrenceBackend
from fastrnn.cell import BUILTIN, Cell, cell_of
from fastrnn.request import OPTIONS
from fastrnn_reference import chain, cost, custom, elman, lstm
from fastrnn_reference.time import Group, are_alike

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn.backend import Layer, Wanted
    from fastrnn.request import Cost, Request


class ReferenceBackend(RecurrenceBackend):
    """Plain torch, one step at a time, and one group, or all that are alike; float64 able."""

    name = "reference"
    contract = 1
    options = frozenset(OPTIONS)
    summary = "plain torch time steps and hand-written BPTT; any device, any float dtype"

    def runs_cell(self, cell: Cell) -> bool:
        """All of them have a step in torch's operations."""
        return True

    def can_run(self, request: Request) -> list[str]:
        """It runs whatever has floating-point numbers."""
        if not request.dtype.is_floating_point:
            return [f"dtype is {request.dtype}; needs a floating-point dtype"]
        return []

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_reference.cost`."""
        return cost.estimate(request)

    def saved_like(self, layer: Layer) -> tuple[Tensor, ...]:
        """As the base class; of a plugin's cell, pre-activations in place of gates, and always."""
        found = super().saved_like(layer)
        if layer.save and layer.c0 is None and layer.cell not in BUILTIN:
            shape = (*layer.x.shape[:2], *layer.weight_hh.shape[:2])
            return (layer.x.new_empty(shape),)
        return found

    def recurrence_forward(self, gates_x: Tensor, weight_hh: Tensor, layer: Layer) -> LayerOutput:
        """Run the time loop, a group after the other, or all that are alike at once."""
        if layer.weight_chain is not None:
            return chain.forward(self, gates_x, layer.weight_chain, layer)
        if layer.cell not in BUILTIN:
            return _custom_forward(gates_x, layer)
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
        """Run the time loop backwards, likewise."""
        if layer.weight_chain is not None:
            return chain.backward(self, grad, layer.weight_chain, layer, saved, wanted)
        steps, batch, groups, _ = output.shape
        d_gates = output.new_empty((steps, batch, groups, weight_hh.shape[1]))
        d_output, d_h_n, d_c_n, d_cells = grad
        if layer.cell not in BUILTIN:
            return _custom_backward(grad, layer, output, saved, d_gates)
        if layer.c0 is None:
            activated = saved[0] if layer.zoneout_h is not None else None
            d_h0 = [
                elman.backward(
                    group, own(d_output, 2), own(d_h_n, 0), own(output, 2), own(activated, 2),
                    wanted.h0, own(d_gates, 2),
                )
                for group, own in _parts(layer)
            ]  # fmt: skip
            return Recurrence(d_gates, _joined(d_h0) if wanted.h0 else None, None)
        cells, gates = saved[:2]
        per_part = [
            lstm.backward(
                group, own(d_output, 2), own(d_h_n, 0), own(d_c_n, 0), own(d_cells, 2),
                own(output, 2), own(gates, 2), own(cells, 2), own(d_gates, 2),
            )
            for group, own in _parts(layer)
        ]  # fmt: skip
        d_h0s, d_c0s, d_weight_hrs = zip(*per_part, strict=True)
        return Recurrence(
            d_gates,
            _joined(d_h0s),
            _joined(d_c0s),
            None if layer.weight_hr is None else torch.stack(d_weight_hrs),
        )


def _parts(layer: Layer) -> list[tuple[Group, Callable[[Any, int], Any]]]:
    """What is run one after another, each with what takes its part of a tensor from a layer's.

    The second argument is the dim of the groups: 0 of states, 2 of sequences.
    """
    if are_alike(layer):
        return [(Group.of_all(layer), _of_all)]
    return [(Group.of(layer, g), partial(_own, g=g)) for g in range(layer.groups)]


def _joined(states: Sequence[Tensor]) -> Tensor:
    """(G, B, N), of every group's or of all, which may lie in the output."""
    return torch.stack(tuple(states)) if states[0].dim() == 2 else states[0].clone()


def _of_all(tensor: Tensor | None, dim: int) -> Tensor | None:
    """(T, G, B, N) of (T, B, G, N); states as they are."""
    return tensor.transpose(1, 2) if tensor is not None and dim == 2 else tensor


def _own(tensor: Tensor | None, dim: int, g: int) -> Tensor | None:
    """That of group g."""
    return None if tensor is None else tensor.select(dim, g)


def _weights(layer: Layer, g: int) -> tuple[Tensor, ...]:
    """The cell's own weights of group g, Q tensors (H,)."""
    return () if layer.cell_weight is None else layer.cell_weight[g].unbind(0)


def _custom_forward(gates_x: Tensor, layer: Layer) -> LayerOutput:
    cell, final_only = cell_of(layer.cell), layer.final_only and not layer.save
    output = _for_steps(gates_x, not final_only, layer.h0.shape[2])
    pre = _for_steps(gates_x, layer.save, gates_x.shape[3])
    cells = None
    if layer.c0 is not None:
        cells = _for_steps(gates_x, layer.save or layer.all_states, layer.hidden_size)
    states = [
        custom.forward(
            cell, _weights(layer, g), Group.of(layer, g), gates_x[:, :, g], output[:, :, g],
            pre[:, :, g], _own(cells, 2, g),
        )
        for g in range(layer.groups)
    ]  # fmt: skip
    h_n, c_n = zip(*states, strict=True)
    return LayerOutput(
        output[:0] if final_only else output,
        torch.stack(h_n),
        None if cells is None else torch.stack(c_n),
        _saved(layer, pre, cells),
        cells if layer.all_states else None,
    )


def _saved(layer: Layer, gates: Tensor, cells: Tensor | None) -> tuple[Tensor, ...]:
    if not layer.save:
        return ()
    return (gates,) if cells is None or layer.all_states else (cells, gates)


def _custom_backward(
    grad: OutputGradients, layer: Layer, output: Tensor, saved: Sequence[Tensor], d_gates: Tensor
) -> Recurrence:
    cells, pre = saved[:2] if layer.c0 is not None else (None, saved[0])
    d_output, d_h_n, d_c_n, d_cells = grad
    per_group = [
        custom.backward(
            cell_of(layer.cell), _weights(layer, g), Group.of(layer, g), _own(d_output, 2, g),
            _own(d_h_n, 0, g), _own(d_c_n, 0, g), _own(d_cells, 2, g), output[:, :, g],
            pre[:, :, g], _own(cells, 2, g), d_gates[:, :, g],
        )
        for g in range(layer.groups)
    ]  # fmt: skip
    d_h0s, d_c0s, d_weights = zip(*per_group, strict=True)
    return Recurrence(
        d_gates,
        torch.stack(d_h0s),
        None if layer.c0 is None else torch.stack(d_c0s),
        d_cell_weight=None if layer.cell_weight is None else torch.stack(d_weights),
    )


def _for_steps(like: Tensor, by_anybody: bool, width: int) -> Tensor:
    """(T, B, G, width); what nobody reads later is that of one step, written over by the next."""
    steps, batch, groups, _ = like.shape
    made = like.new_empty((steps if by_anybody else 1, batch, groups, width))
    return made.expand(steps, -1, -1, -1)


def _elman_forward(gates_x: Tensor, layer: Layer) -> LayerOutput:
    output = gates_x.contiguous()  # outputs take the place of what they are made of
    activated = None
    if layer.save and layer.zoneout_h is not None:
        activated = torch.empty_like(output)
    final_only = layer.final_only and not layer.save
    h_n = [
        elman.forward(group, own(output, 2), own(activated, 2), final_only=final_only)
        for group, own in _parts(layer)
    ]
    return LayerOutput(output, _joined(h_n), None, () if activated is None else (activated,))


def _lstm_forward(gates_x: Tensor, c0: Tensor, layer: Layer) -> LayerOutput:
    final_only = layer.final_only and not layer.save
    zoned = layer.zoneout_h is not None or layer.zoneout_c is not None  # looks at the one before
    output = _for_steps(gates_x, zoned or not final_only, layer.h0.shape[2])
    cells = _for_steps(gates_x, zoned or layer.save or layer.all_states, c0.shape[2])
    gates = _for_steps(gates_x, layer.save, gates_x.shape[3])
    sequences = gates_x, output, gates, cells
    states = [
        lstm.forward(group, *(own(each, 2) for each in sequences)) for group, own in _parts(layer)
    ]
    h_n, c_n = zip(*states, strict=True)
    return LayerOutput(
        output[:0] if final_only else output,
        _joined(h_n),
        _joined(c_n),
        _saved(layer, gates, cells),
        cells if layer.all_states else None,
    )
