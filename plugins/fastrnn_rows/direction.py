"""One layer in one direction as one operation of autograd: a loop, and the products around it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.direction import Weights, are_many, differentiable, sums, unrecorded
from fastrnn.precision import uncast
from fastrnn_rows import elman, gru, laid_out, lstm, written_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from torch import Tensor

    from fastrnn_rows.gradients import Made, StepGradients
    from fastrnn_rows.steps import Steps

LOOPS: dict[str, ModuleType] = {"rnn_tanh": elman, "rnn_relu": elman, "lstm": lstm, "gru": gru}


def run(
    cell: str, steps: Steps, x: Tensor, hx: tuple[Tensor, ...], weights: Weights, *, save: bool
) -> tuple[Tensor, ...]:
    """Output (N, H) and final states (B, H); x is (N, I), each of hx (B, H)."""
    if torch._C._are_functorch_transforms_active():  # of which nothing in place knows
        return written_out.run(cell, steps, x, hx, weights)
    if save:
        c0 = hx[1] if len(hx) > 1 else None
        apply: Callable[..., tuple[Tensor, ...]] = _Direction.apply
        return apply(cell, steps, x, hx[0], c0, *weights)
    made = _loop(cell, steps, x, hx, weights, save=False)
    return (made.output, *made.final)


def _loop(
    cell: str, steps: Steps, x: Tensor, hx: tuple[Tensor, ...], weights: Weights, *, save: bool
) -> Made:
    with unrecorded():
        gates_x, turned = _projected(cell, x, weights), laid_out.forward(weights.hh, steps)
        forward: Callable[..., Made] = LOOPS[cell].forward
        return forward(cell, steps, gates_x, hx, turned, weights.bias_hh, save)


def _projected(cell: str, x: Tensor, weights: Weights) -> Tensor:
    """W_ih x + b_ih + b_hh, (N, K*H); of a GRU's n without b_hh, which r multiplies."""
    weight, bias = weights.ih.mT, weights.bias_ih
    if bias is None or weights.bias_hh is None:
        return x @ weight
    both = weights.bias_hh
    if cell == "gru":
        both = both.clone()
        both[2 * len(both) // 3 :] = 0
    return torch.addmm(bias + both, x, weight)


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cell: str, steps: Steps, x: Tensor, h0: Tensor,
        c0: Tensor | None, *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        own = Weights(*weights)  # type: ignore[arg-type] # the first two are never None
        hx = (h0,) if c0 is None else (h0, c0)
        made = _loop(cell, steps, x, hx, own, save=True)
        ctx.save_for_backward(x, h0, c0, *own, made.output, *made.saved)
        ctx.what = cell, steps
        ctx.set_materialize_grads(False)
        return (made.output, *made.final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        with uncast("cpu"):
            return _backward(ctx, grads)


def _backward(ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    x, h0, c0, *rest = ctx.saved_tensors
    own, output, saved = Weights(*rest[:4]), rest[4], rest[5:]
    cell, steps = ctx.what
    if are_many(grads) or torch.is_grad_enabled():  # to be differentiated again
        layer = partial(written_out.run, cell, steps)
        return None, None, *differentiable(layer, (x, h0, c0, *own), grads)
    d_output, *d_final = grads
    hx = (h0,) if c0 is None else (h0, c0)
    with unrecorded():
        if d_output is None:
            d_output = output.new_zeros(()).expand_as(output)
        weight = laid_out.backward(own.hh, steps)
        made = LOOPS[cell].backward(cell, steps, d_output, d_final, output, saved, hx, weight)
        return None, None, *_sums(cell, steps, x, h0, output, own, made, ctx.needs_input_grad)


def _sums(
    cell: str, steps: Steps, x: Tensor, h0: Tensor, output: Tensor, own: Weights,
    made: StepGradients, needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of x, h0, c0 and the weights, each in one product over all steps."""
    _, _, to_x, to_h0, to_c0, to_ih, to_hh, *to_biases = needed
    of_h, d_hh = made.d_gates_h, None
    if to_hh and steps.restarts is not None:
        d_hh = of_h.mT @ steps.entering(output, h0)
    elif to_hh:
        later, before = steps.pairs(of_h, output)
        d_hh = torch.addmm(steps.first(of_h).mT @ h0, later.mT, before)
    around = sums(x, own, made.d_gates_x, of_h, (to_x, to_ih, *to_biases))
    return (
        around.x, made.d_h0 if to_h0 else None, made.d_c0 if to_c0 else None,
        around.ih, d_hh, around.bias_ih, around.bias_hh,
    )  # fmt: skip
