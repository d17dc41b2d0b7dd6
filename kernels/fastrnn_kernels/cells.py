# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Cells: the point-wise part of one time step, and its gradient.

A cell sees one tile of pre-activations, ``gates_x[t] + W_hh h[t-1]``, and knows nothing of time,
memory layout, batch tiles or launches. Two jitted functions define it:

``step(pre, c_prev) -> (h, c, gates)``
    pre and gates are tuples of K tiles (ROWS, UNITS), one a gate; c_prev, h and c are tiles of
    that shape. Everything is in the accumulation dtype.
``grad(h, gates, c, c_prev, dh, dc) -> (d_pre, dc_prev)``
    with what ``step`` saw and made, and the gradients that reach h and c; d_pre is K tiles.

A cell with Q weights a unit of its own, beside W_ih, W_hh and biases, gets them as one argument
more of either, last: a tuple of Q tiles (1, UNITS).

A cell without a cell state gets zeros for every c, returns what it got, and saves nothing but h:
its ``grad`` must not use gates, c or c_prev. A cell with one has gates and c saved for it, and must
not use h, of which zoneout may have kept some back since ``step`` made it.
c is carried in the accumulation dtype from step to step, so a cell whose h feeds back point-wise
(a GRU: K = 4 with r, z and the two halves of n, h = c = (1 - z) n + z c_prev) is written the same
way. A new cell is two such functions: pass the `Cell` in place of a name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), from exp(-|x|): never overflows, and NaN stays NaN."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, z) / (1.0 + z)


@triton.jit
def tanh(x):
    """(1 - z) / (1 + z) with z = exp(-2|x|): never overflows, and NaN stays NaN."""
    size = tl.abs(x)
    z = tl.exp(-2.0 * size)
    y = (1.0 - z) / (1.0 + z)
    if x.dtype == tl.float32:
        # 1 - z cancels near zero, where tanh(x) ~ x deserves its relative accuracy: below 1/4 the
        # Taylor series to x^9 is good to 1e-8. float64 keeps the plain form (2e-16 absolute).
        s = size * size
        series = -17.0 / 315.0 + s * (62.0 / 2835.0)
        series = 1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * series))
        y = tl.where(size < 0.25, size * series, y)
    return tl.where(x < 0, -y, y)


@triton.jit
def lstm_step(pre, c_prev):
    """i, f, o = sigmoid, g = tanh; c = f c_prev + i g; h = o tanh(c)."""
    i = sigmoid(pre[0])
    f = sigmoid(pre[1])
    g = tanh(pre[2])
    o = sigmoid(pre[3])
    c = f * c_prev + i * g
    h = o * tanh(c)
    return h, c, (i, f, g, o)


@triton.jit
def lstm_grad(h, gates, c, c_prev, dh, dc):
    """tanh(c) is made again from c: cheaper than a fifth saved array, exact at any h."""
    i, f, g, o = gates
    tanh_c = tanh(c)
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
    d_i = dc * g * i * (1.0 - i)
    d_f = dc * c_prev * f * (1.0 - f)
    d_g = dc * i * (1.0 - g * g)
    d_o = dh * tanh_c * o * (1.0 - o)
    return (d_i, d_f, d_g, d_o), dc * f


@triton.jit
def rnn_tanh_step(pre, c_prev):
    """The new state is tanh(pre)."""
    return tanh(pre[0]), c_prev, pre


@triton.jit
def rnn_tanh_grad(h, gates, c, c_prev, dh, dc):
    """The derivative is 1 - h^2."""
    return (dh * (1.0 - h * h),), dc


@triton.jit
def rnn_relu_step(pre, c_prev):
    """The new state is max(pre, 0); NaN stays NaN, as in torch (a maximum would drop it)."""
    return tl.where(pre[0] <= 0, 0.0, pre[0]), c_prev, pre


@triton.jit
def rnn_relu_grad(h, gates, c, c_prev, dh, dc):
    """The derivative is 0 where h <= 0, else 1: at NaN the gradient passes, as in torch."""
    return (tl.where(h <= 0, 0.0, dh),), dc


@triton.jit
def rnn_sigmoid_step(pre, c_prev):
    """The new state is sigmoid(pre)."""
    return sigmoid(pre[0]), c_prev, pre


@triton.jit
def rnn_sigmoid_grad(h, gates, c, c_prev, dh, dc):
    """The derivative is h (1 - h)."""
    return (dh * h * (1.0 - h),), dc


WeightGrad = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Cell:
    """What the kernels need to know of a recurrent cell.

    Attributes:
        name: key in ``CELLS``.
        gates: K, pre-activations per hidden unit: 1, 2 or 4.
        has_cell_state: carries c beside h, and saves gates and c for the backward pass.
        step: jitted point-wise step (see the module docstring).
        grad: jitted gradient of the step.
        weights: Q, weights of its own per hidden unit.
        weight_grad: ``weight_grad(d_pre, gates, c, c_prev) -> Q tensors``, all of them (T, B, H) in
            the accumulation dtype, K each of d_pre and gates: the gradient of each weight at each
            step, for the caller to sum. In torch's operations; of a cell with weights.
    """

    name: str
    gates: int
    has_cell_state: bool
    step: Any
    grad: Any
    weights: int = 0
    weight_grad: WeightGrad | None = None


CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        cell.name: cell
        for cell in (
            Cell("lstm", 4, True, lstm_step, lstm_grad),
            Cell("rnn_tanh", 1, False, rnn_tanh_step, rnn_tanh_grad),
            Cell("rnn_relu", 1, False, rnn_relu_step, rnn_relu_grad),
            Cell("rnn_sigmoid", 1, False, rnn_sigmoid_step, rnn_sigmoid_grad),
        )
    }
)
