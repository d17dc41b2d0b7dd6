"""What `import fastrnn` loads: itself, pluggy, and nothing of plugins, Triton or Dynamo.

How long it takes is measured by `benchmarks.import_time`; tests do not time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import import_time
from plugin_cases import write_distribution

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
{}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
OF_COMMANDS = {
    *("bench", "bench_cases", "bench_hooks", "benchmark"),
    *("cli", "doctor", "testing", "tune"),
}


@pytest.fixture
def loaded(tmp_path):
    """The modules that statements load, beside what torch has loaded."""

    def loaded(statements):
        path = [tmp_path, ROOT, ROOT / "kernels", ROOT / "plugins"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("FASTRNN_")}
        env |= {"PYTHONPATH": os.pathsep.join(map(str, path))}
        env["FASTRNN_CACHE_DIR"] = os.environ["FASTRNN_CACHE_DIR"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(statements)], env=env, cwd=tmp_path,
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return set(json.loads(done.stdout))

    return loaded


def top(modules):
    """The packages of modules, without the standard library."""
    return {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)


def test_importing_it_loads_no_plugin_and_nothing_heavy(loaded, tmp_path):
    write_distribution(tmp_path, "raises_on_import")
    write_distribution(tmp_path, "slow_import")
    found = loaded("import fastrnn")
    # torch's own parts that it does not load itself are the slow ones: Dynamo, inductor, sympy, ...
    assert top(found) <= {"fastrnn", "pluggy"}, top(found)
    assert not OF_COMMANDS & {module.split(".")[1] for module in found if "fastrnn." in module}


def test_a_call_loads_the_plugins_and_no_compiler(loaded, tmp_path):
    write_distribution(tmp_path, "policy_reference")
    found = loaded(
        "import fastrnn\n"
        "layer = fastrnn.LSTM(3, 4)\n"
        "layer(torch.randn(2, 1, 3))[0].sum().backward()\n"
    )
    assert {"policy_reference", "fastrnn_reference", "fastrnn_aten"} <= found
    assert not {"triton", "fastrnn_kernels", "sympy"} & top(found)
    assert "torch._dynamo" not in found


def test_the_benchmark_takes_the_middle_of_processes_after_the_first(monkeypatch, capsys):
    taken = iter([(9, 9), (1, 0.03), (2, 0.01), (3, 0.02), (1, 0.05), (5, 0.04)])
    monkeypatch.setattr(import_time, "sample", lambda: next(taken))
    assert import_time.main(["--repeats", "5"]) == 0
    lines = [line.split()[-3:-1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["2000.0", "ms"], ["30.0", "ms"]]


def test_a_sample_is_of_both_imports():
    torch, fastrnn = import_time.sample()
    assert min(torch, fastrnn) > 0
