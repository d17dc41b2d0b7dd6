"""Forward and backward of every regime as one function, in Triton's interpreter.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_gradcheck.py``; see test_interpreter.py.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_gradcheck.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from interpreter_cases import F64, SHARED, STATEFUL, Case, make

pytestmark = pytest.mark.usefixtures("poisoned")


class Recurrence(torch.autograd.Function):
    """The least that lets gradcheck see forward and backward as one function."""

    @staticmethod
    def forward(ctx, case, gates_x, weight_hh, h0, c0):
        options = case.forward_options | {"reverse": case.reverse}
        made = kernels.forward(case.cell, gates_x, weight_hh, h0, c0, save=True, **options)
        ctx.save_for_backward(weight_hh, h0, c0, made.output, made.gates, made.cells)
        ctx.case = case
        return made.output, made.h_n, h0 if made.c_n is None else made.c_n

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n):
        weight_hh, h0, c0, output, gates, cells = ctx.saved_tensors
        made = kernels.backward(
            ctx.case.cell,
            weight_hh,
            output,
            gates,
            cells,
            c0,
            d_output=d_output,
            d_h_n=d_h_n,
            d_c_n=None if c0 is None else d_c_n,
            reverse=ctx.case.reverse,
            **ctx.case.backward_options,
        )
        before = torch.empty_like(output)
        for g, backwards in enumerate(ctx.case.reverse):
            first, later, earlier = (-1, slice(0, -1), slice(1, None))
            if not backwards:
                first, later, earlier = (0, slice(1, None), slice(0, -1))
            before[first, :, g] = h0[g]
            before[later, :, g] = output[earlier, :, g]
        d_weight = torch.einsum("tbgk,tbgh->gkh", made.d_gates, before)
        firsts = [made.d_gates[-1 if b else 0, :, g] for g, b in enumerate(ctx.case.reverse)]
        d_h0 = torch.bmm(torch.stack(firsts), weight_hh)
        return None, made.d_gates, d_weight, d_h0, made.d_c0


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", 2, 2, 2, F64, (True,)),
        Case("rnn_tanh", 3, 2, 5, F64, (True,)),
        Case("rnn_relu", 2, 1, 3, F64),
        Case("rnn_sigmoid", 1, 3, 7, F64, (False, True)),
        Case("lstm", 2, 3, 7, F64, (False, True), regime="resident"),
        Case("rnn_tanh", 5, 1, 3, F64, regime="resident"),
        Case("rnn_relu", 3, 2, 5, F64, (True,), regime="resident"),
        Case("rnn_sigmoid", 2, 17, 1, F64, regime="resident"),
        Case("lstm", 2, 2, 6, F64, regime="grid", back=SHARED),
        Case("lstm", 2, 1, 5, F64, (False, True), regime="grid"),
        Case("rnn_tanh", 3, 17, 2, F64, regime="grid", back=SHARED),
        Case("rnn_relu", 2, 2, 5, F64, regime="grid"),
        Case("rnn_sigmoid", 1, 2, 18, F64, (False, True), regime="grid", back=SHARED),
    ],
    ids=str,
)
def test_gradcheck(case):
    cell, a = case.cell, make(case)
    names = ["gates_x", "weight_hh", "h0"] + ["c0"] * (cell in STATEFUL)
    inputs = [a[name].requires_grad_() for name in names]

    def function(*tensors):
        c0 = tensors[3] if cell in STATEFUL else None
        made = Recurrence.apply(case, *tensors[:3], c0)
        return made[: 3 if cell in STATEFUL else 2]

    fully = cell == "lstm" and case.regime == "step"  # else along random directions: much faster
    torch.autograd.gradcheck(function, inputs, fast_mode=not fully)
