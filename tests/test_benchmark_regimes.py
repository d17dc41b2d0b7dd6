"""benchmarks.regimes: a run, how it goes on where it stopped, and what it compiles beforehand."""

from __future__ import annotations

import json
import os

import pytest
import torch

from benchmark_cases import CASES, ENVIRONMENT, TRAIN, found, row
from benchmarks import one_case, outlook, peer, regimes
from benchmarks.outlook import LAYERS
from fastrnn_kernels.plan import REGIMES


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
    assert {regime for _, regime in asked} == {*REGIMES, LAYERS}
    asked.clear()
    regimes.warm(TRAIN, 4)
    assert 100 < len(asked) == len(set(asked)) < 300
    assert {regime for _, regime in asked} == {*REGIMES, "auto", LAYERS}
    asked.clear()
    for mode in ("forward", "train"):
        twice = [CASES[1]._replace(T=steps, mode=mode) for steps in (128, 1024)]
        regimes.warm(twice, 4)
        assert len(asked) == len({regime for _, regime in asked})
        asked.clear()
    # layers at once have kernels of their own, also where the tiles are those of a single layer
    two = CASES[1]._replace(H=256, I=256, layers=2)
    same = outlook.outlook(two, "grid")
    monkeypatch.setattr(outlook, "outlook", lambda case, name: same)
    regimes.warm([two._replace(layers=1), two, two._replace(T=8, B=3, layers=4)], 4)
    assert [name for _, name in asked] == [REGIMES[0], LAYERS]
    asked.clear()
    regimes.warm([], 4)
    assert asked == []
