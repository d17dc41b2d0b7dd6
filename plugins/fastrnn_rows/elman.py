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
    cell: str, steps: Steps, gates_x: Tensor, hx: Sequence[Tensor], weight_hh: Tensor,
    bias_hh: Tensor | None, save: bool,
) -> Made:  # fmt: skip
    """See `gradients`."""
    activation, weight = ACTIVATIONS[cell], weight_hh.mT
    h = hx[0]
    steps.add_to_first_(gates_x, h @ weight)
    for shared, a in steps.walk(gates_x):
        if steps.equal and shared:  # the same without a look at either, which takes longer
            a.addmm_(h, weight)
        elif shared:
            top(a, shared).addmm_(top(h, shared), weight)
        h = activation(a)
    return Made(gates_x, (steps.last(gates_x),), ())


def backward(
    cell: str, steps: Steps, d_output: Tensor, d_final: Sequence[Tensor | None], output: Tensor,
    saved: Sequence[Tensor], hx: Sequence[Tensor], weight_hh: Tensor,
) -> StepGradients:  # fmt: skip
    """See `gradients`."""
    is_tanh = cell == "rnn_tanh"
    if is_tanh:
        d_gates = torch.addcmul(output.new_ones(()), output, output, value=-1)  # f', to begin with
    else:
        d_gates = torch.empty_like(output)
    if d_final[0] is not None:
        d_output = d_output.clone()
        steps.add_to_last_(d_output, d_final[0])
    later = d_gates
    for shared, d, own, h in steps.walk(d_output, d_gates, output, back=True):
        if steps.equal and shared:
            d_h = torch.addmm(d, later, weight_hh)
        else:
            d_h = _arriving(d, later, shared, weight_hh)
        # of relu a gradient must end where it is 0, though it be infinite
        later = own.mul_(d_h) if is_tanh else _threshold_(d_h, h, 0, grad_input=own)
    return StepGradients(d_gates, d_gates, steps.first(d_gates) @ weight_hh)


def _arriving(d: Tensor, later: Tensor, shared: int, weight_hh: Tensor) -> Tensor:
    """dL/dh(t): dL/doutput(t), and W_hh^T dL/da(t+1) in the rows that both steps have."""
    if shared == len(d):
        return torch.addmm(d, top(later, shared), weight_hh)
    d = d.clone()
    if shared:
        d[:shared].addmm_(later, weight_hh)
    return d
