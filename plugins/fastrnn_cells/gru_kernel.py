# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The GRU's step and its gradient in Triton; see `gru.py` for the equations and the gates."""

import triton
import triton.language as tl  # noqa: F401 # Triton's interpreter looks for it here

from fastrnn_kernels.cells import Cell, sigmoid, tanh


@triton.jit
def gru_step(pre, c_prev):
    """What is saved is r, z, n and the half of n that comes from h, before r."""
    r = sigmoid(pre[0])
    z = sigmoid(pre[1])
    n = tanh(pre[2] + r * pre[3])
    h = n + z * (c_prev - n)
    return h, h, (r, z, n, pre[3])


@triton.jit
def gru_grad(h, gates, c, c_prev, dh, dc):
    """H is c: what reaches either reaches both."""
    r, z, n, n_h = gates
    dh = dh + dc
    d_z = dh * (c_prev - n) * z * (1.0 - z)
    d_n = dh * (1.0 - z) * (1.0 - n * n)
    d_r = d_n * n_h * r * (1.0 - r)
    return (d_r, d_z, d_n, d_n * r), dh * z


GRU = Cell("gru", 4, True, gru_step, gru_grad)
