"""benchmarks/: what a GPU session runs, as far as it can be told without a GPU."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from benchmarks import (
    exchange,
    gpu_check,
    grids,
    one_case,
    outlook,
    peer,
    regimes,
    sanitize,
    shard,
)
from fastrnn.bench_cases import Case, baseline
from fastrnn_kernels.model import Rates
from fastrnn_kernels.plan import REGIMES

CASES = grids.issue_cases("forward")
TRAIN = grids.issue_cases("train")
ENVIRONMENT = dict.fromkeys(regimes.SAME, "x")


# -- what is refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (exchange, []),
        (regimes, ["--mode", "train", "--out", "x"]),
        (sanitize, ["--out", "x"]),
        (gpu_check, []),
    ],
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
        (regimes, "--mode train --out x --part 0/2", "expected I/N with 1 <= I <= N, got '0/2'"),
        (regimes, "--mode train --out x --part 3/2", "expected I/N with 1 <= I <= N, got '3/2'"),
        (regimes, "--mode train --out x --part one", "expected I/N with 1 <= I <= N, got 'one'"),
        (regimes, "--mode train", "argument --out: expected a file, got none"),
        (regimes, "--out x", "the following arguments are required: --mode"),
        (regimes, "--mode both", "argument --mode: invalid choice: 'both'"),
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
    read = regimes.read_rates(path)
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


@pytest.mark.parametrize(("mode", "count"), [("forward", 281), ("train", 233)])
def test_cases_are_what_the_issues_ask_for(mode, count):
    cases = grids.issue_cases(mode)
    assert len(cases) == len(set(cases)) == count
    asked = {
        (cell, dtype, H, B, T)
        for cell in ("lstm", "rnn_tanh")
        for dtype in ("bfloat16", "float32")
        for H in (256, 512, 768, 1024, 1536)
        for B in (8, 16, 32, 64, 128)
        for T in (128, 1024)
    }
    plain = {(c.cell, c.dtype, c.H, c.B, c.T) for c in cases if not c.bidirectional}
    assert asked <= plain
    assert {c.H for c in cases} >= ({32, 64, 128, 152, 192} if mode == "forward" else set())
    assert {(c.layers, c.bidirectional) for c in cases} == {(1, False), (1, True), (2, False)}
    assert all(c.I == c.H and c.mode == mode and c.device == "cuda" for c in cases)


@pytest.mark.parametrize(("cases", "early"), [(CASES, 81), (TRAIN, 57)])
def test_a_run_that_is_cut_short_has_seen_every_kind(cases, early):
    assert {grids.kind_of(c) for c in cases[:early]} == {grids.kind_of(c) for c in cases}
    assert {c.H for c in cases[:early]} == {c.H for c in cases}


def test_parts_are_every_case_once(capsys):
    for part in ("1/2", "2/2"):
        assert regimes.main(["--mode", "train", "--dry-run", "--part", part]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " train " in line]
    assert len(lines) == len(set(lines)) == len(TRAIN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize(
    ("cases", "all_of_it", "early"), [(CASES, 400, (81, 90)), (TRAIN, 480, (57, 90))]
)
def test_the_grid_fits_a_call_of_ten_minutes(cases, all_of_it, early, capsys):
    seconds = [outlook.expected_seconds(case, regimes.REPEATS) for case in cases]
    assert sum(seconds) < all_of_it
    assert sum(seconds[: early[0]]) < early[1]
    assert max(seconds) < 6
    assert regimes.main(["--mode", cases[0].mode, "--dry-run"]) == 0
    end = capsys.readouterr().out.splitlines()[-1]
    assert end == f"{len(cases)} cases, about {sum(seconds) / 60:.1f} minutes beside compiling"


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize("cases", [CASES, TRAIN[::3]], ids=["forward", "train"])
def test_a_floor_is_below_the_prediction_and_made_of_parts_that_there_are(cases):
    names, turns = set(), set()
    for case in cases:
        for regime in REGIMES:
            found = outlook.outlook(case, regime)
            assert (found.passes == ()) == bool(found.against)
            if not found.passes:
                continue
            assert [type(each.config).regime for each in found.passes] == [regime] * (
                1 + (case.mode == "train")
            )
            one = 0.0
            for _, estimate in found.passes:
                names |= estimate.parts.keys()
                one += sum(estimate.parts.get(name, 0) for name in outlook.FLOOR)
            floor = outlook.floor(found, case)
            turns.add(floor > 1.001e-6 * case.T * one)
            assert 0 < floor <= found.seconds(case.T)
    assert names >= set(outlook.FLOOR)
    assert turns == {False, True}, "where a program has several batch tiles, all of them count"


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
def test_auto_stands_beside_the_regimes_where_it_is_none_of_them():
    kinds = {case: outlook.chosen(case) for case in TRAIN}
    assert set(kinds.values()) == {*REGIMES, outlook.AUTO}
    for case, name in kinds.items():
        taken = [each.config.regime for each in outlook.outlook(case, outlook.AUTO).passes]
        assert outlook.candidates(case) == ((*REGIMES, "auto") if name == "auto" else REGIMES)
        assert (name == "auto") == (len(set(taken)) == 2)
    assert all(outlook.candidates(case) == REGIMES for case in CASES)


def row(name, median=None, *, auto=False, status="ok", speedup=None, floor=None, peak=None):
    found = {"implementation": name, "status": status, "reason": "", "auto": auto,
             "median_s": median, "speedup": speedup, "peak_bytes": peak}  # fmt: skip
    if floor is not None:
        found |= {"predicted_s": 2 * floor, "floor_s": floor}
    return found


def found(case, speedup, *, floor=1e-3, status="ok", peak=3 << 20):
    rows = [
        row("torch.nn", 2e-3, speedup=1.0, peak=3 << 20),
        row("resident", status="cannot run"),
        row("grid", speedup and 2e-3 / speedup, auto=True, status=status, speedup=speedup,
            floor=floor, peak=peak),
        row("step", 3e-3, speedup=2 / 3, floor=2e-3),
        row("products", 1e-4),
    ]  # fmt: skip
    return {"name": f"{case} {case.dtype}", "case": case._asdict(), "rows": rows}


def test_a_summary_counts_what_auto_takes():
    lstm, best = CASES[1], CASES[0]
    summary = grids.summary([found(lstm, 2.0), found(lstm, 0.5), found(best, 8.0, floor=1)])
    assert summary["speedup"]["all"] == pytest.approx(2)
    assert summary["speedup"]["lstm bfloat16 grid"] == pytest.approx(1)
    assert summary["speedup"]["best case of cuDNN"] == pytest.approx(8)
    assert summary["behind_torch"] == [f"{lstm} bfloat16"]
    assert summary["beyond_twice_the_floor"] == [f"{lstm} bfloat16"]
    assert (summary["more_memory_than_torch"], summary["over_flashrnn"]) == ([], None)
    nothing = grids.summary([found(lstm, None, status="wrong"), {"rows": []}])
    assert not any(nothing.values())


def test_a_summary_counts_memory_and_flashrnn():
    more, without = found(CASES[1], 2.0, peak=(3 << 20) + 1), found(CASES[2], 2.0, peak=None)
    more["rows"].append(row("FlashRNN", 3e-3))
    summary = grids.summary([more, without, found(CASES[3], 2.0)])
    assert summary["more_memory_than_torch"] == [f"{CASES[1]} bfloat16"]
    assert summary["over_flashrnn"] == pytest.approx(3)
    assert "over FlashRNN" in grids.report([more])
    assert "more memory than torch.nn: 1" in grids.report([more])


def test_a_line_shows_losers_like_winners():
    line = grids.line(found(CASES[1], 0.5))
    assert line.startswith(
        f"{CASES[1]} bfloat16: torch.nn 2.000 ms 3 MiB, grid* 4.000 ms 3 MiB (0.50x,"
    )
    assert "step 3.000 ms (0.67x, model 4.000, floor 2.000)" in line
    assert "resident" not in line


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """Runs the first four cases with made-up measurements: (exit code, the file)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(regimes, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(regimes, "issue_cases", lambda mode: CASES[:4])
    monkeypatch.setattr(regimes, "warm", lambda cases, processes: None)
    monkeypatch.setattr(outlook, "expected_seconds", lambda case, repeats: 10.0)
    measure(monkeypatch, lambda case: found(case, 2.0)["rows"])
    path = tmp_path / "new" / "grid.json"

    def run(*options):
        code = regimes.main(["--mode", "forward", "--out", str(path), *options])
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def measure(monkeypatch, how):
    """Have `how(case)` stand for measurements; returns the cases that were measured."""
    measured = []

    def fake(case, repeats, rates):
        measured.append(case)
        return how(case)

    monkeypatch.setattr(one_case, "measure", fake)
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
    monkeypatch.setattr(regimes, "environment", lambda: {**ENVIRONMENT, "gpus": "y"})
    assert grid()[0] == 2
    assert "measured with gpus 'x', now it is 'y': name another file" in capsys.readouterr().err
    monkeypatch.setattr(regimes, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(one_case, "CHECKED", 3)
    assert grid()[0] == 2


def test_another_mode_does_not_go_on(grid, capsys):
    assert grid()[0] == 0
    assert grid("--mode", "train")[0] == 2
    assert "measured with mode 'forward', now it is 'train'" in capsys.readouterr().err


def test_rates_that_cannot_be_read(grid, tmp_path, capsys):
    (tmp_path / "rates.json").write_text("{}")
    for name in ("rates.json", "none.json"):
        assert grid("--rates", str(tmp_path / name)) == (2, None)
        assert capsys.readouterr().err.startswith("regimes: error: ")


def test_a_wrong_result_is_in_the_file_and_in_the_exit_code(grid, monkeypatch, capsys):
    measure(monkeypatch, lambda case: found(case, None, status="wrong")["rows"])
    code, content = grid()
    assert (code, len(content["cases"])) == (1, 4)
    assert f"{CASES[0]} float16: grid wrong" in capsys.readouterr().err


def test_flashrnn_that_is_wrong_or_does_not_build_is_on_record_and_no_fault_of_ours(
    grid, monkeypatch
):
    rows = [*found(CASES[0], 2.0)["rows"], row("FlashRNN", status="failed")]
    measure(monkeypatch, lambda case: rows)
    code, content = grid()
    assert (code, content["cases"][0]["rows"][-1]["status"]) == (0, "failed")
    assert content["flashrnn"] == (peer.absent() or "imported")


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

    monkeypatch.setattr(regimes, "ProcessPoolExecutor", Here)
    regimes.warm(CASES, 4)
    assert 150 < len(asked) == len(set(asked)) < 300
    assert {regime for _, regime in asked} == set(REGIMES)
    asked.clear()
    regimes.warm(TRAIN, 4)
    assert 100 < len(asked) == len(set(asked)) < 300
    assert {regime for _, regime in asked} == {*REGIMES, "auto"}
    asked.clear()
    for mode in ("forward", "train"):
        twice = [CASES[1]._replace(T=steps, mode=mode) for steps in (128, 1024)]
        regimes.warm(twice, 4)
        assert len(asked) == len({regime for _, regime in asked})
        asked.clear()
    regimes.warm([], 4)
    assert asked == []


# -- FlashRNN


PEER_CASE = Case("lstm", "train", 5, 3, 6, 6, 1, False, "float32", "cpu")


def flashrnn(Wx, R, b, states=None, function="lstm", backend="cuda_fused", dtype="bfloat16"):
    """What its documentation promises, in torch: (states, B, T, heads, D), and the last."""
    assert (backend, dtype, states) == ("cuda_fused", "float32", None)
    B, T, _, N, D = Wx.shape
    h = c = Wx.new_zeros(B, N, D)
    steps = []
    for t in range(T):
        pre = Wx[:, t] + b + torch.einsum("gndp,bnp->bgnd", R, h)
        if function == "elman":
            h = torch.tanh(pre[:, 0])
            steps.append((h,))
            continue
        i, f, z, o = pre.unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append((h, c))
    found = torch.stack([torch.stack(each, 1) for each in zip(*steps, strict=True)])
    return found, found[:, :, -1:]


@pytest.fixture
def installed(monkeypatch):
    """A `flashrnn` to import."""
    module = types.ModuleType("flashrnn")
    module.flashrnn = flashrnn
    monkeypatch.setitem(sys.modules, "flashrnn", module)
    peer.absent.cache_clear()
    yield module
    peer.absent.cache_clear()


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.usefixtures("installed")
def test_flashrnn_is_given_torchs_layer(cell):
    case = PEER_CASE._replace(cell=cell)
    theirs, module = baseline(case), peer.FlashRNN(case)
    one_case.bench.load_weights(module, [w.detach() for w in theirs.parameters()])
    x, upstream = torch.randn(5, 3, 6).requires_grad_(), torch.randn(5, 3, 6)
    want = one_case.caller(theirs, "torch.nn")(x, upstream)
    got = one_case.caller(module, peer.PEER)(x, upstream)
    assert want.gradients.keys() == got.gradients.keys()
    torch.testing.assert_close(got, want)


def test_whether_flashrnn_is_there(installed, monkeypatch):
    assert peer.absent() is None
    del installed.flashrnn  # a namesake
    peer.absent.cache_clear()
    assert "flashrnn cannot be imported: AttributeError" in peer.absent()
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    peer.absent.cache_clear()
    assert "flashrnn cannot be imported: ModuleNotFoundError" in peer.absent()
    assert one_case.reason_against(TRAIN[0], peer.PEER) == peer.absent()


def test_flashrnn_stands_beside_few_cases_and_its_compiler_counts(installed, monkeypatch):
    for cases in (CASES, TRAIN):
        beside = [case for case in cases if peer.takes(case)]
        assert [case.dtype for case in beside] == ["float16", "bfloat16"]
        assert beside[0] == cases[0]
    there = outlook.expected_seconds(TRAIN[0], 1)
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    peer.absent.cache_clear()
    assert there - outlook.expected_seconds(TRAIN[0], 1) == pytest.approx(peer.BUILD_SECONDS)


# -- compute-sanitizer


TOOL = """#!{python}
import subprocess, sys, os
print("looked with", sys.argv[2])
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
assert sys.argv[3:5] == ["--error-exitcode", "9"]
assert sys.argv[-2:] == ["benchmarks.sanitize", "--passes"]
sys.exit(9 if sys.argv[2] == "{finds}" else 0)
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Installs a compute-sanitizer that finds something with one of its checks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    # the passes themselves need a GPU
    plain = sanitize.check
    monkeypatch.setattr(
        sanitize, "check", lambda tool, name: plain(tool, name) if name else {"exit_code": 0}
    )

    def install(finds):
        path = tmp_path / "bin" / "compute-sanitizer"
        path.parent.mkdir()
        path.write_text(TOOL.format(python=sys.executable, finds=finds))
        path.chmod(0o755)
        return path

    return install


@pytest.mark.parametrize(("finds", "code"), [("nothing", 0), ("racecheck", 1), ("memcheck", 1)])
def test_what_the_sanitizer_finds_is_the_exit_code(tool, finds, code, tmp_path):
    path = tool(finds)
    assert sanitize.main(["--out", str(tmp_path / "new" / "s.json")]) == code
    content = json.loads((tmp_path / "new" / "s.json").read_text())
    assert content["tool"] == str(path)
    assert list(content["checks"]) == ["plain", "memcheck", "racecheck"]
    for name in ("memcheck", "racecheck"):
        assert content["checks"][name]["exit_code"] == 9 * (name == finds)
        assert f"looked with {name}" in content["checks"][name]["said"]


@pytest.mark.usefixtures("tool")
def test_without_the_sanitizer_the_file_says_so(tmp_path, capsys):
    assert sanitize.main(["--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == {"tool": None, "checks": {}}
    assert "nothing was checked" in capsys.readouterr().out


def test_a_check_that_does_not_end_is_an_error(tool, monkeypatch, tmp_path):
    path = tool("nothing")
    path.write_text(f"#!{sys.executable}\nimport time\nprint('begun', flush=True)\ntime.sleep(60)")
    monkeypatch.setattr(sanitize, "SECONDS", 0.5)
    assert sanitize.main(["--out", str(tmp_path / "s.json")]) == 1
    found = json.loads((tmp_path / "s.json").read_text())["checks"]["memcheck"]
    assert (found["exit_code"], found["said"]) == (gpu_check.STOPPED, "begun\n")


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
    for name in ("exchange", "sanitizer"):
        monkeypatch.setattr(gpu_check, f"run_{name}", part(name, passed))

    def run_regimes(mode, *arguments):
        return part(mode, passed)()

    monkeypatch.setattr(gpu_check, "run_regimes", run_regimes)
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
    code, content, ran = check()
    assert code == 0
    count = len(gpu_check.PROBLEMS)
    assert [name for name, _ in ran] == [*gpu_check.PARTS[:-1], *["benchmark"] * count]
    assert gpu_check.PARTS.index("parity") < gpu_check.PARTS.index("sanitizer")
    assert {str(folder) for _, folder in ran}.isdisjoint({before})
    assert not any(folder.exists() for _, folder in ran), "cleared away at the end"
    assert os.environ["FASTRNN_CACHE_DIR"] == before
    assert content.keys() >= {"environment", "started", *gpu_check.PARTS}
    _, _, ran = check("--only", "train", "sanitizer", "exchange")
    assert [name for name, _ in ran] == ["exchange", "sanitizer", "train"]


def test_calls_add_up_in_one_file(check, monkeypatch, capsys):
    check("--only", "parity")
    code, content, ran = check("--only", "forward")
    assert (code, [name for name, _ in ran]) == (0, ["forward"])
    assert content.keys() >= {"parity", "forward"}
    monkeypatch.setattr(gpu_check, "environment", lambda: {**ENVIRONMENT, "commit": "y"})
    code, content, ran = check("--only", "exchange")
    assert (code, ran, "exchange" in content) == (1, [], False)
    assert "name another file" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["exchange", "sanitizer", "forward", "train", "test", "shard"])
def test_a_fault_in_any_part_is_the_exit_code(check, fault):
    if fault not in ("test", "shard"):
        check.passed["exit_code"] = gpu_check.STOPPED
        assert check("--only", fault)[0] == 1
    elif fault == "test":
        check.tests["failed"] = {"test_parity[0]": "off by 1"}
    else:
        check.tests["exit_codes"] = [0, -9]
    assert check()[0] == 1


def test_rates_beside_the_file_are_taken(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(gpu_check, "run_module", lambda *a: commands.append(a) or {})
    out = tmp_path / "f.json"
    gpu_check.run_regimes("forward", out, math.inf)
    (tmp_path / "f-exchange.json").write_text("{}")
    gpu_check.run_regimes("train", out, 500.0)
    (command, seconds, path), (with_rates, limit, _) = commands
    assert path == tmp_path / "f-forward.json"
    assert command[:3] == ["benchmarks.regimes", "--mode", "forward"]
    assert "--rates" not in command
    assert seconds == math.inf
    assert with_rates[2:5] == ["train", "--out", str(tmp_path / "f-train.json")]
    assert with_rates[-4:] == ["--rates", str(tmp_path / "f-exchange.json"), "--seconds", "470.0"]
    assert limit == 500.0


def test_the_sanitizer_has_a_limit_of_its_own(monkeypatch, tmp_path):
    limits = []
    monkeypatch.setattr(gpu_check, "run_module", lambda *a: limits.append(a[1]) or {})
    for seconds in (math.inf, 100.0, -5.0):
        gpu_check.run_sanitizer(tmp_path / "f.json", seconds)
    assert limits == [gpu_check.SANITIZER_SECONDS, 100.0, gpu_check.MARGIN]
    assert (1 + len(sanitize.CHECKS)) * sanitize.SECONDS < gpu_check.SANITIZER_SECONDS


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
