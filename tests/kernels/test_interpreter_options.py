"""Gradients of every c, and a bound on gate gradients, in Triton's interpreter.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_options.py``; see test_interpreter.py.
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
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_options.py",
        allow_module_level=True,
    )

import chain_cases
import fastrnn
import fastrnn_kernels as kernels
from chain_cases import Chain
from fastrnn_kernels.plan import REGIMES
from fenced_memory import Fence
from interpreter_cases import (
    BF16,
    F16,
    F32,
    F64,
    GRID,
    SHARED,
    Case,
    assert_close,
    expect,
    make,
    run,
)

pytestmark = pytest.mark.usefixtures("poisoned", "no_graphs")
BOTH = (False, True)
CLIP = 0.05
LANES = {"config": replace(GRID, lanes=2), "back": replace(SHARED, lanes=2)}

CASES = [
    Case("lstm", 1, 1, 3, F32, BOTH, grads="s"),
    Case("lstm", 3, 17, 5, F16, (True,), grads="ys", launch="graph"),
    Case("lstm", 3, 2, 20, F64, BOTH, grads="yhcs", clip=CLIP),
    Case("lstm", 3, 3, 5, BF16, BOTH, strided=True, clip=CLIP, launch="graph"),
    Case("rnn_tanh", 3, 2, 20, F64, BOTH, grads="yh", clip=CLIP),
    Case("rnn_relu", 2, 17, 3, F16, (True,), grads="h", clip=CLIP),
    Case("lstm", 3, 3, 20, F64, BOTH, grads="yhcs", clip=CLIP, regime="resident"),
    Case("lstm", 1, 17, 5, BF16, (True,), grads="cs", regime="resident"),
    Case("lstm", 4, 2, 16, F32, BOTH, grads="s", strided=True, regime="resident"),
    Case("rnn_sigmoid", 3, 2, 5, F32, BOTH, grads="yh", clip=CLIP, regime="resident"),
    Case("lstm", 3, 3, 18, F64, grads="yhcs", clip=CLIP, regime="grid", back=SHARED),
    Case("lstm", 2, 2, 33, F16, (True,), grads="ys", strided=True, regime="grid"),
    Case("lstm", 2, 33, 5, F32, (True,), grads="s", regime="grid", **LANES),
    Case("rnn_tanh", 2, 17, 20, F32, BOTH, grads="yh", clip=CLIP, regime="grid", back=SHARED),
    Case("rnn_relu", 2, 2, 70, BF16, grads="y", clip=CLIP, regime="grid"),
]


def given(case, how, seed=0):
    """Arguments; with lengths from 0 to T and a third of the steps reset unless `how` is plain."""
    a = make(case)
    if how == "plain":
        return a
    random = np.random.default_rng(seed)
    lengths = torch.from_numpy(random.integers(0, case.T + 1, case.B))
    lengths[0], lengths[-1] = (0 if case.B > 1 else case.T), case.T
    for name in ("gates_x", "d_cells"):
        if a[name] is not None:
            a[name] = a[name].clone(memory_format=torch.preserve_format)
            for row, length in enumerate(lengths.tolist()):
                a[name][length:, row] = math.nan  # nobody must care
    resets = torch.from_numpy(random.random((case.T, case.B)) < 1 / 3)
    return a | {"lengths": lengths, "resets": resets}


def assert_bounded(d_gates, case):
    """Some gradients are at the bound and none beyond it, but for how the dtype rounds it."""
    eps = torch.finfo(case.dtype).eps
    size = d_gates.double().abs()
    assert size.max() <= case.clip * (1 + eps)
    at_the_bound = size >= case.clip * (1 - eps)
    assert at_the_bound.any()
    assert not at_the_bound.all()


@pytest.mark.parametrize("how", ["plain", "marked"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, how, oracle):
    a = given(case, how)
    _, back = run(case, a)
    _, want = expect(oracle, case, a)
    assert_close(case, back, want, roundings=4)
    if case.clip:
        assert_bounded(back.d_gates, case)


@pytest.mark.parametrize(
    "case",
    [
        Chain("lstm", 2, 2, 5, F64, (False,) * 3, clip=CLIP, back=SHARED),
        Chain("lstm", 2, 17, 5, F16, (True,) * 2, grads="yh", clip=CLIP),
        Chain("rnn_tanh", 3, 3, 18, F32, (True,) * 2, grads="yh", clip=CLIP, back=SHARED),
    ],
    ids=str,
)
def test_layers_at_once(case, oracle):
    a = chain_cases.make(case)
    _, back = chain_cases.run(case, a)
    _, want = chain_cases.expect(oracle, case, a)
    chain_cases.assert_close(case, back, want, roundings=4)
    for layer in range(len(case.reverse)):
        assert_bounded(back.d_gates[:, :, layer], case)


@pytest.mark.parametrize("how", ["plain", "marked"])
@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_beyond_the_tensors_is_read(regime, how, monkeypatch):
    case = Case("lstm", 2, 3, 5, F32, BOTH, grads="s", clip=CLIP, regime=regime)
    a = given(case, how)
    Fence(monkeypatch)
    run(case, a)


@pytest.mark.parametrize("regime", REGIMES)
def test_nan_is_no_gradient_within_the_bound(regime, oracle):
    case = Case("lstm", 3, 3, 20, F32, BOTH, grads="yhcs", clip=CLIP, regime=regime)
    a = make(case)
    a["d_cells"] = a["d_cells"].clone()
    a["d_cells"][1, 1, 0, 7] = math.nan  # a row of a group, from the step before on
    a["d_output"][1, 2, 1, 3] = math.nan
    _, back = run(case, a)
    _, want = expect(oracle, case, a)
    assert_close(case, back, want, roundings=4)
    assert back.d_gates[1, 1, 0].isnan().any()
    assert back.d_gates[0, 1, 0].isnan().all()
    assert back.d_gates[2, 1, 0].isfinite().all()


@pytest.mark.parametrize("regime", REGIMES)
def test_an_infinite_gradient_is_cut(regime, oracle):
    case = Case("rnn_tanh", 3, 2, 5, F32, grads="y", clip=CLIP, regime=regime)
    a = make(case)
    a["d_output"][2, 0] = math.inf
    a["d_output"][2, 1] = -math.inf
    _, back = run(case, a)
    _, want = expect(oracle, case, a)
    assert_close(case, back, want, roundings=4)
    assert (back.d_gates[2, 0] == torch.tensor(CLIP)).all()
    assert (back.d_gates[2, 1] == torch.tensor(-CLIP)).all()


@pytest.mark.parametrize("launch", ["direct", "graph"])
def test_one_bound_is_not_taken_for_another(launch):
    """Nor for none: each is a graph of its own."""
    case = Case("lstm", 2, 2, 5, F32, launch=launch)
    a = make(case)
    sizes = [run(replace(case, clip=clip), a)[1].d_gates.abs().max() for clip in (0, CLIP, 0.1)]
    assert sizes[1:] == [torch.tensor(CLIP), torch.tensor(0.1)]
    assert sizes[0] > 0.1


@pytest.mark.parametrize("regime", REGIMES)
def test_a_bound_that_nothing_reaches_changes_nothing(regime):
    case = Case("lstm", 3, 2, 5, F32, BOTH, regime=regime)
    a = make(case)
    _, want = run(case, a)
    for clip in (1e4, math.inf):
        _, got = run(replace(case, clip=clip), a)
        assert torch.equal(got.d_gates, want.d_gates)
        assert torch.equal(got.d_c0, want.d_c0)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_what_a_bound_cannot_be(bad):
    case = Case("rnn_tanh", 1, 1, 3, F32, grads="y")
    with pytest.raises(ValueError, match=f"^error_clip: expected a bound, or 0 .*, got {bad}$"):
        run(replace(case, clip=bad), make(case))


def test_where_no_c_has_a_gradient_of_its_own():
    case = Case("rnn_tanh", 1, 1, 3, F32, grads="y")
    a = make(case)
    a["d_cells"] = a["d_output"]
    with pytest.raises(ValueError, match=r"^d_cells: expected None, rnn_tanh has no cell state"):
        run(case, a)
    case = Chain("lstm", 1, 1, 3, F32, (False, False))
    a = chain_cases.make(case)
    made = chain_cases.forward(case, a, save=True)
    with pytest.raises(ValueError, match=r"^d_cells: expected None for chained groups"):
        chain_cases.backward(case, a, made, d_cells=made.cells)


def results(cell, backend, ends, recompute, error_clip, dtype=F64):
    """Outputs and gradients of two layers in both directions, with every state."""
    T, B, I, H, D = 5, 3, 2, 4, 2
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes):
        made = torch.randn(sizes, generator=generator, dtype=torch.float64)
        return made.to(dtype).requires_grad_()

    K = kernels.CELLS[cell].gates
    weights = [
        normal(*size)
        for inputs in (I, I, D * H, D * H)
        for size in ((K * H, inputs), (K * H, H), (K * H,), (K * H,))
    ]
    x, h0, c0 = normal(T, B, I), normal(2 * D, B, H), normal(2 * D, B, H)
    options = {
        "num_layers": 2,
        "bidirectional": True,
        "backend": backend,
        "recompute": recompute,
        "error_clip": error_clip,
        "return_all_states": True,
    }
    if "lengths" in ends:
        options["lengths"] = torch.tensor([T, 0, 3])
    if "resets" in ends:
        options["resets"] = torch.rand(T, B, generator=generator) < 0.3
    if cell == "lstm":
        output, final, every = fastrnn.lstm(x, (h0, c0), weights, **options)
        made, leaves = [output, *final, *every], [x, h0, c0, *weights]
    else:
        made = [*fastrnn.rnn(x, h0, weights, **options)]
        leaves = [x, h0, *weights]
    upstream = [normal(*each.shape).detach() for each in made]
    return [*made, *torch.autograd.grad(made, leaves, upstream)]


@pytest.mark.parametrize(
    ("cell", "ends", "recompute", "error_clip"),
    [
        ("lstm", "", False, None),
        ("lstm", "", False, 0.01),
        ("lstm", "lengths and resets", False, 0.01),
        ("lstm", "lengths", 2, None),
        ("lstm", "", 2, 0.01),
        ("rnn_tanh", "lengths", False, 0.01),
    ],
)
def test_through_the_operators(cell, ends, recompute, error_clip):
    arguments = (ends, recompute, error_clip)
    got, want = (results(cell, backend, *arguments) for backend in ("triton", "reference"))
    for one, expected in zip(got, want, strict=True):
        torch.testing.assert_close(one, expected)
    if error_clip:
        unbounded = results(cell, "reference", ends, recompute, None)
        assert not torch.allclose(unbounded[-1], want[-1])


@pytest.mark.parametrize("training", [False, True])
def test_every_state_with_and_without_a_way_back(training):
    layer = fastrnn.LSTM(2, 4, backend="triton")
    x = torch.randn(5, 3, 2)
    with torch.set_grad_enabled(training):
        output, (h_n, c_n), (every_h, every_c) = layer(x, return_all_states=True)
    assert torch.equal(every_h[0], output)
    assert torch.equal(every_h[:, -1], h_n)
    assert torch.equal(every_c[:, -1], c_n)
    assert every_c.requires_grad == training
