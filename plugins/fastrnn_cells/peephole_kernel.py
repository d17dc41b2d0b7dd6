# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The step of an LSTM with peepholes and its gradient in Triton; see `peephole.py`."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 # Triton's interpreter looks for it here
from torch import Tensor

from fastrnn_kernels.cells import Cell, sigmoid, tanh


@triton.jit
def peephole_step(pre, c_prev, weights):
    """I and f see the c before, o the new one."""
    p_i, p_f, p_o = weights
    i = sigmoid(pre[0] + p_i * c_prev)
    f = sigmoid(pre[1] + p_f * c_prev)
    g = tanh(pre[2])
    c = f * c_prev + i * g
    o = sigmoid(pre[3] + p_o * c)
    h = o * tanh(c)
    return h, c, (i, f, g, o)


@triton.jit
def peephole_grad(h, gates, c, c_prev, dh, dc, weights):
    """That of an LSTM, and what comes back through the peepholes."""
    p_i, p_f, p_o = weights
    i, f, g, o = gates
    tanh_c = tanh(c)
    d_o = dh * tanh_c * o * (1.0 - o)
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c) + d_o * p_o
    d_i = dc * g * i * (1.0 - i)
    d_f = dc * c_prev * f * (1.0 - f)
    d_g = dc * i * (1.0 - g * g)
    return (d_i, d_f, d_g, d_o), dc * f + d_i * p_i + d_f * p_f


def weight_grad(
    d_pre: tuple[Tensor, ...], gates: tuple[Tensor, ...], c: Tensor, c_prev: Tensor
) -> tuple[Tensor, ...]:
    """Each weight multiplies a state within a pre-activation."""
    d_i, d_f, _, d_o = d_pre
    return d_i * c_prev, d_f * c_prev, d_o * c


PEEPHOLE_LSTM = Cell(
    "peephole_lstm", 4, True, peephole_step, peephole_grad, weights=3, weight_grad=weight_grad
)
