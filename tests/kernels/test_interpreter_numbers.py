"""Numbers at their limits in Triton's interpreter: NaN, infinite, huge, tiny, and kept for long.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_numbers.py``; see test_interpreter.py.
"""

import math
import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_numbers.py",
        allow_module_level=True,
    )

from fastrnn_kernels.plan import REGIMES
from interpreter_cases import F16, F32, F64, SHARED, Case, assert_close, expect, make, run

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", [F32, F16, F64], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh", "rnn_relu", "rnn_sigmoid"])
def test_huge_inputs_neither_overflow_nor_warn(cell, dtype, oracle):
    case = Case(cell, 2, 3, 5, dtype)
    a = make(case)
    a["gates_x"] = torch.sign(a["gates_x"]) * 1e4
    a["gates_x"][0, 0, 0, :5] = torch.tensor([1e4, -1e4, 0.0, 60.0, -60.0]).to(dtype)
    made, back = run(case, a)
    want_made, want_back = expect(oracle, case, a)
    for value in (*made, *back):
        assert value is None or value.isfinite().all()
    assert_close(case, made, want_made, roundings=3)
    assert_close(case, back, want_back, roundings=4)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh", "rnn_relu", "rnn_sigmoid"])
def test_nan_goes_where_the_equations_take_it(cell, regime, oracle):
    case = Case(cell, 3, 3, 20, F32, (False, True), regime=regime)
    a = make(case)
    a["gates_x"][1, 1, 0, 7] = math.nan  # one row of one group, from the second step on
    a["h0"][1, 2, 3] = math.nan
    made, back = run(case, a)
    want_made, want_back = expect(oracle, case, a)
    assert_close(case, made, want_made, roundings=3)
    assert_close(case, back, want_back, roundings=4)
    assert made.output.isnan().any()
    assert made.output[:, 0].isfinite().all()


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_state_is_no_nan_in_units_that_pad_a_tile(regime):
    case = Case("rnn_relu", 3, 2, 5, F32, regime=regime)
    a = make(case)
    a["weight_hh"].abs_()
    a["gates_x"][0, 0, 0, 0] = math.inf
    made, _ = run(case, a, save=False)
    assert made.output[1:, 0].isposinf().all()
    assert made.output[:, 1].isfinite().all()


@pytest.mark.parametrize("back", [None, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_weight_reaches_no_gradient_of_the_last_step(regime, back, oracle):
    # h = 1 where the weight is infinite: d_gates = 0 there, and 0 * inf = NaN one step earlier.
    back = back if regime == "grid" else None
    case = Case("rnn_sigmoid", 2, 2, 4, F32, grads="y", regime=regime, back=back)
    a = make(case)
    a["h0"].abs_().clamp_(min=0.1)
    a["weight_hh"][0, 1, 1] = math.inf
    _, back = run(case, a)
    _, want = expect(oracle, case, a)
    assert np.isnan(want.d_gates[0]).any()
    assert back.d_gates[1].isfinite().all()
    np.testing.assert_array_equal(back.d_gates.isnan().numpy(), np.isnan(want.d_gates))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_gradient_stays_in_its_units(regime):
    # A unit that pads a tile gets inf * 0 = NaN one step earlier, and would hand it on in the next.
    case = Case("rnn_tanh", 3, 2, 5, F32, grads="y", regime=regime)
    a = make(case)
    a["weight_hh"].abs_()
    a["d_output"][2, 0] = math.inf
    _, back = run(case, a)
    assert back.d_gates[:, 0].isposinf().all()
    assert back.d_gates[:, 1].isfinite().all()


def test_tanh_is_accurate_relative_to_small_values(oracle):
    case = Case("rnn_tanh", 1, 1, 16, F32)
    a = make(case)
    a["gates_x"][:] = torch.logspace(-20, 0, 16)
    a["weight_hh"].zero_()
    made, _ = run(case, a, save=False)
    want = np.tanh(a["gates_x"].double().numpy())
    # 1 - z at |x| = 1/4 is 0.4 with an error of eps/2 from each of exp and the subtraction.
    np.testing.assert_allclose(made.output.numpy(), want, rtol=4 * torch.finfo(F32).eps)


def test_c_is_not_rounded_between_steps():
    # Keep gate 1, write gate 1/2: adding 1/2 * tanh(0.001) to c = 4.2 is below half a float16 step.
    # Not bfloat16, which the interpreter cuts off instead of rounding.
    case = Case("lstm", 17, 1, 16, F16)
    a = make(case)
    pre = torch.tensor([0.0, 100.0, 0.001, 100.0])
    a["gates_x"] = pre.repeat_interleave(16).expand(17, 1, 1, 64).to(F16)
    a["weight_hh"].zero_()
    a["c0"].fill_(4.2)
    made, _ = run(case, a, save=False)
    start, write = a["c0"].double(), math.tanh(float(a["gates_x"][0, 0, 0, 2 * 16])) / 2
    want = (start + 17 * write).to(F16)
    assert (want > a["c0"]).all()
    assert torch.equal(made.c_n, want)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_stored_value_keeps_its_gradient(regime):
    # Row S3: keep = 1, write = 0; 5,000 steps of it run on a GPU (test_gpu_accuracy.py).
    case = Case("lstm", 30, 1, 16, F32, regime=regime)
    a = make(case)
    pre = torch.tensor([-100.0, 100.0, 0.5, -100.0])
    a["gates_x"] = pre.repeat_interleave(16).expand(30, 1, 1, 64).contiguous()
    a["weight_hh"].zero_()
    a["c0"].fill_(4.2)
    a["d_output"], a["d_h_n"] = None, None
    a["d_c_n"].fill_(1)
    made, back = run(case, a)
    assert (made.c_n == a["c0"]).all()
    assert (back.d_c0 == 1).all()


@pytest.mark.parametrize("regime", REGIMES)
def test_a_scaled_loss_brings_small_gradients_through_float16(regime, oracle):
    case = Case("lstm", 17, 2, 16, F16, grads="y", regime=regime)
    a = make(case)
    wanted = a["d_output"].double() * 2.0**-16  # all but a few of whose gate gradients are below
    scaled = a | {"d_output": (wanted * 2.0**14).to(F16)}  # the smallest float16
    _, want = expect(oracle, case, a | {"d_output": wanted})
    _, lost = run(case, a | {"d_output": wanted.to(F16)})
    _, kept = run(case, scaled)
    size = np.abs(want.d_gates).max()
    error = np.abs(kept.d_gates.double().numpy() / 2.0**14 - want.d_gates).max()
    assert error < 8 * torch.finfo(F16).eps * size
    assert np.abs(lost.d_gates.double().numpy() - want.d_gates).max() > 4 * error
