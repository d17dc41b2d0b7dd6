"""Checks of arguments. Errors name the one at fault, what came and what was expected.

All of them raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cells import CELLS, Cell
from .regularisers import Noise
from .sweep import INTERPRETED, TRITON_DTYPES

# Directions travel as the bits of an int64; the last bit speaks for all further groups.
MAX_MIXED_GROUPS = 63


def cell_of(cell: str | Cell) -> Cell:
    """The `Cell` itself, or the one of this name."""
    if isinstance(cell, Cell):
        return cell
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {sorted(CELLS)}, got {cell!r}")
    return CELLS[cell]


def sizes(
    cell: Cell, gates_x: Tensor, weight_hh: Tensor, chained: bool
) -> tuple[int, int, int, int]:
    """T, B, G, H, once gates_x and weight_hh are what they must be; G of weight_hh if chained."""
    if gates_x.dim() != 4 or gates_x.shape[3] % cell.gates:
        raise ValueError(f"gates_x: expected (T, B, G, {cell.gates}*H), got {tuple(gates_x.shape)}")
    T, B, G, width = gates_x.shape
    H = width // cell.gates
    if min(T, G, H) < 1:
        raise ValueError(f"gates_x: T, G and H must be at least 1, got {tuple(gates_x.shape)}")
    if gates_x.stride(3) != 1 and width > 1:
        raise ValueError(
            f"gates_x: the last dimension must be contiguous, got strides {gates_x.stride()}"
        )
    supported(gates_x, "gates_x")
    if chained:
        if G != 1 or weight_hh.dim() != 3:
            raise ValueError(
                "gates_x: expected (T, B, 1, K*H) and weight_hh (G, K*H, H) for chained groups, "
                f"got {tuple(gates_x.shape)} and {tuple(weight_hh.shape)}"
            )
        G = weight_hh.shape[0]
    expect("weight_hh", weight_hh, (G, width, H), gates_x, contiguous=True)
    return T, B, G, H


def supported(tensor: Tensor, name: str) -> None:
    """Refuse a dtype or a device that kernels do not run on."""
    if tensor.dtype not in TRITON_DTYPES:
        raise ValueError(f"{name}: expected one of {list(TRITON_DTYPES)}, got {tensor.dtype}")
    if tensor.device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            f"{name}: expected a GPU tensor, got one on the CPU, where kernels run in the "
            "interpreter only (TRITON_INTERPRET=1, set before Triton is imported)"
        )


def expect(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    *,
    contiguous: bool = False,
) -> None:
    """Refuse a tensor of another shape, dtype or device, or (if asked) strides with gaps."""
    if tensor is None:
        raise ValueError(f"{name}: expected a tensor of shape {shape}, got None")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name}: expected {like.dtype} on {like.device}, got {tensor.dtype} on {tensor.device}"
        )
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def directions(reverse: Sequence[bool] | None, G: int) -> Sequence[bool]:
    """Whether each of G groups runs from the last position to the first."""
    directions = [False] * G if reverse is None else [bool(r) for r in reverse]
    if len(directions) != G:
        raise ValueError(f"reverse: expected {G} directions, one a group, got {len(directions)}")
    if G > MAX_MIXED_GROUPS and any(directions) and not all(directions):
        raise ValueError(
            f"reverse: expected one direction for all of more than {MAX_MIXED_GROUPS} groups, "
            f"got both among {G}"
        )
    return directions


def chain(
    weight_chain: Tensor | None, reverse: Sequence[bool], G: int, width: int, H: int, like: Tensor
) -> None:
    """Refuse what cannot chain G groups of ``width`` gates each."""
    if G < 2:
        raise ValueError(f"weight_chain: expected at least two groups, got {G}")
    expect("weight_chain", weight_chain, (G - 1, width, H), like, contiguous=True)
    if len(set(reverse)) > 1:
        raise ValueError(f"reverse: expected one direction for chained groups, got {list(reverse)}")


def expect_cell_weight(
    cell: Cell, cell_weight: Tensor | None, G: int, H: int, like: Tensor, chained: bool
) -> None:
    """Refuse weights that are not the cell's own, (G, Q, H)."""
    if cell_weight is None and not cell.weights:
        return
    if not cell.weights:
        raise ValueError(f"cell_weight: expected None, {cell.name} has none, got a tensor")
    if chained:
        raise ValueError(f"weight_chain: expected None, {cell.name} has weights of its own")
    expect("cell_weight", cell_weight, (G, cell.weights, H), like, contiguous=True)


def expect_noise(
    cell: Cell, noise: Noise, sizes: tuple[int, int, int, int], like: Tensor, chained: bool
) -> None:
    """Refuse masks that do not fit a recurrence of ``sizes`` T, B, G, H."""
    T, B, G, H = sizes
    for name, tensor in noise._asdict().items():
        if tensor is None:
            continue
        if chained:
            raise ValueError(f"{name}: expected None for chained groups, got a tensor")
        if name == "zoneout_c" and not cell.has_cell_state:
            raise ValueError(f"zoneout_c: expected None, {cell.name} has no cell state")
        expect(name, tensor, (G, B, H) if name == "recurrent_mask" else (T, B, G, H), like)


def expect_ends(
    lengths: Tensor | None, resets: Tensor | None, T: int, B: int, device: torch.device
) -> None:
    """Refuse lengths that are not (B,) int64, or resets that are not (T, B) bool, on the device."""
    for name, tensor, shape, dtype in (
        ("lengths", lengths, (B,), torch.int64),
        ("resets", resets, (T, B), torch.bool),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{name}: expected {dtype} on {device}, got {tensor.dtype} on {tensor.device}"
            )


def direction_bits(directions: Sequence[bool]) -> int:
    """Directions as the bits that ``addressing.time_position`` reads."""
    if all(directions):
        return -1
    return sum(1 << g for g, backwards in enumerate(directions) if backwards)
