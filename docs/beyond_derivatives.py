"""Rows on derivatives: when, of what, how often and at what cost."""

# mypy: allow-untyped-calls
# (some methods of torch's tensors are not annotated)

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from beyond_rows import (
    B,
    I,
    T,
    Wrong,
    close,
    derivatives,
    double,
    make,
    normal,
    row,
    saved_bytes,
    slow,
)

BOTH = ("LSTM", "RNN")
KINDS = [(cell, dtype) for dtype in (torch.float32, torch.float64) for cell in BOTH]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
MANY = 3


def or_without_onednn(library: Any, attempt: Callable[[Any], None]) -> str | None:
    """Try it; with torch.nn once more without oneDNN, whose one operator hides the steps."""
    try:
        attempt(library)
    except Exception:
        if library is not torch.nn:
            raise
        with torch.backends.mkldnn.flags(enabled=False):
            attempt(library)
        return "without oneDNN, by `torch.backends.mkldnn.flags(enabled=False)`"
    return None


@row(
    "Backward in eval mode",
    "`eval()`, then gradients, on the CPU (1); against the equations step by step",
    5878, 15788, 37965, 9095,
    quick=True,
)  # fmt: skip
def eval_mode(library: Any) -> None:
    for cell, dtype in KINDS:
        layer = make(library, cell, dtype=dtype).eval()
        check_gradients(layer, dtype)


@row(
    "Backward twice through one graph",
    "`retain_graph=True`, then once more: the same bits; against the equations step by step",
    quick=True,
)
def retained(library: Any) -> None:
    for cell, dtype in KINDS:
        layer = make(library, cell, dtype=dtype)
        x = normal(T, B, I, dtype=dtype)
        inputs = [x, *layer.parameters()]
        output = layer(x)[0]
        first = derivatives(output, inputs, retain_graph=True)
        second = derivatives(output, inputs)
        if not all(map(torch.equal, first, second)):
            raise Wrong("the second pass gives other gradients")
        close(second, derivatives(slow(layer, x)[0], inputs), TOLERANCE[dtype])


def check_gradients(layer: Any, dtype: torch.dtype) -> None:
    x, weights = normal(T, B, I, dtype=dtype), double(layer)
    exact = x.detach().double().requires_grad_()
    got, want = layer(x), slow(layer, exact, weights=weights)[:2]
    close(got, want, TOLERANCE[dtype])
    inputs = [x, *layer.parameters()]
    close(derivatives(got, inputs), derivatives(want, [exact, *weights.values()]), TOLERANCE[dtype])


@row(
    "Frozen weights cost no gradient of weights",
    "backward to the input, products counted by the profiler: none has a weight's shape",
    quick=True,
)
def frozen(library: Any) -> str | None:
    try:
        return or_without_onednn(library, no_weight_products)
    except Wrong as error:
        if library is torch.nn:
            raise
        no_weight_products(library, backend="reference")
        return f'`backend="reference"`, since with `auto`, {error}'


def no_weight_products(library: Any, **how: Any) -> None:
    for cell, dtype in KINDS:
        layer = make(library, cell, 7, 11, dtype=dtype, **how).requires_grad_(False)
        x = normal(5, 3, 7, dtype=dtype)
        output = layer(x)[0]
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
        ) as profile:
            got = derivatives(output, [x])
        exact = x.detach().double().requires_grad_()
        want = derivatives(slow(layer, exact, weights=double(layer))[0], [exact])
        close(got, want, TOLERANCE[dtype])
        shapes = [sorted(weight.shape) for weight in layer.parameters() if weight.dim() == 2]
        products = 0
        for event in profile.events() or ():
            if event.name == "aten::mkldnn_rnn_layer_backward":
                raise Wrong(f"{cell}, {str(dtype)[6:]}: oneDNN's operator makes all gradients")
            if event.name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
                a, b = [shape for shape in event.input_shapes if len(shape) > 1][-2:]
                products += 1
                if sorted((a[-2], b[-1])) in shapes:
                    raise Wrong(f"{cell}, {str(dtype)[6:]}: a product of shape {a[-2], b[-1]}")
        if not products:
            raise Wrong(f"{cell}, {str(dtype)[6:]}: no product was seen")


@row(
    "Gradients of gradients",
    "`gradgradcheck` (finite differences), and a gradient penalty in float32, on the CPU (2)",
    5261, 9229, 25315, 20449,
)  # fmt: skip
def double_backward(library: Any) -> None:
    for cell in BOTH:
        layer, x = make(library, cell, 2, 3), normal(3, 2, 2)
        weights = dict(layer.named_parameters())

        def output(x: Tensor, *values: Tensor, layer: Any = layer, names: Any = weights) -> Tensor:
            own = dict(zip(names, values, strict=True))
            made: Tensor = functional_call(layer, own, (x,))[0]
            return made

        if not torch.autograd.gradgradcheck(output, (x, *weights.values())):
            raise Wrong("gradgradcheck")
        single = make(library, cell, 2, 3, dtype=torch.float32)
        x32 = x.detach().float().requires_grad_()
        x = x32.detach().double().requires_grad_()
        exact = double(single)
        got = penalty(single(x32)[0], x32, single.parameters())
        close(got, penalty(slow(single, x, weights=exact)[0], x, exact.values()), 1e-4)


def penalty(output: Tensor, x: Tensor, weights: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the square of a gradient."""
    (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    return torch.autograd.grad(d_x.square().sum(), [x, *weights])


@row(
    "Forward-mode derivatives, by `torch.func.jvp`",
    "along input and weights, float32 and float64; against those of the equations",
    174355,
    quick=True,
)
def forward_mode(library: Any) -> str | None:
    return or_without_onednn(library, pushed)


def pushed(library: Any) -> None:
    for cell, dtype in KINDS:
        layer = make(library, cell, dtype=dtype)
        weights = {name: w.detach() for name, w in layer.named_parameters()}
        x = normal(T, B, I, dtype=dtype).detach()
        tangents = ({name: torch.randn_like(w) for name, w in weights.items()}, torch.randn_like(x))

        def run(w: Any, x: Tensor, layer: Any = layer) -> Any:
            return functional_call(layer, w, (x,))

        def true(w: Any, x: Tensor, layer: Any = layer) -> Any:
            return slow(layer, x, weights=w)[:2]

        got = jvp(run, (weights, x), tangents)
        close(got, jvp(true, (widened(weights), x.double()), widened(tangents)), TOLERANCE[dtype])


def widened(nested: Any) -> Any:
    if isinstance(nested, Tensor):
        return nested.double()
    if isinstance(nested, dict):
        return {name: widened(each) for name, each in nested.items()}
    return tuple(widened(each) for each in nested)


def loss_of(layer: Any) -> Any:
    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, weights, (x,))[0]
        return output.sin().sum()

    return loss


@row(
    "`vmap` over inputs",
    "float32 and float64; against one after the other by the equations",
    134606,
    quick=True,
)
def over_inputs(library: Any) -> None:
    for cell, dtype in KINDS:
        layer, x = make(library, cell, dtype=dtype), normal(MANY, T, B, I, dtype=dtype).detach()
        got = vmap(lambda x, layer=layer: layer(x)[0])(x)
        want = [slow(layer, each.double(), weights=double(layer))[0] for each in x]
        close(got, torch.stack(want), TOLERANCE[dtype])


@row(
    "`vmap` over weights (an ensemble)",
    "`stack_module_state` and `vmap`, float32 and float64; against one by one by the equations",
    105982,
    quick=True,
)
def over_weights(library: Any) -> None:
    for cell, dtype in KINDS:
        layers = [make(library, cell, dtype=dtype) for _ in range(MANY)]
        for layer in layers[1:]:
            layer.reset_parameters()
        weights, _ = stack_module_state(layers)
        x = normal(T, B, I, dtype=dtype).detach()

        def run(w: Any, x: Tensor, layer: Any = layers[0]) -> Any:
            return functional_call(layer, w, (x,))[0]

        got = vmap(run, (0, None))(weights, x)
        want = [slow(layer, x.double(), weights=double(layer))[0] for layer in layers]
        close(got, torch.stack(want), TOLERANCE[dtype])


@row(
    "Gradients of each sample, by `vmap(grad(...))`",
    "float32 and float64; against one by one by the equations",
    105982,
    "pytorch/functorch#1089",
    quick=True,
)
def per_sample(library: Any) -> None:
    for cell, dtype in KINDS:
        layer, x = make(library, cell, dtype=dtype), normal(MANY, T, B, I, dtype=dtype).detach()
        weights = {name: w.detach() for name, w in layer.named_parameters()}
        got = vmap(grad(loss_of(layer)), (None, 0))(weights, x)
        exact = double(layer)
        want = []
        for each in x.double():
            total = slow(layer, each, weights=exact)[0].sin().sum()
            want.append(torch.autograd.grad(total, list(exact.values())))
        stacked = [torch.stack(each) for each in zip(*want, strict=True)]
        close([got[name] for name in weights], stacked, TOLERANCE[dtype])


@row(
    "Hessians, by `torch.func.hessian`",
    "of a loss in the input, float32 and float64; against double backward through the equations",
    105311,
)
def second_order(library: Any) -> str | None:
    return or_without_onednn(library, hessians)


def hessians(library: Any) -> None:
    for cell, dtype in KINDS:
        layer, x = make(library, cell, 2, 3, dtype=dtype), normal(3, 1, 2, dtype=dtype).detach()
        weights = double(layer)
        got = hessian(lambda x, layer=layer: layer(x)[0].sin().sum())(x)

        def true(x: Tensor, layer: Any = layer, weights: Any = weights) -> Tensor:
            return slow(layer, x, weights=weights)[0].sin().sum()

        close(got, torch.autograd.functional.hessian(true, x.double()), TOLERANCE[dtype])


@row(
    "Less memory by computing twice",
    "T = 400: bytes that autograd keeps, below half of a plain call's; the same gradients",
    quick=True,
)
def recomputed(library: Any) -> str | None:
    layer, x = make(library, "LSTM", 2, 8), normal(400, 2, 2)
    inputs = [x, *layer.parameters()]
    plain, _ = saved_bytes(lambda: layer(x)[0])
    want = slow(layer, x)[0]
    gradients = derivatives(want, inputs)

    def windowed() -> Tensor:
        state, outputs = None, []
        for part in x.split(20):
            output, state = checkpoint(layer, part, state, use_reentrant=False)
            outputs.append(output)
        return torch.cat(outputs)

    if library is torch.nn:
        kept, output = saved_bytes(windowed)
    else:
        layer = make(library, "LSTM", 2, 8, recompute=20)
        inputs = [x, *layer.parameters()]
        kept, output = saved_bytes(lambda: layer(x)[0])
    close(output, want)
    close(derivatives(output, inputs), gradients)
    if kept > plain / 2:
        raise Wrong(f"keeps {kept:,} bytes, a plain call {plain:,}")
    means = "a Python loop over windows under `torch.utils.checkpoint`"
    return means if library is torch.nn else None


@row(
    "A bound on the gradient of every gate, at every step",
    "against the equations with a hook that clamps; it changes the gradients",
    quick=True,
)
def error_clip(library: Any) -> None:
    for cell in BOTH:
        layer, x = make(library, cell, error_clip=0.3), normal(T, B, I)
        inputs = [x, *layer.parameters()]

        def clamped(a: Tensor) -> Tensor:
            a.register_hook(lambda gradient: gradient.clamp(-0.3, 0.3))
            return a

        got = derivatives(layer(x)[0], inputs)
        close(got, derivatives(slow(layer, x, gates=clamped)[0], inputs))
        if torch.allclose(got[0], derivatives(slow(layer, x)[0], inputs)[0]):
            raise Wrong("nothing was clipped")
