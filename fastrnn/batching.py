"""`torch.func.vmap` over a layer: V of them as more rows of a batch, or as more groups.

Layers that share their weights are one layer with V times the rows. Layers with weights of their
own, an ensemble, are one layer with V times the groups, which run side by side; so are the
gradients of V samples, each of which has weight gradients of its own. What no layer can say in one
call (rows that end at other steps in every group, chains) is run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Dims = Sequence[Any]
"""Of each argument, the dim along which it is many; None if it is one for all."""

WEIGHTS = ("weight_ih", "weight_hh", "bias", "weight_hr", "weight_chain", "cell_weight")
MOST_MIXED_GROUPS = 63
"""Groups of both directions that backends need not take more of."""


class Kind(NamedTuple):
    """Where a tensor has the dim of the rows, and that of the groups; None for none."""

    rows: int | None
    groups: int | None


KINDS = {
    "x": Kind(1, 2),
    "weight_ih": Kind(None, 0),
    "weight_hh": Kind(None, 0),
    "bias": Kind(None, 0),
    "h0": Kind(1, 0),
    "c0": Kind(1, 0),
    "weight_hr": Kind(None, 0),
    "weight_chain": Kind(None, 0),
    "cell_weight": Kind(None, 0),
    "lengths": Kind(0, None),
    "resets": Kind(1, None),
    "recurrent_mask": Kind(1, 0),
    "zoneout_h": Kind(1, 2),
    "zoneout_c": Kind(1, 2),
    # what a layer makes, and the gradients of that
    "output": Kind(1, 2),
    "h_n": Kind(1, 0),
    "c_n": Kind(1, 0),
    "cells": Kind(1, 2),
}


def merge(tensor: Tensor | None, dim: int | None, into: int, size: int) -> Tensor | None:
    """V tensors as one, V times as long along `into`, with those of one v side by side.

    Args:
        tensor: with V along `dim`, or one for all if that is None.
        dim: where V is.
        into: a dim of one tensor, counted without V.
        size: V.
    """
    if tensor is None:
        return None
    if dim is None:
        many = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        many = tensor.movedim(dim, into)
    return many.flatten(into, into + 1)


def part(tensor: Tensor, into: int, size: int) -> Tensor:
    """The inverse of `merge`, with V at `into`."""
    shape = tensor.shape
    return tensor.reshape(*shape[:into], size, shape[into] // size, *shape[into + 1 :])


def can_be_groups(named: dict[str, Any], dims: dict[str, Any], size: int) -> bool:
    """Whether V layers of weights of their own are one layer with more groups."""
    own_ends = dims["lengths"] is not None or dims["resets"] is not None
    reverse = named["reverse"]
    mixed = len(set(reverse)) > 1 and size * len(reverse) > MOST_MIXED_GROUPS
    return not (own_ends or mixed or named["weight_chain"] is not None)


def as_rows(named: dict[str, Any], dims: dict[str, Any], size: int) -> dict[str, Any]:
    """The fields of one layer with V times the rows."""
    folded = {}
    for name, value in named.items():
        kind = KINDS.get(name)
        rows = None if kind is None else kind.rows
        folded[name] = value if rows is None else merge(value, dims[name], rows, size)
    return folded


def as_groups(
    named: dict[str, Any], dims: dict[str, Any], size: int, *, own_x: bool = False
) -> dict[str, Any]:
    """The fields of one layer with V times the groups.

    An x of all stays the x of all, unless each is to have its own: for gradients of its own.
    """
    groups = len(named["reverse"])
    folded = {}
    for name, value in named.items():
        kind = KINDS.get(name)
        folded[name] = value
        if name == "reverse":
            folded[name] = tuple(value) * size
        elif name == "x":
            folded[name] = _x_as_groups(value, dims[name], groups, size, own_x)
        elif kind is not None and kind.groups is not None:
            folded[name] = merge(value, dims[name], kind.groups, size)
    return folded


def _x_as_groups(x: Tensor, dim: int | None, groups: int, size: int, own_x: bool) -> Tensor:
    if x.dim() - (dim is not None) == 4:
        merged = merge(x, dim, 2, size)
        assert merged is not None
        return merged
    if dim is None and not own_x:
        return x
    own = x.unsqueeze(2) if dim is None else x.movedim(dim, 2)
    own = own.expand(-1, -1, size, -1).unsqueeze(3)  # (T, B, V, 1, I)
    return own.expand(-1, -1, -1, groups, -1).flatten(2, 3)


def one_by_one(
    function: Callable[..., Sequence[Tensor]], dims: Dims, size: int, arguments: Sequence[Any]
) -> tuple[Tensor, ...]:
    """V calls, and what they return stacked along dim 0."""
    results = []
    for v in range(size):
        own = [
            each.select(dim, v) if isinstance(dim, int) else each
            for each, dim in zip(arguments, dims, strict=True)
        ]
        results.append(function(*own))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
