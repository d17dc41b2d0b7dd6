"""One layer as a pair of torch.library operators, for autograd, torch.compile and torch.export.

Those see `fastrnn::layer_forward` and `fastrnn::layer_backward` and nothing inside them. Which
backend runs is an argument, decided before the call; everything here is the plumbing between
torch's flat signatures and the contract in `fastrnn.backend`.
"""

# mypy: allow-untyped-calls
# (torch.library and torch.autograd.Function are not annotated)

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from fastrnn import chunked, unrolled
from fastrnn.backend import Layer, LayerBackend, OutputGradients, Wanted
from fastrnn.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

SAVED = 3
"""Most tensors a backend may save for its backward pass. A fixed number, because operators that
return lists cost torch.library several times as much per call."""

_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
"""Whether the backward pass that is running retains its graph; what torch's own compiled graphs ask
before they write over saved tensors. None where torch has no such function."""
TENSORS = len(Wanted._fields) + 2
"""Tensors among a layer's arguments: those that may have a gradient, lengths and resets."""

_LAYER = (
    "Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias, Tensor h0, Tensor? c0, "
    "Tensor? weight_hr, Tensor? weight_chain, Tensor? lengths, Tensor? resets, str cell, "
    "bool[] reverse, str precision, int recompute, bool final_only, bool save, str backend"
)
_SAVED = ", ".join(f"Tensor saved_{i}" for i in range(SAVED))
_library = torch.library.Library("fastrnn", "DEF")
_library.define(f"layer_forward({_LAYER}) -> (Tensor output, Tensor h_n, Tensor c_n, {_SAVED})")
_WRITTEN = ", ".join(f"Tensor({'abc'[i]}!) saved_{i}" for i in range(SAVED))
for _name, _saved in (("layer_backward", _SAVED), ("layer_backward_", _WRITTEN)):
    _library.define(
        f"{_name}(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor output, "
        f"{_saved}, bool[] wanted, {_LAYER}) -> Tensor[]"
    )


def layer_forward(layer: Layer, backend: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer through the backend called `backend`, differentiably.

    Returns:
        output (T, B, G, P), h_n (G, B, P) and, for an LSTM, c_n (G, B, H). The output has no
        steps if only the final states were asked for and no backward pass may follow, and one
        group, the last, if groups are chained.
    """
    output, h_n, c_n, *_ = torch.ops.fastrnn.layer_forward(
        layer.x, layer.weight_ih, layer.weight_hh, layer.bias, layer.h0, layer.c0,
        layer.weight_hr, layer.weight_chain, layer.lengths, layer.resets, layer.cell,
        layer.reverse, layer.precision, layer.recompute, layer.final_only, layer.save, backend,
    )  # fmt: skip
    return output, h_n, None if layer.c0 is None else c_n


def _layer(arguments: Sequence[Any]) -> tuple[Layer, LayerBackend]:
    """The `Layer` and the backend behind the operators' shared arguments, see `_LAYER`."""
    *tensors, cell, reverse, precision, recompute, final_only, save, backend = arguments
    x, weight_ih, weight_hh, bias, h0, c0, weight_hr, weight_chain, lengths, resets = tensors
    layer = Layer(
        x=x, weight_ih=weight_ih, weight_hh=weight_hh, bias=bias, h0=h0, c0=c0,
        weight_hr=weight_hr, lengths=lengths, cell=cell, reverse=tuple(reverse),
        precision=precision, save=save, final_only=final_only, recompute=recompute,
        weight_chain=weight_chain, resets=resets,
    )  # fmt: skip
    return layer, cast("LayerBackend", registry().backends[backend])


def _no_autocast(layer: Layer) -> AbstractContextManager[object]:
    """The inputs were cast before the operator was called; nothing inside may cast again."""
    kind = layer.x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _pad(layer: Layer, c_n: Tensor | None, saved: Sequence[Tensor]) -> list[Tensor]:
    """c_n and the saved tensors as the operator returns them: empty ones where there is none."""
    if len(saved) > SAVED:
        raise ValueError(f"saved: a backend may save {SAVED} tensors, got {len(saved)}")
    empty = layer.x.new_empty(0)
    padding = [torch.empty_like(empty) for _ in range(SAVED - len(saved))]
    return [empty if c_n is None else c_n, *saved, *padding]


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    layer, backend = _layer(arguments)
    with _no_autocast(layer):
        if layer.save and layer.recompute:
            made = chunked.forward(backend, layer)
        else:
            made = backend.layer_forward(layer)
    output, h_n, c_n, saved = made
    if layer.final_only and not layer.save:
        output = output.new_empty((0, *output.shape[1:]))
    return (output, h_n, *_pad(layer, c_n, saved))


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    layer, backend = _layer(arguments)
    steps, batch = layer.x.shape[:2]
    if layer.final_only and not layer.save:
        steps = 0
    groups = layer.groups if layer.weight_chain is None else 1
    output = layer.x.new_empty((steps, batch, groups, layer.h0.shape[-1]))
    c_n = None if layer.c0 is None else torch.empty_like(layer.c0)
    saved: tuple[Tensor, ...] = ()
    if layer.save:
        saved = chunked.saved_like(layer) if layer.recompute else backend.saved_like(layer)
    return (output, torch.empty_like(layer.h0), *_pad(layer, c_n, saved))


def _backward(
    d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, output: Tensor,
    *arguments: Any, overwrite: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The wanted gradients, in the order of `Wanted`, the others left out."""
    saved, wanted = arguments[:SAVED], Wanted(*arguments[SAVED])
    layer, backend = _layer(arguments[SAVED + 1 :])
    layer = replace(layer, overwrite_saved=overwrite)
    grad = OutputGradients(d_output, d_h_n, d_c_n)
    with _no_autocast(layer):
        if layer.recompute:
            got = chunked.backward(backend, grad, layer, output, saved, wanted)
        else:
            got = backend.layer_backward(grad, layer, output, saved, wanted)
    return [cast("Tensor", g) for g, is_wanted in zip(got, wanted, strict=True) if is_wanted]


def _backward_fake(*arguments: Any) -> list[Tensor]:
    wanted, inputs = arguments[4 + SAVED], arguments[5 + SAVED :]
    return [
        torch.empty_like(tensor)
        for tensor, is_wanted in zip(inputs[: len(wanted)], wanted, strict=True)
        if is_wanted
    ]


class _LayerFunction(torch.autograd.Function):
    """The autograd rule of `layer_forward`.

    Registered by hand rather than with `torch.library.register_autograd`, whose wrapper walks
    the schema and the trees of arguments on every call, which shows at small T.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return cast("tuple[Tensor, ...]", torch.ops.fastrnn.layer_forward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[3:])
        ctx.save_for_backward(*inputs[:TENSORS], output[0], *output[3:])
        ctx.static = inputs[TENSORS:]

    @staticmethod
    def backward(
        ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # asked for once: torch's checkpoints refuse a second time
        inputs, (output, *saved) = kept[:TENSORS], kept[TENSORS:]
        wanted = ctx.needs_input_grad[: len(Wanted._fields)]
        nothing = [None] * (len(ctx.needs_input_grad) - len(wanted))
        if d_output is None and d_h_n is None and d_c_n is None:
            return (*(None for _ in wanted), *nothing)
        grads = (d_output, d_h_n, None if inputs[5] is None else d_c_n)
        if torch.is_grad_enabled() or _are_many(grads):
            # create_graph: somebody will differentiate this gradient; or many at once (is_grads_
            # batched), which torch can only spread over operations that it knows
            layer = _layer((*inputs, *ctx.static))[0]
            found = _differentiable_backward(layer, grads, wanted)
        else:
            backward = torch.ops.fastrnn.layer_backward
            if _is_last_use(saved):
                backward = torch.ops.fastrnn.layer_backward_
            found = backward(*grads, output, *saved, wanted, *inputs, *ctx.static)
        got = iter(found)
        return (*(next(got) if is_wanted else None for is_wanted in wanted), *nothing)


def _are_many(grads: Sequence[Tensor | None]) -> bool:
    """Whether each stands for several gradients, as in a vectorised Jacobian."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    return any(grad is not None and is_batched(grad) for grad in grads)


def _is_last_use(saved: Sequence[Tensor]) -> bool:
    """Whether saved tensors die with this backward pass, so that gradients may take their memory.

    They do unless the graph is retained. Not while somebody traces or transforms the pass, where a
    call need not be the only one.
    """
    return (
        _keeps_graph is not None
        and not _keeps_graph()
        and type(saved[0]) is torch.Tensor
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_compiling()
    )


def _differentiable_backward(
    layer: Layer, grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """The wanted gradients, by operations that torch can differentiate and batch."""
    tensors = (
        layer.x, layer.weight_ih, layer.weight_hh, layer.bias, layer.h0, layer.c0, layer.weight_hr,
        layer.weight_chain,
    )  # fmt: skip
    inputs = [tensor for tensor, is_wanted in zip(tensors, wanted, strict=True) if is_wanted]
    with torch.enable_grad():
        outputs = unrolled.run(layer)
    used = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None]
    return torch.autograd.grad(
        [output for output, _ in used],
        cast("list[Tensor]", inputs),
        [grad for _, grad in used],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )


def _autograd(*arguments: Any) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", _LayerFunction.apply(*arguments))


_library.impl("layer_forward", _forward, "CompositeExplicitAutograd")
_library.impl("layer_forward", _autograd, "Autograd")
_library.impl("layer_backward", _backward, "CompositeExplicitAutograd")
_library.impl("layer_backward_", partial(_backward, overwrite=True), "CompositeExplicitAutograd")
torch.library.register_fake("fastrnn::layer_forward", _forward_fake, lib=_library)
for _name in ("layer_backward", "layer_backward_"):
    torch.library.register_fake(f"fastrnn::{_name}", _backward_fake, lib=_library)
