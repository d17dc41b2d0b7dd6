"""Layers that run at the same time, in Triton's interpreter, against NumPy float64 (oracle.py).

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_chain.py``; see test_interpreter.py.
"""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_chain.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from chain_cases import Chain, assert_close, backward, expect, forward, make, run
from fastrnn_kernels import enqueue
from interpreter_cases import BF16, F16, F32, F64, GRID, SHARED, STATEFUL

pytestmark = pytest.mark.usefixtures("poisoned")

TWO, THREE = (False,) * 2, (False,) * 3
TWO_BACK, THREE_BACK = (True,) * 2, (True,) * 3
NARROW = replace(GRID, block_h=4)  # an LSTM's smallest tile: 16 gates
QUARTERS = replace(SHARED, block_h=4, splits=4)  # of a tile of 16 units
LANES = {"config": replace(NARROW, lanes=2), "back": replace(SHARED, lanes=2)}

CASES = [
    Chain("lstm", 1, 1, 1, F32, TWO),
    Chain("lstm", 2, 3, 20, F32, TWO_BACK, grads="y"),
    Chain("lstm", 3, 17, 33, F32, TWO, strided=True, config=replace(GRID, block_h=8), back=SHARED),
    Chain("lstm", 6, 2, 5, F32, THREE_BACK, grads="yh", config=NARROW),
    Chain("lstm", 2, 2, 34, F16, THREE, grads="hc", config=GRID, back=QUARTERS),
    Chain("lstm", 2, 3, 33, BF16, TWO_BACK, strided=True, config=GRID, back=SHARED),
    Chain("lstm", 9, 1, 3, BF16, THREE, grads="c", bias=False),
    Chain("lstm", 1, 17, 20, F16, TWO, grads="yc", bias=False, back=SHARED),
    Chain("lstm", 2, 2, 17, F64, THREE_BACK, config=NARROW, back=QUARTERS),
    Chain("lstm", 2, 40, 20, F32, TWO, strided=True, **LANES),
    Chain("lstm", 3, 40, 5, F64, TWO_BACK, grads="h", **LANES),
    Chain("rnn_tanh", 7, 3, 20, F32, THREE_BACK, grads="yh", config=GRID, back=SHARED),
    Chain("rnn_tanh", 2, 17, 40, BF16, TWO, grads="y", strided=True, config=GRID, back=SHARED),
    Chain("rnn_tanh", 2, 40, 20, F16, THREE, grads="yh", config=replace(GRID, lanes=3)),
    Chain("rnn_relu", 3, 3, 33, F32, TWO_BACK, grads="y", config=GRID),
    Chain("rnn_relu", 17, 2, 5, F16, TWO, grads="yh", strided=True, bias=False),
    Chain("rnn_relu", 1, 1, 1, F64, THREE, grads="h"),
    Chain("rnn_sigmoid", 2, 2, 130, F32, TWO, grads="h",
          config=replace(GRID, num_warps=8, ahead=2), back=replace(SHARED, num_warps=4, ahead=2)),
    Chain("rnn_sigmoid", 2, 1, 36, BF16, THREE_BACK, grads="yh", config=GRID, back=QUARTERS),
    Chain("rnn_sigmoid", 17, 3, 3, F64, TWO, grads="yh", bias=False),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, oracle):
    a = make(case)
    made, back = run(case, a)
    want_made, want_back = expect(oracle, case, a)
    assert_close(case, made, want_made, roundings=3)
    assert_close(case, back, want_back, roundings=4)


@pytest.mark.parametrize("cell", kernels.CELLS)
def test_nothing_is_saved_unless_asked(cell):
    case = Chain(cell, 2, 3, 5, F32, TWO)
    a = make(case)
    given = {name: None if v is None else v.clone() for name, v in a.items()}
    made, saved = forward(case, a), forward(case, a, save=True)
    assert made.gates is None
    assert made.cells is None
    assert torch.equal(made.output, saved.output)
    assert torch.equal(made.h_n, saved.h_n)
    assert made.c_n is saved.c_n is None or torch.equal(made.c_n, saved.c_n)
    for name, value in given.items():
        assert value is None or torch.equal(a[name], value), f"{name} is the caller's"


def test_gates_of_all_layers_do_not_fit_where_gates_x_of_one_is():
    case = Chain("lstm", 2, 3, 5, F32, TWO)
    a = make(case)
    given = a["gates_x"].clone()
    want, made = forward(case, a, save=True), forward(case, a, save=True, overwrite=True)
    assert torch.equal(a["gates_x"], given)
    assert torch.equal(made.gates, want.gates)


def test_an_empty_batch_launches_nothing(monkeypatch):
    monkeypatch.setattr(enqueue, "run", None)
    made, back = run(case := Chain("lstm", 2, 0, 3, F32, THREE), make(case))
    assert made.output.shape == (2, 0, 3, 3)
    assert made.h_n.shape == back.d_c0.shape == (3, 0, 3)


@pytest.mark.parametrize("launched", [2, 3])
def test_the_plan_is_that_of_chained_groups(launched, monkeypatch):
    swept = []
    monkeypatch.setattr(enqueue, "run", swept.append)
    case = Chain("lstm", 4, 3, 5, F32, (False,) * launched)
    run(case, make(case))
    assert [sweep.problem.direction for sweep in swept] == ["forward", "backward"]
    assert [sweep.rounds for sweep in swept] == [4, 4 + launched - 1]
    for sweep in swept:
        assert sweep.problem.chained
        assert sweep.constants["CHAIN"] is True
        assert sweep.config.regime == "grid"


@pytest.mark.parametrize("cell", kernels.CELLS)
def test_nan_goes_where_the_equations_take_it(cell, oracle):
    case = Chain(cell, 3, 4, 20, F32, THREE)
    a = make(case)
    a["gates_x"][1, 1, 0, 7] = math.nan  # a row, from the second step on, of every layer
    a["h0"][1, 2, 3] = math.nan  # a row, in the second layer and the third
    if cell != "rnn_relu":  # whose gradient is 0 where h is, as torch has it; the oracle's is NaN
        a["d_h_n"][1, 3, 2] = math.nan  # a row, on the way back, in the second and the first
    made, back = run(case, a)
    want_made, want_back = expect(oracle, case, a)
    assert_close(case, made, want_made, roundings=3)
    assert_close(case, back, want_back, roundings=4)
    assert made.output[:, 2, 0].isfinite().all()
    assert made.output[:, 2, 1:].isnan().any()
    assert back.d_gates[:, 3, 2].isfinite().all()
    assert cell == "rnn_relu" or back.d_gates[:, 3, :2].isnan().any()


SHARES = pytest.mark.parametrize("back", [None, SHARED, QUARTERS], ids=["alone", "two", "four"])


@SHARES
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_weight_reaches_no_gradient_of_the_last_step(layer, back, oracle):
    # h = 1 where the weight is infinite: d_gates = 0 there, and 0 * inf = NaN one step earlier.
    case = Chain("rnn_sigmoid", 2, 2, 4, F32, THREE, grads="y", back=back)
    a = make(case)
    a["h0"].abs_().clamp_(min=0.1)
    a["weight_hh"][layer, 1, 1] = math.inf
    _, back = run(case, a)
    _, want = expect(oracle, case, a)
    assert np.isnan(want.d_gates[0, :, : layer + 1]).any(axis=(0, 2)).all()
    assert back.d_gates[1].isfinite().all()
    assert back.d_gates[0, :, layer + 1 :].isfinite().all()
    np.testing.assert_array_equal(back.d_gates.isnan().numpy(), np.isnan(want.d_gates))


@SHARES
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_weight_between_layers_reaches_no_gradient_above(layer, back, oracle):
    case = Chain("rnn_sigmoid", 2, 2, 4, F32, THREE, grads="y", back=back)
    a = make(case)
    a["weight_chain"][layer, 1, 1] = math.inf  # of h, which is positive
    _, back = run(case, a)
    _, want = expect(oracle, case, a)
    assert np.isnan(want.d_gates[:, :, layer]).any()
    assert back.d_gates[:, :, layer + 1 :].isfinite().all()
    np.testing.assert_array_equal(back.d_gates.isnan().numpy(), np.isnan(want.d_gates))


class Stack(torch.autograd.Function):
    """The least that lets gradcheck see forward and backward as one function."""

    @staticmethod
    def forward(ctx, case, gates_x, weight_hh, h0, weight_chain, bias_chain, c0):
        a = {"gates_x": gates_x, "weight_hh": weight_hh, "h0": h0, "c0": c0}
        a |= {"weight_chain": weight_chain, "bias_chain": bias_chain}
        made = forward(case, a, save=True)
        ctx.save_for_backward(weight_hh, h0, weight_chain, c0, *made)
        ctx.case = case
        return made.output[:, :, -1:], made.h_n, h0 if made.c_n is None else made.c_n

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n):
        weight_hh, h0, weight_chain, c0, *made = ctx.saved_tensors
        made = kernels.ForwardResult(*made)
        a = {"weight_hh": weight_hh, "c0": c0, "weight_chain": weight_chain}
        a |= {"d_output": d_output, "d_h_n": d_h_n, "d_c_n": None if c0 is None else d_c_n}
        d_gates, d_c0, _ = backward(ctx.case, a, made)
        h, first = made.output, -1 if ctx.case.reverse[0] else 0
        before = h0.transpose(0, 1)[None]
        before = torch.cat([h[1:], before] if first else [before, h[:-1]])
        d_weight = torch.einsum("tbgk,tbgh->gkh", d_gates, before)
        d_h0 = torch.bmm(d_gates[first].transpose(0, 1), weight_hh)
        above = d_gates[:, :, 1:]
        d_chain = torch.einsum("tbgk,tbgh->gkh", above, h[:, :, :-1])
        return None, d_gates[:, :, :1], d_weight, d_h0, d_chain, above.sum((0, 1)), d_c0


@pytest.mark.parametrize(
    "case",
    [
        Chain("lstm", 2, 2, 3, F64, TWO_BACK),
        Chain("lstm", 2, 1, 3, F64, THREE, back=SHARED),
        Chain("lstm", 1, 2, 2, F64, TWO, back=QUARTERS),
        Chain("rnn_tanh", 2, 2, 3, F64, THREE_BACK),
        Chain("rnn_tanh", 1, 1, 18, F64, TWO, back=SHARED),
    ],
    ids=str,
)
def test_gradcheck(case):
    a = make(case)
    names = ["gates_x", "weight_hh", "h0", "weight_chain", "bias_chain"]
    names += ["c0"] * (case.cell in STATEFUL)
    inputs = [a[name].requires_grad_() for name in names]

    def function(*tensors):
        tensors = [*tensors, None][:6]
        return Stack.apply(case, *tensors)[: 3 if case.cell in STATEFUL else 2]

    torch.autograd.gradcheck(function, inputs, fast_mode=True)
