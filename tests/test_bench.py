"""The benchmark: what is timed, that it is right, and that nothing is hidden."""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import math
import os
from pathlib import Path

import pytest
import torch

from fastrnn import bench, bench_cases, cli, dispatch, measured, plugins, testing
from fastrnn.bench import Row, failures, measure, report
from fastrnn.bench_cases import cases
from fastrnn.benchmark import Axes, Case
from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend

CASE = Case("lstm", "train", 5, 3, 4, 6, 1, False, "float32", "cpu")


class Faulty(ReferenceBackend):
    """The reference, but for the fault that a test asks for."""

    name = "faulty"
    fault = ""

    def recurrence_forward(self, gates_x, weight_hh, layer):
        if self.fault == "raises":
            raise RuntimeError("no such\nkernel")
        made = super().recurrence_forward(gates_x, weight_hh, layer)
        output, c_n = made.output, made.c_n
        if self.fault == "output":
            output[-1, -1, 0, -1] += 1e-3
        if self.fault == "nan":
            output[0, 0, 0, 0] = math.nan
        if self.fault == "state":
            c_n = c_n * 1.001
        return made._replace(output=output, c_n=c_n)

    def recurrence_backward(self, *arguments):
        got = super().recurrence_backward(*arguments)
        if self.fault == "gradient":
            got.d_gates[0] *= 1.001
        return got


@pytest.fixture
def fault(monkeypatch):
    """Register the backend `faulty`; call with the name of a fault."""
    plugins.reset()

    class Plugin:
        @hookimpl
        def fastrnn_backends(self):
            return [Faulty()]

    plugins.register(Plugin())
    yield lambda name: monkeypatch.setattr(Faulty, "fault", name)
    plugins.reset()


def row_of(rows, implementation):
    (row,) = (row for row in rows if row.implementation == implementation)
    return row


@pytest.mark.parametrize("mode", ["forward", "inference", "train"])
@pytest.mark.parametrize("cell", bench_cases.OF_TORCH)
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_every_implementation_is_right_and_timed(cell, mode, layers, bidirectional):
    case = CASE._replace(cell=cell, mode=mode, layers=layers, bidirectional=bidirectional)
    rows = list(measure([case], repeats=2))
    assert [row.implementation for row in rows] == [
        "torch.nn", "cell loop", *plugins.registry().backends,
    ]  # fmt: skip
    for name in ("torch.nn", "cell loop", "reference", "aten"):
        row = row_of(rows, name)
        assert (row.status, row.reason, len(row.samples)) == ("ok", "", 2)
        assert 0 < row.error <= 1
        assert row.speedup > 0
    assert row_of(rows, "torch.nn").speedup == 1
    assert sum(row.auto for row in rows) == 1
    assert failures(rows, None) == []


@pytest.mark.parametrize("cell", ["rnn_sigmoid", "peephole_lstm"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_cell_that_torch_lacks_has_no_baseline(cell, layers):
    rows = list(measure([CASE._replace(cell=cell, layers=layers, bidirectional=True)], repeats=1))
    assert row_of(rows, "torch.nn").reason == f"torch.nn has no {cell}"
    assert row_of(rows, "cell loop").status == "cannot run"
    reference = row_of(rows, "reference")
    assert reference.status == "ok"
    assert reference.speedup is None


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("output", "forward", "output off by 1.0e-03 of "),
        ("output", "train", "output off by"),
        ("nan", "forward", "output off by nan of "),
        ("state", "forward", "state[1] off by "),
        ("gradient", "train", "d 0 off by "),
        ("gradient", "forward", None),
    ],
)
def test_a_wrong_result_gets_no_time(fault, name, mode, reason):
    fault(name)
    rows = list(measure([CASE._replace(mode=mode)], backends=["faulty", "aten"], repeats=1))
    row = row_of(rows, "faulty")
    if reason is None:  # a wrong gradient does not matter to a forward pass
        assert row.status == "ok"
        return
    assert row.status == "wrong"
    assert reason in row.reason
    assert row.error > 1
    assert (row.samples, row.quantiles(), row.speedup) == ([], None, None)
    assert row_of(rows, "aten").status == "ok"
    (failure,) = failures(rows, None)
    assert failure.startswith("faulty wrong on lstm")
    assert "WRONG: " in report(rows)


def test_a_backend_that_raises_is_a_line_and_a_failure(fault, tmp_path):
    fault("raises")
    rows = list(measure([CASE], backends=["faulty", "aten"], repeats=1))
    row = row_of(rows, "faulty")
    assert (row.status, row.reason) == ("failed", "raised RuntimeError: no such kernel")
    assert row_of(rows, "aten").samples
    assert len(failures(rows, None)) == 1
    assert "FAILED: raised RuntimeError" in report(rows)


@pytest.fixture
def tuned():
    """What auto chooses for CASE by the estimates, and by measurements that are stored here."""
    request = bench_cases.request_for(CASE)
    decision = dispatch.decide(request)
    found = plugins.registry()
    able = measured.competitors(decision.candidates, found.plugins, CASE.cell)
    other = next(name for name in able if name != decision.backend)
    seconds = {name: 1e-6 if name == other else 1.0 for name in able}
    measured.remember(request, seconds, measured.versions(found.plugins, CASE.cell), keep=True)
    dispatch.clear_decisions()
    return decision.backend, other


def auto():
    return dispatch.decide(bench_cases.request_for(CASE)).backend


def test_as_installed_nothing_counts_that_was_measured_here(tuned, monkeypatch):
    before, after = tuned
    assert auto() == after
    with bench.as_installed():
        folder = Path(os.environ["FASTRNN_CACHE_DIR"])
        assert list(folder.iterdir()) == []
        assert auto() == before
    assert not folder.exists()
    assert auto() == after
    monkeypatch.delenv("FASTRNN_CACHE_DIR")
    with contextlib.suppress(KeyError), bench.as_installed():
        raise KeyError(os.environ["FASTRNN_CACHE_DIR"])
    assert "FASTRNN_CACHE_DIR" not in os.environ


def test_the_command_benches_what_a_caller_would_get(tuned, monkeypatch, capsys):
    _, after = tuned
    seen = []

    def measure(cases, **options):
        seen.append(auto())
        return [Row(CASE, "reference", samples=[1.0])]

    monkeypatch.setattr(bench, "measure", measure)
    assert cli.main(["bench"]) == 0
    assert seen == [after]


def test_what_is_compared_with_is_checked_too_but_is_no_failure(monkeypatch):
    monkeypatch.setattr(testing, "tolerance", lambda *_: testing.Tolerance(1e-30, 1e-30))
    rows = list(measure([CASE], backends=[], repeats=1))
    assert {row.status for row in rows} == {"wrong"}
    assert not any(row.samples for row in rows)
    assert failures(rows, None) == []


def test_the_truth_is_float64_of_the_same_numbers():
    """A half precision result is compared at its own inputs, not at unrounded ones."""
    rows = list(measure([CASE._replace(dtype="bfloat16")], backends=["reference"], repeats=1))
    assert 0 < row_of(rows, "reference").error <= 1
    exact = list(measure([CASE._replace(dtype="float64")], backends=["reference"], repeats=1))
    assert row_of(exact, "reference").error == 0


def test_samples_are_taken_in_turns():
    taken = []
    collecting = []

    def call(name):
        taken.append(name)
        collecting.append(gc.isenabled())

    timed = [(Row(CASE, name), lambda name=name: call(name)) for name in "abc"]
    gc.enable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SAMPLE_SECONDS", 0)
        bench.take_samples(timed, 4, "cpu")
    turns = taken[-24:]  # twice each: the first call of a sample is not counted
    assert turns[::2] == turns[1::2]
    rounds = ["".join(turns[i : i + 6 : 2]) for i in range(0, 24, 6)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1
    assert [len(row.samples) for row, _ in timed] == [4, 4, 4]
    assert gc.isenabled()
    assert not any(collecting)


def test_short_calls_are_repeated_within_a_sample(monkeypatch):
    counts = []

    def clock(call, count):
        counts.append(count)
        return 1e-3

    monkeypatch.setattr(bench, "_seconds", clock)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0075)
    bench.take_samples([(Row(CASE, "a"), lambda: None)], 3, "cpu")
    assert counts == [1, 1, 8, 8, 8]


def test_losers_are_shown_as_winners_are():
    rows = [Row(CASE, name, samples=[seconds] * 5) for name, seconds in
            (("torch.nn", 2e-3), ("fast", 1e-3), ("slow", 8e-3))]  # fmt: skip
    rows[2].auto = True
    bench.compare_rows(rows)
    assert [row.speedup for row in rows] == [1, 2, 0.25]
    lines = report(rows).splitlines()[5:8]
    assert [line.split()[-3] for line in lines] == ["1.00x", "2.00x", "0.25x"]
    assert "2.000  2.000..2.000     1.00x   400.00" in lines[0]
    assert ["*" in line for line in lines] == [False, False, True]


def test_quantiles():
    row = Row(CASE, "a", samples=[float(n) for n in (10, 0, 5, 2, 8, 1, 9, 3, 7, 4, 6)])
    assert row.quantiles() == (2, 5, 8)
    assert row.median == 5
    assert Row(CASE, "a", samples=[3.0]).quantiles() == (3, 3, 3)
    assert Row(CASE, "a").quantiles() is None
    assert Row(CASE, "a").median is None


def test_what_cannot_run_is_said_once(fault):
    rows = list(measure([CASE, CASE._replace(T=6)], backends=["aten"], repeats=1))
    extra = [Row(case, "x", "cannot run", "no GPU") for case in (CASE, CASE)]
    text = report(rows + extra)
    assert text.count("no GPU") == 1
    assert "x cannot run 2 of the cases: no GPU" in text


@pytest.mark.parametrize("mode", ["forward", "inference", "train"])
def test_what_is_timed_is_the_mode_that_was_asked_for(mode):
    seen = []

    class Module(torch.nn.Linear):
        def forward(self, x):
            seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            return super().forward(x), x

    x = torch.randn(5, 3, 4)
    made = bench._call(Module(4, 6), x, mode)()
    assert seen[-1] == (mode == "train", mode == "inference")
    if mode == "train":
        assert [each.shape for each in made] == [(5, 3, 4), (6, 4), (6,)]
    else:
        assert made[0].is_inference() == (mode == "inference")


def test_the_loop_over_cells_is_torchs_layer():
    torch.manual_seed(0)
    case = CASE._replace(layers=2, bidirectional=True)
    layer, loop = bench_cases.baseline(case), bench_cases.cell_loop(case)
    bench.load_weights(loop, list(layer.parameters()))
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(loop(x), layer(x))


def test_the_request_is_the_one_that_a_call_makes(monkeypatch):
    seen = []
    original = bench_cases.make_request
    monkeypatch.setattr("fastrnn.calls.make_request",
                        lambda *a: seen.append(original(*a)) or seen[-1])  # fmt: skip
    for mode in ("forward", "inference", "train"):
        case = CASE._replace(mode=mode, layers=2, bidirectional=True)
        module = bench_cases.layer(case, "reference")
        x = torch.randn(5, 3, 4, requires_grad=mode == "train")
        with (
            torch.inference_mode()
            if mode == "inference"
            else torch.set_grad_enabled(mode == "train")
        ):
            module(x)
        assert bench_cases.request_of(case, x, list(module.parameters())) == seen[-1]


def test_cases_are_every_combination():
    axes = Axes(["lstm", "rnn_tanh"], [1, 2], [3], [4, 5])
    found = cases(axes, mode="both", input_size=None, layers=1, bidirectional=False,
                  dtype="float32", device="cpu")  # fmt: skip
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    assert all(case.I == case.H for case in found)
    one = cases(axes, mode="train", input_size=9, layers=1, bidirectional=False,
                dtype="float32", device="cpu")[0]  # fmt: skip
    assert (one.I, one.mode) == (9, "train")


def test_files_say_what_was_measured_on_what(fault, tmp_path):
    fault("nan")
    rows = list(measure([CASE], repeats=3))
    path = tmp_path / "results.json"
    bench.write_json(path, rows, {"repeats": 3})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["settings"] == {"repeats": 3}
    assert content["environment"].keys() >= {
        "fastrnn", "commit", "torch", "triton", "python", "cpu", "threads", "gpus", "date",
    }  # fmt: skip
    by_name = {row["implementation"]: row for row in content["results"]}
    assert len(by_name["torch.nn"]["samples_s"]) == 3
    assert by_name["torch.nn"].keys() >= {"T", "B", "dtype", "median_s", "q20_s", "speedup"}
    assert (by_name["faulty"]["error"], by_name["faulty"]["status"]) == (None, "wrong")
    assert content["attained"] == {}
    torchs = by_name["torch.nn"]
    assert torchs["us_per_step"] == pytest.approx(1e6 * torchs["median_s"] / 5)
    operations = 2 * 3 * 5 * 3 * 4 * 6 * (4 + 6)
    assert torchs["gflops"] == pytest.approx(1e-9 * operations / torchs["median_s"])
    assert by_name["faulty"]["gflops"] is None
    bench.write_csv(tmp_path / "results.csv", rows)
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["implementation"] for line in lines] == list(by_name)
    assert float(lines[0]["median_s"]) == by_name["torch.nn"]["median_s"]


def test_the_gradient_check_covers_inputs_and_all_weights():
    case = CASE._replace(layers=2, bidirectional=True)
    module = bench_cases.layer(case, "reference")
    got = bench._run(module, torch.randn(5, 3, 4), "train")
    assert len(got.gradients) == 1 + len(list(module.parameters()))
    for mode in ("forward", "inference"):
        assert bench._run(module, torch.randn(5, 3, 4), mode).gradients == {}


@pytest.mark.slow
def test_quick_is_little_work():
    found = cases(bench_cases.PRESETS[0].axes, mode="both", input_size=None, layers=1,
                  bidirectional=False, dtype="float32", device="cpu")  # fmt: skip
    assert sum(case.T * case.B * case.H * (case.I + case.H) for case in found) < 2e8
    assert failures(measure(found, repeats=1), None) == []


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_gpu_is_timed_with_events(mode):
    case = CASE._replace(device="cuda", mode=mode, T=50, B=8, I=32, H=64)
    rows = list(measure([case], repeats=3))
    assert failures(rows, None) == []
    assert len(row_of(rows, "aten").samples) == 3
