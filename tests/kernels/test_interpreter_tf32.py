"""W_hh rounded to TF32 where it stays on chip, in the interpreter, which multiplies in float32.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_tf32.py``; see test_interpreter.py.
"""

import math
import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_tf32.py",
        allow_module_level=True,
    )

import triton
import triton.language as tl

import chain_cases
import fastrnn_kernels as kernels
from fastrnn_kernels.rounding import as_multiplied
from interpreter_cases import F32, SHARED, Case, make

pytestmark = pytest.mark.usefixtures("poisoned")


def nearest(x):
    """To 11 bits, ties away from zero."""
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2**11
    return torch.ldexp(torch.trunc(scaled + 0.5 * scaled.sign()), exponent - 11).float()


@triton.jit
def round_all(x, out, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, as_multiplied((tl.load(x + i),), 1, PRECISION)[0])


def rounded(x, precision="tf32"):
    out = torch.empty_like(x)
    round_all[(1,)](x, out, x.numel(), precision)
    return out


def test_to_the_nearest():
    torch.manual_seed(0)
    x = torch.randn(1024) * torch.logspace(-30, 30, 1024)
    x[:4] = torch.tensor([1 + 2**-11, -1 - 2**-11, 2 - 2**-12, 0.0])  # ties, a carry
    assert torch.equal(rounded(x), nearest(x))
    assert not torch.equal(nearest(x), x)
    for precision in ("ieee", "tf32x3"):
        assert torch.equal(rounded(x, precision), x)


def test_what_is_not_finite_stays():
    patterns = [0x7FC00000, 0x7FFFFFFF, -1, -0x400000, 0x7F800001]
    assert rounded(torch.tensor(patterns, dtype=torch.int32).view(F32).repeat(8)[:32]).isnan().all()
    infinite = torch.tensor([math.inf, -math.inf])
    assert torch.equal(rounded(infinite), infinite)


def both(cell, a, weights, case, precision):
    """What both passes make of other weights."""
    options = {"reverse": case.reverse, "precision": precision}
    made = kernels.forward(
        cell, a["gates_x"], weights, a["h0"], a["c0"], save=True, **options, **case.forward_options
    )
    grads = {name: a[name] for name in ("d_output", "d_h_n", "d_c_n")}
    saved = (made.output, made.gates, made.cells, a["c0"])
    back = kernels.backward(cell, weights, *saved, **grads, **options, **case.backward_options)
    return [each for each in (*made, *back) if each is not None]


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.parametrize(
    ("regime", "back"), [("resident", None), ("grid", None), ("grid", SHARED)], ids=str
)
def test_both_passes_multiply_with_rounded_weights(cell, regime, back):
    case = Case(cell, 3, 3, 20, F32, (False, True), regime=regime, back=back)
    a = make(case)
    weights = a["weight_hh"]
    got = both(cell, a, weights, case, "tf32")
    want = both(cell, a, nearest(weights), case, "ieee")
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    exact = both(cell, a, weights, case, "ieee")
    assert not any(torch.equal(x, y) for x, y in zip(got, exact, strict=True))


def test_and_with_rounded_weights_between_layers():
    case = chain_cases.Chain("lstm", 3, 3, 20, F32, (False, False))
    a = chain_cases.make(case)
    coarse = {name: nearest(a[name]) for name in ("weight_hh", "weight_chain")}
    passes = []
    for given, precision in ((a, "tf32"), (a | coarse, "ieee")):
        made = chain_cases.forward(case, given, save=True, precision=precision)
        back = chain_cases.backward(case, given, made, precision=precision)
        passes.append([each for each in (*made, *back) if each is not None])
    assert all(torch.equal(x, y) for x, y in zip(*passes, strict=True))
