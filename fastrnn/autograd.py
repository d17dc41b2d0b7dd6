"""What torch may do with a layer: differentiate it, twice and more, and batch it.

`LayerFunction` is the rule of the operator `layer_forward`, `LayerGradient` that of
`layer_backward`. Written by hand rather than with `torch.library.register_autograd`, whose wrapper
walks the schema and the trees of arguments on every call, which shows at small T.
"""

# mypy: allow-untyped-calls
# (torch.autograd.Function is not annotated)

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch

from fastrnn import batching, layer_call, unrolled
from fastrnn.flat import (
    AT_ALL_STATES,
    AT_C0,
    AT_FIELDS,
    AT_WANTED,
    TENSORS,
    WANTED,
    fields_of,
    layer_of,
)
from fastrnn.transforms import are_many_to_autograd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn.backend import Layer

_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
"""Whether the backward pass that is running retains its graph; what torch's own compiled graphs ask
before they write over saved tensors. None where torch has no such function."""


class LayerFunction(torch.autograd.Function):
    """One layer: `FIELDS` and the backend's name, to `MADE` and what is saved."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        """The operator, below autograd."""
        # Grad mode is off by now, which the levels below, within transforms, would take for the
        # user's word; each of them records the operator for itself.
        outer = torch._C._are_functorch_transforms_active()
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad() if outer else nullcontext():
            return cast("tuple[Tensor, ...]", torch.ops.fastrnn.layer_forward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the derivative needs."""
        ctx.set_materialize_grads(False)
        cells = output[3:4] if not inputs[AT_ALL_STATES] else ()
        ctx.mark_non_differentiable(*cells, *output[4:])
        ctx.save_for_backward(*inputs[:TENSORS], output[0], *output[3:])
        ctx.static = inputs[TENSORS:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the fields, from those of what was made."""
        kept = ctx.saved_tensors  # asked for once: torch's checkpoints refuse a second time
        inputs, (output, *saved) = kept[:TENSORS], kept[TENSORS:]
        wanted = tuple(ctx.needs_input_grad[:WANTED])
        nothing = [None] * (len(ctx.needs_input_grad) - WANTED)
        has_c = inputs[AT_C0] is not None
        grads = (*grads[:2], *(grads[2:4] if has_c else (None, None)))
        if all(grad is None for grad in grads):
            return (*(None for _ in wanted), *nothing)
        arguments = (*grads, output, *saved, wanted, *inputs, *ctx.static)
        found: Sequence[Tensor | None]
        if are_many_to_autograd(grads):
            with torch.enable_grad():
                layer = layer_of((*map(_apart, inputs), *ctx.static[:-1]))
            found = _gradients(layer, grads, wanted)
        elif torch.is_grad_enabled():  # create_graph: somebody will differentiate this gradient
            found = LayerGradient.apply(*arguments)
        elif layer_call.is_eager((*grads, *saved)):
            found = layer_call.backward(*arguments, overwrite=_is_last_use(saved))
        elif _is_last_use(saved):
            found = torch.ops.fastrnn.layer_backward_(*arguments)
        else:
            found = torch.ops.fastrnn.layer_backward(*arguments)
        got = iter(found)
        return (*(next(got) if is_wanted else None for is_wanted in wanted), *nothing)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        """V layers as one."""
        return batching.forward(LayerFunction.apply, info.batch_size, in_dims, arguments)


class EagerLayer(torch.autograd.Function):
    """`LayerFunction` where nobody needs operators (`fastrnn.layer_call.is_eager`).

    Without a `setup_context`: of a function that has one, torch looks up the signature of `forward`
    at every call. And with an `apply` that goes straight to torch's C++, without a look at each
    argument for wrappers of transforms, of which there are none.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        """Straight to the backend."""
        made = layer_call.forward_below_autograd(*arguments)
        LayerFunction.setup_context(ctx, arguments, made)
        return made

    backward = LayerFunction.backward


apply_eagerly: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, EagerLayer).apply
"""`EagerLayer.apply`, as said there."""


class LayerGradient(torch.autograd.Function):
    """The wanted gradients of a layer, by its backend, as something to differentiate further.

    Derivatives of it are those of the layer written out in torch's operations.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        """The operator."""
        return tuple(torch.ops.fastrnn.layer_backward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the derivative needs."""
        ctx.set_materialize_grads(False)
        static = AT_FIELDS + TENSORS
        ctx.save_for_backward(*inputs[:4], *inputs[AT_FIELDS:static])
        ctx.wanted, ctx.static = inputs[AT_WANTED], inputs[static:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the fields and of the gradients that came in."""
        needed, wanted = ctx.needs_input_grad, ctx.wanted
        with torch.enable_grad():
            kept = [_apart(tensor) for tensor in ctx.saved_tensors]
            kept[4 : 4 + WANTED] = _recording(kept, kept[4 : 4 + WANTED], wanted)
            layer = layer_of((*kept[4:], *ctx.static[:-1]))
            found = _gradients(layer, kept[:4], wanted)
        places = [i for i in (*range(4), *range(AT_FIELDS, AT_FIELDS + WANTED)) if needed[i]]
        used = [
            (f, grad)
            for f, grad in zip(found, grads, strict=True)
            if f is not None and f.requires_grad and grad is not None
        ]
        result: list[Tensor | None] = [None] * len(needed)
        if used:
            got = torch.autograd.grad(
                [f for f, _ in used],
                [kept[i] if i < 4 else kept[4 + i - AT_FIELDS] for i in places],
                [grad for _, grad in used],
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
            for place, gradient in zip(places, got, strict=True):
                result[place] = gradient
        return tuple(result)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        """The gradients of V layers by way of one."""
        rule = batching.backward
        return rule(LayerFunction.apply, LayerGradient.apply, info.batch_size, in_dims, arguments)


def _gradients(
    layer: Layer, grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """The wanted gradients, by operations that torch can differentiate and batch."""
    inputs = [
        tensor
        for tensor, is_wanted in zip(fields_of(layer)[:WANTED], wanted, strict=True)
        if is_wanted
    ]
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


def _apart(tensor: Tensor | None) -> Tensor | None:
    """The tensor once more, so that what it was made of is not on the way to it.

    A gradient with respect to h0 and x must not go from h0 on to x where h0 was made from x: that
    is somebody else's part of the chain rule.
    """
    return None if tensor is None else tensor.view_as(tensor)


def _recording(
    tensors: Sequence[Tensor | None], fields: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The fields, so that the wanted ones are differentiable where some of the tensors are.

    What was differentiated at an inner level of transforms need not be at this one: as the input of
    `grad(lambda weights: grad(loss, 1)(weights, x).norm())`. No tensor can be made a leaf within a
    transform, but what has a sum over nothing of one that is differentiable added to it is so, too.
    """
    some = next(tensor for tensor in tensors if tensor is not None and tensor.requires_grad)
    return [
        field + some.flatten()[:0].sum().to(field.dtype)
        if is_wanted and field is not None and not field.requires_grad
        else field
        for field, is_wanted in zip(fields, wanted, strict=True)
    ]


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
