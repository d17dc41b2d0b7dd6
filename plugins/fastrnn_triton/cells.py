"""Cells of plugins: their Triton functions, and the gradient of weights that are a cell's own."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from fastrnn.cell import BUILTIN, cell_of
from fastrnn.products import entering

if TYPE_CHECKING:
    from torch import Tensor

    from fastrnn.backend import Cell, Layer
    from fastrnn.request import Request
    from fastrnn_kernels import Cell as KernelCell

GATES = (1, 2, 4)
"""What the kernels' tiles can be cut into."""


def reasons_against(request: Request) -> list[str]:
    """Why a request's cell cannot be fused; empty if it can."""
    cell = cell_of(request.cell)
    if cell.name in BUILTIN:
        return []
    reasons = []
    if not cell.kernel:
        reasons.append(f"the cell {cell.name} names no Triton functions")
    if cell.gates not in GATES:
        reasons.append(f"the cell {cell.name} has {cell.gates} gates; kernels take 1, 2 or 4")
    if cell.weights and not cell.has_cell_state:
        reasons.append(
            f"the cell {cell.name} has weights and no cell state: the kernels save nothing to form "
            "their gradient from"
        )
    if cell.weights and request.error_clip:
        reasons.append(
            f"error_clip was asked for; the kernels form the gradient of {cell.name}'s own weights "
            "after the clip, so that it would be clipped, too"
        )
    return reasons


def kernel_cell(name: str) -> str | KernelCell:
    """What `fastrnn_kernels` takes for the cell: its name, or of a plugin's its functions.

    Raises:
        TypeError: `Cell.kernel` names something else.
        ValueError: it names another kind of cell.
    """
    return name if name in BUILTIN else _imported(cell_of(name))


@lru_cache(maxsize=64)
def _imported(cell: Cell) -> KernelCell:
    from fastrnn_kernels import Cell as KernelCell

    module, _, attribute = cell.kernel.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, KernelCell):
        raise TypeError(
            f"{cell.kernel} should be a fastrnn_kernels.Cell, got: {type(found).__name__}"
        )
    kind = (found.gates, found.has_cell_state, found.weights)
    if kind != (cell.gates, cell.has_cell_state, cell.weights):
        raise ValueError(
            f"{cell.kernel}: got gates, has_cell_state, weights {kind}, expected those of the cell "
            f"{cell.name}, {(cell.gates, cell.has_cell_state, cell.weights)}"
        )
    return found


def weight_gradient(
    layer: Layer, d_gates: Tensor, gates: Tensor, cells: Tensor, made: Tensor | None
) -> Tensor:
    """Of a layer's `cell_weight`, (G, Q, H): sums over T and B, in float32 or wider.

    Args:
        layer: of a cell with weights of its own.
        d_gates: (T, B, G, K*H), zero past a row's length.
        gates: (T, B, G, K*H), as saved.
        cells: (T, B, G, H), as saved.
        made: (T, B, G, H), what c was before zoneout kept some of it back; None if it did not.
    """
    cell = kernel_cell(layer.cell)
    assert not isinstance(cell, str)
    assert cell.weight_grad is not None
    assert layer.c0 is not None
    wide = torch.float64 if cells.dtype == torch.float64 else torch.float32
    per_group = []
    for g, reverse in enumerate(layer.reverse):
        c = (cells if made is None else made)[:, :, g]
        c_prev = entering(cells[:, :, g], layer.c0[g], layer.lengths, layer.resets, reverse)
        found = cell.weight_grad(
            _by_gate(d_gates[:, :, g], cell.gates, wide),
            _by_gate(gates[:, :, g], cell.gates, wide),
            c.to(wide),
            c_prev.to(wide),
        )
        per_group.append(torch.stack([one.sum((0, 1)) for one in found]))
    return torch.stack(per_group).to(cells.dtype)


def _by_gate(tensor: Tensor, gates: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(part.to(dtype) for part in tensor.chunk(gates, 2))
