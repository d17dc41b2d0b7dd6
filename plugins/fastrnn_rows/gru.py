"""GRU steps over packed rows, as torch.nn has them, and backpropagation through them.

    r, z = sigmoid(gates_x(t) + W_hh h(t-1))    of the first two gates
    n = tanh(gates_x(t) + r (W_hn h(t-1) + b_hn))
    h(t) = n + z (h(t-1) - n)

Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn_rows.gradients import Made, StepGradients, state_gradient
from fastrnn_rows.restarts import taken_
from fastrnn_rows.steps import into_step, top

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn_rows.steps import Steps


def forward(
    cell: str, steps: Steps, gates_x: Tensor, hx: Sequence[Tensor], turned: Tensor,
    bias_hh: Tensor | None, save: bool,
) -> Made:  # fmt: skip
    """See `gradients`; saved are the gates, and W_hn h + b_hn."""
    h = hx[0]
    hidden = h.shape[1]
    of_gates, of_n = turned[:, : 2 * hidden], turned[:, 2 * hidden :]
    bias = h.new_zeros(hidden) if bias_hh is None else bias_hh[2 * hidden :]
    output = gates_x.new_empty(len(gates_x), hidden)
    from_h = torch.empty_like(output) if save else output
    walk = steps.walk(gates_x[:, : 2 * hidden], *gates_x.chunk(3, 1), from_h, output)
    for (before, rows, gates, r_t, z_t, n_t, from_t, h_t), start in zip(
        walk, steps.starts(h), strict=True
    ):
        if before != rows:
            h = into_step(h, hx[0], before, rows)
        if start is not None:
            h = h.index_copy(0, *start)
        gates.addmm_(h, of_gates).sigmoid_()
        torch.addmm(bias, h, of_n, out=from_t)
        h = torch.lerp(n_t.addcmul_(r_t, from_t).tanh_(), h, z_t, out=h_t)
    return Made(output, (steps.last(output),), (gates_x, from_h) if save else ())


def backward(
    cell: str, steps: Steps, d_output: Tensor, d_final: Sequence[Tensor | None], output: Tensor,
    saved: Sequence[Tensor], hx: Sequence[Tensor], weight_hh: Tensor,
) -> StepGradients:  # fmt: skip
    """See `gradients`.

    With u = (1 - z)(1 - n^2) and m = W_hn h(t-1) + b_hn, what reaches h reaches the two halves of
    n, x's and h's, and r and z, as

        dh(t) [u, u m r(1-r), (h(t-1) - n) z(1-z), u r]

    and h(t-1) both through the last three of them and as z dh(t).
    """
    gates, m = saved
    r, z, n = gates.chunk(3, 1)
    hidden = output.shape[1]
    d_gates = output.new_empty(len(output), 4, hidden)  # the factors, to begin with
    u, of_r, of_z, of_m = d_gates.unbind(1)
    torch.addcmul(output.new_ones(()), n, n, value=-1, out=u).addcmul_(u, z, value=-1)
    torch.mul(u, r, out=of_m)
    torch.mul(of_m, m, out=of_r).addcmul_(of_r, r, value=-1)
    torch.sub(steps.entering(output, hx[0]), n, out=of_z).mul_(z).addcmul_(of_z, z, value=-1)
    flat = d_gates.flatten(1)
    of_x, of_h = flat[:, : 3 * hidden], flat[:, hidden:]
    d_h = state_gradient(d_final[0], hx[0])
    taken: list[Tensor] = []
    for (_, rows, d, factors, whole, z_t), over in zip(
        steps.walk(d_output, d_gates, of_h, z, back=True), steps.starts_back(), strict=True
    ):
        d_here = top(d_h, steps.rows, rows).add_(d)
        factors.mul_(d_here.unsqueeze(1))
        d_here.mul_(z_t).addmm_(whole, weight_hh)
        if over is not None:
            taken.append(taken_(d_h, over))
    steps.add_started_(d_h, taken)
    return StepGradients(of_x, of_h, d_h)
