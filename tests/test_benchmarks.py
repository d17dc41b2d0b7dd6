"""benchmarks/: what a GPU session runs, as far as it can be told without a GPU."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import exchange, forward_case, forward_grid, gpu_check, shard
from fastrnn_kernels.model import Rates
from fastrnn_kernels.plan import REGIMES

CASES = forward_grid.issue_cases()
ENVIRONMENT = dict.fromkeys(forward_grid.SAME, "x")


# -- what is refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("module", "arguments"), [(exchange, []), (forward_grid, ["--out", "x"]), (gpu_check, [])]
)
def test_without_a_gpu_the_exit_code_is_1_and_nothing_is_written(
    module, arguments, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert module.main(arguments) == 1
    captured = capsys.readouterr()
    assert "torch sees no CUDA" in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (exchange, "--repeats 0", "argument --repeats: expected a positive integer, got '0'"),
        (forward_grid, "--out x --part 0/2", "expected I/N with 1 <= I <= N, got '0/2'"),
        (forward_grid, "--out x --part 3/2", "expected I/N with 1 <= I <= N, got '3/2'"),
        (forward_grid, "--out x --part one", "expected I/N with 1 <= I <= N, got 'one'"),
        (forward_grid, "", "argument --out: expected a file, got none"),
        (gpu_check, "--only tea", "argument --only: invalid choice: 'tea'"),
        (gpu_check, "--jobs 0", "argument --jobs: expected a positive integer, got '0'"),
    ],
)
def test_wrong_arguments(module, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        module.main(arguments.split())
    assert message in capsys.readouterr().err


# -- which tests a shard runs


def test_shards_are_every_test_once(monkeypatch):
    seen = []
    for index in (1, 2, 3):
        items = list(range(10))
        monkeypatch.setenv("FASTRNN_SHARD", f"{index}/3")
        shard.pytest_collection_modifyitems(items)
        seen += items
    assert sorted(seen) == list(range(10))
    assert seen[:4] == [0, 3, 6, 9]


# -- rates


def figures_of(rates, barrier=0.0):
    """What would be measured on a GPU of these rates."""
    bytes_of_one = exchange.SHARE * 4
    rows, columns, depth = exchange.CHAIN_TILE

    def exchanged(count):
        loading = rates.l2_latency + count * bytes_of_one / rates.l2_bytes / rates.clock
        return rates.exchange + count * rates.exchange_of_one + loading

    in_a_row = {name: depth / step for name, step in exchange.MMA_DEPTH.items()}
    return {
        "multiprocessors": 132,
        "clock": rates.clock,
        "barrier": {str(count): barrier for count in exchange.PROGRAMS},
        "exchange": {str(count): exchanged(count) for count in exchange.PROGRAMS},
        "l2_latency": rates.l2_latency,
        "l2_bytes": {"one": 90.0, "all": rates.l2_bytes, "all_same": rates.l2_bytes + 1},
        "node": {"1": rates.launch / 2, "132": rates.launch},
        "launch": rates.start,
        "chain": {
            name: rows * columns * depth / (count * rates.chain) for name, count in in_a_row.items()
        },
        "products": {"bfloat16": rates.products[0][1], "tf32": rates.products[1][1]},
    }


def test_rates_are_what_figures_were_made_of():
    made_up = Rates(
        clock=1.9e9, exchange=0.9e-6, exchange_of_one=2e-9, l2_latency=0.3e-6, l2_bytes=40.0,
        products=((2, 1000.0), (4, 500.0)), chain=30.0, launch=1.5e-6, start=9e-6,
    )  # fmt: skip
    found = vars(exchange.rates_of(figures_of(made_up)))
    assert dict(found.pop("products")) == dict(made_up.products)
    for name, value in found.items():
        assert value == pytest.approx(getattr(made_up, name), rel=1e-6), name


def test_an_exchange_takes_no_less_than_its_barrier():
    rates = exchange.rates_of(figures_of(Rates(exchange=0.1e-6), barrier=0.5e-6))
    assert rates.exchange >= 0.5e-6 - 132 * rates.exchange_of_one
    assert rates.exchange_of_one >= 0


def test_rates_survive_their_file(tmp_path, monkeypatch, capsys):
    rates = Rates(exchange=0.8e-6, products=((2, 900.0), (4, 450.0)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(exchange, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(exchange, "measure", lambda device, repeats: figures_of(rates))
    path = tmp_path / "new" / "exchange.json"
    assert exchange.main(["--out", str(path)]) == 0
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["environment"] == ENVIRONMENT
    read = forward_grid.read_rates(path)
    assert read == exchange.rates_of(figures_of(rates))
    assert hash(read)
    assert read.exchange == pytest.approx(0.8e-6)
    assert "exchange_of_one" in capsys.readouterr().out


def test_a_broken_barrier_is_no_figure(monkeypatch, tmp_path, capsys):
    def fail(device, repeats):
        raise exchange.BarrierError("8 programs: one read h before another had stored it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(exchange, "measure", fail)
    assert exchange.main(["--out", str(tmp_path / "x.json")]) == 1
    assert "before another had stored it" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


# -- the grid


def test_cases_are_what_the_issue_asks_for():
    assert len(CASES) == len(set(CASES)) == 281
    asked = {
        (cell, dtype, H, B, T)
        for cell in ("lstm", "rnn_tanh")
        for dtype in ("bfloat16", "float32")
        for H in (256, 512, 768, 1024, 1536)
        for B in (8, 16, 32, 64, 128)
        for T in (128, 1024)
    }
    plain = {(c.cell, c.dtype, c.H, c.B, c.T) for c in CASES if not c.bidirectional}
    assert asked <= plain
    assert {c.H for c in CASES} >= {32, 64, 128, 152, 192}
    assert all(c.I == c.H and c.mode == "forward" and c.device == "cuda" for c in CASES)


def test_a_run_that_is_cut_short_has_seen_every_kind():
    early = CASES[:81]
    assert {forward_grid.kind_of(c) for c in early} == {forward_grid.kind_of(c) for c in CASES}
    assert {c.H for c in early} == {c.H for c in CASES}


def test_parts_are_every_case_once(capsys):
    for part in ("1/2", "2/2"):
        assert forward_grid.main(["--dry-run", "--part", part]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " forward " in line]
    assert len(lines) == len(set(lines)) == len(CASES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
def test_the_grid_fits_a_call_of_ten_minutes(capsys):
    seconds = [forward_case.expected_seconds(case, forward_grid.REPEATS) for case in CASES]
    assert sum(seconds) < 400
    assert sum(seconds[:81]) < 120
    assert max(seconds) < 5
    assert forward_grid.main(["--dry-run"]) == 0
    end = capsys.readouterr().out.splitlines()[-1]
    assert end == f"281 cases, about {sum(seconds) / 60:.1f} minutes beside compiling"


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
def test_a_floor_is_below_the_prediction_and_made_of_parts_that_there_are():
    names, turns = set(), set()
    for case in CASES:
        for regime in REGIMES:
            found = forward_case.outlook(case, regime)
            assert (found.estimate is None) == bool(found.against)
            if found.estimate is None:
                continue
            names |= found.estimate.parts.keys()
            one = sum(found.estimate.parts.get(name, 0) for name in forward_case.FLOOR)
            floor = forward_case.floor(found, case)
            turns.add(floor > 1.001e-6 * case.T * one)
            assert 0 < floor <= found.estimate.seconds(case.T)
    assert names >= set(forward_case.FLOOR)
    assert turns == {False, True}, "where a program has several batch tiles, all of them count"


def row(name, median=None, *, auto=False, status="ok", speedup=None, floor=None):
    found = {"implementation": name, "status": status, "reason": "", "auto": auto,
             "median_s": median, "speedup": speedup}  # fmt: skip
    if floor is not None:
        found |= {"predicted_s": 2 * floor, "floor_s": floor}
    return found


def found(case, speedup, *, floor=1e-3, status="ok"):
    rows = [
        row("torch.nn", 2e-3, speedup=1.0),
        row("resident", status="cannot run"),
        row("grid", speedup and 2e-3 / speedup, auto=True, status=status, speedup=speedup,
            floor=floor),
        row("step", 3e-3, speedup=2 / 3, floor=2e-3),
        row("projection", 1e-4),
    ]  # fmt: skip
    return {"name": f"{case} {case.dtype}", "case": case._asdict(), "rows": rows}


def test_a_summary_counts_what_auto_takes():
    lstm, best = CASES[1], CASES[0]
    summary = forward_grid.summary([found(lstm, 2.0), found(lstm, 0.5), found(best, 8.0, floor=1)])
    assert summary["speedup"]["all"] == pytest.approx(2)
    assert summary["speedup"]["lstm bfloat16 grid"] == pytest.approx(1)
    assert summary["speedup"]["best case of cuDNN"] == pytest.approx(8)
    assert summary["behind_torch"] == [f"{lstm} bfloat16"]
    assert summary["beyond_twice_the_floor"] == [f"{lstm} bfloat16"]
    nothing = forward_grid.summary([found(lstm, None, status="wrong"), {"rows": []}])
    assert nothing == {"speedup": {}, "behind_torch": [], "beyond_twice_the_floor": []}


def test_a_line_shows_losers_like_winners():
    line = forward_grid.line(found(CASES[1], 0.5))
    assert line.startswith(f"{CASES[1]} bfloat16: torch.nn 2.000 ms, grid* 4.000 ms (0.50x, model")
    assert "step 3.000 ms (0.67x, model 4.000, floor 2.000)" in line
    assert "resident" not in line


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """Runs the first four cases with made-up measurements: (exit code, the file)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(forward_grid, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(forward_grid, "issue_cases", lambda: CASES[:4])
    monkeypatch.setattr(forward_grid, "warm", lambda cases, processes: None)
    monkeypatch.setattr(forward_case, "expected_seconds", lambda case, repeats: 10.0)
    measure(monkeypatch, lambda case: found(case, 2.0)["rows"])
    path = tmp_path / "new" / "grid.json"

    def run(*options):
        code = forward_grid.main(["--out", str(path), *options])
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def measure(monkeypatch, how):
    """Have `how(case)` stand for measurements; returns the cases that were measured."""
    measured = []

    def fake(case, repeats, rates):
        measured.append(case)
        return how(case)

    monkeypatch.setattr(forward_case, "measure", fake)
    return measured


def test_a_run_goes_on_where_it_stopped(grid, monkeypatch, capsys):
    measured = measure(monkeypatch, lambda case: found(case, 2.0)["rows"])
    assert grid("--seconds", "5") == (0, None)
    assert "out of time, 4 cases left" in capsys.readouterr().out
    assert measured == []
    code, content = grid("--part", "1/2")
    assert (code, measured) == (0, CASES[0:4:2])
    assert content["summary"]["speedup"]["all"] == pytest.approx(2)
    assert grid()[0] == 0
    assert measured == [*CASES[0:4:2], *CASES[1:4:2]], "none twice"
    assert len(grid()[1]["cases"]) == 4
    assert "4 cases; slower than torch.nn: 0" in capsys.readouterr().out


def test_another_machine_does_not_go_on(grid, monkeypatch, capsys):
    assert grid()[0] == 0
    monkeypatch.setattr(forward_grid, "environment", lambda: {**ENVIRONMENT, "gpus": "y"})
    assert grid()[0] == 2
    assert "measured with gpus 'x', now it is 'y': name another file" in capsys.readouterr().err
    monkeypatch.setattr(forward_grid, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(forward_case, "CHECKED", 3)
    assert grid()[0] == 2


def test_rates_that_cannot_be_read(grid, tmp_path, capsys):
    (tmp_path / "rates.json").write_text("{}")
    for name in ("rates.json", "none.json"):
        assert grid("--rates", str(tmp_path / name)) == (2, None)
        assert capsys.readouterr().err.startswith("forward_grid: error: ")


def test_a_wrong_result_is_in_the_file_and_in_the_exit_code(grid, monkeypatch, capsys):
    measure(monkeypatch, lambda case: found(case, None, status="wrong")["rows"])
    code, content = grid()
    assert (code, len(content["cases"])) == (1, 4)
    assert f"{CASES[0]} float16: grid wrong" in capsys.readouterr().err


def test_a_case_that_breaks_the_run_off_is_not_tried_again(grid, monkeypatch, capsys):
    def fail(case):
        raise RuntimeError("an illegal memory access")

    measure(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        grid()
    measured = measure(monkeypatch, lambda case: found(case, 2.0)["rows"])
    code, content = grid()
    assert (code, measured) == (1, CASES[1:4])
    assert content["cases"][0]["broke_off"] == "RuntimeError: an illegal memory access"
    assert f"{CASES[0]} float16: RuntimeError: an illegal" in capsys.readouterr().err


def test_what_tune_stored_does_not_count(grid, monkeypatch):
    folders = []
    measure(monkeypatch, lambda case: folders.append(os.environ["FASTRNN_CACHE_DIR"]) or [])
    before = os.environ["FASTRNN_CACHE_DIR"]
    grid()
    assert before not in folders
    assert os.environ["FASTRNN_CACHE_DIR"] == before


def test_kernels_are_compiled_once_each(monkeypatch):
    """In this process: what is asked for, not how it is spread."""
    asked = []

    class Here:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, call, *columns):
            asked.extend(zip(*columns, strict=True))
            return []

    monkeypatch.setattr(forward_grid, "ProcessPoolExecutor", Here)
    forward_grid.warm(CASES, 4)
    assert 150 < len(asked) == len(set(asked)) < 300
    assert {regime for _, regime in asked} == set(REGIMES)
    asked.clear()
    twice = [CASES[1]._replace(T=steps) for steps in (128, 1024)]
    forward_grid.warm(twice, 4)
    assert len(asked) == len({regime for _, regime in asked})
    asked.clear()
    forward_grid.warm([], 4)
    assert asked == []


# -- all of it


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Runs gpu_check with made-up parts: (exit code, the file, the parts that ran)."""
    ran = []

    def part(name, result):
        def run(*arguments):
            ran.append((name, Path(os.environ["FASTRNN_CACHE_DIR"])))
            return result

        return run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "environment", lambda: ENVIRONMENT)
    passed = {"exit_code": 0}
    for name in ("exchange", "forward"):
        monkeypatch.setattr(gpu_check, f"run_{name}", part(name, passed))
    tests = {"failed": {}, "exit_codes": [0, 0]}
    monkeypatch.setattr(gpu_check, "run_tests", part("parity", tests))
    monkeypatch.setattr(gpu_check, "measure", part("benchmark", []))
    monkeypatch.setattr(gpu_check.bench, "report", lambda rows: "")
    path = tmp_path / "check.json"

    def run(*options):
        ran.clear()
        code = gpu_check.main(["--out", str(path), *options])
        return code, json.loads(path.read_text()), ran

    run.passed, run.tests = passed, tests
    return run


def test_parts_run_in_order_and_as_in_a_fresh_install(check):
    before = os.environ["FASTRNN_CACHE_DIR"]
    code, content, ran = check("--only", "benchmark", "parity", "exchange")
    assert code == 0
    count = len(gpu_check.PROBLEMS)
    assert [name for name, _ in ran] == ["exchange", "parity", *["benchmark"] * count]
    assert {str(folder) for _, folder in ran}.isdisjoint({before})
    assert not any(folder.exists() for _, folder in ran), "cleared away at the end"
    assert os.environ["FASTRNN_CACHE_DIR"] == before
    assert content.keys() >= {"environment", "started", "exchange", "parity", "benchmark"}


def test_calls_add_up_in_one_file(check, monkeypatch, capsys):
    check("--only", "parity")
    code, content, ran = check("--only", "forward")
    assert (code, [name for name, _ in ran]) == (0, ["forward"])
    assert content.keys() >= {"parity", "forward"}
    monkeypatch.setattr(gpu_check, "environment", lambda: {**ENVIRONMENT, "commit": "y"})
    code, content, ran = check("--only", "exchange")
    assert (code, ran, "exchange" in content) == (1, [], False)
    assert "name another file" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["exchange", "test", "shard"])
def test_a_fault_in_any_part_is_the_exit_code(check, fault):
    if fault == "exchange":
        check.passed["exit_code"] = gpu_check.STOPPED
    elif fault == "test":
        check.tests["failed"] = {"test_parity[0]": "off by 1"}
    else:
        check.tests["exit_codes"] = [0, -9]
    assert check()[0] == 1


def test_rates_beside_the_file_are_taken(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(gpu_check, "run_module", lambda *a: commands.append(a) or {})
    out = tmp_path / "f.json"
    gpu_check.run_forward(out, math.inf)
    (tmp_path / "f-exchange.json").write_text("{}")
    gpu_check.run_forward(out, 500.0)
    (command, seconds, path), (with_rates, limit, _) = commands
    assert path == tmp_path / "f-forward.json"
    assert "--rates" not in command
    assert seconds == math.inf
    assert with_rates[-4:] == ["--rates", str(tmp_path / "f-exchange.json"), "--seconds", "470.0"]
    assert limit == 500.0


def test_what_does_not_end_is_stopped_with_its_children():
    program = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = gpu_check.start([sys.executable, "-c", program], {}, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    process.stdout.close()
    assert gpu_check.wait(process, time.monotonic()) == gpu_check.STOPPED
    assert process.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid):
    try:  # a process that ended and that nobody waited for is a zombie
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_module_that_fails_says_so(tmp_path):
    found = gpu_check.run_module(["json.tool", "no such file"], 60, tmp_path / "none")
    assert (found["exit_code"] != 0, found["file"]) == (True, None)


SOME_TESTS = """
import os, pytest

pytestmark = pytest.mark.gpu

def test_passes():
    assert os.environ["OMP_NUM_THREADS"] == "1"

def test_fails():
    assert 1 + 1 == 3

def test_skips():
    pytest.skip("no such regime")

def test_takes_its_process_along():
    os._exit(7)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")
def test_results_of_all_shards_are_put_together(monkeypatch, tmp_path, capsys):
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    monkeypatch.setattr(gpu_check, "TESTS", (str(tmp_path / "test_some.py"),))
    found = gpu_check.run_tests(4, 60)
    assert (found["passed"], found["skipped"], found["exit_codes"]) == (1, 1, [0, 1, 0, 7])
    assert found["skipped_because"] == ["no such regime"]
    assert list(found["failed"]) == ["test_fails"]
    assert "1 + 1" in found["failed"]["test_fails"]
    assert "test_takes_its_process_along" in found["ended_early"]["shard 4"]
    assert "1 passed" in capsys.readouterr().out
