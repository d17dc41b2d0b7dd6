"""benchmarks.compare_commits: two commits of a tiny repository with a clock of its own."""

from __future__ import annotations

import os
import subprocess

import pytest

from benchmarks import commit_worker, compare_commits
from benchmarks.compare_commits import Case, Outcome

TORCH = """
import contextlib

float32 = "float32"

class Tensor:
    def __init__(self, *sizes): pass
    def to(self, *where): return self
    data = None

randn = Tensor
manual_seed = ones_like = lambda of: None

@contextlib.contextmanager
def no_grad(): yield

@contextlib.contextmanager
def set_grad_enabled(on): yield
"""
FASTRNN = """
import sys, time
from types import SimpleNamespace

now = 0.0
time.perf_counter = lambda: now
print("on standard output, where no answers are")

class LSTM:
    def __init__(self, inputs, size, backend):
        if size == UNFIT:
            raise ValueError("size: not\\n  this one")
        self.seconds = SECONDS if size > 1 else 1e-3
    def to(self, *where): return self
    def train(self, on): return self
    def parameters(self): return []
    def __call__(self, x):
        global now
        now += self.seconds
        return x, None

def explain(layer, x):
    return SimpleNamespace(backend=BACKEND)
"""


def git(*arguments):
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *arguments], check=True, capture_output=True)


def commit(tag, seconds, unfit=0, backend="aten", extra=""):
    values = f"SECONDS, UNFIT, BACKEND = {seconds}, {unfit}, {backend!r}\n"
    with open("fastrnn.py", "w") as file:
        file.write(values + FASTRNN + extra)
    git("add", "-A")
    git("commit", "-q", "-m", tag)
    git("tag", tag)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty one, in which the test goes on, with a torch of a few lines."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    folder = tmp_path / "repository"
    (folder / "torch" / "nn" / "utils").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(TORCH)
    (folder / "torch" / "nn" / "utils" / "rnn.py").write_text(
        "PackedSequence = pack_padded_sequence = None\n"
    )
    monkeypatch.chdir(folder)
    git("init", "-q")
    return folder


def compare(*arguments):
    options = ["--rounds", "2", "--fresh", "1", "--cases", "lstm:forward:2:2:2"]
    return compare_commits.main([*arguments[:2], *options, *arguments[2:]])


def test_a_commit_that_is_slower_is_found(repository, capsys):
    commit("fast", 1e-3)
    commit("slow", 1.5e-3, backend="reference")
    assert compare("fast", "slow", "lstm:forward:2:2:1") == 1
    out = capsys.readouterr().out
    assert "lstm:forward:2:2:2:auto:float32  aten -> reference      1.500  0.000  SLOWER" in out
    assert "lstm:forward:2:2:1:auto:float32  aten -> reference      1.000  0.000  ok" in out
    assert "1 of 2 cases are slower by more than 10%" in out
    assert " s " not in out, "an absolute time"
    assert compare("slow", "fast") == 0
    assert "0.667" in capsys.readouterr().out
    assert compare("fast", "slow", "--threshold", "0.6") == 0
    assert compare("fast", "fast") == 0
    assert compare("fast", "HEAD", "--fresh", "2") == 1
    listed = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True)
    assert listed.stdout.count("\n") == 1, "a worktree is left"


def test_what_one_commit_cannot_run(repository, capsys):
    commit("first", 1e-3, unfit=3)
    commit("second", 1e-3, unfit=2)
    assert compare("first", "second", "lstm:forward:2:2:3", "--fresh", "2") == 1
    out = capsys.readouterr().out
    assert "FAILED: lstm:forward:2:2:2:auto:float32: HEAD: ValueError: size: not this one" in out
    assert "left out: lstm:forward:2:2:3:auto:float32: BASE: ValueError: size: not this one" in out
    assert compare("second", "first") == 2
    assert "no case could be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "told"),
    [("raise OSError('no disk')", "a process ended with 1: OSError: no disk"),
     ("sys.modules[__name__].__file__ = '/elsewhere'", "took /elsewhere"),
     ("explain = lambda *of: sys.exit('gone')", "a process ended with 1: gone")],
)  # fmt: skip
def test_a_process_that_is_of_no_use(repository, capsys, extra, told):
    commit("good", 1e-3)
    commit("bad", 1e-3, extra=extra)
    assert compare("good", "bad") == 2
    error = capsys.readouterr().err
    assert error.startswith("compare_commits: error: ")
    assert error.endswith(f"{told}\n")
    assert error.count("\n") == 1


def test_no_such_commit(repository, capsys, monkeypatch):
    commit("good", 1e-3)
    assert compare("good", "bad") == 2
    assert "bad^{commit}: no such commit" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert compare("good", "good") == 2
    assert "compare_commits: error: git: " in capsys.readouterr().err


def test_nothing_of_this_checkout_reaches_another(tmp_path, monkeypatch):
    here = str(compare_commits.WORKER.parent.parent)
    monkeypatch.setenv("FASTRNN_BACKEND", "reference")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, f"{here}/kernels", "/other", ""]))
    found = compare_commits.surroundings(tmp_path / "tree", tmp_path)
    assert found["PYTHONPATH"].split(os.pathsep) == [
        f"{tmp_path}/tree", f"{tmp_path}/tree/kernels", f"{tmp_path}/tree/plugins", "/other"
    ]  # fmt: skip
    assert "FASTRNN_BACKEND" not in found
    assert found["FASTRNN_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("ratios", "noises", "verdict"),
    [([1.3, 1.25, 1.0], [0.0, 0.07, 0.5], "SLOWER"), ([1.3, 1.25, 1.0], [0.5, 0.08, 0.0], "ok"),
     ([1.09], [0.0], "ok"), ([0.5], [0.0], "ok")],
)  # fmt: skip
def test_slower_is_beyond_the_threshold_and_twice_the_noise(ratios, noises, verdict):
    case = Case("lstm", "train", 1, 1, 1)
    outcomes = [
        Outcome(case, ratio=ratio, noise=noise)
        for ratio, noise in zip(ratios, noises, strict=True)
    ]  # fmt: skip
    assert compare_commits.combine(outcomes, 0.1).verdict == verdict


@pytest.mark.parametrize(
    "text", ["", "lstm", "lstm:train:1:1", "lstm:never:1:1:1", "lstm:train:1:0:1",
             "lstm:train:1:1:x", "lstm:train:1:1:1:aten:float32:more"],
)  # fmt: skip
def test_a_case_that_is_none(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare_commits.main(["HEAD", "--cases", text])
    assert f"got '{text.split(':')[-2] if ':0:' in text else ''}" in capsys.readouterr().err


def test_cases_are_written_as_they_are_printed():
    for case in (*compare_commits.CPU, *compare_commits.CUDA):
        assert compare_commits.case(str(case)) == case
    assert compare_commits.case("gru:packed:1:2:3") == Case("gru", "packed", 1, 2, 3)


@pytest.mark.parametrize("case", compare_commits.CPU, ids=str)
def test_what_a_process_times(case):
    case = case._replace(T=min(case.T, 3), H=4)
    call, backend = commit_worker.make("cpu", **case._asdict())
    assert case.backend in ("auto", backend)
    found = call()
    if case.mode == "forward":
        assert found[0].shape == (case.T, case.B, 4)
        assert not found[0].requires_grad
    else:
        gates = {"lstm": 4, "gru": 3}.get(case.cell, 1)
        assert [tuple(each.shape) for each in found[:2]] == [(4 * gates, 4)] * 2
    assert commit_worker.seconds(call, 2, "cpu") > 0
