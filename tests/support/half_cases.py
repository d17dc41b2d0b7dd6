"""A layer of 16 bits beside one in float32 with the same numbers, and what both make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from rows_cases import CELLS


def layer(cell: str, dtype: torch.dtype, **how: Any) -> Any:
    """One whose numbers are those of 16 bits, in whatever dtype."""
    name, own = CELLS[cell]
    torch.manual_seed(0)
    made = getattr(fastrnn, name)(3, 5, 2, **own, **how)
    return made.to(dtype)


def in_both(cell: str, dtype: torch.dtype, backend: str, **how: Any) -> list[Any]:
    """Of 16 bits, and in float32."""
    half = layer(cell, dtype, backend=backend, **how)
    full = layer(cell, dtype, backend=backend, **how).float()
    full.load_state_dict(half.state_dict())
    return [half, full]


def made_of(
    module: Any, rows: Tensor | PackedSequence, states: int, dtype: torch.dtype, **how: Any
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Results and gradients in `dtype`; inputs, and gradients that come in, have its numbers."""
    packed = isinstance(rows, PackedSequence)
    data = (rows.data if packed else rows).detach().clone().requires_grad_()
    batch = int(rows.batch_sizes[0]) if packed else rows.shape[0 if module.batch_first else 1]
    slots = module.num_layers * (1 + module.bidirectional)
    generator = torch.Generator().manual_seed(1)
    hx = [
        torch.randn(slots, batch, 5, generator=generator).to(dtype).to(data.dtype).requires_grad_()
        for _ in range(states)
    ]
    output, *rest = module(
        rows._replace(data=data) if packed else data, tuple(hx) if states == 2 else hx[0], **how
    )
    final = [one for each in rest for one in (each if isinstance(each, tuple) else (each,))]
    made = [output.data if packed else output, *final]
    upstream = [
        torch.randn(m.shape, generator=torch.Generator().manual_seed(2)).to(dtype).to(m.dtype)
        for m in made
    ]
    gradients = torch.autograd.grad(made, [data, *hx, *module.parameters()], upstream)
    return [m.to(dtype) for m in made], tuple(g.to(dtype) for g in gradients)


def same_bits(one: Any, other: Any) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a, b)
        for ours, theirs in zip(one, other, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )
