"""What a time loop is given and returns, forward and back; one module for each cell.

`forward(cell, steps, gates_x, hx, turned, bias_hh, save) -> Made` may write over gates_x, (N, K*H);
turned is W_hh^T, (H, K*H). `backward(cell, steps, d_output, d_final, output, saved, hx, weight_hh)
-> StepGradients` writes over nothing; d_final are dL/dh_n and dL/dc_n, or None. How the weights lie
in memory is up to `laid_out`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Made(NamedTuple):
    """Of the forward loop."""

    output: Tensor
    """(N, H)"""
    final: tuple[Tensor, ...]
    """(h_n,) or (h_n, c_n), (B, H) each."""
    saved: tuple[Tensor, ...]
    """For the way back, beside the output; none unless asked for."""


class StepGradients(NamedTuple):
    """Of the loop back through time."""

    d_gates_x: Tensor
    """(N, K*H): of W_ih x + b_ih; of a GRU in the order n, r, z."""
    d_gates_h: Tensor
    """(N, K*H): of W_hh h + b_hh, in torch's order; the same tensor for all cells but a GRU."""
    d_h0: Tensor
    """(B, H)"""
    d_c0: Tensor | None = None
    """(B, H)"""


def state_gradient(d_final: Tensor | None, like: Tensor) -> Tensor:
    """(B, H), with which a loop starts and which it may write over."""
    return torch.zeros_like(like) if d_final is None else d_final.clone()
