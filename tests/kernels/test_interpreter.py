"""Every regime in Triton's interpreter, against the equations in NumPy float64 (oracle.py).

Triton decides at import whether it interprets or compiles, hence a process of its own:
``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter.py``.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from interpreter_cases import CASES, F32, Case, assert_close, expect, make, run

pytestmark = pytest.mark.usefixtures("poisoned", "no_graphs")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, oracle):
    a = make(case)
    made, back = run(case, a)
    want_made, want_back = expect(oracle, case, a)
    assert_close(case, made, want_made, roundings=3)
    assert_close(case, back, want_back, roundings=4)


@pytest.mark.parametrize("cell", kernels.CELLS)
def test_nothing_is_saved_unless_asked(cell):
    case = Case(cell, 2, 3, 5, F32)
    a = make(case)
    c0 = None if a["c0"] is None else a["c0"].clone()
    made, _ = run(case, a, save=False)
    saved, _ = run(case, a)
    assert made.gates is None
    assert made.cells is None
    assert torch.equal(made.output, saved.output)
    assert torch.equal(made.h_n, saved.h_n)
    if c0 is not None:
        assert torch.equal(made.c_n, saved.c_n)
        assert torch.equal(a["c0"], c0), "c0 is the caller's"
