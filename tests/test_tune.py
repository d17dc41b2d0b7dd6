"""`fastrnn tune`: it measures, keeps what is right, and `auto` goes by it from then on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import bench, bench_cases, cli, dispatch, measured, plugins, progress
from fastrnn.bench_cases import request_for
from fastrnn.benchmark import Case
from fastrnn.dispatch import decide
from fastrnn.hookspecs import hookimpl
from fastrnn.request import Cost
from fastrnn.tune import tune
from fastrnn_reference.backend import ReferenceBackend

CASE = Case("lstm", "forward", 5, 3, 4, 6, 1, False, "float32", "cpu")
TUNE = ["tune", "--cell", "lstm", "--T", "3", "--B", "2", "--H", "4", "--repeats", "1"]
CACHE = "FASTRNN_CACHE_DIR"


class Other(ReferenceBackend):
    """The reference, but for the fault that a test asks for."""

    name = "other"
    summary = "for tests"
    fault = ""
    version = "others 1"
    calls: list[str]

    def __init__(self):
        self.calls = []

    def cost(self, request):
        return Cost(5.0, "never by estimate")

    def tune(self, request, progress):
        self.calls.append(f"tune {request.describe()}")
        progress("looking at 3 configurations")
        if self.fault == "tune":
            raise RuntimeError("no\nmemory")

    def recurrence_forward(self, gates_x, weight_hh, layer):
        self.calls.append("run")
        if self.fault == "raises":
            raise RuntimeError("no kernel")
        found = super().recurrence_forward(gates_x, weight_hh, layer)
        if self.fault == "wrong":
            found.output.add_(1e-3)
        return found


@pytest.fixture
def other(monkeypatch):
    """A backend that is the reference by another name, of a distribution that has a version."""
    monkeypatch.delenv("FASTRNN_DISABLE_PLUGINS", raising=False)
    plugins.reset()
    backend = Other()

    class Plugin:
        @hookimpl
        def fastrnn_backends(self):
            return [backend]

    plugins.register(Plugin(), name="others")
    versions = measured.versions

    def with_other(records, cell):
        return {
            **versions(records, cell),
            **({"other": backend.version} if backend.version else {}),
        }

    monkeypatch.setattr(measured, "versions", with_other)
    yield backend
    plugins.reset()


@pytest.fixture
def times(monkeypatch):
    """Have the benchmark measure these seconds, by name; 1 for whom it does not say."""

    def times(**seconds):
        def take(timed, repeats, device):
            for row, _ in timed:
                row.samples = [float(seconds.get(row.implementation, 1.0))] * repeats

        monkeypatch.setattr(bench, "take_samples", take)

    return times


@pytest.fixture
def run(capsys):
    """Run the command in this process, as if in one of its own."""

    def run(*arguments):
        dispatch.clear_cache()
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code
        dispatch.clear_cache()
        return (code, *capsys.readouterr())

    return run


def stored():
    """By problem, the backends that another process finds."""
    dispatch.clear_cache()
    found = measured.store("cpu", "")
    return {request.describe(): sorted(by_name) for request, by_name in found.records()}


def test_the_request_of_a_case_is_that_of_a_call(monkeypatch):
    seen = []
    original = bench_cases.make_request
    monkeypatch.setattr("fastrnn.calls.make_request",
                        lambda *a: seen.append(original(*a)) or seen[-1])  # fmt: skip
    for mode in ("forward", "train"):
        case = CASE._replace(mode=mode, layers=2, bidirectional=True, cell="rnn_relu")
        module = bench_cases.layer(case, "reference")
        with torch.set_grad_enabled(mode == "train"):
            module(torch.randn(5, 3, 4))
        assert request_for(case) == seen[-1]


def test_auto_changes_its_choice_and_says_so(times):
    request = request_for(CASE)
    before = decide(request).backend
    after = {"aten": "reference", "reference": "aten"}[before]
    times(**{before: 2e-3, after: 1e-3})
    outcome = tune([CASE, CASE._replace(T=50)], repeats=1)
    assert next((c.before, c.after) for c in outcome.changed) == (before, after)
    assert (outcome.stored, outcome.missing, outcome.faults) == (2, {}, [])
    assert next(row.implementation for row in outcome.rows if row.auto) == after
    dispatch.clear_cache()  # as another process
    decision = decide(request)
    assert decision.backend == after
    assert {c.cost.seconds for c in decision.candidates if c.cost} == {2e-3, 1e-3, 1.0}
    lstm = fastrnn.LSTM(4, 6).eval()
    with torch.no_grad():
        assert fastrnn.explain(lstm, torch.randn(5, 3, 4)).backend == after


def test_what_changed_does_not_depend_on_the_order_of_cases(times, other):
    """A case that is stored is near to the next, whose choice must be counted all the same."""
    times(other=1e-3)
    cases = [CASE, CASE._replace(T=6), CASE._replace(T=7)]
    assert len(tune(cases, repeats=1).changed) == 3


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_what_is_wrong_or_fails_is_not_stored(run, other, fault):
    other.fault = fault
    code, out, err = run(*TUNE, "--mode", "forward")
    assert code == 1
    assert f"fastrnn: error: other {'wrong' if fault == 'wrong' else 'failed'} on lstm" in err
    assert "estimates still count in 1 problems, because other can run there and has no" in out
    assert list(stored().values()) == [["aten", "reference", "rows"]]


def test_what_has_become_wrong_is_forgotten(run, other):
    assert run(*TUNE, "--mode", "forward")[0] == 0
    assert list(stored().values()) == [["aten", "other", "reference", "rows"]]
    other.fault = "wrong"
    code, out, _ = run(*TUNE, "--mode", "forward", "--backends", "other")
    assert (code, "stored: 0 of 1 problems" in out) == (1, True)
    assert list(stored().values()) == [["aten", "reference", "rows"]]


def test_a_backend_that_is_from_no_distribution_is_not_stored(run, other):
    other.version = ""
    code, out, _ = run(*TUNE, "--backends", "other")
    assert code == 0
    assert "stored: 0 of 2 problems" in out
    assert stored() == {}


def test_some_backends_now_and_others_later(run, times):
    times(reference=1e-9)
    code, out, _ = run(*TUNE, "--backends", "reference")
    assert code == 0
    assert "stored: 2 of 2 problems" in out
    assert "auto: 0 of 2 choices changed" in out
    for name in ("aten", "rows"):
        assert f"estimates still count in 2 problems, because {name} can run there" in out
    assert "because reference" not in out
    out = run(*TUNE, "--backends", "aten,rows")[1]
    assert "auto: 2 of 2 choices changed\n  lstm forward T=3 B=2 I=4 H=4: aten -> reference" in out
    assert "estimates" not in out
    assert list(stored().values()) == [["aten", "reference", "rows"]] * 2


def test_a_backend_searches_before_it_is_timed(run, other):
    code, _, err = run(*TUNE, "--mode", "train", "--backends", "aten,other")
    assert code == 0
    assert other.calls[0] == (
        "tune lstm T=3 B=2 I=4 H=4, float32 on cpu, forward and backward"
    )  # fmt: skip
    assert other.calls[1:]
    assert set(other.calls[1:]) == {"run"}
    assert "  looking at 3 configurations\n" in err


def test_only_who_is_asked_for_and_can_run_searches(run, other, monkeypatch):
    assert run(*TUNE, "--backends", "aten")[0] == 0
    assert other.calls == []
    monkeypatch.setattr(Other, "can_run", lambda self, request: ["no"])
    assert run(*TUNE)[0] == 0
    assert other.calls == []


def test_a_search_that_fails_is_reported_and_stops_nothing(run, other):
    other.fault = "tune"
    code, out, err = run(*TUNE, "--mode", "forward")
    assert code == 1
    text = "other failed to tune itself on lstm forward T=3 B=2 I=4 H=4: RuntimeError: no memory"
    assert f"fastrnn: error: {text}\n" in err
    assert "stored: 1 of 1 problems" in out
    assert list(stored().values()) == [["aten", "other", "reference", "rows"]]


def test_a_dry_run_stores_nothing(run, times, other):
    times(other=1e-9)
    code, out, _ = run(*TUNE, "--dry-run")
    assert code == 0
    assert "dry run: nothing is stored\nauto: 2 of 2 choices would change" in out
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    now = [line.split()[0] for line in lines if " * " in line]
    assert now == ["aten", "aten"]
    assert [call for call in other.calls if call.startswith("tune")] == []
    assert not Path(os.environ[CACHE]).exists()


def test_a_dry_run_leaves_this_process_as_it_was(times, other):
    times(other=1e-9)
    assert tune([CASE], repeats=1, keep=False).changed
    assert decide(request_for(CASE)).backend == "aten"


def test_an_interruption_keeps_what_was_measured_before_it(run, monkeypatch):
    original = bench.measure

    def measure(cases, **how):
        if cases[0].mode == "train":
            raise KeyboardInterrupt
        return original(cases, **how)

    monkeypatch.setattr(bench, "measure", measure)
    code, out, err = run(*TUNE)
    assert (code, out) == (130, "")
    assert err.endswith("fastrnn: interrupted\n")
    assert len(stored()) == 1


def test_threads_are_those_of_the_problem(run):
    before = torch.get_num_threads()
    assert run(*TUNE, "--threads", str(before + 1))[0] == 0
    assert torch.get_num_threads() == before
    dispatch.clear_cache()
    assert {r.threads for r, _ in measured.store("cpu", "").records()} == {before + 1}


def test_json(run, times, other):
    times(other=1e-9)
    code, out, _ = run(*TUNE, "--json")
    found = json.loads(out)
    assert code == 0
    assert Path(found["path"]).is_file()
    assert (found["stored"], found["missing"], found["failures"]) == (2, {}, [])
    assert [(c["case"]["mode"], c["before"], c["after"]) for c in found["changed"]] == [
        ("forward", "aten", "other"), ("train", "aten", "other"),
    ]  # fmt: skip
    assert {r["implementation"] for r in found["results"] if r["auto"]} == {"other"}
    found = json.loads(run(*TUNE, "--json", "--dry-run")[1])
    assert (found["path"], found["stored"]) == (None, 0)


def test_list_and_forget(run, times):
    times(aten=2e-3, reference=3e-3, rows=4e-3)
    code, out, _ = run("tune", "--list")
    assert code == 0
    assert out.endswith("nothing is stored\n")
    assert run("tune", "--forget")[:2] == (0, "nothing was stored\n")
    assert run(*TUNE, "--mode", "train")[0] == 0
    code, out, err = run("tune", "--list")
    assert (code, err) == (0, "")
    first, _, _, *rows = out.splitlines()
    path = next(Path(os.environ[CACHE]).iterdir())
    assert first.endswith(str(path))
    threads = torch.get_num_threads()
    problem = f"lstm T=3 B=2 I=4 H=4, float32 on cpu, forward and backward, {threads} threads"
    assert sorted(" ".join(row.split()[:-3]) for row in rows) == [
        f"{problem} aten 2.000", f"{problem} reference 3.000", f"{problem} rows 4.000",
    ]  # fmt: skip
    (listed,) = json.loads(run("tune", "--list", "--json")[1])
    assert (listed["path"], len(listed["problems"])) == (str(path), 1)
    assert (
        run("tune", "--forget", "--json")[1]
        == json.dumps({"deleted": [str(path)], "failures": []}, indent=2) + "\n"
    )
    assert not path.exists()


def test_a_backend_that_cannot_forget_does_not_keep_others_from_it(run, other, monkeypatch):
    def fail(self):
        raise RuntimeError("busy")

    assert run(*TUNE)[0] == 0
    path = next(Path(os.environ[CACHE]).iterdir())
    monkeypatch.setattr(ReferenceBackend, "forget", fail)
    code, out, err = run("tune", "--forget")
    assert (code, out) == (1, f"deleted: {path}\n")
    assert "fastrnn: error: other failed to forget: RuntimeError: busy\n" in err
    assert not path.exists()


def test_a_damaged_file_is_listed_and_forgotten(run):
    assert run(*TUNE)[0] == 0
    path = next(Path(os.environ[CACHE]).iterdir())
    path.write_text("{")
    code, out, err = run("tune", "--list")
    assert (code, out.splitlines()[-1]) == (0, "nothing is stored")
    assert err.startswith(f"fastrnn: warning: {path} is ignored: JSONDecodeError: ")
    assert run("tune", "--forget")[1] == f"deleted: {path}\n"


def test_doctor_knows_of_measurements(run):
    assert "[ok] measurements on cpu: none; auto goes by estimates" in run("doctor")[1]
    run(*TUNE)
    assert "[ok] measurements on cpu: 2 problems, the oldest 0 days ago, in " in run("doctor")[1]


def test_a_directory_that_cannot_be_written_is_one_line(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    code, out, err = run(*TUNE)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()  # and nothing was measured
    assert line.startswith(f"fastrnn: error: measurements cannot be kept in {tmp_path / 'file'} ")
    assert f"({CACHE} names another folder)" in line


@pytest.mark.parametrize("pair", ["--list --forget", "--dry-run --list", "--forget --dry-run"])
def test_one_thing_at_a_time(run, pair):
    code, out, err = run("tune", *pair.split())
    assert (code, out) == (2, "")
    assert "not allowed with argument" in err


def test_explain_shows_what_was_measured(run):
    arguments = ["--cell", "rnn_tanh", "--T", "20", "--B", "1", "--H", "32"]
    assert run("tune", *arguments, "--repeats", "1", "--mode", "forward")[0] == 0
    code, out, err = run("explain", *arguments, "--I", "32")
    assert (code, err) == (0, "")
    assert out.count("(measured on this machine: ") == 3
    assert "(lowest estimated cost)" in out
    out = run("explain", *arguments, "--I", "32", "--json")[1]
    costs = [c["cost"]["why"] for c in json.loads(out)["candidates"] if c["cost"]]
    assert all(" us at T=20 B=1, " in why for why in costs)


def test_a_note_on_a_terminal_and_off_it(monkeypatch, capsys):
    with progress.Progress(1) as lines:
        lines.step("one")
        lines.note("more")
    assert capsys.readouterr() == ("", "[1/1] one\n  more\n")
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with progress.Progress(1) as bar:
        bar.step("one")
        bar.note("more")
    out, err = capsys.readouterr()
    assert (out, "  more\n" in err) == ("", False)
