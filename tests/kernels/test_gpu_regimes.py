"""Every regime, forward and back, on a real GPU, against NumPy in float64 (oracle.py).

What the interpreter cannot show: whether programs that wait for each other ever go on, whether they
see what the others stored, and what a cooperative launch does in a captured stream. A test that
hangs ends its process with a traceback, after LIMIT seconds. Run by `make gpu-check`.
"""

import itertools
import os

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
    assert_right,
    expect,
    expect_back,
    expect_back_chain,
    expect_chain,
    make,
    make_back,
    make_back_chain,
    make_chain,
    on_gpu,
    skip_where_impossible,
)

pytestmark = on_gpu

CELLS = ("lstm", "rnn_tanh", "rnn_relu", "rnn_sigmoid")
# (T, B, H, directions): nothing to divide by, masks in every dimension, several batch tiles, many
# programs, a warp's part of the contraction that is all padding, both directions side by side
SHAPES = [
    (1, 1, 1, (False,)),
    (3, 17, 33, (False, True)),
    (17, 2, 70, (True,)),
    (40, 33, 128, (False,)),
    (5, 130, 100, (True, False)),
    (9, 70, 512, (False, True)),
    (6, 16, 1000, (True,)),
]
# Each shape with each cell, and each mode with each cell and shape, but not all three: a kernel
# takes seconds to compile.
PARITY = [
    (regime, CELLS[c], mode, shape)
    for regime in REGIMES
    for (s, shape), (m, mode) in itertools.product(enumerate(SHAPES), enumerate(MODES))
    for c in {0, (s + m) % 4}
    if (s + m + c) % 2 == 0 or c
]


@pytest.mark.parametrize(("regime", "cell", "mode", "shape"), PARITY, ids=str)
def test_parity(regime, cell, mode, shape, oracle):
    dtype, precision = MODES[mode]
    T, B, H, directions = shape
    skip_where_impossible(regime, cell, B, H, len(directions), dtype, precision)
    a = make(cell, T, B, H, directions, dtype)
    made = kernels.forward(cell, **a, save=cell == "lstm", regime=regime, precision=precision)
    assert_right(made, expect(oracle, cell, a), dtype, precision)


@pytest.mark.parametrize(("regime", "cell", "mode", "shape"), PARITY, ids=str)
def test_parity_back(regime, cell, mode, shape, oracle):
    dtype, precision = MODES[mode]
    T, B, H, directions = shape
    skip_where_impossible(regime, cell, B, H, len(directions), dtype, precision, ("backward",))
    # which gradients reach the outputs: all, that of the sequence, those of the final states
    grads = ("yhc", "y", "hc")[(SHAPES.index(shape) + list(MODES).index(mode)) % 3]
    b = make_back(oracle, cell, T, B, H, directions, dtype, grads)
    made = kernels.backward(cell, **b, regime=regime, precision=precision)
    assert_back_right(made, expect_back(oracle, cell, b), dtype, precision)


@pytest.mark.parametrize("regime", REGIMES)
def test_states_without_output(regime):
    """h of two steps takes turns in memory: nobody may overwrite what another still reads."""
    dtype = torch.bfloat16
    H = 64 if regime == "resident" else 512
    skip_where_impossible(regime, "lstm", 40, H, 2, dtype)
    a = make("lstm", 33, 40, H, (False, True), dtype)
    want = kernels.forward("lstm", **a, regime=regime)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(100):
        made = kernels.forward("lstm", **a, regime=regime, keep_output=False)
        wrong += (made.h_n != want.h_n).any() + (made.c_n != want.c_n).any()
    assert wrong.item() == 0


@pytest.mark.parametrize("regime", REGIMES)
def test_gates_that_take_the_place_of_gates_x(regime):
    dtype = torch.bfloat16
    H = 64 if regime == "resident" else 512
    skip_where_impossible(regime, "lstm", 40, H, 2, dtype)
    a = make("lstm", 33, 40, H, (False, True), dtype)
    want = kernels.forward("lstm", **a, regime=regime, save=True)
    given = a.pop("gates_x")
    for _ in range(20):
        gates_x = given.clone()
        made = kernels.forward("lstm", gates_x, **a, regime=regime, save=True, overwrite=True)
        assert made.gates.data_ptr() == gates_x.data_ptr()
        for name in ("output", "gates", "cells", "c_n"):
            assert torch.equal(getattr(made, name), getattr(want, name)), name


# (cell, mode, T, B, H, layers): each pair of values of two of them meets, as far as it fits an H100
CHAINS = [
    ("lstm", "bf16", 1, 3, 70, 2),
    ("lstm", "bf16", 17, 16, 256, 3),
    ("lstm", "bf16", 128, 40, 512, 2),
    ("lstm", "bf16", 128, 16, 512, 4),
    ("lstm", "bf16", 17, 3, 512, 3),
    ("lstm", "tf32", 17, 40, 70, 4),
    ("lstm", "tf32", 128, 3, 256, 2),
    ("lstm", "tf32", 1, 16, 512, 2),
    ("rnn_tanh", "bf16", 128, 40, 70, 3),
    ("rnn_tanh", "bf16", 1, 40, 256, 4),
    ("rnn_tanh", "bf16", 17, 3, 512, 4),
    ("rnn_tanh", "tf32", 1, 3, 512, 3),
    ("rnn_tanh", "tf32", 128, 16, 70, 4),
    ("rnn_tanh", "tf32", 17, 16, 256, 2),
    ("rnn_relu", "fp16", 17, 40, 256, 3),
    ("rnn_sigmoid", "tf32x3", 17, 16, 70, 2),
]


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize(("cell", "mode", "T", "B", "H", "layers"), CHAINS)
def test_parity_of_layers_at_the_same_time(cell, mode, T, B, H, layers, reverse, oracle):
    dtype, precision = MODES[mode]
    skip_where_impossible("grid", cell, B, H, layers, dtype, precision, chained=True)
    a = make_chain(cell, T, B, H, layers, dtype, reverse)
    made = kernels.forward(cell, **a, save=cell == "lstm", precision=precision)
    assert_right(made, expect_chain(oracle, cell, a), dtype, precision, layers)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize(("cell", "mode", "T", "B", "H", "layers"), CHAINS)
def test_parity_back_of_layers_at_the_same_time(cell, mode, T, B, H, layers, reverse, oracle):
    dtype, precision = MODES[mode]
    sizes = (cell, B, H, layers, dtype, precision, ("backward",))
    skip_where_impossible("grid", *sizes, chained=True)
    grads = ("yhc", "y", "hc")[CHAINS.index((cell, mode, T, B, H, layers)) % 3]
    b = make_back_chain(oracle, cell, T, B, H, layers, dtype, grads, reverse)
    made = kernels.backward(cell, **b, precision=precision)
    assert_back_right(made, expect_back_chain(oracle, cell, b), dtype, precision, BACK_CHAINED)
