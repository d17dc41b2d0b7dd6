"""A layer as an operator takes it: its fields in a row, tensors first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastrnn.backend import Layer, Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

SAVED = 3
"""Most tensors a backend may save for its backward pass. A fixed number, because operators that
return lists cost torch.library several times as much per call."""
WANTED = len(Wanted._fields)
"""Tensors that may have a gradient; they come first."""
FIELDS = (
    "x", "weight_ih", "weight_hh", "bias", "h0", "c0", "weight_hr", "weight_chain",
    "cell_weight", "lengths", "resets", "recurrent_mask", "zoneout_h", "zoneout_c",
    "cell", "reverse", "precision", "recompute", "final_only", "save", "error_clip", "all_states",
)  # fmt: skip
"""The fields of a `Layer` in the order of the operators' arguments."""
TENSORS = FIELDS.index("cell")
AT_C0, AT_ALL_STATES = FIELDS.index("c0"), FIELDS.index("all_states")
MADE = ("output", "h_n", "c_n", "cells")
"""What `layer_forward` returns before what is saved, and what has gradients."""
AT_WANTED = len(MADE) + 2 + SAVED
"""In the arguments of `layer_backward`: four gradients, output, cells, what was saved, `wanted`."""
AT_FIELDS = AT_WANTED + 1


def fields_of(layer: Layer) -> tuple[Any, ...]:
    """Its `FIELDS`; written out, because that is faster than to look for names, and Dynamo can."""
    return (
        layer.x, layer.weight_ih, layer.weight_hh, layer.bias, layer.h0, layer.c0, layer.weight_hr,
        layer.weight_chain, layer.cell_weight, layer.lengths, layer.resets, layer.recurrent_mask,
        layer.zoneout_h, layer.zoneout_c, layer.cell, layer.reverse, layer.precision,
        layer.recompute, layer.final_only, layer.save, layer.error_clip, layer.all_states,
    )  # fmt: skip


def layer_of(fields: Sequence[Any], *, overwrite_saved: bool = False) -> Layer:
    """The inverse of `fields_of`; written out, too."""
    (
        x, weight_ih, weight_hh, bias, h0, c0, weight_hr, weight_chain, cell_weight, lengths,
        resets, recurrent_mask, zoneout_h, zoneout_c, cell, reverse, precision, recompute,
        final_only, save, error_clip, all_states,
    ) = fields  # fmt: skip
    return Layer(
        cell, x, weight_ih, weight_hh, bias, h0, c0, weight_hr, lengths, tuple(reverse), precision,
        save, final_only, recompute, overwrite_saved, weight_chain, resets, recurrent_mask,
        zoneout_h, zoneout_c, error_clip, all_states, cell_weight,
    )  # fmt: skip
