"""Gradients of every c, and a bound on gate gradients, on a real GPU against NumPy (oracle.py).

Run by `make gpu-check`; see test_gpu_regimes.py.
"""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

import fastrnn_kernels as kernels
from fastrnn_kernels.plan import REGIMES
from gpu_cases import (
    BACK_CHAINED,
    DEVICE,
    MODES,
    assert_back_right,
    expect_back_chain,
    make_back,
    make_back_chain,
    on_gpu,
    skip_where_impossible,
)

pytestmark = on_gpu

CLIP = 0.05
# (cell, mode, T, B, H, directions)
CASES = [
    ("lstm", "bf16", 17, 20, 64, (False, True)),
    ("lstm", "tf32", 40, 3, 33, (True,)),
    ("lstm", "fp16", 5, 40, 512, (False, True)),
    ("lstm", "fp32", 1, 3, 70, (False,)),
    ("rnn_tanh", "bf16", 40, 17, 100, (False, True)),
    ("rnn_relu", "tf32", 3, 33, 512, (True,)),
]


def given(oracle, case):
    """Arguments of `backward`, with a gradient of every c where there is c."""
    cell, mode, T, B, H, directions = case
    dtype, _ = MODES[mode]
    b = make_back(oracle, cell, T, B, H, directions, dtype)
    if cell == "lstm":
        values = np.random.default_rng(2).standard_normal((T, B, len(directions), H))
        b["d_cells"] = torch.from_numpy(values).to(DEVICE, dtype)
    return b


def rows(T, B):
    """Lengths from 0 to T, the first row of no steps; a third of the steps reset."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, T + 1, B)
    lengths[0], lengths[-1] = 0, T
    return {"lengths": lengths, "resets": random.random((T, B)) < 1 / 3}


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("clip", [0.0, CLIP])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_way_back(case, regime, clip, marked, oracle):
    cell, mode, T, B, H, directions = case
    dtype, precision = MODES[mode]
    sizes = (regime, cell, B, H, len(directions), dtype, precision)
    skip_where_impossible(*sizes, ("backward",))
    b, ends = given(oracle, case), {"lengths": None, "resets": None}
    if marked:
        ends = rows(T, B)
        if "d_cells" in b:
            for row, length in enumerate(ends["lengths"]):
                b["d_cells"][length:, row] = torch.nan  # nobody must care
    placed = {n: None if v is None else torch.from_numpy(v).to(DEVICE) for n, v in ends.items()}
    made = kernels.backward(
        cell, **b, **placed, error_clip=clip, regime=regime, precision=precision
    )
    x = {n: v.double().cpu().numpy() for n, v in b.items() if torch.is_tensor(v)}
    saved = oracle.Forward(x["output"], None, None, x.get("gates"), x.get("cells"))
    grads = (x["d_output"], x["d_h_n"], x.get("d_c_n"))
    want = oracle.backward_rows(
        cell, x["weight_hh"], saved, x.get("c0"), *grads, directions, **ends,
        d_cells=x.get("d_cells"), clip=clip or np.inf,
    )  # fmt: skip
    assert_back_right(made, want, dtype, precision)
    if clip:
        size = made.d_gates.abs()
        assert size.max() <= torch.tensor(clip, dtype=dtype)
        assert (size == torch.tensor(clip, dtype=dtype)).any()


@pytest.mark.parametrize(
    ("cell", "mode", "H", "layers"), [("lstm", "bf16", 256, 2), ("rnn_tanh", "tf32", 70, 3)]
)
def test_layers_at_once(cell, mode, H, layers, oracle):
    dtype, precision = MODES[mode]
    skip_where_impossible(
        "grid", cell, 20, H, layers, dtype, precision, ("backward",), chained=True
    )
    b = make_back_chain(oracle, cell, 17, 20, H, layers, dtype)
    made = kernels.backward(cell, **b, error_clip=CLIP, precision=precision)
    want = expect_back_chain(oracle, cell, b, clip=CLIP)
    assert_back_right(made, want, dtype, precision, BACK_CHAINED)
    assert made.d_gates.abs().amax((0, 1, 3)).eq(torch.tensor(CLIP, dtype=dtype)).all()


@pytest.mark.parametrize("regime", REGIMES)
def test_nan_and_infinity_at_the_bound(regime, oracle):
    case = ("rnn_tanh", "fp32", 3, 2, 20, (False,))
    dtype, precision = MODES["fp32"] if regime != "grid" else MODES["tf32"]
    skip_where_impossible(regime, "rnn_tanh", 2, 20, 1, dtype, precision, ("backward",))
    b = given(oracle, case)
    b["d_output"][2, 0] = torch.inf
    b["d_output"][2, 1, 0, 5] = torch.nan
    made = kernels.backward("rnn_tanh", **b, error_clip=CLIP, regime=regime, precision=precision)
    assert (made.d_gates[2, 0] == CLIP).all()
    assert made.d_gates[:, 0].isfinite().all()
    assert made.d_gates[2, 1].isnan().sum() == 1
    assert made.d_gates[0, 1].isnan().all()
