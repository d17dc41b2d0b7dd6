"""benchmarks.auto_cpu: the grid, what a run measures, keeps and says, and how pairs are timed."""

from __future__ import annotations

import gc
import json
import math
from types import SimpleNamespace

import pytest
import torch

import fastrnn
from benchmarks import auto_cases, auto_cpu, auto_summary, pairs
from benchmarks.auto_cases import CELLS, Case, tensors

FIRST = auto_cases.grid()[0]
ENVIRONMENT = {"fastrnn": "1", "commit": "a", "torch": "2", "cpu": "x", "threads": 1}
FOUND = {
    "backend": "aten", "torch_nn_us": 1.0, "ratio": 0.5, "noise": 0.01, "rounds": 7, "behind": False
}  # fmt: skip


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """Runs a grid of four cases with made-up measurements: (exit code, the file)."""
    threads = torch.get_num_threads()
    cases = [Case("rnn_tanh", "train", "packed", 2, 1, size) for size in (1, 2, 3, 4)]
    measured = []

    def measure(case, seconds):
        measured.append(case)
        return FOUND

    monkeypatch.setattr(auto_cpu, "grid", lambda: cases)
    monkeypatch.setattr(auto_cpu, "environment", lambda: dict(ENVIRONMENT))
    monkeypatch.setattr(auto_cpu, "measure", measure)
    path = tmp_path / "new" / "grid.json"

    def run(*options):
        code = auto_cpu.main(["--threads", "1", "--out", str(path), *options])
        return code, json.loads(path.read_text()) if path.exists() else None

    run.cases, run.measured, run.path = cases, measured, path
    yield run
    torch.set_num_threads(threads)


def test_the_grid_is_what_the_issue_asks_for():
    cases = auto_cases.grid()
    assert len(set(cases)) == len(cases)
    padded = {c for c in cases if c.kind == "padded"}
    assert padded == {
        Case(cell, mode, "padded", T, B, H)
        for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        for mode in ("forward", "train")
        for T in (1, 20, 100, 512)
        for B in (1, 8, 32, 128)
        for H in (32, 64, 256, 512, 1024)
    }
    packed = {c._replace(kind="padded") for c in cases if c.kind == "packed"}
    assert packed == {c for c in padded if c.T > 1}
    steps = {c for c in cases if c.mode == "step"}
    assert len(steps) == len(CELLS) * 5 * 3
    assert {(c.T, c.B) for c in steps} == {(1, 1)}
    assert padded | {c for c in cases if c.kind == "packed"} | steps == set(cases)


def test_the_grid_begins_with_what_is_cheap():
    cases = auto_cases.grid()
    seconds = [auto_cases.expected_seconds(case) for case in cases]
    assert seconds == sorted(seconds)
    dearest = Case("lstm", "train", "padded", 512, 128, 1024)
    assert 40 < auto_cases.expected_seconds(dearest) < 70, "50 s on a core of an EPYC"
    assert cases.index(dearest) >= len(cases) - 2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("forward", "padded"), ("forward", "packed"), ("train", "padded"), ("train", "packed"),
     ("step", "layer"), ("step", "stepper"), ("step", "stepper-cell")],
)  # fmt: skip
def test_both_of_a_pair_compute_the_same(cell, mode, kind):
    steps, rows = (1, 1) if mode == "step" else (7, 3)
    case = Case(cell, mode, kind, steps, rows, 5)
    theirs, ours, backend = auto_cases.pair(case)
    theirs, ours = theirs(), ours()
    assert backend == "stepper" or backend in fastrnn.plugins.registry().backends
    for _ in range(3 if mode == "step" else 1):
        want, got = theirs(), ours()
        found = tensors(got)
        assert len(found) == (4 if mode == "train" else len(found))
        assert all(each.requires_grad is False for each in found)
        auto_cases.assert_agree(case, want, got)
        found[0][0, 0] += 1e-3
        with pytest.raises(AssertionError, match=r"^(output|d 0) is off by \S+, \S+ allowed"):
            auto_cases.assert_agree(case, want, got)
        found[0][0, 0] -= 1e-3


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_jumps_of_relus_gradient_are_looked_at_in_float64(monkeypatch, kind):
    case = Case("rnn_relu", "train", kind, 5, 3, 4)
    theirs, ours, backend = auto_cases.pair(case)
    want, got = theirs()(), list(ours()())
    got[0] = got[0] + got[0].abs().max()
    auto_cases.assert_right(case, backend, want, got)
    with pytest.raises(AssertionError, match=r"^d 0 is off by"):
        auto_cases.assert_right(case._replace(cell="rnn_tanh"), backend, want, got)
    exact = auto_cases.pair(case, torch.float64, "reference")
    assert exact.backend == "reference"
    assert {each.dtype for each in tensors(exact.ours()())} == {torch.float64}
    asked = []

    def wrong(*how):
        asked.append(how)
        return exact._replace(ours=lambda: lambda: [1.01 * each for each in exact.ours()()])

    monkeypatch.setattr(auto_cases, "pair", wrong)
    with pytest.raises(AssertionError, match=r"^d 0 is off by"):
        auto_cases.assert_right(case, "reference", want, got)
    assert asked == [(case, torch.float64, "reference")]


def test_a_nan_agrees_with_nothing():
    case, x = Case("lstm", "forward", "padded", 1, 1, 1), torch.ones(1, 1, 1)
    for want, got in ((x, x * torch.nan), (x * torch.nan, x), (x, x * math.inf)):
        with pytest.raises(AssertionError, match=r"^output is off by"):
            auto_cases.assert_agree(case, want, got)


def test_a_wrong_result_has_no_figure(monkeypatch):
    case = Case("gru", "forward", "padded", 2, 2, 3)
    pair = auto_cases.pair(case)
    wrong = pair._replace(ours=lambda: lambda: pair.theirs()()[0] + 1)
    monkeypatch.setattr(auto_cpu, "pair", lambda case: wrong)
    assert auto_cpu.row_of(case, 0.01)["failed"] == "AssertionError: 1 results, expected 2"


def test_a_step_goes_on_from_the_last():
    for kind in ("layer", "stepper", "stepper-cell"):
        theirs, ours, _ = auto_cases.pair(Case("lstm", "step", kind, 1, 1, 4))
        for call in (theirs(), ours()):
            first, second = (tensors(call())[0].clone() for _ in range(2))
            assert not torch.equal(first, second)


def test_lengths_of_a_packed_case_are_spread_from_one_to_all():
    x = auto_cases.input_of(Case("lstm", "forward", "packed", 100, 12, 3))
    _, lengths = torch.nn.utils.rnn.pad_packed_sequence(x)
    assert lengths.tolist() == [100, 91, 82, 73, 64, 55, 46, 37, 28, 19, 10, 1]


def test_a_run_goes_on_where_it_stopped(grid, monkeypatch, capsys):
    def stop(case, seconds):
        if case.H == 3:
            raise KeyboardInterrupt
        return FOUND

    with monkeypatch.context() as patch:
        patch.setattr(auto_cpu, "measure", stop)
        code, content = grid()
    assert code == 130
    assert [row["H"] for row in content["rows"]] == [1, 2]
    assert content["left_out"]["not reached"] == list(map(str, grid.cases[2:]))
    out = capsys.readouterr().out
    assert "left out, 2 cases: not reached" in out
    assert "rnn_tanh train packed, (T, B, H): (2, 1, 3) (2, 1, 4)" in out
    code, content = grid()
    assert (code, grid.measured) == (0, grid.cases[2:])
    assert [auto_cpu.case_of(row) for row in content["rows"]] == grid.cases
    assert not any(content["left_out"].values())
    assert grid()[0] == 0
    assert grid.measured == grid.cases[2:], "none twice"


@pytest.mark.parametrize("name", ["torch", "commit", "cpu", "threads"])
def test_another_machine_does_not_go_on(grid, monkeypatch, capsys, name):
    grid()
    other = {**ENVIRONMENT, name: "other"}
    monkeypatch.setattr(auto_cpu, "environment", lambda: other)
    before = grid.path.read_text()
    assert grid()[0] == 2
    assert f"with {name} {ENVIRONMENT[name]!r}, now it is 'other'" in capsys.readouterr().err
    assert grid.path.read_text() == before
    # the file itself changes the checkout
    monkeypatch.setattr(auto_cpu, "environment", lambda: {**ENVIRONMENT, "commit": "a+"})
    assert grid()[0] == 0


def test_another_commit_goes_on_where_the_choice_is_the_same(grid, monkeypatch):
    grid()
    now = {case: "other" if case.H == 3 else FOUND["backend"] for case in grid.cases}
    monkeypatch.setattr(auto_cpu, "pair", lambda case: SimpleNamespace(backend=now[case]))
    monkeypatch.setattr(auto_cpu, "environment", lambda: {**ENVIRONMENT, "commit": "b"})
    assert grid()[0] == 2
    del grid.measured[:]
    code, content = grid("--costs-changed")
    assert (code, grid.measured) == (0, [case for case in grid.cases if case.H == 3])
    assert content["environment"]["commit"] == "b"
    found = {row["H"]: row for row in content["rows"]}
    assert found == {1: found[2] | {"H": 1}, 2: found[2], 3: found[3], 4: found[2] | {"H": 4}}
    assert (found[2]["commit"], "commit" in found[3]) == ("a", False)
    monkeypatch.setattr(auto_cpu, "environment", lambda: {**ENVIRONMENT, "torch": "3"})
    assert grid("--costs-changed")[0] == 2


@pytest.mark.parametrize("content", ["", "{}", '{"environment": {}, "rows": []}'])
def test_a_file_that_is_none_of_its_own(grid, capsys, content):
    grid.path.parent.mkdir()
    grid.path.write_text(content)
    assert auto_cpu.main(["--out", str(grid.path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"auto_cpu: error: --out: {grid.path} is no file of this command: ")
    assert error.count("\n") == 1
    assert grid.path.read_text() == content


def test_what_is_left_out_is_counted_and_named(monkeypatch, capsys):
    threads = str(torch.get_num_threads())
    assert (
        auto_cpu.main(["--dry-run", "--threads", threads, "--cell", "gru", "--cell", "lstm"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    count = sum(c.cell in ("gru", "lstm") for c in auto_cases.grid())
    assert lines[0].startswith(f"{count} cases, ")
    assert len(lines) == 1 + count
    options = auto_cpu.parse(["--cell", "gru", "--mode", "train", "--max-seconds-per-call", "5"])
    chosen, left_out = auto_cpu.choose(options)
    assert sum(map(len, left_out.values())) + len(chosen) == len(auto_cases.grid())
    assert {(case.cell, case.mode) for case in chosen} == {("gru", "train")}
    (dear,) = (cases for why, cases in left_out.items() if "more than 5 s" in why)
    assert {(case.cell, case.mode) for case in dear} == {("gru", "train")}
    text = auto_summary.summary([], left_out)
    assert all(f"({case.T}, {case.B}, {case.H})" in text for case in dear)
    assert "left out, 620 cases: --mode train" in text
    assert "lstm train" not in text


def test_a_failure_is_a_row_and_measured_again(grid, monkeypatch, capsys):
    def broken(case, seconds):
        if case.H == 2:
            raise RuntimeError("no memory")
        return FOUND

    with monkeypatch.context() as patch:
        patch.setattr(auto_cpu, "measure", broken)
        code, content = grid()
    assert code == 1
    assert content["rows"][1]["failed"] == "RuntimeError: no memory"
    assert capsys.readouterr().out.count("H=2     FAILED: RuntimeError: no memory") == 2
    assert grid()[0] == 0
    assert grid.measured == [grid.cases[1]]


def test_a_case_that_looks_behind_is_measured_three_times(grid, monkeypatch):
    ratios = iter([1.2, 0.9, 1.0, 1.2, 1.1, 1.3, 0.5, 0.6])

    def measure(case, seconds):
        ratio = next(ratios)
        return {**FOUND, "ratio": ratio, "behind": ratio > 1.03}

    monkeypatch.setattr(auto_cpu, "measure", measure)
    code, content = grid()
    assert [row["ratio"] for row in content["rows"]] == [1.0, 1.2, 0.5, 0.6]
    assert (code, content["behind"]) == (1, 1)


@pytest.mark.parametrize(("ratio", "noise", "behind"), [(1.05, 0.02, True), (1.05, 0.03, False),
                                                        (1.02, 0.0, False)])  # fmt: skip
def test_behind_is_beyond_three_per_cent_and_twice_the_noise(monkeypatch, ratio, noise, behind):
    found = pairs.Found(1.0, ratio, noise, 7)
    monkeypatch.setattr(pairs, "measure", lambda *pair: found)
    assert auto_cpu.measure(FIRST, 1.0)["behind"] is behind


def test_targets():
    def row(cell, mode, kind, ratio, behind=False):
        case = Case(cell, mode, kind, 1, 1, 1)
        return {**case._asdict(), **FOUND, "ratio": ratio, "behind": behind}

    rows = [
        row("rnn_tanh", "train", "padded", 0.5),
        row("rnn_relu", "train", "padded", 1.0),
        row("lstm", "train", "padded", 1.0),
        row("lstm", "forward", "packed", 0.25),
        row("gru", "train", "packed", 0.64),
    ]
    assert auto_summary.targets(rows) == [
        "no case behind: 0 of 5 are: met",
        "Elman training, padded, 1.5x in the geometric mean: 1.41x, 1 of 2 cases below: NOT MET",
        "packed, 2x in the geometric mean: 2.50x, 1 of 2 cases below: met",
    ]
    rows = [row("lstm", "step", "layer", 1.1, behind=True), row("lstm", "step", "stepper", 0.5)]
    assert auto_summary.targets(rows) == [
        "no case behind: 1 of 2 are: NOT MET",
        "a single step no slower: 1 of 2 cases are: NOT MET",
    ]
    assert "lstm  step  stepper      1     2.00x" in auto_summary.means(rows)


class Clock:
    """Time that passes in calls only."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def maker(self, name, seconds):
        def make():
            number = f"{name}{sum(1 for each in self.made if each[0] == name)}"
            self.made.append(number)

            def call():
                self.calls.append(number)
                self.now += seconds(number) if callable(seconds) else seconds

            return call

        return make

    made: list


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    clock.made = []
    monkeypatch.setattr(pairs, "time", clock)
    return clock


def test_short_calls_take_turns_at_random(clock):
    def theirs(number):
        return {"t0": 1.5e-3, "t1": 1.21 * 1.5e-3}[number]

    found = pairs.measure(clock.maker("t", theirs), clock.maker("o", 0.9e-3), 0.0)
    assert clock.made == ["t0", "o0", "o1", "t1"]
    assert found.theirs_us == pytest.approx(1500)
    assert found.ratio == pytest.approx(0.6 / math.sqrt(1.21))
    assert found.noise == pytest.approx(0.21)
    assert found.rounds == 7
    rounds = clock.calls[13:]  # 2 and 8 of warm-up, 3 that say how long a call takes
    assert len(rounds) == 7 * 4 * 2, "a sample is 2 ms"
    turns = [tuple(rounds[8 * i : 8 * i + 8 : 2]) for i in range(7)]
    assert all(sorted(turn) == ["o0", "o1", "t0", "t1"] for turn in turns)
    assert len(set(turns)) > 2
    assert gc.isenabled()


def test_more_time_is_more_rounds(clock):
    assert pairs.measure(clock.maker("t", 4e-3), clock.maker("o", 4e-3), 0.32).rounds == 20
    assert pairs.measure(clock.maker("t", 4e-3), clock.maker("o", 4e-3), 99).rounds == 200


def test_long_calls_are_framed_by_the_baseline(clock):
    def drifting(number):
        return 0.5 + clock.now / 1000

    found = pairs.measure(clock.maker("t", drifting), clock.maker("o", drifting), 1.5)
    assert clock.made == ["t0", "o0", "t1"]
    assert clock.calls == ["t0", "o0", "t1"] + ["t0", "o0", "o0", "t1"] * 3
    assert found.rounds == 3
    assert found.ratio == pytest.approx(1, abs=1e-4), "even drift is no difference"


def test_endless_calls_are_measured_once(clock):
    def warming_up(seconds):
        each = iter([1.5 * seconds])
        return lambda number: next(each, seconds)

    theirs, ours = clock.maker("t", warming_up(50.0)), clock.maker("o", warming_up(40.0))
    found = pairs.measure(theirs, ours, 1.5)
    assert clock.calls == ["t0", "o0", "t0", "o0", "o0", "t0"]
    assert found == pairs.Found(pytest.approx(5e7), pytest.approx(0.8), 0.0, 1)


def test_endless_calls_of_theirs_run_once_where_ours_are_far_below(clock):
    each = iter([30.0, 20.0, 20.2])
    found = pairs.measure(clock.maker("t", 100.0), clock.maker("o", lambda number: next(each)), 1.5)
    assert clock.calls == ["t0", "o0", "o0", "o0"]
    noise, ratio = pytest.approx(0.01), pytest.approx(math.sqrt(20.0 * 20.2) / 100)
    assert found == pairs.Found(pytest.approx(1e8), ratio, noise, 1)


def test_a_real_run(tmp_path, monkeypatch, capsys):
    cases = [Case("rnn_relu", "forward", "padded", 2, 2, 3), Case("lstm", "step", "layer", 1, 1, 3)]
    monkeypatch.setattr(auto_cpu, "grid", lambda: cases)
    monkeypatch.setattr(pairs, "SAMPLE_SECONDS", 1e-6)
    threads = str(torch.get_num_threads())
    path = tmp_path / "grid.json"
    command = ["--seconds", "0.001", "--threads", threads, "--out", str(path)]
    assert auto_cpu.main(command) in (0, 1)
    rows = json.loads(path.read_text())["rows"]
    assert [row["cell"] for row in rows] == ["rnn_relu", "lstm"]
    assert all(row["ratio"] > 0 and row["backend"] for row in rows)
    assert "no case behind" in capsys.readouterr().out
