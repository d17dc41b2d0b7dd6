"""One layer as a pair of torch.library operators, for autograd, torch.compile and torch.export.

Those see `fastrnn::layer_forward` and `fastrnn::layer_backward` and nothing inside them. Which
backend runs is an argument, decided before the call; everything here is the plumbing between
torch's flat signatures and the contract in `fastrnn.backend`.
"""

# mypy: allow-untyped-calls
# (torch.library and torch.autograd.Function are not annotated)

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._functorch.utils import enable_single_level_autograd_function

from fastrnn import batching, chunked, layer_call, unrolled
from fastrnn.autograd import LayerFunction, apply_eagerly
from fastrnn.backend import LayerOutput
from fastrnn.flat import SAVED, TENSORS, fields_of
from fastrnn.transforms import has_tangents

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn.backend import Layer

_LAYER = (
    "Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias, Tensor h0, Tensor? c0, "
    "Tensor? weight_hr, Tensor? weight_chain, Tensor? cell_weight, Tensor? lengths, "
    "Tensor? resets, Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c, str cell, "
    "bool[] reverse, str precision, int recompute, bool final_only, bool save, float error_clip, "
    "bool all_states, str backend"
)
_SAVED = ", ".join(f"Tensor saved_{i}" for i in range(SAVED))
_library = torch.library.Library("fastrnn", "DEF")
_MADE = f"Tensor output, Tensor h_n, Tensor c_n, Tensor cells, {_SAVED}"
_library.define(f"layer_forward({_LAYER}) -> ({_MADE})")
_WRITTEN = ", ".join(f"Tensor({'abc'[i]}!) saved_{i}" for i in range(SAVED))
for _name, _saved in (("layer_backward", _SAVED), ("layer_backward_", _WRITTEN)):
    _library.define(
        f"{_name}(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor output, "
        f"Tensor cells, {_saved}, bool[] wanted, {_LAYER}) -> Tensor[]"
    )


def layer_forward(
    layer: Layer, backend: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run one layer through the backend called `backend`, differentiably.

    Returns:
        output (T, B, G, P), h_n (G, B, P), of an LSTM c_n (G, B, H) and, with `all_states`, cells
        (T, B, G, H). The output has no steps if only the final states were asked for and no
        backward pass may follow, and one group, the last, if groups are chained.
    """
    if not torch.compiler.is_compiling() and has_tangents():
        # tangents go through torch's operations, and so can their derivatives
        output, h_n, *rest = unrolled.run(layer)
        c_n, cells = rest or (None, None)
        return output, h_n, c_n, cells if layer.all_states else None
    fields = fields_of(layer)
    output, h_n, c_n, cells, *_ = _function_for(fields[:TENSORS])(*fields, backend)
    if layer.c0 is None:
        return output, h_n, None, None
    return output, h_n, c_n, cells if layer.all_states else None


def _function_for(tensors: tuple[Any, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The operator, or, of those that do the same, what a call with these tensors may take."""
    if layer_call.is_eager(tensors):
        return apply_eagerly if torch.is_grad_enabled() else layer_call.forward_below_autograd
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return LayerFunction.apply  # the operator has no rule for vmap
    return torch.ops.fastrnn.layer_forward


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    layer, backend = layer_call.layer_and_backend(arguments)
    x, c0 = layer.x, layer.c0
    steps, batch = x.shape[:2]
    if layer.final_only and not layer.save:
        steps = 0
    groups = layer.groups if layer.weight_chain is None else 1
    saved: tuple[Tensor, ...] = ()
    if layer.save:
        saved = chunked.saved_like(layer) if layer.recompute else backend.saved_like(layer)
    return layer_call.padded(
        layer,
        LayerOutput(
            x.new_empty((steps, batch, groups, layer.h0.shape[-1])),
            layer.h0.new_empty(layer.h0.shape),
            None if c0 is None else c0.new_empty(c0.shape),
            saved,
            x.new_empty((steps, batch, groups, c0.shape[-1]))
            if c0 is not None and layer.all_states
            else None,
        ),
    )


def _backward_fake(*arguments: Any) -> list[Tensor]:
    wanted, inputs = arguments[6 + SAVED], arguments[7 + SAVED :]
    return [
        tensor.new_empty(tensor.shape)
        for tensor, is_wanted in zip(inputs[: len(wanted)], wanted, strict=True)
        if is_wanted
    ]


_at_one_level: Callable[..., tuple[Tensor, ...]]
_at_one_level = super(torch.autograd.Function, LayerFunction).apply
"""`LayerFunction.apply`, but for the level of autograd that the operator was called at; that begins
with the outermost."""


def _autograd(*arguments: Any) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled():
        with enable_single_level_autograd_function():
            return _at_one_level(*arguments)
    # torch's compiled graphs call operators without recording them, and to have nothing recorded
    # by a Function takes longer than twenty small steps
    with torch._C._AutoDispatchBelowAutograd():
        return cast("tuple[Tensor, ...]", _ops.layer_forward(*arguments))


def _many_forward(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
    return batching.forward(_ops.layer_forward, info.batch_size, in_dims, arguments)


def _many_backward(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
    calls = _ops.layer_forward, _ops.layer_backward
    return batching.backward(*calls, info.batch_size, in_dims, arguments)


def _dense(call: Callable[..., Sequence[Tensor]]) -> Callable[..., list[Tensor]]:
    """With results that lie as those of the fakes, whatever the layout of the arguments was."""

    def run(*arguments: Any) -> list[Tensor]:
        return [tensor.contiguous() for tensor in call(*arguments)]

    return run


_ops = torch.ops.fastrnn
_library.impl("layer_forward", _dense(layer_call.forward), "CompositeExplicitAutograd")
_library.impl("layer_forward", _autograd, "Autograd")
_library.impl("layer_backward", _dense(layer_call.backward), "CompositeExplicitAutograd")
_library.impl(
    "layer_backward_",
    _dense(partial(layer_call.backward, overwrite=True)),
    "CompositeExplicitAutograd",
)
torch.library.register_fake("fastrnn::layer_forward", _forward_fake, lib=_library)
for _name in ("layer_backward", "layer_backward_"):
    torch.library.register_fake(f"fastrnn::{_name}", _backward_fake, lib=_library)
torch.library.register_vmap("fastrnn::layer_forward", _many_forward, lib=_library)
torch.library.register_vmap("fastrnn::layer_backward", _many_backward, lib=_library)
