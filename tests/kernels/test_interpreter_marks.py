"""Lengths and resets in every regime, in Triton's interpreter, row by row against NumPy.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_marks.py``; see test_interpreter.py.
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
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_marks.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from fastrnn_kernels import marks
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


def rows(case, how, seed=0):
    """Lengths from 0 to T, a row of no steps and one of all; a third of the steps reset."""
    random = np.random.default_rng(seed)
    lengths = torch.from_numpy(random.integers(0, case.T + 1, case.B))
    lengths[0], lengths[-1] = (0 if case.B > 1 else case.T), case.T
    resets = torch.from_numpy(random.random((case.T, case.B)) < 1 / 3)
    if how == "lengths":
        return {"lengths": lengths, "resets": None}
    return {"lengths": lengths if how == "both" else None, "resets": resets}


def marked(case, how):
    a = make(case) | rows(case, how)
    if a["lengths"] is not None:
        a["gates_x"] = a["gates_x"].clone(memory_format=torch.preserve_format)
        for row, length in enumerate(a["lengths"].tolist()):
            a["gates_x"][length:, row] = math.nan  # nobody must care
    return a


CASES = [
    Case("lstm", 1, 1, 3, F32, BOTH),
    Case("lstm", 3, 17, 20, F16, BOTH, grads="yc"),
    Case("lstm", 6, 3, 33, BF16, BOTH, grads="hc", launch="graph"),
    Case("lstm", 2, 2, 5, F64, (True,), grads="yh"),
    Case("rnn_tanh", 9, 17, 5, F64, BOTH, strided=True),
    Case("rnn_relu", 3, 2, 33, F32, BOTH, grads="h", launch="graph"),
    Case("rnn_sigmoid", 5, 3, 16, BF16, grads="yh"),
    Case("lstm", 6, 3, 20, F32, BOTH, regime="resident"),
    Case("lstm", 3, 17, 33, BF16, BOTH, grads="c", regime="resident"),
    Case("lstm", 2, 2, 5, F64, (True,), grads="yc", strided=True, regime="resident"),
    Case("lstm", 1, 3, 16, F16, grads="hc", regime="resident"),
    Case("rnn_tanh", 9, 17, 20, F16, BOTH, grads="yh", regime="resident"),
    Case("rnn_relu", 3, 1, 5, F64, (True,), grads="yh", regime="resident"),
    Case("lstm", 6, 3, 20, F32, BOTH, regime="grid", back=SHARED),
    Case("lstm", 3, 40, 33, BF16, BOTH, regime="grid", config=replace(GRID, lanes=2)),
    Case("lstm", 2, 2, 70, F16, (True,), grads="yh", strided=True, regime="grid"),
    Case("lstm", 1, 17, 5, F64, BOTH, grads="hc", regime="grid"),
    Case("rnn_tanh", 3, 17, 40, F32, BOTH, regime="grid", back=replace(SHARED, lanes=2)),
    Case("rnn_sigmoid", 3, 3, 70, F32, BOTH, grads="h", regime="grid", back=SHARED),
]


@pytest.mark.parametrize("how", ["lengths", "resets", "both"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_for_themselves(case, how, oracle):
    a = marked(case, how)
    made, back = run(case, a)
    want_made, want_back = expect(oracle, case, a)
    if made.gates is not None and a["lengths"] is not None:  # past the end they are anything
        dead = torch.arange(case.T)[:, None] >= a["lengths"]
        made.gates[dead] = 0
    assert_close(case, made, want_made, roundings=3)
    assert_close(case, back, want_back, roundings=4)


@pytest.mark.parametrize("case", [case for case in CASES if case.grads != "yh"], ids=str)
def test_final_states_without_the_output(case):
    a = marked(case, "both")
    want, _ = run(case, a, save=False)
    names = ("gates_x", "weight_hh", "h0", "c0")
    got = kernels.forward(
        case.cell, *(a[name] for name in names), keep_output=False, reverse=case.reverse,
        lengths=a["lengths"], resets=a["resets"], **case.forward_options,
    )  # fmt: skip
    assert torch.equal(got.h_n, want.h_n)
    assert got.c_n is want.c_n is None or torch.equal(got.c_n, want.c_n)


@pytest.mark.parametrize("regime", ["resident", "grid"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_the_same_bits_where_no_row_is_special(cell, regime):
    """Not in the step regime, which then adds d_output to the product and not the other way."""
    case = Case(cell, 5, 3, 20, F32, BOTH, regime=regime, grads="yhc")
    a = make(case)
    plain = run(case, a)
    full = {"lengths": torch.full((3,), 5), "resets": torch.zeros(5, 3, dtype=torch.bool)}
    for results, expected in zip(run(case, a | full), plain, strict=True):
        for got, want in zip(results, expected, strict=True):
            assert got is want is None or torch.equal(got, want)


@pytest.mark.parametrize(("splits", "B"), [(1, 17), (2, 3)])
def test_layers_at_once(splits, B):
    """Chained groups: a row that ended hands zeros up, and gets zeros back."""
    T, G, H = 4, 3, 20
    case = Case("lstm", T, B, H, F32, (False,) * G, regime="grid")
    a = make(case)
    links = {"weight_chain": a["weight_hh"][1:].flip(1).contiguous()}
    ends = rows(case, "both")
    finals = {name: a[name] for name in ("h0", "c0")}
    x = a["gates_x"][:, :, :1].contiguous()
    made = kernels.forward("lstm", x, a["weight_hh"], **finals, **links, **ends, save=True)
    one_by_one, below = [], x
    for g in range(G):
        own = [a[name][g : g + 1] for name in ("weight_hh", "h0", "c0")]
        one_by_one.append(kernels.forward("lstm", below, *own, **ends, save=True, regime="step"))
        if g < G - 1:
            below = one_by_one[-1].output @ links["weight_chain"][g].mT
    want = torch.cat([each.output for each in one_by_one], 2)
    torch.testing.assert_close(made.output, want)
    d_output = a["d_output"][:, :, :1].contiguous()
    config = replace(SHARED, block_h=16 // splits, splits=splits)
    back = kernels.backward(
        "lstm", a["weight_hh"], made.output, made.gates, made.cells, a["c0"], d_output=d_output,
        d_h_n=a["d_h_n"], d_c_n=a["d_c_n"], config=config, **links, **ends,
    )  # fmt: skip
    for g in reversed(range(G)):
        alone = one_by_one[g]
        own = [a[name][g : g + 1] for name in ("d_h_n", "d_c_n")]
        found = kernels.backward(
            "lstm", a["weight_hh"][g : g + 1], alone.output, alone.gates, alone.cells,
            a["c0"][g : g + 1], d_output=d_output, d_h_n=own[0], d_c_n=own[1], regime="step",
            **ends,
        )  # fmt: skip
        torch.testing.assert_close(back.d_gates[:, :, g : g + 1], found.d_gates)
        torch.testing.assert_close(back.d_c0[g : g + 1], found.d_c0)
        if g > 0:
            d_output = found.d_gates @ links["weight_chain"][g - 1]


@pytest.mark.parametrize("T", [1, 2, 17])
@pytest.mark.parametrize("B", [1, 3, 1025])
def test_marks_say_which_steps_are_first_and_last(T, B):
    case = Case("rnn_tanh", T, B, 1, F32)
    ends = rows(case, "both")
    wide = torch.zeros(B, 2 * T, dtype=torch.bool)
    wide[:, ::2] = ends["resets"].T
    got = marks.marks_of(ends["lengths"], wide[:, ::2].T, T, B).numpy()
    lengths, resets = ends["lengths"].numpy(), ends["resets"].numpy()
    t = np.arange(T)[:, None]
    alive, start, end = t < lengths, t == 0, t == lengths - 1
    want = alive * (1 + 2 * (start | resets) + 4 * end + 8 * (end | resets) + 16 * start)
    np.testing.assert_array_equal(got, want)
    assert marks.marks_of(None, None, T, B) is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"lengths": torch.ones(3, dtype=torch.int64)},
            r"lengths: expected shape \(2,\), got \(3,\)",
        ),
        ({"lengths": torch.ones(2)}, "lengths: expected torch.int64 on cpu, got torch.float32 on"),
        ({"resets": torch.ones(2, 3, dtype=torch.bool)}, r"resets: expected shape \(3, 2\), got"),
        ({"resets": torch.ones(3, 2)}, "resets: expected torch.bool on cpu, got torch.float32 on"),
    ],
)
def test_what_they_cannot_be(given, text):
    case = Case("lstm", 3, 2, 5, F32)
    a = make(case)
    made, _ = run(case, a)
    with pytest.raises(ValueError, match=f"^{text}"):
        kernels.forward("lstm", a["gates_x"], a["weight_hh"], a["h0"], a["c0"], **given)
    saved = (made.output, made.gates, made.cells, a["c0"])
    with pytest.raises(ValueError, match=f"^{text}"):
        kernels.backward("lstm", a["weight_hh"], *saved, **given)
