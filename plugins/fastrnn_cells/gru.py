"""The GRU as torch.nn has it, whose reset gate comes after the product with h.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))
    h' = (1 - z) n + z h

Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014. A layer has one sum
of W_ih x, W_hh h and b for each gate, and n needs its two halves apart: so a layer's gates are
four, r, z and the halves of n, where a module's are three. The rows that are missing in either
matrix are zero. z h is no product with a matrix: that h is c, which is h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.cell import Cell

if TYPE_CHECKING:
    from torch import Tensor


def step(
    pre: tuple[Tensor, ...], h_prev: Tensor, weights: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The equations above, once the products are formed; h is c."""
    r, z, n_x, n_h = pre
    n = torch.tanh(n_x + torch.sigmoid(r) * n_h)
    h = n + torch.sigmoid(z) * (h_prev - n)
    return h, h


def layout(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows r, z, n of torch's parameters as rows r, z, n's half of x, n's half of h."""
    both = 2 * weight_hh.shape[1]
    of_x, of_h = (torch.zeros_like(weight[both:]) for weight in (weight_hh, weight_ih))
    bias = None
    if bias_ih is not None and bias_hh is not None:
        bias = torch.cat((bias_ih[:both] + bias_hh[:both], bias_ih[both:], bias_hh[both:]))
    return (
        torch.cat((weight_ih, of_h)),
        torch.cat((weight_hh[:both], of_x, weight_hh[both:])),
        bias,
    )


GRU = Cell(
    "gru",
    gates=4,
    has_cell_state=True,
    step=step,
    c_is_h=True,
    kernel="fastrnn_cells.gru_kernel:GRU",
    rows=3,
    layout=layout,
    summary="torch.nn.GRU's, gates r, z, n",
)
