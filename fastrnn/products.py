"""The matrix products around a time loop: one for all steps before it, one per gradient after it.

Each is written in terms of one function, `Product`, which a backend may replace; torch's is
`product`. Shapes are those of `fastrnn.backend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from fastrnn import select

if TYPE_CHECKING:
    from torch import Tensor

    from fastrnn.layer import Layer


class Product(Protocol):
    """A matrix product, and something added to it."""

    def __call__(self, a: Tensor, b: Tensor, add: Tensor | None = None) -> Tensor:
        """Return a @ b (+ add); see `product`."""


def product(a: Tensor, b: Tensor, add: Tensor | None = None) -> Tensor:
    """Return a @ b (+ add), in as few of torch's operations as it has for that.

    Args:
        a: (..., M, K), or (G, M, K) if b is batched; any strides.
        b: (K, N) or (G, K, N); any strides.
        add: (N,), or (M, N) if a is a matrix, or (G, 1, N) if b is batched.

    Returns:
        (..., M, N) or (G, M, N).
    """
    if add is None:
        return _turned(a, b) if _is_narrow(a, b) else a @ b
    if b.dim() == 3:
        return torch.baddbmm(add, a, b)
    if add.dim() == 1:
        return torch.nn.functional.linear(a, b.mT, add)
    return torch.addmm(add, a, b)


NARROW = 8
"""Columns; from twelve on the plain product takes as little, with several threads less."""
WORTH = 1 << 13
"""Elements of the other matrix, of each if there are many; for fewer the copy takes what is won."""


def _is_narrow(a: Tensor, b: Tensor) -> bool:
    """Whether a @ b takes longer than its transpose, b^T a^T.

    MKL's products of few columns take 2 to 30 times as long as of few rows. Where a layer has few
    inputs, the gradients of x and W_ih are such products.
    """
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return False
    if b.stride(-1) != 1 or not 1 < b.shape[-1] <= NARROW:
        return False
    return (a.shape[1:] if b.dim() == 3 else a.shape).numel() >= WORTH


def _turned(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, contiguous, as the transpose of b^T a^T."""
    if a.dim() > b.dim():
        return _turned(a.flatten(0, -2), b).view(*a.shape[:-1], -1)
    return (b.mT @ a.mT).mT.contiguous()


def project(
    x: Tensor, weight_ih: Tensor, bias: Tensor | None, multiply: Product = product
) -> Tensor:
    """W_ih x + b for every step and group as one product: (T, B, G, K*H).

    With inputs of their own per group (x of four dims) it is one batched product, and the result
    is a view whose group dimension is outermost in memory.
    """
    if x.dim() == 3:
        gates_x = multiply(x, weight_ih.flatten(0, 1).mT, None if bias is None else bias.flatten())
        return gates_x.view(*x.shape[:2], *weight_ih.shape[:2])
    gates_x = multiply(by_group(x), weight_ih.mT, None if bias is None else bias.unsqueeze(1))
    return by_step(gates_x, x)


def input_gradient(
    d_gates: Tensor, weight_ih: Tensor, x: Tensor, multiply: Product = product
) -> Tensor:
    """dL/dx(t) = W_ih^T dgates(t), summed over the groups that share x."""
    if x.dim() == 3:
        return multiply(d_gates.flatten(2), weight_ih.flatten(0, 1))
    return by_step(multiply(by_group(d_gates), weight_ih), x)


def input_weight_gradient(d_gates: Tensor, x: Tensor, multiply: Product = product) -> Tensor:
    """dL/dW_ih = sum over t of dgates(t) x(t)^T: (G, K*H, I)."""
    groups, rows = d_gates.shape[2:]
    if x.dim() == 3:
        flat = multiply(d_gates.reshape(-1, groups * rows).mT, x.reshape(-1, x.shape[-1]))
        return flat.view(groups, rows, -1)
    return multiply(by_group(d_gates).mT, by_group(x))


def recurrent_weight_gradient(
    d_gates: Tensor, output: Tensor, layer: Layer, multiply: Product = product
) -> Tensor:
    """dL/dW_hh = sum over t of dgates(t) h(t-1)^T: (G, K*H, P).

    The sum splits into the steps that follow a stored output, one product over all of them, and
    each row's first step, which follows h0. With resets many do, and h(t-1) is written out, and so
    it is where W_hh sees only part of it.
    """
    steps = d_gates.shape[0]
    starts_alike = layer.lengths is None and layer.resets is None and len(set(layer.reverse)) == 1
    if layer.groups > 2 and starts_alike and layer.recurrent_mask is None:
        return _of_all_groups(d_gates, output, layer, multiply)
    total = []
    for group, reverse in enumerate(layer.reverse):
        d_group, h = d_gates[:, :, group], output[:, :, group]
        if layer.resets is not None or layer.recurrent_mask is not None:
            before = entering(h, layer.h0[group], layer.lengths, layer.resets, reverse)
            if layer.recurrent_mask is not None:
                before = layer.recurrent_mask[group] * before
            total.append(multiply(d_group.flatten(0, 1).mT, before.flatten(0, 1)))
            continue
        later, earlier = (d_group[:-1], h[1:]) if reverse else (d_group[1:], h[:-1])
        first = of_first_steps(d_group, layer.lengths, None, reverse)
        d_weight = multiply(first.mT, layer.h0[group])
        if steps > 1:
            d_weight = multiply(later.flatten(0, 1).mT, earlier.flatten(0, 1), d_weight)
        total.append(d_weight)
    return torch.stack(total)


def _of_all_groups(d_gates: Tensor, output: Tensor, layer: Layer, multiply: Product) -> Tensor:
    """The same as one batched product, where many groups begin at the same step."""
    reverse = layer.reverse[0]
    first = d_gates[-1 if reverse else 0].transpose(0, 1)
    d_weight = multiply(first.mT, layer.h0)
    if len(d_gates) == 1:
        return d_weight
    later, earlier = (d_gates[:-1], output[1:]) if reverse else (d_gates[1:], output[:-1])
    return d_weight + multiply(by_group(later).mT, by_group(earlier))


def of_first_steps(
    sequence: Tensor, lengths: Tensor | None, resets: Tensor | None, reverse: bool
) -> Tensor:
    """(B, N): one group's sequence, (T, B, N), at the step that the initial state enters.

    With resets it enters many, and this is their sum. For a row of no steps it is a place past the
    row's end.
    """
    if resets is None and (lengths is None or not reverse):
        return sequence[-1 if reverse else 0]
    steps, batch = sequence.shape[:2]
    ends = torch.full((batch,), steps, device=sequence.device) if lengths is None else lengths
    first = (ends - 1).clamp(min=0) if reverse else torch.zeros_like(ends)
    if resets is None:
        return sequence[first, torch.arange(batch, device=first.device)]
    time = torch.arange(steps, device=sequence.device).unsqueeze(1)
    return select.zero_(sequence.clone(), ~(resets | (time == first))).sum(0)


def entering(
    states: Tensor, initial: Tensor, lengths: Tensor | None, resets: Tensor | None, reverse: bool
) -> Tensor:
    """The state that enters each step of one group, from those that leave them.

    Past a row's length it means nothing.

    Args:
        states: (T, B, N), h or c after each step.
        initial: (B, N), h0 or c0: what enters a row's first step, and those that are reset.
        lengths: `Layer.lengths`.
        resets: `Layer.resets`.
        reverse: whether time runs backwards.
    """
    first = initial.unsqueeze(0)
    before = torch.cat((states[1:], first) if reverse else (first, states[:-1]))
    starts = resets
    if reverse and lengths is not None:
        # a row's first step, its last in memory, follows none of the steps that it never took
        time = torch.arange(states.shape[0], device=states.device)
        own_first = time.unsqueeze(1) == lengths.to(states.device) - 1
        starts = own_first if starts is None else starts | own_first
    return before if starts is None else select.put_(before, starts, initial)


def by_group(sequence: Tensor) -> Tensor:
    """(T, B, G, N) -> (G, T*B, N), a view wherever the strides of T and B allow one."""
    return sequence.permute(2, 0, 1, 3).flatten(1, 2)


def by_step(stacked: Tensor, like: Tensor) -> Tensor:
    """(G, T*B, N) -> (T, B, G, N), a view; T and B are those of `like`."""
    groups, _, width = stacked.shape
    return stacked.view(groups, *like.shape[:2], width).permute(1, 2, 0, 3)
