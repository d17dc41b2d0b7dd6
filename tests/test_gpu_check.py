"""benchmarks.gpu_check: its parts, shards of the tests, compute-sanitizer, and what it stops."""

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

from benchmark_cases import ENVIRONMENT
from benchmarks import gpu_check, sanitize, shard

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


REFUSES = """#!{python}
import sys
print('========= Error: Device not supported. Please refer to the "Supported Devices" section')
print("lines " * 2000)
sys.exit(1)
"""


@pytest.mark.parametrize("plain", [0, 1])
def test_a_device_that_the_sanitizer_refuses_is_not_checked(tool, plain, monkeypatch, tmp_path):
    tool("nothing").write_text(REFUSES.format(python=sys.executable))
    check = sanitize.check
    monkeypatch.setattr(
        sanitize, "check", lambda tool, name: check(tool, name) if name else {"exit_code": plain}
    )
    assert sanitize.main(["--out", str(tmp_path / "s.json")]) == plain, "of the passes without it"
    found = json.loads((tmp_path / "s.json").read_text())["checks"]
    for name in sanitize.CHECKS:
        assert found[name]["exit_code"] == 1
        assert found[name]["not_checked"].startswith("========= Error: Device not supported")


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
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

def test_fails():
    assert 1 + 1 == 3

def test_skips():
    pytest.skip("no such regime")

def test_takes_its_process_along():
    os._exit(7)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")
def test_results_of_all_shards_are_put_together(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")  # of this run's own conftest.py
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    monkeypatch.setattr(gpu_check, "TESTS", (str(tmp_path / "test_some.py"),))
    found = gpu_check.run_tests(4, 60)
    assert (found["passed"], found["skipped"], found["exit_codes"]) == (1, 1, [0, 1, 0, 7])
    assert found["skipped_because"] == ["no such regime"]
    assert list(found["failed"]) == ["test_fails"]
    assert "1 + 1" in found["failed"]["test_fails"]
    assert "test_takes_its_process_along" in found["ended_early"]["shard 4"]
    assert "1 passed" in capsys.readouterr().out
