"""LSTM steps over packed rows, and backpropagation through them.

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of gates_x(t) + W_hh h(t-1)
    c(t) = f c(t-1) + i g
    h(t) = o tanh(c(t))

Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn_rows.gradients import Made, StepGradients, state_gradient
from fastrnn_rows.restarts import taken_
from fastrnn_rows.steps import top

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn_rows.steps import Steps


def forward(
    cell: str, steps: Steps, gates_x: Tensor, hx: Sequence[Tensor], turned: Tensor,
    bias_hh: Tensor | None, save: bool,
) -> Made:  # fmt: skip
    """See `gradients`; saved are c after each step, and the gates."""
    h, c = hx[0], hx[1].clone()
    hidden = c.shape[1]
    steps.add_to_first_(gates_x, h @ turned)
    output = gates_x.new_empty(len(gates_x), hidden)
    cells = torch.empty_like(output) if save else output
    i, f, g, o = gates_x.chunk(4, 1)
    walk = steps.walk(gates_x, gates_x[:, : 2 * hidden], i, f, g, o, cells, output)
    for (before, rows, a, i_f, i_t, f_t, g_t, o_t, c_t, h_t), start in zip(
        walk, steps.starts(*hx), strict=True
    ):
        if start is not None:
            over, own_h, own_c = start
            h = h.index_copy(0, over, own_h)
            c.index_copy_(0, over, own_c)
        if before:
            shared = min(before, rows)
            top(a, rows, shared).addmm_(top(h, before, shared), turned)
        i_f.sigmoid_()  # both in one go
        c_now = top(c, steps.rows, rows).mul_(f_t).addcmul_(i_t, g_t.tanh_())
        if save:
            c_t.copy_(c_now)
        h = torch.tanh(c_now, out=h_t).mul_(o_t.sigmoid_())
    return Made(output, (steps.last(output), c), (cells, gates_x) if save else ())


def backward(
    cell: str, steps: Steps, d_output: Tensor, d_final: Sequence[Tensor | None], output: Tensor,
    saved: Sequence[Tensor], hx: Sequence[Tensor], weight_hh: Tensor,
) -> StepGradients:  # fmt: skip
    """See `gradients`.

    With dc(t) = dh(t) (o - h tanh(c)) + f(t+1) dc(t+1),

        dgates(t) = [dc g i(1-i), dc c(t-1) f(1-f), dc i (1-g^2), dh h (1-o)]

    whose factors on the right depend on no gradient: they are formed for all steps at once.
    """
    cells, gates = saved
    i, f, g, o = gates.chunk(4, 1)
    d_gates = output.new_empty(len(output), 4, output.shape[1])  # the factors, to begin with
    of_i, of_f, of_g, of_o = d_gates.unbind(1)
    torch.mul(g, i, out=of_i).addcmul_(of_i, i, value=-1)
    torch.mul(steps.entering(cells, hx[1]), f, out=of_f).addcmul_(of_f, f, value=-1)
    torch.addcmul(i, torch.mul(i, g, out=of_g), g, value=-1, out=of_g)
    torch.addcmul(output, output, o, value=-1, out=of_o)
    tanh_c = cells.tanh()
    to_c = torch.addcmul(o, output, tanh_c, value=-1, out=tanh_c)
    flat = d_gates.flatten(1)
    d_h, d_c = (state_gradient(*each) for each in zip(d_final, hx, strict=True))
    taken_h: list[Tensor] = []
    taken_c: list[Tensor] = []
    walk = steps.walk(d_output, flat, d_gates[:, :3], of_o, to_c, f, back=True)
    for (_, rows, d, whole, by_c, by_h, to_c_t, f_t), over in zip(
        walk, steps.starts_back(), strict=True
    ):
        d_here = top(d_h, steps.rows, rows).add_(d)
        d_c_here = top(d_c, steps.rows, rows).addcmul_(d_here, to_c_t)
        by_c.mul_(d_c_here.unsqueeze(1))
        by_h.mul_(d_here)
        d_c_here.mul_(f_t)
        torch.mm(whole, weight_hh, out=d_here)
        if over is not None:
            taken_h.append(taken_(d_h, over))
            taken_c.append(taken_(d_c, over))
    steps.add_started_(d_h, taken_h)
    steps.add_started_(d_c, taken_c)
    return StepGradients(flat, flat, d_h, d_c)
