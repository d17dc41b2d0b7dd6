"""One layer in one direction as one operation of autograd: a loop, and the products around it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn import unrolled
from fastrnn.backend import Layer
from fastrnn.cell import cell_of
from fastrnn.direction import Weights, are_many, differentiable, sums, unrecorded
from fastrnn.precision import uncast
from fastrnn_numba import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn_numba.steps import Steps

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class How(NamedTuple):
    """What is no tensor."""

    cell: str
    steps: Steps
    reverse: bool
    threads: int
    """As many parts of the rows run side by side."""


def run(
    how: How, x: Tensor, hx: tuple[Tensor, ...], weights: Weights, *, save: bool
) -> tuple[Tensor, ...]:
    """Output (N, H) and final states (B, H); x is (N, I), each of hx (B, H)."""
    if not _are_numbers((x, *hx, *weights)):
        return _written_out(how, x, hx, weights)
    if save:
        return _apply(how, x, hx[0], hx[1] if len(hx) > 1 else None, *weights)
    with unrecorded():
        made = loops.forward(how, x, hx, weights, save=False)
    return (made.output, *made.final)


def _are_numbers(tensors: Sequence[Tensor | None]) -> bool:
    """Whether tensors are no more than their numbers: nobody transforms or watches operations."""
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(tensor) in _PLAIN for tensor in tensors if tensor is not None)


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: How, x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        own = Weights(*weights)  # type: ignore[arg-type] # the first two are never None
        hx = (h0,) if c0 is None else (h0, c0)
        with unrecorded():
            made = loops.forward(how, x, hx, own, save=True)
        ctx.save_for_backward(x, h0, c0, *own, made.output, *made.saved)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return (made.output, *made.final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        with uncast("cpu"):
            return _backward(ctx, grads)


def _backward(ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    x, h0, c0, *rest = ctx.saved_tensors
    own, output, saved = Weights(*rest[:4]), rest[4], rest[5:]
    if are_many(grads) or torch.is_grad_enabled():  # to be differentiated again
        layer = partial(_written_out, ctx.how)
        return None, *differentiable(layer, (x, h0, c0, *own), grads)
    hx = (h0,) if c0 is None else (h0, c0)
    with unrecorded():
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
    to_x, to_h0, to_c0, to_ih, to_hh, *to_biases = needed
    of_h, d_hh = made.d_gates_h, None
    if to_hh:
        d_hh = of_h.mT @ loops.entering(how, output, h0)
    if to_ih and how.steps.has_gaps:  # NaN would reach the gradient: 0 * NaN
        x = x.masked_fill(how.steps.gaps.unsqueeze(1), 0)
    around = sums(x, own, made.d_gates_x, of_h, (to_x, to_ih, *to_biases))
    return (
        around.x, made.d_h0 if to_h0 else None, made.d_c0 if to_c0 else None,
        around.ih, d_hh, around.bias_ih, around.bias_hh,
    )  # fmt: skip


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
        cell=how.cell, x=rows.view(steps.seq_len, steps.batch, x.shape[1]),
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
