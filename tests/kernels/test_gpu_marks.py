"""Lengths and resets in every regime on a real GPU, row by row against NumPy (oracle.py).

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
    DEVICE,
    MODES,
    assert_back_right,
    assert_right,
    make,
    make_back,
    on_gpu,
    skip_where_impossible,
)

pytestmark = on_gpu

# (cell, mode, T, B, H, directions)
CASES = [
    ("lstm", "bf16", 17, 20, 64, (False, True)),
    ("lstm", "tf32", 40, 3, 33, (True,)),
    ("lstm", "fp16", 5, 40, 512, (False, True)),
    ("lstm", "fp32", 1, 3, 70, (False,)),
    ("rnn_tanh", "bf16", 40, 17, 100, (False, True)),
    ("rnn_relu", "tf32", 3, 33, 512, (True,)),
    ("rnn_sigmoid", "tf32x3", 17, 2, 64, (False, True)),
]
both = pytest.mark.parametrize("how", ["lengths", "resets", "both"])


def rows(T, B, how):
    """Lengths from 0 to T, the first row of no steps; a third of the steps reset."""
    random = np.random.default_rng(0)
    lengths, resets = random.integers(0, T + 1, B), random.random((T, B)) < 1 / 3
    lengths[0], lengths[-1] = 0, T
    given = {"lengths": lengths if how != "resets" else None}
    return given | {"resets": resets if how != "lengths" else None}


def placed(given):
    return {n: None if v is None else torch.from_numpy(v).to(DEVICE) for n, v in given.items()}


def exact(a):
    """In NumPy, in float64."""
    return {n: v.double().cpu().numpy() for n, v in a.items() if torch.is_tensor(v)}


@both
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_for_themselves(case, regime, how, oracle):
    cell, mode, T, B, H, directions = case
    dtype, precision = MODES[mode]
    skip_where_impossible(regime, cell, B, H, len(directions), dtype, precision)
    a, given = make(cell, T, B, H, directions, dtype), rows(T, B, how)
    if given["lengths"] is not None:
        for row, length in enumerate(given["lengths"]):
            a["gates_x"][length:, row] = torch.nan  # nobody must care
    how_to = {"regime": regime, "precision": precision}
    made = kernels.forward(cell, **a, **placed(given), **how_to)
    x = exact(a)
    want = oracle.forward_rows(
        cell, x["gates_x"], x["weight_hh"], x["h0"], x.get("c0"), directions, **given
    )
    assert_right(made, want, dtype, precision)


@both
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_for_themselves_on_the_way_back(case, regime, how, oracle):
    cell, mode, T, B, H, directions = case
    dtype, precision = MODES[mode]
    sizes = (regime, cell, B, H, len(directions), dtype, precision)
    skip_where_impossible(*sizes, ("backward",))
    b, given = make_back(oracle, cell, T, B, H, directions, dtype), rows(T, B, how)
    made = kernels.backward(cell, **b, **placed(given), regime=regime, precision=precision)
    x = exact(b)
    saved = oracle.Forward(x["output"], None, None, x.get("gates"), x.get("cells"))
    grads = (x["d_output"], x["d_h_n"], x.get("d_c_n"))
    want = oracle.backward_rows(
        cell, x["weight_hh"], saved, x.get("c0"), *grads, directions, **given
    )
    assert_back_right(made, want, dtype, precision)


@pytest.mark.parametrize("regime", REGIMES)
def test_the_same_bits_on_every_run(regime):
    H = 64 if regime == "resident" else 512
    skip_where_impossible(regime, "lstm", 40, H, 2, torch.bfloat16)
    a = make("lstm", 33, 40, H, (False, True), torch.bfloat16)
    given = placed(rows(33, 40, "both"))
    want = kernels.forward("lstm", **a, **given, regime=regime)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(100):
        made = kernels.forward("lstm", **a, **given, regime=regime)
        wrong += (made.output != want.output).any() + (made.c_n != want.c_n).any()
    assert wrong.item() == 0
