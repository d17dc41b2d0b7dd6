"""What benchmarks/ runs on a GPU, run small in Triton's interpreter: right, and nothing forgotten.

Times mean nothing here. ``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_benchmarks.py``.
"""

import dataclasses
import json
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_benchmarks.py",
        allow_module_level=True,
    )

import fastrnn_kernels
from benchmarks import exchange, one_case, outlook, regimes, sanitize
from benchmarks.outlook import LAYERS
from fastrnn import stack
from fastrnn.bench_cases import layer
from fastrnn.benchmark import Case
from fastrnn_kernels import enqueue, launch
from fastrnn_kernels.marks import ALIVE, FIRST
from fastrnn_kernels.model import Rates
from fastrnn_kernels.plan import REGIMES
from fastrnn_triton.backend import TritonBackend

RUN = stack.run
CASE = Case("lstm", "forward", 2, 11, 8, 8, 1, False, "float32", "cpu")


@pytest.fixture
def perturbed(monkeypatch):
    """Have the kernels return something else in one regime."""

    def perturb(regime, change, direction="forward"):
        original = getattr(launch, direction)

        def changed(*arguments, **options):
            made = original(*arguments, **options)
            return change(made) if options["regime"] == regime else made

        monkeypatch.setattr(launch, direction, changed)

    return perturb


def test_every_part_of_an_exchange_runs_and_becomes_rates():
    figures = exchange.measure("cpu", 1)
    rates = exchange.rates_of(figures)
    assert {f.name for f in dataclasses.fields(Rates)} == vars(rates).keys()
    assert all(value for value in vars(rates).values() if value != rates.exchange_of_one)
    json.dumps(figures, allow_nan=False)
    text = exchange.report(figures, rates)
    assert "exchange_of_one" in text


def test_a_barrier_that_opens_too_early_is_an_error(monkeypatch):
    bench = exchange.Bench("cpu", 1, 2)

    class Early:
        """Launches nothing: as if nobody had waited, stored or arrived."""

        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    monkeypatch.setattr(bench.kernels, "exchanges", Early())
    monkeypatch.setattr(bench.kernels, "barriers", Early())
    with pytest.raises(exchange.BarrierError, match="before another had stored it"):
        bench.exchange(1)
    with pytest.raises(exchange.BarrierError, match="1 programs arrived 0 times in 2 rounds"):
        bench.barrier(1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "rnn_tanh", "layers": 2, "T": 1},
        {"layers": 3, "T": 1},
        {"bidirectional": True},
        {"mode": "train"},
        {"mode": "train", "cell": "rnn_tanh", "layers": 2},
        {"mode": "train", "layers": 2},
        {"mode": "train", "bidirectional": True},
    ],
    ids=str,
)
def test_a_case_is_checked_timed_and_predicted_in_every_way(changes):
    case = CASE._replace(**changes)
    rows = one_case.measure(case, 2, Rates())
    names = outlook.candidates(case)
    stacked = case.layers > 1 and not case.bidirectional
    assert (LAYERS in names) == stacked
    products = ["products", *["products of layers at once"] * stacked]
    assert [row["implementation"] for row in rows] == ["torch.nn", *names, *products]
    assert {row["status"] for row in rows} == {"ok"}, [row["reason"] for row in rows]
    assert [len(row["samples_s"]) for row in rows] == [2] * len(rows)
    own = [row for row in rows if row["implementation"] in names]
    assert sum(row["auto"] for row in rows) == sum(row["auto"] for row in own) == 1
    compared = 1 + len(outlook_states(case))
    if case.mode == "train":
        compared += 1 + 4 * case.layers * case.spec.directions  # x and the weights
    medians = {row["implementation"]: row["median_s"] for row in rows}
    for row in own:
        name = row["implementation"]
        assert row["speedup"] > 0
        around, expected = medians[products[name == LAYERS]], outlook.outlook(case, name)
        assert row["predicted_s"] == pytest.approx(around + expected.seconds())
        assert row["floor_s"] == pytest.approx(around + outlook.floor(expected, case))
        assert 0 < row["floor_s"] < row["predicted_s"]
        assert len(row["rms"]) == compared
        assert all(0 < rms < 1e-6 for rms in row["rms"].values())
        assert [each["direction"] for each in row["passes"]] == [*outlook.DIRECTIONS[case.mode]]
    assert all(row["speedup"] is None for row in rows if row["implementation"] in products)
    json.dumps(rows, allow_nan=False)
    assert fastrnn_kernels.forward is launch.forward
    assert fastrnn_kernels.backward is launch.backward
    assert stack.run is RUN


def outlook_states(case):
    return ["h_n"] if case.cell == "rnn_tanh" else ["h_n", "c_n"]


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_layers_run_at_once_in_their_row_and_in_no_other(mode, monkeypatch):
    """Whatever the backend would choose: it says that it would, always."""
    asked, ran, only = [], [], one_case.only

    def noted(name):
        asked.append(name)
        return only(name)

    for direction in ("forward", "backward"):
        original = getattr(launch, direction)

        def watched(*arguments, direction=direction, original=original, **options):
            ran.append((asked[-1], direction, options["weight_chain"] is not None))
            return original(*arguments, **options)

        monkeypatch.setattr(launch, direction, watched)
    monkeypatch.setattr(one_case, "only", noted)
    monkeypatch.setattr(TritonBackend, "layers_at_once", lambda self, request: request.num_layers)
    monkeypatch.setattr(outlook, "layers_at_once", lambda request: request.num_layers)
    case = CASE._replace(mode=mode, T=1, cell="rnn_tanh", layers=2)
    rows = one_case.measure(case, 1, Rates())
    assert [row["implementation"] for row in rows if row["auto"]] == [LAYERS]
    directions = outlook.DIRECTIONS[mode]
    names = outlook.candidates(case)
    assert set(ran) == {(name, each, name == LAYERS) for name in names for each in directions}


@pytest.mark.parametrize("name", ["step", "auto", LAYERS])
def test_what_is_forced_is_put_back_after_an_error(name):
    before = dict(vars(fastrnn_kernels))

    def fail():
        assert stack.run is not RUN
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"), one_case.only(name):
        fail()
    assert stack.run is RUN
    assert {**vars(fastrnn_kernels)} == before


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name", ["step", LAYERS])
def test_products_around_are_those_that_a_call_makes(name, mode, monkeypatch):
    """Their multiply-adds: of chained layers several are one batched product."""
    made, multiply = [], TritonBackend.matmul

    def counted(self, a, b, add=None, *, precision):
        made.append(2 * a.numel() * b.shape[-1])
        return multiply(self, a, b, add, precision=precision)

    monkeypatch.setattr(TritonBackend, "matmul", counted)
    case = CASE._replace(mode=mode, layers=3)
    module = layer(case, "triton")
    x = torch.randn(CASE.T, 11, 8).requires_grad_(mode == "train")
    one_case.caller(module, name)(x, one_case.upstream_of(case))
    weights = [weight.detach() for weight in module.parameters()]
    d_gates = torch.randn(11 * CASE.T, 32) if mode == "train" else None
    with FlopCounterMode(display=False) as counter:
        one_case.products_around(case, weights, name == LAYERS, x, d_gates)
    assert counter.get_total_flops() == sum(made) > 0


def test_auto_has_a_row_of_its_own_where_its_passes_differ(monkeypatch):
    """So there is a figure of what it does, beside those of the regimes."""
    ran = []
    for direction in ("forward", "backward"):
        original = getattr(launch, direction)

        def watched(*arguments, direction=direction, original=original, **options):
            ran.append((direction, options["regime"]))
            return original(*arguments, **options)

        monkeypatch.setattr(launch, direction, watched)
    monkeypatch.setattr(outlook, "_layer_by_layer", lambda case: outlook.AUTO)
    rows = one_case.measure(CASE._replace(mode="train", T=1, cell="rnn_tanh"), 1, Rates())
    assert [row["implementation"] for row in rows if row["auto"]] == ["auto"]
    assert {direction for direction, regime in ran if regime == "auto"} == {"forward", "backward"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("output", "output off by"),
        ("cell", "root mean square error 1.0e-03, torch.nn's"),
        ("nan", "not finite"),
        ("raises", "raised RuntimeError: no such kernel"),
    ],
)
def test_a_wrong_regime_gets_no_time_and_the_others_do(name, reason, perturbed):
    def change(made):
        if name == "raises":
            raise RuntimeError("no such kernel")
        if name == "output":
            made.output[-1, 0] += 1.0
        if name == "nan":  # in a row that is not compared
            made.output[0, 2] = torch.nan
        # within what its dtype allows, but not within what torch.nn does
        return made._replace(c_n=made.c_n + 1e-3) if name == "cell" else made

    perturbed("grid", change)
    rows = {row["implementation"]: row for row in one_case.measure(CASE, 1, Rates())}
    assert rows["grid"]["status"] == ("failed" if name == "raises" else "wrong")
    assert reason in rows["grid"]["reason"]
    assert (rows["grid"]["samples_s"], rows["grid"]["speedup"]) == ([], None)
    assert rows["step"]["status"] == rows["resident"]["status"] == "ok"


def test_wrong_layers_at_once_get_no_time_and_a_row_says_so(perturbed):
    def change(made):
        made.output[-1, 0, -1] += 1.0
        return made

    perturbed("auto", change)  # of chained groups there is one regime
    case = CASE._replace(cell="rnn_tanh", layers=2, T=1)
    rows = {row["implementation"]: row for row in one_case.measure(case, 1, Rates())}
    assert "output off by" in rows[LAYERS]["reason"]
    assert (rows[LAYERS]["status"], rows[LAYERS]["samples_s"]) == ("wrong", [])
    assert {rows[name]["status"] for name in REGIMES} == {"ok"}


def test_layers_that_do_not_fit_have_a_row_that_says_why(monkeypatch):
    case = CASE._replace(cell="rnn_tanh", layers=2, T=1)
    original = outlook.outlook

    def without(case, name, *rates):
        return outlook.Outlook("no room") if name == LAYERS else original(case, name, *rates)

    monkeypatch.setattr(one_case, "outlook", without)
    rows = {row["implementation"]: row for row in one_case.measure(case, 1, Rates())}
    assert (rows[LAYERS]["status"], rows[LAYERS]["reason"]) == ("cannot run", "no room")
    assert "predicted_s" not in rows[LAYERS]
    assert one_case.FEWER not in rows


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("compared", "d x off by"),
        ("near", ": root mean square error"),
        ("other row", "d x is not zero in a row that no gradient reaches"),
    ],
)
def test_a_wrong_gradient_gets_no_time(name, reason, perturbed):
    def change(made):
        if name == "other row":
            made.d_gates[0, 2] += 1e-30
        if name == "compared":
            made.d_gates[0, 3] += 1.0
        if name == "near":  # within what its dtype allows, but not within what torch.nn does
            made.d_gates[:, 3] *= 1 + 5e-3
        return made

    perturbed("grid", change, "backward")
    case = CASE._replace(mode="train", cell="rnn_tanh", T=2)
    rows = {row["implementation"]: row for row in one_case.measure(case, 1, Rates())}
    assert rows["grid"]["status"] == "wrong"
    assert reason in rows["grid"]["reason"]
    assert rows["grid"]["samples_s"] == []
    assert rows["step"]["status"] == rows["resident"]["status"] == "ok"


def test_a_gradient_that_is_not_finite_only_with_all_rows_is_found(perturbed):
    """What is compared has zeros in most rows; what is timed has not."""

    def change(made):
        if made.d_gates[:, 2].any():
            made.d_gates[0, 2] = torch.nan
        return made

    perturbed("step", change, "backward")
    case = CASE._replace(mode="train", cell="rnn_tanh", T=2)
    rows = {row["implementation"]: row for row in one_case.measure(case, 1, Rates())}
    assert (rows["step"]["status"], rows["grid"]["status"]) == ("wrong", "ok")
    assert "not finite" in rows["step"]["reason"]


def test_rows_that_are_not_compared_are_found():
    assert one_case.exact(CASE, *weights_and_input(), None).rows.tolist() == [
        0,
        1,
        3,
        4,
        6,
        7,
        9,
        10,
    ]


def weights_and_input():
    theirs = one_case.baseline(CASE)
    return [weight.detach() for weight in theirs.parameters()], torch.randn(3, 11, 8)


def test_compiling_ahead_runs_the_regime_that_it_is_told(perturbed):
    assert regimes.compile_one(CASE, "grid") == ""

    def fail(made):
        raise RuntimeError("out of registers")

    perturbed("grid", fail)
    assert regimes.compile_one(CASE, "resident") == ""
    told = regimes.compile_one(CASE, "grid")
    assert told.endswith("float32 grid: raised RuntimeError: out of registers")


def test_compiling_ahead_of_training_compiles_both_passes(perturbed):
    def fail(made):
        raise RuntimeError("out of registers")

    perturbed("grid", fail, "backward")
    case = CASE._replace(mode="train", cell="rnn_tanh", T=1)
    assert regimes.compile_one(case._replace(mode="forward"), "grid") == ""
    told = regimes.compile_one(case, "grid")
    assert told.endswith("float32 grid: raised RuntimeError: out of registers")


def test_compiling_layers_at_once_ahead_takes_as_many(monkeypatch):
    ran = []
    for direction in ("forward", "backward"):
        original = getattr(launch, direction)

        def watched(*arguments, direction=direction, original=original, **options):
            chain = options["weight_chain"]
            ran.append((direction, 1 if chain is None else 1 + len(chain)))
            return original(*arguments, **options)

        monkeypatch.setattr(launch, direction, watched)
    case = CASE._replace(mode="train", cell="rnn_tanh", T=1, layers=3)
    for name, layers in ((LAYERS, 3), ("grid", 1)):
        ran.clear()
        assert regimes.compile_one(case, name) == ""
        assert ran == [("forward", layers), ("backward", layers)]


def test_what_the_sanitizer_looks_at_is_every_kernel(monkeypatch):
    ran = set()
    from fastrnn_kernels import sweep

    def run(which):
        constants = which.constants
        passed = (which.config.regime, which.problem.direction)
        ran.add((*passed, constants["MARKED"], constants.get("SPLITS")))
        if constants["MARKED"]:
            marks = which.tensors[-1]
            steps = (marks & ALIVE.value).sum(0)
            assert set(steps.tolist()) == set(range(sanitize.T + 1))
            assert (marks & FIRST.value != 0).sum() > sanitize.B, "nothing is reset"
        for tensor in which.tensors:
            tensor.nan_to_num_(0.0)  # of a kernel that has not run

    monkeypatch.setattr(enqueue, "run", run)
    sanitize.passes("cpu")
    for marked in (False, True):
        looked_at = {passed[:2] for passed in ran if passed[2] == marked}
        assert looked_at == sweep.KERNELS.keys()
    assert {splits for *_, splits in ran} >= {1, 2, 4}
