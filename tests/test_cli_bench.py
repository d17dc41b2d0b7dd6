"""`fastrnn bench` on the command line: what it prints, writes and returns, and its progress."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import torch

from cli_cases import BENCH, SIZES, a_broken_plugin, running
from fastrnn import bench, plugins, tables
from fastrnn.dispatch import BackendError
from fastrnn.progress import Progress

broken = pytest.fixture(a_broken_plugin)
run = pytest.fixture(running)


def test_bench(run, tmp_path):
    files = "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")
    threads = torch.get_num_threads()
    more = threads + 1
    code, out, err = run(*BENCH, *files, "--threads", str(more))
    assert code == 0
    assert torch.get_num_threads() == threads
    assert err.splitlines() == [
        "[1/2] lstm forward T=3 B=2 I=4 H=4", "[2/2] lstm train T=3 B=2 I=4 H=4",
    ]  # fmt: skip
    assert f"float32 on cpu, {more} threads" in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["settings"]["threads"] == more
    assert content["environment"]["threads"] == more
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["implementation"] for row in rows] == [
        row["implementation"] for row in content["results"]
    ]
    assert len(rows) == 2 * (2 + len(plugins.registry().backends))


def test_bench_fails_on_a_wrong_backend(run, broken):
    code, out, err = run(*BENCH, "--mode", "forward", "--backends", "aten,broken")
    assert code == 1
    (line,) = (line for line in out.splitlines() if " broken " in line)
    assert "WRONG: output off by 1.0e-03 of " in line
    assert " -  " in line  # no time
    assert "fastrnn: error: broken wrong on lstm forward" in err
    assert "Traceback" not in err


def test_bench_fails_on_a_named_backend_that_never_runs(run):
    code, out, err = run("bench", "--cell", "rnn_sigmoid", *SIZES, "--backends", "aten")
    assert code == 1
    assert "aten cannot run 2 of the cases: torch has no rnn_sigmoid" in out
    assert "fastrnn: error: aten could run no case: torch has no rnn_sigmoid" in err


def test_bench_with_a_file_that_cannot_be_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "write_json", lambda *_: tmp_path.write_text(""))
    code, out, err = run(*BENCH, "--json", str(tmp_path / "x"), "--csv", str(tmp_path / "y"))
    assert code == 1
    (error,) = [line for line in err.splitlines() if "error" in line]
    assert error.startswith(f"fastrnn: error: {tmp_path / 'x'} was not written: IsADirectoryError")
    assert "torch.nn" in out
    assert (tmp_path / "y").read_text(encoding="utf-8").startswith("cell,")


def test_an_interrupt_ends_it_quietly(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", interrupt)
    code, out, err = run(*BENCH)
    assert (code, out, err) == (130, "", "fastrnn: interrupted\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "fastrnn: interrupted"),
        (BackendError("cannot run"), 1, "fastrnn: error: cannot run"),
        (MemoryError(), None, None),
    ],
)
def test_an_end_before_the_end_loses_no_measurement(run, monkeypatch, tmp_path, error, code, said):
    original = bench._measure

    def measure(case, *arguments):
        if case.mode == "train":
            raise error
        return original(case, *arguments)

    monkeypatch.setattr(bench, "_measure", measure)
    file = tmp_path / "rows.csv"
    if code is None:
        with pytest.raises(MemoryError):
            run(*BENCH, "--csv", str(file))
    else:
        found, out, err = run(*BENCH, "--csv", str(file))
        assert (found, err.splitlines()[-1]) == (code, said)
        assert "torch.nn" in out
    rows = file.read_text(encoding="utf-8").splitlines()[1:]
    assert rows
    assert all(row.startswith("lstm,forward,") for row in rows)


def test_progress_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with Progress(2) as progress:
        progress.step("one")
        progress.step("two")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[1/2]" not in err


def test_progress_without_rich(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with Progress(1) as progress:
        progress.step("one")
    assert capsys.readouterr() == ("", "[1/1] one\n")


def test_a_table():
    assert tables.table(["a", "number"], [["long", "1"], ["x", "22"]], "lr") == (
        "a     number\n"
        "----  ------\n"
        "long       1\n"
        "x         22"
    )  # fmt: skip
