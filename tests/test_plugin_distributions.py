"""Faulty third parties that are built and installed for real, all at once, beside a healthy one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn import discovery, plugins
from plugin_cases import DISTRIBUTIONS, installing, load, record_of

ROOT = Path(__file__).parents[1]
install = pytest.fixture(installing)

FAULTS = {
    "raises_on_import": "was not loaded: its import raised OSError: libaccelerator.so",
    "raises_in_hook": "was not loaded: fastrnn_backends raised RuntimeError: no device was found",
    "wrong_signature": "was not loaded: Plugin 'wrong-signature' for hook",
    "misspelt_hook": "was not loaded: unknown hook 'fastrnn_backend'",
    "takes_aten": "was not loaded: the backend name 'aten' is taken",
    "takes_numpy": "was not loaded: the backend name 'numpy' is taken",
    "slow_import": "was loaded late: it took 1.",
}
"""Of each module: what is said of it. Another installed distribution has the name `numpy`."""

BUILD = """
import os, sys
import setuptools.build_meta
into, *trees = sys.argv[1:]  # building changes sys.argv
for tree in trees:
    os.chdir(tree)
    setuptools.build_meta.build_wheel(into)
"""
"""All in one process, which is much faster than a pip for each."""

MODEL = """
import sys
import torch
import fastrnn

theirs = sorted(sys.argv[1:])
assert not set(theirs) & set(sys.modules), "import fastrnn imported a plugin"
x = torch.randn(5, 2, 3)
for backend in ("auto", "reference", "aten", "numpy"):
    model = fastrnn.LSTM(3, 4, backend=backend)
    model(x)[0].sum().backward()
    assert model.weight_hh_l0.grad is not None
fastrnn.RNN(3, 4)(x)
print("ran")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the distributions, installed by pip."""
    base = tmp_path_factory.mktemp("faulty")
    wheels, trees = base / "wheels", []
    for module in [*FAULTS, "numpy_lstm"]:
        name = module.replace("_", "-")
        tree = base / module
        tree.mkdir()
        shutil.copy(DISTRIBUTIONS / f"{module}.py", tree)
        (tree / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "{name}"\nversion = "1.0"\ndependencies = ["fastrnn"]\n'
            f'[project.entry-points.fastrnn]\n{name} = "{module}"\n'
            f'[tool.setuptools]\npy-modules = ["{module}"]\n'
        )
        trees.append(tree)
    run("-c", BUILD, wheels, *trees, cwd=base)
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    run(*pip, "--target", base / "installed", *wheels.iterdir(), cwd=base)
    return base / "installed"


def run(*command, cwd, path=()):
    """Run this Python; stdout and stderr."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTRNN_", "PYTHON"))}
    env["FASTRNN_CACHE_DIR"] = os.environ["FASTRNN_CACHE_DIR"]
    env |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONWARNINGS": "always::UserWarning"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def run_beside(installed, tmp_path):
    """Run this Python beside what is installed, in a foreign directory."""
    path = [installed, ROOT, ROOT / "kernels", ROOT / "plugins"]
    return lambda *command: run(*command, cwd=tmp_path, path=path)


def reports(stderr):
    """What was said of each third party's module."""
    found = {}
    for module in [*FAULTS, "numpy_lstm"]:
        name = module.replace("_", "-")
        said = f"plugin {name!r} of {name} 1.0 "
        found[module] = [line.split(said)[1] for line in stderr.splitlines() if said in line]
    return found


def assert_each_is_reported_once(stderr):
    found = reports(stderr)
    assert found.pop("numpy_lstm") == []
    for module, said in found.items():
        assert len(said) == 1, (module, said)
        assert said[0].startswith(FAULTS[module]), (module, said)
        assert f"FASTRNN_DISABLE_PLUGINS={module.replace('_', '-')}." in said[0]
    assert "Traceback" not in stderr


def test_a_model_trains_and_each_fault_is_reported_once(run_beside):
    out, err = run_beside("-c", MODEL, *FAULTS, "numpy_lstm")
    assert out == "ran\n"
    assert_each_is_reported_once(err)


def test_the_command_lists_them_with_reasons(run_beside):
    out, err = run_beside("-m", "fastrnn", "plugins", "--json")
    assert_each_is_reported_once(err)
    records = {record["name"]: record for record in json.loads(out)}
    builtins = ["reference", "aten", "rows", "numba", "triton"]
    assert [records[name]["state"] for name in builtins] == ["loaded"] * len(builtins)
    assert (records["numpy-lstm"]["state"], records["numpy-lstm"]["reason"]) == ("loaded", "")
    for module, said in FAULTS.items():
        record = records[module.replace("_", "-")]
        assert (record["distribution"], record["version"]) == (module.replace("_", "-"), "1.0")
        assert record["state"] == ("loaded" if module == "slow_import" else "failed")
        assert said.split(": ", 1)[1] in record["reason"]


def test_a_plugin_that_takes_its_time_is_reported_and_used(install, monkeypatch):
    install("policy_reference")
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(plugins.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(discovery, "SLOW_SECONDS", 2.9)
    (warning,) = load()  # built-ins took as long
    assert warning == (
        "plugin 'policy-reference' of policy-reference 1.0 was loaded late: it took 3.0 s, for "
        "which the first use of fastrnn had to wait. Update or remove policy-reference, or set "
        "FASTRNN_DISABLE_PLUGINS=policy-reference."
    )
    assert record_of("policy-reference").state == "loaded"
    assert record_of("policy-reference").reason.startswith("it took 3.0 s")
    monkeypatch.undo()


def test_a_plugin_that_takes_no_longer_than_allowed_is_not_reported(install, monkeypatch):
    install("policy_reference")
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(plugins.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(discovery, "SLOW_SECONDS", 3)
    assert load() == []
    monkeypatch.undo()
