"""The pytest-benchmark suite in benchmarks/: what it writes, what it checks, what it waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_layers, bench_overhead, conftest, rounds
from fastrnn.bench_cases import BASELINE
from fastrnn.benchmark import Case

ROOT = Path(conftest.__file__).parent.parent
CASE = Case("lstm", "train", 3, 2, 4, 4, 1, False, "float32", "cpu")


class Benchmark:
    """As much of pytest-benchmark's fixture as the suite uses."""

    def __init__(self):
        self.extra_info = {}
        self.group = None
        self.timed = []

    def pedantic(self, function, **how):
        self.timed.append(function)
        self.how = how


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The JSON of a run of a few, and what it printed."""
    path = tmp_path_factory.mktemp("suite") / "found.json"
    chosen = (
        "rnn_tanh-forward-T20-B1-H64-torch.nn or rnn_tanh-forward-T20-B1-H64-auto or decide or "
    )
    chosen += "tiny_call and rnn_relu-forward"
    kept = {name: value for name, value in os.environ.items() if name != "FASTRNN_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks",
         "-k", chosen, f"--benchmark-json={path}"],
        cwd=ROOT, env={**kept, "FASTRNN_CACHE_DIR": str(path.parent)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


def test_groups_and_names_stay_as_they_are(result):
    """By them, pytest-benchmark compares commits."""
    problem = "cpu-float32-rnn_tanh-forward-T20-B1-H64"
    layers, overhead = "benchmarks/bench_layers.py::", "benchmarks/bench_overhead.py::"
    assert {each["fullname"]: each["group"] for each in result[0]["benchmarks"]} == {
        f"{layers}test_layer[{problem}-torch.nn]": problem,
        f"{layers}test_layer[{problem}-auto]": problem,
        f"{overhead}test_decide[cached]": "decide",
        f"{overhead}test_decide[anew]": "decide",
        f"{overhead}test_tiny_call[rnn_relu-forward]": "tiny call, rnn_relu forward",
    }


def test_the_json_says_what_was_measured_on_what(result):
    found, _ = result
    machine = found["machine_info"]
    assert machine["torch"] == str(torch.__version__)
    assert machine["cpu"]
    assert not {"date", "commit", "node"} & set(machine), (
        "another in every run, or nobody's concern"
    )
    assert found["environment"]["date"]
    assert "commit" in found["environment"]
    torch_nn, auto = (each["extra_info"] for each in found["benchmarks"][:2])
    assert (torch_nn["implementation"], auto["implementation"]) == ("torch.nn", "auto")
    assert auto["case"]["T"] == 20
    assert auto["backend"] in ("aten", "reference", "rows")
    for each in (torch_nn, auto):
        assert 0 <= each["error"] <= 1
        assert each["peak_bytes"] >= 20 * 64 * 4, "the output at least"
    assert all(each["stats"]["rounds"] == rounds.ROUNDS for each in found["benchmarks"])


def test_targets_are_below_the_tables(result):
    found, out = result
    tiny = found["benchmarks"][-1]["extra_info"]
    assert {"torch_nn_us", "difference_us", "difference_percent", "noise_percent"} <= set(tiny)
    verdict = "met" if tiny["target_met"] else "NOT MET"
    (line,) = (line for line in out.splitlines() if line.startswith("a tiny call of rnn_relu"))
    assert line.endswith(f"at most 5 us or 10%: {verdict}")


def test_machine_info_is_the_same_in_every_run(monkeypatch):
    clocks = {"sm": "1", "mem": "2", "max.sm": "3", "max.mem": "4"}

    def environment():
        return {"gpus": ["x"], "driver": "5", "clocks_mhz": clocks, "date": object(), "commit": "a"}

    monkeypatch.setattr(conftest, "environment", environment)
    machine = {"node": "name", "cpu": {"hz_actual": 1}}
    conftest.pytest_benchmark_update_machine_info(None, machine)
    assert machine == {
        "gpus": ["x"], "driver": "5", "clocks_mhz": {"max.sm": "3", "max.mem": "4"}
    }  # fmt: skip
    written = {}
    conftest.pytest_benchmark_update_json(None, [], written)
    assert written["environment"]["clocks_mhz"] == clocks


@pytest.mark.parametrize("implementation", [BASELINE, "auto"])
def test_a_wrong_result_fails_and_is_not_timed(monkeypatch, implementation):
    good, bad = Benchmark(), Benchmark()
    bench_layers.test_layer(good, CASE, implementation)
    assert len(good.timed) == 1
    copy = bench_layers.load_weights

    def wrong(module, weights):
        copy(module, weights)
        if getattr(module, "backend", implementation) == implementation:
            with torch.no_grad():
                module.weight_hh_l0[0, 0] += 1e-3

    monkeypatch.setattr(bench_layers, "load_weights", wrong)
    with pytest.raises(
        pytest.fail.Exception, match=rf"{implementation} is wrong on lstm train .*off"
    ):
        bench_layers.test_layer(bad, CASE, implementation)
    assert not bad.timed


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_what_is_timed(mode):
    benchmark = Benchmark()
    bench_layers.test_layer(benchmark, CASE._replace(mode=mode), "reference")
    assert benchmark.how["rounds"] == rounds.ROUNDS
    made = benchmark.timed[0]()
    if mode == "train":
        assert [each.shape[0] for each in made] == [3, 16, 16, 16, 16]
    else:
        assert made[0].shape == (3, 2, 4)
        assert not made[0].requires_grad


def test_a_round_on_a_gpu_ends_when_the_gpu_has(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    benchmark = Benchmark()
    rounds.run(benchmark, lambda: done.append("called"), "cuda")
    done.clear()
    benchmark.timed[0]()
    assert done == ["called", "waited"]
    rounds.run(benchmark, lambda: done.append("called"), "cpu")
    assert "waited" not in done[2:]


def test_short_calls_are_repeated_within_a_round(monkeypatch):
    benchmark = Benchmark()
    times = iter([0.0, 9.0, 9.0, 9.0015, 10.0, 11.0])
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: next(times))
    rounds.run(benchmark, lambda: None)
    assert benchmark.how["iterations"] == 2


def test_the_full_grid_is_larger_and_has_all_of_elman():
    quick, full = bench_layers.problems("quick"), bench_layers.problems("full")
    assert len(full) > len(quick)
    assert {case.cell for case in full} == {"lstm", "rnn_tanh", "rnn_relu"}
    for cases in (quick, full):
        assert len(set(map(bench_layers.name, cases))) == len(cases)


def test_every_backend_that_can_run_takes_part():
    found = bench_layers.implementations(CASE)
    assert found[0] == "torch.nn"
    assert found[-1] == "auto"
    assert {"aten", "reference"} <= set(found)
    assert torch.cuda.is_available() or "triton" not in found


def test_import_is_timed_by_what_its_process_says(monkeypatch):
    seconds = iter([5.0, 0.04, 0.04, 0.04])
    monkeypatch.setattr(bench_overhead.import_time, "sample", lambda: (2.0, next(seconds)))
    monkeypatch.setattr(bench_overhead, "PROCESSES", {"quick": 3})
    told, durations = [], []

    class Pedantic(Benchmark):
        def pedantic(self, function, rounds, warmup_rounds):
            for _ in range(rounds + warmup_rounds):
                begin = bench_overhead.ELAPSED()
                function()
                durations.append(bench_overhead.ELAPSED() - begin)

    class Request:
        class config:
            getoption = staticmethod(lambda name: "quick")

    bench_overhead.test_import(Pedantic(), lambda *verdict: told.append(verdict), Request)
    assert durations == pytest.approx([5.0, 0.04, 0.04, 0.04])
    assert told == [("import fastrnn takes 40 ms on top of torch, at most 50", True)]
