"""One layer in one direction as one operation of autograd: a loop, and the products around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn import unrolled
from fastrnn.backend import Layer
from fastrnn.cell import cell_of
from fastrnn_numba import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn_numba.steps import Steps

_unrecorded = torch._C._AutoDispatchBelowAutograd
"""Where nothing is recorded, small operations take a fifth less without looking whether it is."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Weights(NamedTuple):
    """Of one layer in one direction, as torch.nn has them."""

    ih: Tensor
    """(K*H, I)"""
    hh: Tensor
    """(K*H, H)"""
    bias_ih: Tensor | None
    """(K*H,)"""
    bias_hh: Tensor | None
    """(K*H,)"""


class How(NamedTuple):
    """What is no tensor."""

    cell: str
    steps: Steps
    reverse: bool
    threads: int
    """As many parts of the rows run side by side."""


def run(how: How, x: Tensor, hx: tuple[Tensor, ...], weights: Weights, *, save: bool) -> Any:
    """Output (N, H) and final states (B, H); x is (N, I), each of hx (B, H)."""
    if not _are_numbers((x, *hx, *weights)):
        return _written_out(how, x, hx, weights)
    if save:
        return _apply(how, x, hx[0], hx[1] if len(hx) > 1 else None, *weights)
    with _unrecorded():
        made = loops.forward(how, _projected(how, x, weights), hx, weights, save=False)
    return (made.output, *made.final)


def _are_numbers(tensors: Sequence[Tensor | None]) -> bool:
    """Whether tensors are no more than their numbers: nobody transforms or watches operations."""
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(tensor) in _PLAIN for tensor in tensors if tensor is not None)


def _projected(how: How, x: Tensor, weights: Weights) -> Tensor:
    """W_ih x + b_ih + b_hh; of a GRU's n without b_hh, which r multiplies."""
    weight, bias = weights.ih.mT, weights.bias_ih
    if bias is None or weights.bias_hh is None:
        return x @ weight
    both = weights.bias_hh
    if how.cell == "gru":
        both = both.clone()
        both[2 * len(both) // 3 :] = 0
    return torch.addmm(bias + both, x, weight)


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: How, x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        own = Weights(*weights)  # type: ignore[arg-type] # the first two are never None
        hx = (h0,) if c0 is None else (h0, c0)
        with _unrecorded():
            made = loops.forward(how, _projected(how, x, own), hx, own, save=True)
        ctx.save_for_backward(x, h0, c0, *own, made.output, *made.saved)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return (made.output, *made.final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        x, h0, c0, *rest = ctx.saved_tensors
        own, output, saved = Weights(*rest[:4]), rest[4], rest[5:]
        # gradients of these may be asked for, or many of them at once, which no array can be
        is_batched = torch._C._functorch.is_legacy_batchedtensor
        many = any(grad is not None and is_batched(grad) for grad in grads)
        if many or torch.is_grad_enabled():
            return None, *_differentiable(ctx.how, (x, h0, c0, *own), grads)
        hx = (h0,) if c0 is None else (h0, c0)
        with _unrecorded():
            made = loops.backward(ctx.how, grads, output, saved, hx, own)
            return None, *_sums(ctx.how, x, h0, output, own, made, ctx.needs_input_grad[1:])


_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Direction).apply
"""`_Direction.apply` without a look at each argument for wrappers of transforms, of which there are
none."""


def _sums(
    how: How, x: Tensor, h0: Tensor, output: Tensor, own: Weights, made: loops.Gradients,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of x, h0, c0 and the weights, each in one product over all steps."""
    to_x, to_h0, to_c0, to_ih, to_hh, to_bias_ih, to_bias_hh = needed
    of_x, of_h = made.d_gates_x, made.d_gates_h
    # a GRU's n comes first where the product is with x; see `gru.backward`
    turned = output.shape[1] if of_x is not of_h else 0
    d_x = d_ih = d_hh = d_bias_ih = d_bias_hh = None
    if to_x:
        d_x = of_x @ (own.ih.roll(turned, 0) if turned else own.ih)
    if to_ih:
        if how.steps.has_gaps:  # NaN would reach the gradient: 0 * NaN
            x = x.masked_fill(how.steps.gaps.unsqueeze(1), 0)
        d_ih = of_x.mT @ x
        d_ih = d_ih.roll(-turned, 0) if turned else d_ih
    if to_hh:
        d_hh = of_h.mT @ loops.entering(how, output, h0)
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
    how: How, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The same gradients, of the layer written out."""
    with torch.enable_grad():  # of these alone, not of what they were made of
        inputs = [None if each is None else each.view_as(each) for each in inputs]
        x, h0, c0, *weights = inputs
        assert x is not None
        hx = tuple(state for state in (h0, c0) if state is not None)
        made = _written_out(how, x, hx, Weights(*weights))  # type: ignore[arg-type] # the first two are never None
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


def _written_out(
    how: How, x: Tensor, hx: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, ...]:
    """The layer in operations that torch differentiates in any way."""
    steps, known = how.steps, cell_of(how.cell)
    weight_ih, weight_hh, bias = known.as_layer(*weights)
    at = steps.in_rows
    rows = x if at is None else x.new_zeros(at.rows, x.shape[1]).index_copy(0, at.places, x)
    # of a GRU c is h
    c0 = hx[-1] if known.has_cell_state else None
    layer = Layer(
        cell=how.cell, x=rows.view(len(steps.counts), steps.batch, -1),
        weight_ih=weight_ih.unsqueeze(0), weight_hh=weight_hh.unsqueeze(0),
        bias=None if bias is None else bias.unsqueeze(0), h0=hx[0].unsqueeze(0),
        c0=None if c0 is None else c0.unsqueeze(0), weight_hr=None,
        lengths=steps.lengths if at is None else at.lengths, reverse=(how.reverse,),
        precision="ieee", save=True, resets=steps.mask,
    )  # fmt: skip
    output, *final = unrolled.run(layer)
    output = output.flatten(0, 2)
    output = output if at is None else output.index_select(0, at.places)
    return (output, *(state.squeeze(0) for state in final[: len(hx)]))
