"""Elman steps over packed rows: h(t) = f(a(t)), a(t) = gates_x(t) + W_hh h(t-1).

Elman, "Finding structure in time", 1990. Backwards, dL/da(t) = f'(a(t)) dL/dh(t), and dL/dh(t) is
dL/doutput(t) + W_hh^T dL/da(t+1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn_rows.gradients import Made, StepGradients
from fastrnn_rows.steps import top

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn_rows.steps import Steps

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rnn_tanh": torch.tanh_,
    "rnn_relu": torch.relu_,
}
"""f, in place."""
_threshold_ = torch.ops.aten.threshold_backward.grad_input


def forward(
    cell: str, steps: Steps, gates_x: Tensor, hx: Sequence[Tensor], turned: Tensor,
    bias_hh: Tensor | None, save: bool,
) -> Made:  # fmt: skip
    """See `gradients`."""
    activation, h = ACTIVATIONS[cell], hx[0]
    steps.add_to_first_(gates_x, h @ turned)
    for (before, rows, a), start in zip(steps.walk(gates_x), steps.starts(h), strict=True):
        if start is not None:
            h = h.index_copy(0, *start)
        if before == rows:
            a.addmm_(h, turned)
        elif before:
            shared = min(before, rows)
            top(a, rows, shared).addmm_(top(h, before, shared), turned)
        h = activation(a)
    return Made(gates_x, (steps.last(gates_x),), ())


def backward(
    cell: str, steps: Steps, d_output: Tensor, d_final: Sequence[Tensor | None], output: Tensor,
    saved: Sequence[Tensor], hx: Sequence[Tensor], weight_hh: Tensor,
) -> StepGradients:  # fmt: skip
    """See `gradients`."""
    d_gates = d_output.clone(memory_format=torch.contiguous_format)  # dL/dh, to begin with
    if d_final[0] is not None:
        steps.add_to_last_(d_gates, d_final[0])
    is_tanh = cell == "rnn_tanh"
    slope = torch.addcmul(output.new_ones(()), output, output, value=-1) if is_tanh else output
    later = d_gates
    for (before, rows, d, f), over in zip(
        steps.walk(d_gates, slope, back=True), steps.starts_back(), strict=True
    ):
        if before == rows:
            d.addmm_(later, weight_hh)
        elif before:
            shared = min(before, rows)
            top(d, rows, shared).addmm_(top(later, before, shared), weight_hh)
        # of relu a gradient must end where h is 0, though it be infinite
        later = d.mul_(f) if is_tanh else _threshold_(d, f, 0, grad_input=d)
        if over is not None:
            later = later.index_fill(0, over, 0)
    d_h0 = steps.first(d_gates) @ weight_hh
    if steps.restarts is not None:
        started = d_gates.index_select(0, steps.restarts.places) @ weight_hh
        d_h0.index_add_(0, steps.restarts.rows, started)
    return StepGradients(d_gates, d_gates, d_h0)
