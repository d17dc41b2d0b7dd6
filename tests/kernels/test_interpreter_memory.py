"""No kernel reads or writes beyond its tensors, in Triton's interpreter; see fenced_memory.py.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_memory.py``; see test_interpreter.py.
"""

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_memory.py",
        allow_module_level=True,
    )

import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

import chain_cases
import fastrnn_kernels as kernels
from chain_cases import Chain
from fastrnn_kernels.matmul import matmul
from fastrnn_kernels.matmul_configs import MatmulConfig
from fastrnn_kernels.sweep import KERNELS
from fenced_memory import Fence
from interpreter_cases import BF16, F16, F32, F64, GRID, SHARED, SMALL, Case, ends, make, run

BOTH = (False, True)


@pytest.fixture
def fence(monkeypatch):
    return Fence(monkeypatch)


# -- what the fence sees


@triton.jit
def copy(source, target, first, end, BLOCK: tl.constexpr):
    i = first + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < end), mask=i < end)


@triton.jit
def copy_a_half(source, target):
    half = tl.load(source.to(tl.pointer_type(tl.float16), bitcast=True))
    tl.store(target, half.to(tl.float32))


@triton.jit
def count(counters, i, n):
    tl.atomic_add(counters + i, 1, mask=n > 0)


@triton.jit
def swap(counters, i):
    tl.atomic_cas(counters + i, 0, 1)


def test_what_is_masked_may_lie_anywhere(fence):
    source, target, counters = torch.arange(5.0), torch.zeros(5), torch.zeros(1, dtype=torch.int32)
    copy[(1,)](source, target, 0, 5, BLOCK=8)
    assert torch.equal(target, source)
    count[(3,)](counters, 0, 1)
    count[(3,)](counters, 1, 0)
    assert counters.item() == 3
    swap[(1,)](counters, 0)
    assert fence.launched == ["copy", "count", "count", "swap"]


def test_memory_that_two_arguments_share_stays_shared(fence):
    buffer = torch.arange(6.0)
    copy[(1,)](buffer[:3], buffer[3:], 0, 3, BLOCK=4)
    assert buffer.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("source", "target", "first", "end", "text"),
    [
        (5, 8, 0, 6, "load of 4 bytes, 4 bytes past the last of source, and 0 more of 8 lanes"),
        (5, 8, 0, 7, "load of 4 bytes, 4 bytes past the last of source, and 1 more of 8 lanes"),
        (8, 8, -1, 2, "load of 4 bytes, 4 bytes before the first of source, and 0 more of 8"),
        (8, 5, 3, 6, "store of 4 bytes, 4 bytes past the last of target, and 0 more of 8 lanes"),
    ],
)  # fmt: skip
def test_an_access_beyond_a_tensor_is_an_error(source, target, first, end, text, fence):
    target = torch.zeros(10)[:target]  # of memory that is longer
    with pytest.raises(InterpreterError, match=f"copy: {text}"):
        copy[(1,)](torch.zeros(source), target, first, end, BLOCK=8)


def test_an_access_between_the_elements_of_a_view_is_an_error(fence):
    with pytest.raises(InterpreterError, match="load of 4 bytes, between elements of source"):
        copy[(1,)](torch.zeros(4, 2)[:, 0], torch.zeros(4), 0, 2, BLOCK=4)


def test_an_access_to_a_part_of_an_element_is_an_error(fence):
    with pytest.raises(InterpreterError, match="load of 2 bytes, between elements of source"):
        copy_a_half[(1,)](torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize(("kernel", "rest"), [(count, (1,)), (swap, ())], ids=["add", "swap"])
def test_an_atomic_operation_beyond_a_tensor_is_an_error(kernel, rest, fence):
    with pytest.raises(InterpreterError, match="atomic operation of 4 bytes, 4 bytes past the"):
        kernel[(1,)](torch.zeros(2, dtype=torch.int32), 2, *rest)


# -- the kernels


def rows(case, how):
    """Rows of 0 to T steps; resets now and then, as a view into something wider."""
    row, t = torch.arange(case.B), torch.arange(case.T)
    lengths = torch.tensor([0, case.T, *range(1, case.T)])[row % (case.T + 1)]
    wide = torch.zeros(case.B, 2 * case.T, dtype=torch.bool)
    wide[:, ::2] = (row[:, None] + t) % 3 == 1
    given = {"lengths": lengths, "resets": wide[:, ::2].T}
    return {name: each for name, each in given.items() if how in (name, "both")}


def marked(case, how):
    return make(case) | rows(case, how)


def names(case):
    """Of the kernels of a forward and a backward pass."""
    return {KERNELS[case.regime, each].__name__ for each in ("forward", "backward")}


SPLIT = replace(SHARED, splits=4)  # four programs share a tile of 32 units
LANES = {"config": replace(GRID, lanes=2), "back": replace(SHARED, lanes=2)}  # three batch tiles

CASES = [
    Case("lstm", 3, 3, 5, F32, BOTH),
    Case("lstm", 2, 17, 17, BF16, BOTH, grads="hc", config=SMALL, strided=True),
    Case("rnn_tanh", 2, 17, 5, F64, BOTH, grads="yh", strided=True),
    Case("rnn_tanh", 1, 3, 33, F32, (True,), grads="h", config=SMALL),
    Case("lstm", 3, 3, 5, F32, BOTH, regime="resident", strided=True),
    Case("lstm", 2, 17, 17, BF16, BOTH, grads="hc", regime="resident"),
    Case("lstm", 1, 3, 16, F16, (True,), grads="y", regime="resident"),
    Case("rnn_tanh", 2, 17, 5, F16, BOTH, grads="yh", regime="resident"),
    Case("lstm", 3, 3, 5, F32, BOTH, regime="grid", strided=True),
    Case("lstm", 2, 17, 17, BF16, (True,), grads="hc", regime="grid", config=GRID, back=GRID),
    Case("lstm", 1, 3, 17, F16, BOTH, regime="grid", config=replace(GRID, num_warps=4), back=SPLIT),
    Case("rnn_tanh", 2, 33, 18, F64, grads="y", regime="grid", strided=True, **LANES),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
first_cases = pytest.mark.parametrize("case", CASES[::4], ids=str)  # of each regime
plain_and_marked = pytest.mark.parametrize("how", ["plain", "both"])


@plain_and_marked
@every_case
def test_forward_and_back(case, how, fence):
    a = marked(case, how)
    run(case, a)
    assert set(fence.launched) == names(case) | ({"write_marks"} if how == "both" else set())


@pytest.mark.parametrize("how", ["lengths", "resets"])
@first_cases
def test_rows_that_only_end_or_only_start_over(case, how, fence):
    run(case, marked(case, how))
    assert set(fence.launched) == names(case) | {"write_marks"}


@plain_and_marked
@first_cases
def test_final_states_without_the_output(case, how, fence):
    a = marked(case, how)
    arguments = (a[name] for name in ("gates_x", "weight_hh", "h0", "c0"))
    options = {"reverse": case.reverse, "keep_output": False, **ends(a), **case.forward_options}
    made = kernels.forward(case.cell, *arguments, **options)
    assert made.output.shape[0] == 0
    assert KERNELS[case.regime, "forward"].__name__ in fence.launched


@first_cases
def test_saved_in_place_of_what_is_over(case, fence):
    a = marked(case, "both")
    common = {"reverse": case.reverse, "overwrite": True} | ends(a)
    x = a["gates_x"].contiguous()
    given = (x, a["weight_hh"], a["h0"], a["c0"])
    made = kernels.forward(case.cell, *given, save=True, **common, **case.forward_options)
    saved = (made.output, made.gates, made.cells, a["c0"])
    grads = {name: a[name] for name in ("d_output", "d_h_n", "d_c_n")}
    back = kernels.backward(
        case.cell, a["weight_hh"], *saved, **grads, **common, **case.backward_options
    )
    assert back.d_gates is made.gates is x
    assert set(fence.launched) >= names(case)


@plain_and_marked
@pytest.mark.parametrize(
    "case",
    [
        Chain("lstm", 2, 3, 5, F32, (False,) * 2, strided=True, back=SHARED),
        Chain("rnn_tanh", 2, 17, 17, BF16, (True,) * 2, grads="yh", config=GRID, bias=False),
        Chain("rnn_tanh", 1, 17, 18, F16, (False,) * 2, grads="y", **LANES),
    ],
    ids=str,
)
def test_layers_at_once(case, how, fence):
    a, given = chain_cases.make(case), rows(case, how)
    made = chain_cases.forward(case, a, save=True, **given)
    chain_cases.backward(case, a, made, **given)
    assert set(fence.launched) >= names(case)


@pytest.mark.parametrize("regime", ["step", "resident", "grid"])
def test_the_same_bits_as_without_a_fence(regime, monkeypatch):
    case = Case("lstm", 3, 3, 5, F32, BOTH, regime=regime, strided=True)
    a = marked(case, "both")
    plain = run(case, a)
    Fence(monkeypatch)
    for results, expected in zip(run(case, a), plain, strict=True):
        for got, want in zip(results, expected, strict=True):
            assert got is want is None or torch.equal(got, want)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("splits", [1, 2])
def test_products_around_the_loop(splits, transposed, fence):
    G, M, N, K = 2, 17, 5, 37

    def draw(rows, cols, turned):  # a view into something wider
        if turned:
            return draw(cols, rows, False).mT
        return torch.zeros(G, rows, cols + 3)[..., :cols]

    a, b = draw(M, K, transposed[0]), draw(K, N, transposed[1])
    config = MatmulConfig(16, 16, 16, 1, splits=splits)
    matmul(a, b, bias=torch.zeros(G, N), precision="ieee", config=config)
    assert fence.launched == ["matmul_kernel"]
