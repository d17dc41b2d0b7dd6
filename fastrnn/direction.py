"""Stacks with torch.nn's parameters: what surrounds the time loop of a layer in one direction.

For stack backends whose loop is one operation of autograd. N places hold the steps of all rows; K*H
are the rows of a module's matrices, 3H of a GRU's. That one's n takes W_hn h and its bias times r,
so that gradients of what is made of x and of what is made of h differ: those of x then come in the
order n, r, z, which leaves those of r and z, common to both, side by side with either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from fastrnn.precision import returned, uncast
from fastrnn.products import product
from fastrnn.roofline import HALVES, in_full
from fastrnn.transforms import are_many_to_autograd, is_batched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from fastrnn.backend import StackCall
    from fastrnn.request import Request

    RunOne = Callable[[bool, Tensor, tuple[Tensor, ...], "Weights"], Sequence[Tensor]]
    WrittenOut = Callable[[Tensor, tuple[Tensor, ...], "Weights"], tuple[Tensor, ...]]

DTYPES = (torch.float32, torch.float64, *HALVES)
unrecorded = torch._C._AutoDispatchBelowAutograd
"""Where nothing is recorded, small operations take a fifth less without looking whether it is."""


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


class Sums(NamedTuple):
    """The gradients of what is around the loop; None where not needed."""

    x: Tensor | None
    """(N, I)"""
    ih: Tensor | None
    """(K*H, I)"""
    bias_ih: Tensor | None
    """(K*H,)"""
    bias_hh: Tensor | None
    """(K*H,)"""


def reasons(request: Request, cells: Iterable[str]) -> list[str]:
    """What speaks against loops of these cells on a CPU."""
    found = []
    if request.device != "cpu":
        found.append(f"device is {request.device}; needs cpu")
    if request.cell not in cells:
        found.append(f"cell is {request.cell}; it has {', '.join(cells)}")
    if request.proj_size:
        found.append(f"proj_size is {request.proj_size}; it has no projections")
    if request.dtype not in DTYPES:
        found.append(f"dtype is {request.dtype}; needs {', '.join(map(str, DTYPES))}")
    return found


def in_float32(
    run: Callable[[StackCall], tuple[Tensor, ...]], call: StackCall
) -> tuple[Tensor, ...]:
    """What `run` makes of a call, of one of 16 bits in float32.

    Results are rounded once, not at every step; casts are differentiable, so that gradients come
    back in the dtype of what was passed in.
    """
    asked = call.request
    if asked.dtype not in HALVES:
        return run(call)
    wide = call._replace(
        request=in_full(asked), input=call.input.float(),
        hx=tuple(state.float() for state in call.hx),
        weights=[weight.float() for weight in call.weights],
    )  # fmt: skip
    with uncast(asked.device):
        made = run(wide)
    kind = returned(asked.cell, asked.device, asked.dtype, call.hx[0].dtype)
    return tuple(each.to(kind) for each in made)


def ways(request: Request) -> tuple[bool, ...]:
    """Whether each direction is backwards in time."""
    return (False, True) if request.bidirectional else (False,)


def stack(call: StackCall, x: Tensor, run_one: RunOne) -> tuple[Tensor, ...]:
    """Every layer in turn; x is (N, I), and so is the output, (N, directions * H).

    Args:
        call: the weights and states are taken from it.
        x: of the first layer.
        run_one: takes whether time runs backwards, x, states (B, H) and weights of a layer in one
            direction; returns its output, (N, H), and final states, (B, H).
    """
    asked, states = call.request, []
    per_slot = 4 if asked.bias else 2
    for layer in range(asked.num_layers):
        outputs = []
        for reverse in ways(asked):
            slot = layer * asked.directions + reverse
            own = call.weights[slot * per_slot : (slot + 1) * per_slot]
            weights = Weights(own[0], own[1], *(own[2:] or (None, None)))
            output, *final = run_one(reverse, x, tuple(each[slot] for each in call.hx), weights)
            outputs.append(output)
            states.append(final)
        x = torch.cat(outputs, 1) if asked.bidirectional else outputs[0]
        if asked.dropout and layer < asked.num_layers - 1:
            x = functional.dropout(x, asked.dropout, training=True)
    return x, *(torch.stack(each) for each in zip(*states, strict=True))


def sums(x: Tensor, own: Weights, of_x: Tensor, of_h: Tensor, needed: Sequence[bool]) -> Sums:
    """The gradients of x, W_ih and the biases, each in one product over all steps.

    Args:
        x: (N, I)
        own: the weights.
        of_x: (N, K*H), gradients of W_ih x + b_ih; of a GRU in the order n, r, z.
        of_h: (N, K*H), of W_hh h + b_hh; the same tensor for all cells but a GRU.
        needed: which of `Sums` are.
    """
    to_x, to_ih, to_bias_ih, to_bias_hh = needed
    turned = len(own.ih) // 3 if of_x is not of_h else 0
    d_x = d_ih = d_bias_ih = d_bias_hh = None
    if to_x:
        d_x = product(of_x, own.ih.roll(turned, 0) if turned else own.ih)
    if to_ih:
        d_ih = product(of_x.mT, x)
        d_ih = d_ih.roll(-turned, 0) if turned else d_ih
    if to_bias_ih:
        d_bias_ih = of_x.sum(0)
        d_bias_ih = d_bias_ih.roll(-turned, 0) if turned else d_bias_ih
    if to_bias_hh:
        # not one tensor twice: whoever scales gradients in place would do so twice
        d_bias_hh = of_h.sum(0) if turned or d_bias_ih is None else d_bias_ih.clone()
    return Sums(d_x, d_ih, d_bias_ih, d_bias_hh)


def are_many(grads: Sequence[Tensor | None]) -> bool:
    """Whether they are many of each at once, which nothing in place takes.

    As `is_grads_batched` hands them out, and `vmap` over a function that calls for gradients.
    """
    if are_many_to_autograd(grads):
        return True
    return any(grad is not None and is_batched(grad) for grad in grads)


def differentiable(
    written_out: WrittenOut, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of a layer's inputs, of the layer written out: to be differentiated again.

    Args:
        written_out: takes x, the initial states and the weights, and returns what the layer does.
        inputs: x, h0, c0 or None, and the weights.
        grads: of what it returns; None where nobody used it.
    """
    with torch.enable_grad():  # of these alone, not of what they were made of
        inputs = [None if each is None else each.view_as(each) for each in inputs]
        x, h0, c0, *weights = inputs
        assert x is not None
        hx = tuple(state for state in (h0, c0) if state is not None)
        made = written_out(x, hx, Weights(*weights))  # type: ignore[arg-type] # the first two are never None
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
