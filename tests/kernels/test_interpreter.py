"""Every regime in Triton's interpreter, against the equations in NumPy float64 (oracle.py).

Triton decides at import whether it interprets or compiles, hence a process of its own:
``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter.py``.
"""

import math
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from fastrnn_kernels import graphs, launch, table
from fastrnn_kernels.plan import REGIMES

SMALL = kernels.StepConfig(block_b=16, block_h=16, block_k=16)  # H = 33 and 70 take several tiles
GRID = kernels.GridConfig(block_b=16, block_h=16, block_k=16, lanes=1, ahead=1, num_warps=2)
SHARED = replace(GRID, block_h=8, splits=2)  # two programs share a tile of 16 units on the way back
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
STATEFUL = {"lstm"}


@dataclass(frozen=True)
class Case:
    cell: str
    T: int
    B: int
    H: int
    dtype: torch.dtype
    reverse: tuple[bool, ...] = (False,)
    grads: str = "yhc"  # which of d_output, d_h_n, d_c_n are given
    strided: bool = False
    config: kernels.LaunchConfig | None = None
    launch: str = "direct"
    regime: str = "step"
    back: kernels.LaunchConfig | None = None  # of the backward pass; config is that of both in step

    def __str__(self):
        directions = "".join("<" if r else ">" for r in self.reverse)
        name = f"{self.cell}-T{self.T}-B{self.B}-H{self.H}-{str(self.dtype).split('.')[1]}"
        extras = ["strided"] * self.strided
        extras += ["tiles"] * (self.config is not None or self.back is not None)
        how = self.launch if self.regime == "step" else self.regime
        return "-".join([name, directions, f"d{self.grads}", *extras, how])

    @property
    def forward_options(self):
        if self.regime == "step":
            return {"config": self.config, "launch": self.launch}
        return {"config": self.config, "regime": self.regime}

    @property
    def backward_options(self):
        if self.regime == "step":
            return {"config": self.config, "launch": self.launch}
        return {"config": self.back, "regime": self.regime}


# Each pair of values meets at least once; the full product would take an hour.
CASES = [
    Case("lstm", 1, 1, 1, F32),
    Case("lstm", 2, 3, 16, BF16, (False, True), grads="y"),
    Case("lstm", 3, 2, 20, F16, (True,), grads="hc", strided=True),
    Case("lstm", 3, 17, 33, F32, (False, True), config=SMALL),
    Case("lstm", 17, 1, 3, F32, (True,), strided=True),
    Case("lstm", 2, 3, 70, F64, (True, False), grads="yc", strided=True, config=SMALL),
    Case("lstm", 17, 2, 16, BF16, (True, False), grads="yh", launch="graph"),
    Case("lstm", 3, 3, 33, F16, grads="h", launch="graph"),
    Case("lstm", 1, 17, 20, F64, (True, True), grads="c"),
    Case("rnn_tanh", 17, 3, 20, F32, (False, True), grads="yh"),
    Case("rnn_tanh", 1, 2, 70, BF16, (True,), grads="h", config=SMALL, strided=True),
    Case("rnn_tanh", 3, 1, 1, F16, (False, True), grads="y", launch="graph"),
    Case("rnn_tanh", 2, 17, 3, F64, grads="yh", strided=True),
    Case("rnn_relu", 3, 3, 33, F32, (True,), grads="y", config=SMALL),
    Case("rnn_relu", 17, 2, 16, F16, (True, False), grads="yh", strided=True),
    Case("rnn_relu", 2, 1, 20, BF16, grads="h", launch="graph"),
    Case("rnn_relu", 1, 3, 3, F64, (False, True), grads="yh"),
    Case("rnn_sigmoid", 2, 2, 1, F32, (True, False), grads="h"),
    Case("rnn_sigmoid", 17, 17, 16, BF16, grads="yh"),
    Case("rnn_sigmoid", 3, 1, 70, F64, (True,), grads="y", launch="graph", config=SMALL),
    Case("rnn_sigmoid", 1, 3, 33, F16, (False, True), grads="yh", strided=True, config=SMALL),
    Case("lstm", 17, 3, 20, F32, (False, True), regime="resident"),
    Case("lstm", 3, 17, 33, BF16, (True,), strided=True, regime="resident"),
    Case("lstm", 2, 2, 16, F64, (True, False), regime="resident"),
    Case("lstm", 1, 1, 1, F16, regime="resident"),
    Case("rnn_tanh", 17, 17, 33, F16, (False, True), grads="yh", strided=True, regime="resident"),
    Case("rnn_relu", 3, 2, 70, F32, grads="y", regime="resident"),
    Case("rnn_sigmoid", 2, 3, 3, BF16, (True, True), grads="yh", regime="resident"),
    Case("lstm", 3, 3, 70, F32, (False, True), regime="grid"),
    Case("lstm", 2, 17, 33, BF16, (True,), strided=True, regime="grid", config=GRID, back=SHARED),
    Case(
        "lstm",
        3,
        40,
        20,
        F32,
        (True, False),
        grads="yc",
        regime="grid",
        config=replace(GRID, lanes=2),
        back=replace(GRID, lanes=2),
    ),
    Case("lstm", 1, 2, 130, F16, strided=True, regime="grid"),
    Case(
        "lstm",
        17,
        1,
        3,
        F32,
        grads="h",
        regime="grid",
        config=replace(GRID, num_warps=1, block_h=4),
        back=replace(SHARED, num_warps=1),
    ),
    Case(
        "lstm",
        2,
        3,
        70,
        F16,
        regime="grid",
        config=replace(GRID, num_warps=4, ahead=2),
        back=replace(SHARED, num_warps=4, ahead=2),
    ),
    Case(
        "lstm",
        2,
        20,
        64,
        F64,
        (True, False),
        grads="c",
        regime="grid",
        back=replace(SHARED, splits=4, lanes=2, ahead=2),
    ),
    Case("rnn_tanh", 17, 3, 70, F32, (False, True), grads="yh", regime="grid", config=GRID),
    Case("rnn_relu", 3, 17, 33, F16, (True,), grads="yh", strided=True, regime="grid"),
    Case("rnn_sigmoid", 2, 2, 200, BF16, grads="h", regime="grid", back=SHARED),
    Case(
        "rnn_tanh",
        3,
        1,
        300,
        F32,
        grads="yh",
        regime="grid",
        config=replace(GRID, num_warps=8, ahead=3),
        back=replace(SHARED, num_warps=8, ahead=3),
    ),
]


@pytest.fixture(autouse=True)
def _poison():
    """Fill every torch.empty with NaN, so that a store that is missing is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    graphs.clear()


def make(case, scale=1.0, seed=0):
    """Arguments in the case's dtype; weights of the size torch initialises with."""
    random = np.random.default_rng(seed)
    G, K = len(case.reverse), kernels.CELLS[case.cell].gates

    def draw(*shape):
        return torch.from_numpy(random.standard_normal(shape)).to(case.dtype)

    bound = 1 / math.sqrt(case.H)
    weight = random.uniform(-bound, bound, (G, K * case.H, case.H))
    gates_x = draw(case.T, case.B, G, K * case.H) * scale
    d_output = draw(case.T, case.B, G, case.H)
    if case.strided:  # a view into something wider, with batch and time swapped
        wide = torch.full((case.B, case.T, G, K * case.H + 3), math.nan, dtype=case.dtype)
        wide[..., : K * case.H] = gates_x.transpose(0, 1)
        gates_x = wide.transpose(0, 1)[..., : K * case.H]
        d_output = d_output[..., :1].expand(d_output.shape)
    stateful = case.cell in STATEFUL
    return {
        "gates_x": gates_x,
        "weight_hh": torch.from_numpy(weight).to(case.dtype),
        "h0": draw(G, case.B, case.H),
        "c0": draw(G, case.B, case.H) if stateful else None,
        "d_output": d_output if "y" in case.grads else None,
        "d_h_n": draw(G, case.B, case.H) if "h" in case.grads else None,
        "d_c_n": draw(G, case.B, case.H) if "c" in case.grads and stateful else None,
    }


def run(case, a, save=True):
    common = {"reverse": case.reverse}
    made = kernels.forward(
        case.cell,
        a["gates_x"],
        a["weight_hh"],
        a["h0"],
        a["c0"],
        save=save,
        **common,
        **case.forward_options,
    )
    if not save:
        return made, None
    grads = {name: a[name] for name in ("d_output", "d_h_n", "d_c_n")}
    saved = (made.output, made.gates, made.cells, a["c0"])
    options = common | case.backward_options
    return made, kernels.backward(case.cell, a["weight_hh"], *saved, **grads, **options)


def expect(oracle, case, a):
    x = {name: None if v is None else v.double().numpy() for name, v in a.items()}
    made = oracle.forward(case.cell, x["gates_x"], x["weight_hh"], x["h0"], x["c0"], case.reverse)
    grads = (x["d_output"], x["d_h_n"], x["d_c_n"])
    back = oracle.backward(case.cell, x["weight_hh"], made, x["c0"], *grads, case.reverse)
    return made, back


def assert_close(case, got, want, roundings):
    """Compare each field, NaN for NaN.

    Every step rounds h (forward) or d_gates (backward) to the dtype, by eps/2 of its size, and
    weights of torch's initial size pass an error on without growth: errors of T steps add up like
    a random walk. The sum, exp and division of a step are worth some more where they are no finer
    than the dtype (float32, float64). ``roundings`` counts eps per step, and the largest element
    sets the size. Errors seen: up to 0.6 of the limit in float64, 0.3 in float32 and 16 bits.
    """
    eps = torch.finfo(case.dtype).eps
    for name, expected in want._asdict().items():
        value = getattr(got, name)
        if expected is None:
            assert value is None, name
            continue
        assert value.dtype == case.dtype, name
        assert value.shape == expected.shape, name
        value = value.double().numpy()
        np.testing.assert_array_equal(np.isnan(value), np.isnan(expected), err_msg=name)
        size = max(1.0, float(np.nanmax(np.abs(expected), initial=0.0)))
        limit = roundings * eps * size * math.sqrt(case.T)
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)


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


@pytest.mark.parametrize("T", [1, 2, 3, 6])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.parametrize("how", ["direct", "graph", "resident", "grid"])
def test_states_are_the_same_if_no_output_is_kept(how, cell, T, monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 2)
    way = {"launch": how} if how in ("direct", "graph") else {"regime": how}
    case = Case(cell, T, 3, 20, F32, (False, True), **way)
    a = make(case)
    want, _ = run(case, a, save=False)
    forward = [a[name] for name in ("gates_x", "weight_hh", "h0", "c0")]
    options = case.forward_options | {"reverse": case.reverse}
    made = kernels.forward(cell, *forward, keep_output=False, **options)
    assert made.output.shape == (0, 3, 2, 20)
    assert torch.equal(made.h_n, want.h_n)
    assert made.c_n is want.c_n is None or torch.equal(made.c_n, want.c_n)


def test_an_output_that_the_way_back_needs_is_kept():
    a = make(Case("lstm", 1, 1, 3, F32))
    forward = [a[name] for name in ("gates_x", "weight_hh", "h0", "c0")]
    with pytest.raises(ValueError, match="keep_output: expected True with save"):
        kernels.forward("lstm", *forward, save=True, keep_output=False)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_gates_may_take_the_place_of_what_they_are_made_of(regime, strided):
    case = Case("lstm", 3, 3, 20, F32, (False, True), strided=strided, regime=regime)
    a = make(case)
    want, _ = run(case, a)
    forward = [a[name] for name in ("gates_x", "weight_hh", "h0", "c0")]
    options = case.forward_options | {"reverse": case.reverse}
    made = kernels.forward("lstm", *forward, save=True, overwrite=True, **options)
    assert (made.gates.data_ptr() == a["gates_x"].data_ptr()) != strided
    for got, expected in zip(made, want, strict=True):
        assert torch.equal(got, expected)


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
    # Row S3: keep = 1, write = 0; 5,000 steps of it run on a GPU (test_gpu_regimes.py).
    case = Case("lstm", 100, 1, 16, F32, regime=regime)
    a = make(case)
    pre = torch.tensor([-100.0, 100.0, 0.5, -100.0])
    a["gates_x"] = pre.repeat_interleave(16).expand(100, 1, 1, 64).contiguous()
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


class Recurrence(torch.autograd.Function):
    """The least that lets gradcheck see forward and backward as one function."""

    @staticmethod
    def forward(ctx, case, gates_x, weight_hh, h0, c0):
        options = case.forward_options | {"reverse": case.reverse}
        made = kernels.forward(case.cell, gates_x, weight_hh, h0, c0, save=True, **options)
        ctx.save_for_backward(weight_hh, h0, c0, made.output, made.gates, made.cells)
        ctx.case = case
        return made.output, made.h_n, h0 if made.c_n is None else made.c_n

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n):
        weight_hh, h0, c0, output, gates, cells = ctx.saved_tensors
        made = kernels.backward(
            ctx.case.cell,
            weight_hh,
            output,
            gates,
            cells,
            c0,
            d_output=d_output,
            d_h_n=d_h_n,
            d_c_n=None if c0 is None else d_c_n,
            reverse=ctx.case.reverse,
            **ctx.case.backward_options,
        )
        before = torch.empty_like(output)
        for g, backwards in enumerate(ctx.case.reverse):
            first, later, earlier = (-1, slice(0, -1), slice(1, None))
            if not backwards:
                first, later, earlier = (0, slice(1, None), slice(0, -1))
            before[first, :, g] = h0[g]
            before[later, :, g] = output[earlier, :, g]
        d_weight = torch.einsum("tbgk,tbgh->gkh", made.d_gates, before)
        firsts = [made.d_gates[-1 if b else 0, :, g] for g, b in enumerate(ctx.case.reverse)]
        d_h0 = torch.bmm(torch.stack(firsts), weight_hh)
        return None, made.d_gates, d_weight, d_h0, made.d_c0


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", 2, 2, 3, F64, (True,)),
        Case("rnn_tanh", 3, 2, 5, F64, (True,)),
        Case("rnn_relu", 2, 1, 3, F64),
        Case("rnn_sigmoid", 1, 3, 7, F64, (False, True)),
        Case("lstm", 2, 3, 7, F64, (False, True), regime="resident"),
        Case("rnn_tanh", 17, 1, 3, F64, regime="resident"),
        Case("rnn_relu", 3, 2, 5, F64, (True,), regime="resident"),
        Case("rnn_sigmoid", 2, 17, 1, F64, regime="resident"),
        Case("lstm", 2, 3, 6, F64, (False, True), regime="grid", back=SHARED),
        Case("lstm", 3, 1, 5, F64, (True,), regime="grid"),
        Case("rnn_tanh", 3, 17, 2, F64, regime="grid", back=SHARED),
        Case("rnn_relu", 2, 2, 5, F64, regime="grid"),
        Case("rnn_sigmoid", 1, 2, 18, F64, (False, True), regime="grid", back=SHARED),
    ],
    ids=str,
)
def test_gradcheck(case):
    cell, a = case.cell, make(case)
    names = ["gates_x", "weight_hh", "h0"] + ["c0"] * (cell in STATEFUL)
    inputs = [a[name].requires_grad_() for name in names]

    def function(*tensors):
        c0 = tensors[3] if cell in STATEFUL else None
        made = Recurrence.apply(case, *tensors[:3], c0)
        return made[: 3 if cell in STATEFUL else 2]

    fully = cell == "lstm" and case.regime == "step"  # else along random directions: much faster
    torch.autograd.gradcheck(function, inputs, fast_mode=not fully)


@pytest.mark.parametrize("T", [1, 4, 6, 9])
@pytest.mark.parametrize("cell", ["lstm", "rnn_relu"])
def test_graph_of_steps_is_the_same_recurrence_for_every_length(cell, T, monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 4)
    outcomes = []
    for how in ("direct", "graph"):
        case = Case(cell, T, 2, 5, F32, (False, True), launch=how, strided=True)
        outcomes.append(run(case, make(case)))
    for direct, graph in zip(*outcomes, strict=True):
        for x, y in zip(direct, graph, strict=True):
            assert x is y is None or torch.equal(x, y)


def test_graphs_are_kept_for_new_lengths_and_addresses_and_bounded(monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 2)
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    for T, B in ((1, 2), (3, 3), (2, 16)):
        case = Case("rnn_tanh", T, B, 3, F32, launch="graph")
        run(case, make(case), save=False)
        assert len(graphs._graphs) == 1, "one graph for every length, batch in a tile and address"
    for H in (4, 5, 6):
        case = Case("rnn_tanh", 1, 2, H, F32, launch="graph")
        run(case, make(case), save=False)
    assert len(graphs._graphs) == 2


def test_table_slots_are_those_that_the_kernels_read():
    filled = torch.full((table.TABLE_SIZE,), -1)
    table.fill_table[(1,)](filled, *range(100, 107), *range(200, 210))
    assert filled.tolist() == [0, *range(100, 107), *range(200, 210)]
    table.advance_table[(1,)](filled, 32)
    table.advance_table[(1,)](filled, 32)
    assert filled[0] == 64


def test_step_may_start_anywhere_in_memory_unless_a_graph_is_demanded():
    case = Case("rnn_tanh", 1, 1, 3, F32)
    a = make(case)
    want, _ = run(case, a, save=False)
    shifted = torch.empty(4)[1:]
    a["gates_x"] = shifted.copy_(a["gates_x"].flatten()).view(a["gates_x"].shape)
    made, _ = run(case, a, save=False)
    assert torch.equal(made.output, want.output)
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        kernels.forward("rnn_tanh", a["gates_x"], a["weight_hh"], a["h0"], launch="graph")


def test_empty_batch_launches_nothing(monkeypatch):
    monkeypatch.setattr(launch, "run", None)
    case = Case("lstm", 2, 0, 3, F32, (False, True))
    made, back = run(case, make(case))
    assert made.output.shape == (2, 0, 2, 3)
    assert made.h_n.shape == back.d_c0.shape == (2, 0, 3)


def test_many_groups_share_one_direction():
    case = Case("rnn_relu", 2, 1, 1, F32, (True,) * 65)
    a = make(case)
    made, _ = run(case, a, save=False)
    assert torch.equal(made.h_n[:, :, 0], made.output[0, :, :, 0].T)
    with pytest.raises(ValueError, match="reverse: expected one direction"):
        run(Case("rnn_relu", 2, 1, 1, F32, (False,) + (True,) * 64), a, save=False)


BAD_FORWARD = {
    "cell: expected one of .*, got 'gru'": {"cell": "gru"},
    r"gates_x: expected \(T, B, G, 4\*H\), got \(3, 2, 22\)": {"gates_x": torch.zeros(3, 2, 22)},
    "gates_x: T, G and H must be at least 1": {"gates_x": torch.zeros(0, 2, 1, 20)},
    "gates_x: the last dimension must be contiguous": {
        "gates_x": torch.zeros(3, 2, 1, 40)[..., ::2]
    },
    "gates_x: expected one of .*, got torch.int64": {
        "gates_x": torch.zeros(3, 2, 1, 20, dtype=torch.int64)
    },
    r"weight_hh: expected shape \(1, 20, 5\), got \(1, 20, 6\)": {
        "weight_hh": torch.zeros(1, 20, 6)
    },
    "weight_hh: expected a contiguous tensor": {"weight_hh": torch.zeros(1, 5, 20).mT},
    r"h0: expected shape \(1, 2, 5\)": {"h0": torch.zeros(1, 2, 4)},
    "h0: expected torch.float32 on cpu, got torch.float64": {"h0": torch.zeros(1, 2, 5).double()},
    "c0: expected a tensor .* got None": {"c0": None},
    "reverse: expected 1 directions, one a group, got 2": {"reverse": [True, False]},
    "precision: expected one of .*, got 'fast'": {"precision": "fast"},
    "launch: expected one of .*, got 'never'": {"launch": "never"},
    "config.block_h: expected a power of two, got 24": {"config": kernels.StepConfig(16, 24, 16)},
}


@pytest.mark.parametrize(("message", "change"), BAD_FORWARD.items(), ids=BAD_FORWARD)
def test_forward_names_the_argument_at_fault(message, change):
    good = {
        "cell": "lstm",
        "gates_x": torch.zeros(3, 2, 1, 20),
        "weight_hh": torch.zeros(1, 20, 5),
        "h0": torch.zeros(1, 2, 5),
        "c0": torch.zeros(1, 2, 5),
    }
    with pytest.raises(ValueError, match=message):
        kernels.forward(**(good | change))


def test_a_cell_without_cell_state_takes_none():
    x, w, h = torch.zeros(1, 1, 1, 2), torch.zeros(1, 2, 2), torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="c0: expected None, rnn_tanh has no cell state"):
        kernels.forward("rnn_tanh", x, w, h, h)
    with pytest.raises(ValueError, match="output: T, G and H must be at least 1"):
        kernels.backward("rnn_tanh", torch.zeros(1, 3, 3), torch.zeros(0, 2, 1, 3))
    with pytest.raises(ValueError, match="gates, d_c_n: expected None"):
        kernels.backward("rnn_tanh", w, x, x, d_c_n=h)


@pytest.mark.parametrize("name", ["gates", "cells", "c0", "d_output", "d_h_n", "d_c_n"])
def test_backward_names_the_argument_at_fault(name):
    y, s = torch.zeros(3, 2, 1, 5), torch.zeros(1, 2, 5)
    good = {
        "weight_hh": torch.zeros(1, 20, 5),
        "output": y,
        "gates": torch.zeros(3, 2, 1, 20),
        "cells": y,
        "c0": s,
        "d_output": y,
        "d_h_n": s,
        "d_c_n": s,
    }
    with pytest.raises(ValueError, match=f"{name}: expected shape .*, got \\(7,\\)"):
        kernels.backward("lstm", **(good | {name: torch.zeros(7)}))
