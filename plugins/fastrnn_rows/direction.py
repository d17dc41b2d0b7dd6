"""One layer in one direction as one operation of autograd: a loop, and the products around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastrnn_rows import elman, gru, laid_out, lstm, written_out
from fastrnn_rows.gradients import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from torch import Tensor

    from fastrnn_rows.gradients import Made, StepGradients
    from fastrnn_rows.steps import Steps

_unrecorded = torch._C._AutoDispatchBelowAutograd
"""Where nothing is recorded, small operations take a fifth less without looking whether it is."""
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
    with _unrecorded():
        gates_x, turned = _projected(cell, x, weights), laid_out.forward(weights.hh, steps)
        forward: Callable[..., Made] = LOOPS[cell].forward
        return forward(cell, steps, gates_x, hx, turned, weights.bias_hh, save)


def _projected(cell: str, x: Tensor, weights: Weights) -> Tensor:
    """W_ih x + b_ih + b_hh; of a GRU's n without b_hh, which r multiplies."""
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
        x, h0, c0, *rest = ctx.saved_tensors
        own, output, saved = Weights(*rest[:4]), rest[4], rest[5:]
        cell, steps = ctx.what
        # gradients of these may be asked for, or many of them at once, which nothing in place can
        is_batched = torch._C._functorch.is_legacy_batchedtensor
        many = any(grad is not None and is_batched(grad) for grad in grads)
        if many or torch.is_grad_enabled():
            inputs = (x, h0, c0, *own)
            return None, None, *_differentiable(cell, steps, inputs, grads)
        d_output, *d_final = grads
        hx = (h0,) if c0 is None else (h0, c0)
        with _unrecorded():
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
    _, _, to_x, to_h0, to_c0, to_ih, to_hh, to_bias_ih, to_bias_hh = needed
    of_x, of_h = made.d_gates_x, made.d_gates_h
    # a GRU's n comes first where the product is with x; see `gru.backward`
    turned = output.shape[1] if of_x is not of_h else 0
    d_x = d_ih = d_hh = d_bias_ih = d_bias_hh = None
    if to_x:
        d_x = of_x @ (own.ih.roll(turned, 0) if turned else own.ih)
    if to_ih:
        d_ih = of_x.mT @ x
        d_ih = d_ih.roll(-turned, 0) if turned else d_ih
    if to_hh and steps.restarts is not None:
        d_hh = of_h.mT @ steps.entering(output, h0)
    elif to_hh:
        later, before = steps.pairs(of_h, output)
        d_hh = torch.addmm(steps.first(of_h).mT @ h0, later.mT, before)
    if to_bias_ih:
        d_bias_ih = of_x.sum(0)
        d_bias_ih = d_bias_ih.roll(-turned, 0) if turned else d_bias_ih
    if to_bias_hh:
        # not one tensor twice: whoever scales gradients in place would do so twice
        d_bias_hh = of_h.sum(0) if turned or d_bias_ih is None else d_bias_ih.clone()
    return (
        d_x, made.d_h0 if to_h0 else None, made.d_c0 if to_c0 else None,
        d_ih, d_hh, d_bias_ih, d_bias_hh,
    )  # fmt: skip


def _differentiable(
    cell: str, steps: Steps, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The same gradients, of the layer written out."""
    with torch.enable_grad():  # of these alone, not of what they were made of
        inputs = [None if each is None else each.view_as(each) for each in inputs]
        x, h0, c0, *weights = inputs
        assert x is not None
        hx = tuple(state for state in (h0, c0) if state is not None)
        made = written_out.run(cell, steps, x, hx, Weights(*weights))  # type: ignore[arg-type] # the first two are never None
    used = [(one, grad) for one, grad in zip(made, grads, strict=True) if grad is not None]
    leaves = [each for each in inputs if each is not None and each.requires_grad]
    found = iter(
        torch.autograd.grad(
            [one for one, _ in used], leaves, [grad for _, grad in used],
            create_graph=torch.is_grad_enabled(), allow_unused=True,
        )
    )  # fmt: skip
    return tuple(
        next(found) if each is not None and each.requires_grad else None for each in inputs
    )
