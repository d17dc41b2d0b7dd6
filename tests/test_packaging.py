"""The distribution, built and installed for real: what is in it, and that it runs elsewhere."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "fastrnn": "fastrnn",
    "fastrnn_kernels": "kernels/fastrnn_kernels",
    "fastrnn_reference": "plugins/fastrnn_reference",
    "fastrnn_aten": "plugins/fastrnn_aten",
    "fastrnn_triton": "plugins/fastrnn_triton",
    "fastrnn_cells": "plugins/fastrnn_cells",
    "fastrnn_pytest": "plugins/fastrnn_pytest",
}
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastrnn/_version.py").read_text(), re.M)[1]
SOURCES = [
    "fastrnn",
    "kernels",
    "plugins",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "pyproject.toml",
    "MANIFEST.in",
    "Makefile",
    "constraints.txt",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]

IN_A_FOREIGN_DIRECTORY = """
import importlib, pathlib, sys
import torch
import fastrnn

installed = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
    found = pathlib.Path(importlib.import_module(name).__file__)
    assert found.is_relative_to(installed), f"{name} came from {found}"

torch.manual_seed(0)
theirs = torch.nn.LSTM(5, 7, num_layers=2, bidirectional=True)
ours = fastrnn.LSTM(5, 7, num_layers=2, bidirectional=True)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(4, 3, 5)
torch.testing.assert_close(ours(x)[0], theirs(x)[0])
for backend in ("reference", "aten"):
    with fastrnn.use_backend(backend):
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])
print("ran", fastrnn.__version__)
"""


def run(*command, cwd, **environment):
    """Run a command of this Python; its output, or a failure that shows it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTRNN_", "PYTHON"))}
    env["FASTRNN_CACHE_DIR"] = os.environ["FASTRNN_CACHE_DIR"]  # never the user's own
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind, tree, into):
    """Build an sdist or a wheel of `tree` with the setuptools that is installed; its path."""
    into.mkdir()
    hook = f"import setuptools.build_meta as b; b.build_{kind}({str(into)!r})"
    run("-c", hook, cwd=tree)
    (artifact,) = into.iterdir()
    return artifact


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    base = tmp_path_factory.mktemp("sdist")
    tree = base / "tree"  # a copy: building leaves build/ and *.egg-info behind
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree)
    return build("sdist", tree, base / "dist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the unpacked sdist, which shows that the sdist is complete."""
    base = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(base, filter="data")
    (tree,) = base.iterdir()
    return build("wheel", tree, base / "dist")


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_sdist_holds_everything_that_is_needed_to_test_and_build(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "constraints.txt",
        "plugins/README.md",
        "benchmarks/README.md",
        "docs/beyond_torch_nn.md",
        "docs/beyond_torch_nn.py",
        "docs/writing_a_backend.md",
        "docs/public_names.md",
        "examples/fastrnn-numpy/pyproject.toml",
        "examples/fastrnn-numpy/check.sh",
        "examples/char_lm.py",
        "tests/test_packaging.py",
    }
    assert needed <= names, needed - names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_wheel_holds_our_packages_and_nothing_else_at_top_level(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/", 1)[0] for name in archive.namelist()}
    # Above all no `kernels` and no `plugins`: those names belong to others.
    assert top == {*PACKAGES, f"fastrnn-{VERSION}.dist-info"}


def test_wheel_holds_every_source_file_and_the_licence(wheel):
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (licence,) = (n for n in names if n.endswith("/LICENSE") and ".dist-info/" in n)
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert expected == {n for n in names if ".dist-info/" not in n}


def test_metadata(metadata, project):
    assert metadata["Name"] == "fastrnn"
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    required = metadata.get_all("Requires-Dist")
    plain = [r for r in required if "extra ==" not in r]
    assert plain == project["project"]["dependencies"]
    # A plain `triton` would overwrite the one that ROCm and XPU builds of torch bring along.
    assert not [r for r in plain if r.startswith("triton")]
    assert set(metadata.get_all("Provides-Extra")) == {"triton", "bench", "test", "lint", "dev"}


def test_entry_points(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (info,) = tmp_path.glob("*.dist-info")
    points = importlib.metadata.Distribution.at(info).entry_points
    assert {(p.group, p.name, p.value) for p in points} == {
        ("console_scripts", "fastrnn", "fastrnn.cli:main"),
        ("fastrnn", "reference", "fastrnn_reference"),
        ("fastrnn", "aten", "fastrnn_aten"),
        ("fastrnn", "triton", "fastrnn_triton"),
        ("fastrnn", "cells", "fastrnn_cells"),
        ("pytest11", "fastrnn", "fastrnn_pytest"),
    }


def test_metadata_is_built_without_importing_torch(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    hook = (
        "import sys; sys.modules['torch'] = None; import setuptools.build_meta as b; "
        "print(b.prepare_metadata_for_build_wheel('.'))"
    )
    assert f"fastrnn-{VERSION}.dist-info" in run("-c", hook, cwd=tree)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Where the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder]
    run(*pip, wheel, cwd=folder)
    return folder


def test_installed_wheel_runs_in_a_foreign_directory(installed, tmp_path):
    out = run(
        "-W",
        "error",
        "-c",
        IN_A_FOREIGN_DIRECTORY,
        installed,
        *PACKAGES,
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert out == f"ran {VERSION}\n"


def test_installed_wheel_brings_the_conformance_suite(installed, tmp_path):
    """With the options, which pytest must know before it looks for tests."""
    asked = ["--pyargs", "fastrnn.testing", "--backend", "aten", "-k", "claims-something"]
    out = run("-m", "pytest", "-q", *asked, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "conformance of aten" in out
    assert "1 passed" in out


def test_other_pytests_are_left_alone(installed, tmp_path):
    """They may have a `--backend` of their own, and nothing of fastrnn is imported for them."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--backend')\n"
    )
    (tmp_path / "test_own.py").write_text(
        "import sys\n\n"
        "def test_own(pytestconfig):\n"
        "    assert pytestconfig.getoption('--backend') == 'mine'\n"
        "    assert 'fastrnn_pytest' in sys.modules\n"
        "    assert not {'fastrnn', 'torch'} & set(sys.modules)\n"
    )
    out = run("-m", "pytest", "-q", "--backend=mine", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "1 passed" in out


def test_no_package_in_the_plain_folders():
    assert not [f for f in ("kernels", "plugins") if (ROOT / f / "__init__.py").exists()]


def test_constraints_pin_every_requirement_exactly(project):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    pins = [line for line in lines if not line.startswith("#")]
    assert all(pin.count("==") == 1 and ";" not in pin for pin in pins)
    pinned = {pin.split("==")[0].lower() for pin in pins}
    assert len(pinned) == len(pins)
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(r for extra in extras for r in extra)]
    names = {r.split(";")[0].split(">=")[0].strip().lower() for r in wanted}
    names = {name for name in names if not name.startswith("fastrnn[")}
    assert names <= pinned, names - pinned
