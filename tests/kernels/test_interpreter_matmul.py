"""The matrix product in Triton's interpreter, against NumPy float64, alone and within a layer.

Run by ``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_matmul.py``; see
`test_interpreter.py` for why.
"""

import itertools
import math
import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_matmul.py",
        allow_module_level=True,
    )

from fastrnn import products as host
from fastrnn import testing
from fastrnn.backend import Layer
from fastrnn.request import Spec
from fastrnn_kernels import matmul as module
from fastrnn_kernels.matmul import matmul
from fastrnn_kernels.matmul_configs import MatmulConfig
from fastrnn_triton import products

pytestmark = pytest.mark.usefixtures("poisoned")

SIZES = (1, 2, 3, 17, 70, 129)
SMALL = MatmulConfig(block_m=16, block_n=16, block_k=16, num_warps=1)  # many tiles and pieces
LAYOUTS = list(itertools.product((False, True), (False, True)))


def draw(*shape, transposed=False, seed=0):
    """Normal numbers; if transposed, the last but one dimension is contiguous."""
    generator = torch.Generator().manual_seed(seed)
    if transposed:
        return torch.randn(*shape[:-2], shape[-1], shape[-2], generator=generator).mT
    return torch.randn(shape, generator=generator)


def assert_product(got, a, b, bias=None):
    """Every element within the error of a sum of K products in float32, in any order."""
    x, y = a.double().numpy(), b.double().numpy()
    z = 0.0 if bias is None else bias.double().numpy()
    z = z[:, None] if b.dim() == 3 and bias is not None else z
    unit = 2.0**-24
    allowed = (a.shape[-1] + 2) * unit * (np.abs(x) @ np.abs(y) + np.abs(z))
    want = x @ y + z
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert got.is_contiguous()
    apart = np.abs(got.double().numpy() - want)
    assert (apart <= allowed).all(), f"off by up to {np.max(apart - allowed)} more than allowed"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_transpositions(size, layout):
    others = SIZES[SIZES.index(size) :] + SIZES[: SIZES.index(size)]
    M, N, K = size, others[2], others[4]
    a, b = draw(M, K, transposed=layout[0]), draw(K, N, transposed=layout[1], seed=1)
    assert_product(matmul(a, b, precision="ieee"), a, b)
    bias = draw(N, seed=2)
    assert_product(matmul(a, b, bias=bias, precision="ieee", config=SMALL), a, b, bias)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("G", "M", "N", "K"), [(1, 17, 3, 70), (2, 33, 20, 17), (3, 2, 129, 2)])
def test_batched(G, M, N, K, layout):
    a, b = draw(G, M, K, transposed=layout[0]), draw(G, K, N, transposed=layout[1], seed=1)
    bias = draw(G, N, seed=2)
    assert_product(matmul(a, b, precision="tf32"), a, b)
    for splits in (1, 2):
        config = MatmulConfig(16, 32, 16, 1, splits=splits)
        assert_product(matmul(a, b, bias=bias, precision="ieee", config=config), a, b, bias)


def test_leading_dimensions_are_rows():
    a, b, bias = draw(3, 2, 5, 7), draw(7, 4, seed=1), draw(4, seed=2)
    assert_product(matmul(a, b, bias=bias, precision="ieee"), a, b, bias)
    a = draw(5, 3, 7).transpose(0, 1)  # rows that no one stride reaches
    assert_product(matmul(a, b, bias=bias, precision="ieee"), a, b, bias)


def views():
    """Operands (2, 6, 10) that lie in memory in every awkward way, NaN around them."""
    wide = torch.full((2, 8, 27), math.nan)
    wide[:, 1:7, 3:23] = draw(2, 6, 20)
    yield "rows apart", wide[:, 1:7, 3:13]
    yield "no dimension contiguous", wide[:, 1:7, 3:23:2]
    yield "batch innermost", draw(6, 10, 2).permute(2, 0, 1)
    yield "one row for all", draw(2, 1, 10).expand(2, 6, 10)
    yield "one column for all", draw(2, 6, 1).expand(2, 6, 10)
    yield "one matrix for all", draw(1, 6, 10).expand(2, 6, 10)
    yield "one number", draw(1, 1, 1).expand(2, 6, 10)


@pytest.mark.parametrize(
    ("name", "a"), list(views()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_strides(name, a):
    b = draw(2, 10, 5, seed=1)
    assert_product(matmul(a, b, precision="ieee"), a, b)
    assert_product(matmul(a[1], b[1], precision="ieee"), a[1], b[1])
    c = draw(2, 4, 6, seed=2)
    assert_product(matmul(c, a, precision="ieee"), c, a)
    assert_product(matmul(b.mT, a.mT, precision="ieee"), b.mT, a.mT)


def test_a_view_is_not_copied(monkeypatch):
    def refuse(self):
        raise AssertionError("copied")

    d_gates, x = draw(40, 2, 12)[:, 1], draw(40, 5, seed=1)
    want = d_gates.mT.double() @ x.double()
    monkeypatch.setattr(torch.Tensor, "contiguous", refuse)
    got = matmul(d_gates.mT, x, precision="ieee")
    monkeypatch.undo()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("splits", [2, 3, 100])
def test_splits_add_up_to_the_whole(splits, layout):
    a, b = draw(17, 129, transposed=layout[0]), draw(129, 33, transposed=layout[1], seed=1)
    bias = draw(33, seed=2)
    config = MatmulConfig(16, 32, 16, 1, splits=splits)
    split = matmul(a, b, bias=bias, precision="ieee", config=config)
    assert_product(split, a, b, bias)
    whole = matmul(a, b, bias=bias, precision="ieee", config=MatmulConfig(16, 32, 16, 1))
    torch.testing.assert_close(split, whole, rtol=0, atol=2e-5)


def test_a_long_sum_is_split_unasked(monkeypatch):
    limits = module.DeviceLimits("made up", multiprocessors=8, shared_memory=2**20)
    monkeypatch.setattr(module.DeviceLimits, "of", lambda device: limits)
    chosen = []
    heuristic = module.heuristic
    monkeypatch.setattr(
        module, "heuristic", lambda *asked: chosen.append(heuristic(*asked)) or chosen[-1]
    )
    a, b = draw(20, 5000, transposed=True), draw(5000, 7, seed=1)
    assert_product(matmul(a, b, precision="ieee"), a, b)
    assert chosen[0].splits == 4


@pytest.mark.parametrize("splits", [1, 3])
def test_same_bits_every_time(splits):
    a, b = draw(33, 70, transposed=True), draw(70, 20, seed=1)
    config = MatmulConfig(16, 16, 16, 1, splits=splits)
    first = matmul(a, b, precision="ieee", config=config)
    for _ in range(3):
        assert torch.equal(matmul(a, b, precision="ieee", config=config), first)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("splits", [1, 2])
def test_what_is_not_finite_stays_in_its_row_and_column(value, splits):
    config = MatmulConfig(16, 16, 16, 1, splits=splits)
    a, b = draw(20, 37), draw(37, 18, seed=1)
    a[19, 36], b[36, 17] = value, -value
    with np.errstate(invalid="ignore"):  # infinity times the zeros past the end, never stored
        got = matmul(a, b, precision="ieee", config=config)
    bad = torch.zeros(20, 18, dtype=torch.bool)
    bad[19], bad[:, 17] = True, True
    assert torch.equal(~got.isfinite(), bad)
    assert torch.equal(got.isnan(), (a @ b).isnan())


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_empty(shape):
    M, N, K = shape
    for groups in ((), (2,)):
        bias = draw(*groups, N)
        got = matmul(draw(*groups, M, K), draw(*groups, K, N), bias=bias, precision="ieee")
        want = bias.unsqueeze(-2).expand(*groups, M, N)
        assert torch.equal(got, want)
        got = matmul(draw(*groups, M, K), draw(*groups, K, N), precision="ieee")
        assert torch.equal(got, torch.zeros(*groups, M, N))
    assert matmul(draw(0, 3, 4), draw(0, 4, 2), precision="ieee").shape == (0, 3, 2)


def test_sums_over_nothing_are_memory_of_their_own():
    bias = draw(3)
    got = matmul(draw(2, 0), draw(0, 3), bias=bias, precision="ieee")
    got += 1
    assert torch.equal(got, (bias + 1).expand(2, 3))


GOOD = {"a": torch.zeros(3, 4), "b": torch.zeros(4, 5), "precision": "ieee"}
BAD = {
    r"precision: expected one of \('ieee', 'tf32', 'tf32x3'\), got 'high'": {"precision": "high"},
    r"b: expected \(K, N\) or \(G, K, N\), got \(4,\)": {"b": torch.zeros(4)},
    r"a: expected \(..., M, 4\), got \(3, 5\)": {"a": torch.zeros(3, 5)},
    r"a: expected \(..., M, 4\), got \(4,\)": {"a": torch.zeros(4)},
    r"a: expected \(2, M, 4\), got \(3, 4\)": {"b": torch.zeros(2, 4, 5)},
    r"a: expected \(2, M, 4\), got \(1, 3, 4\)": {
        "a": torch.zeros(1, 3, 4),
        "b": torch.zeros(2, 4, 5),
    },
    r"bias: expected \(5,\), got \(1, 5\)": {"bias": torch.zeros(1, 5)},
    "b: expected torch.float32 on cpu, got torch.float64 on cpu": {"b": torch.zeros(4, 5).double()},
    "a: expected torch.float32 on cpu, got torch.bfloat16": {"a": torch.zeros(3, 4).bfloat16()},
    "bias: expected torch.float32 on cpu, got torch.float16": {"bias": torch.zeros(5).half()},
    "config.block_m: expected a power of two, got 48": {"config": MatmulConfig(48, 16, 16, 1)},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
def test_the_argument_at_fault_is_named(message, change):
    with pytest.raises(ValueError, match=message):
        matmul(**(GOOD | change))


def test_tf32x3_is_refused_on_rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match="precision: 'tf32x3' exists on NVIDIA GPUs only"):
        matmul(**(GOOD | {"precision": "tf32x3"}))


# Within a layer: the interpreter multiplies by torch unless a test says otherwise.


@pytest.fixture
def launches(monkeypatch):
    """Every product of a layer by Triton, and a list of (shape of a, shape of b, precision)."""
    seen = []

    def spy(a, b, **options):
        seen.append((tuple(a.shape), tuple(b.shape), options["precision"]))
        return matmul(a, b, **options)

    monkeypatch.setattr(products, "torch_will_do", lambda a, precision: False)
    monkeypatch.setattr(products, "_kernel", lambda: spy)
    return seen


@pytest.mark.parametrize(
    "spec",
    [
        Spec("lstm", 3, 5),
        Spec("lstm", 4, 17, 0, 2, True, True),
        Spec("lstm", 2, 4, 0, 1, False, True),
        Spec("rnn_tanh", 3, 20, 0, 2, True, True),
        Spec("rnn_relu", 3, 5, 0, 1, False, False),
    ],
    ids=str,
)
def test_layer_agrees_with_float64(spec, launches):
    problem = testing.random_problem(spec, 4, 3, dtype=torch.float32)
    got = testing.run(problem, backend="triton")
    testing.assert_close(got, testing.truth(problem), testing.tolerance(torch.float32, 4))
    # A layer: its projection, dx, dW_ih, d_h0, and for each direction dW_hh in two parts.
    assert len(launches) == spec.num_layers * (4 + 2 * spec.directions)
    assert {precision for *_, precision in launches} == {"ieee"}


def test_interpreter_multiplies_by_torch_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(products, "_kernel", None)
    problem = testing.random_problem(Spec("lstm", 3, 5), 4, 3, dtype=torch.float32)
    testing.run(problem, backend="triton")


def test_inputs_of_their_own_per_group(launches):
    T, B, G, rows, I = 3, 2, 2, 8, 5
    x, d_gates = draw(T, B, G, I), draw(T, B, G, rows, seed=1)
    weight, bias, output = draw(G, rows, I, seed=2), draw(G, rows, seed=3), draw(T, B, G, 2, seed=4)
    layer = Layer(
        "lstm", x, weight, draw(G, rows, 2), bias, draw(G, B, 2, seed=5), draw(G, B, 2), None, None,
        (False, True), "tf32", True,
    )  # fmt: skip
    for function, arguments in (
        (host.project, (x, weight, bias)),
        (host.project, (x, weight, None)),
        (host.input_gradient, (d_gates, weight, x)),
        (host.input_weight_gradient, (d_gates, x)),
        (host.recurrent_weight_gradient, (d_gates, output, layer)),
    ):
        want = function(*arguments)
        got = function(*arguments, lambda a, b, add=None: products.multiply(a, b, add, "tf32"))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert len(launches) == 4 + 2 * G
