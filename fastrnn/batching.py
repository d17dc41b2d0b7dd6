"""`torch.func.vmap` over a layer: V of them as more rows of a batch, or as more groups.

Layers that share their weights are one layer with V times the rows. Layers with weights of their
own, an ensemble, are one layer with V times the groups, which run side by side; so are the
gradients of V samples, each of which has weight gradients of its own. What no layer can say in one
call (rows that end at other steps in every group, chains) is run one by one.

`forward` and `backward` are the rules, of the functions of `fastrnn.autograd` as of the operators
of `fastrnn.ops`, which graphs are made of: what they call is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.backend import Wanted
from fastrnn.flat import AT_FIELDS, AT_WANTED, FIELDS, MADE, SAVED

Dims = Sequence[Any]
"""Of each argument, the dim along which it is many; None if it is one for all."""

Call = Callable[..., Sequence[Tensor]]
"""With the arguments of `layer_forward`, or of `layer_backward`."""

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


def forward(
    call: Call, size: int, in_dims: Dims, arguments: Sequence[Any]
) -> tuple[tuple[Tensor, ...], Dims]:
    """V layers as one. What is saved is that of the one.

    Args:
        call: `layer_forward`, of the one.
        size: V.
        in_dims: of each argument.
        arguments: those of `layer_forward`.

    Returns:
        what V layers make, and the dims of each along which it is many.
    """
    *fields, backend = arguments
    named = dict(zip(FIELDS, fields, strict=True))
    dims = dict(zip(FIELDS, in_dims[:-1], strict=True))
    if any(dims[name] is not None for name in WEIGHTS):
        if not can_be_groups(named, dims, size):
            one_by_one = _one_by_one(call, in_dims, size, arguments)
            return one_by_one, (0,) * len(one_by_one)
        folded, where = as_groups(named, dims, size), "groups"
    else:
        folded, where = as_rows(named, dims, size), "rows"
    made = call(*folded.values(), backend)
    places = [getattr(KINDS[name], where) for name in MADE]
    if named["c0"] is None:
        places[2:] = [None, None]
    elif not named["all_states"]:
        places[3] = None
    parts = [
        tensor if place is None else part(tensor, place, size)
        for tensor, place in zip(made[:4], places, strict=True)
    ]
    return (*parts, *made[4:]), (*places, *(None for _ in made[4:]))


def backward(
    replay: Call, call: Call, size: int, in_dims: Dims, arguments: Sequence[Any]
) -> tuple[tuple[Tensor, ...], Dims]:
    """The gradients of V layers by way of one.

    Args:
        replay: `layer_forward`, where the one was not run by itself and so saved nothing.
        call: `layer_backward`, of the one.
        size: V.
        in_dims: of each argument.
        arguments: those of `layer_backward`.

    Returns:
        the gradients, and the dims of each along which it is many.
    """
    wanted = Wanted(*arguments[AT_WANTED])
    *fields, backend = arguments[AT_FIELDS:]
    named = dict(zip(FIELDS, fields, strict=True))
    dims = dict(zip(FIELDS, in_dims[AT_FIELDS:-1], strict=True))
    own_weights = any(dims[name] is not None for name in WEIGHTS)
    many_groups = own_weights or any(getattr(wanted, name) for name in WEIGHTS)
    # whether `forward` has made of these V layers the one that is wanted here
    is_made = own_weights or (not many_groups and any(isinstance(d, int) for d in dims.values()))
    if many_groups and not can_be_groups(named, dims, size):
        each = call if own_weights else partial(_replayed, replay, call)
        one_by_one = _one_by_one(each, in_dims, size, arguments)
        return one_by_one, (0,) * len(one_by_one)
    if many_groups:
        folded = as_groups(named, dims, size, own_x=wanted.x)
        where = "groups"
    else:
        folded, where = as_rows(named, dims, size), "rows"
    merged = []
    for name, tensor, dim in zip((*MADE, "output", "cells"), arguments, in_dims, strict=False):
        is_empty = name == "cells" and not (named["all_states"] and named["c0"] is not None)
        place = getattr(KINDS[name], where)
        merged.append(tensor if is_empty else merge(tensor, dim, place, size))
    made = (*merged[4:], *arguments[AT_WANTED - SAVED : AT_WANTED])
    if not is_made:
        output, _, _, *rest = replay(*folded.values(), backend)
        made = (output, *rest)
    found = call(*merged[:4], *made, wanted, *folded.values(), backend)
    shares_x = where == "groups" and named["x"].dim() - (dims["x"] is not None) == 3
    parts, places = [], []
    names = [name for name, is_wanted in zip(wanted._fields, wanted, strict=True) if is_wanted]
    for name, gradient in zip(names, found, strict=True):
        place = getattr(KINDS[name], where)
        own = part(gradient, place, size)
        if name == "x" and shares_x:
            own = own.sum(3)
        parts.append(own)
        places.append(place)
    return tuple(parts), tuple(places)


def _replayed(replay: Call, call: Call, *arguments: Any) -> Sequence[Tensor]:
    """`layer_backward` of a layer that was not run by itself, so that it saved nothing."""
    fields = arguments[AT_FIELDS:]
    output, _, _, *saved = replay(*fields)
    return call(*arguments[: len(MADE)], output, *saved, arguments[AT_WANTED], *fields)


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


def _one_by_one(call: Call, dims: Dims, size: int, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """V calls, and what they return stacked along dim 0."""
    results = []
    for v in range(size):
        own = [
            each.select(dim, v) if isinstance(dim, int) else each
            for each, dim in zip(arguments, dims, strict=True)
        ]
        results.append(call(*own))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
