"""The distribution, built and installed for real: what is in it.

That it runs elsewhere, from a fresh environment, is tested by `.ci/wheel`.
"""

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
import yaml
from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "fastrnn": "fastrnn",
    "fastrnn_kernels": "kernels/fastrnn_kernels",
    "fastrnn_reference": "plugins/fastrnn_reference",
    "fastrnn_aten": "plugins/fastrnn_aten",
    "fastrnn_rows": "plugins/fastrnn_rows",
    "fastrnn_numba": "plugins/fastrnn_numba",
    "fastrnn_triton": "plugins/fastrnn_triton",
    "fastrnn_cells": "plugins/fastrnn_cells",
    "fastrnn_pytest": "plugins/fastrnn_pytest",
}
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastrnn/_version.py").read_text(), re.M)[1]
IGNORED = [
    line.removesuffix("/")
    for line in (ROOT / ".gitignore").read_text().splitlines()
    if line and not line.startswith("#")
]


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
def tree(tmp_path_factory):
    """A copy of all that git would track: building leaves build/ and *.egg-info behind."""
    tree = tmp_path_factory.mktemp("tree") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", *IGNORED))
    return tree


@pytest.fixture(scope="module")
def files(tree):
    """The names of the files in it, before anything is built."""
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sdist(tree, files, tmp_path_factory):
    return build("sdist", tree, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the unpacked sdist, which shows that the sdist is complete."""
    base = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(base, filter="data")
    (tree,) = base.iterdir()
    return build("wheel", tree, base / "dist")


@pytest.fixture(scope="module")
def metadata_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name)


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_sdist_is_the_repository(sdist, files):
    """Whoever has it can build, test and change the project as from a clone."""
    with tarfile.open(sdist) as archive:
        names = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in names if ".egg-info/" in name}
    made -= files  # an unpacked sdist has them already
    assert names - made == files
    assert {"LICENSE", "CITATION.cff", ".ci/run", "tests/test_packaging.py"} <= files


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


def test_neither_names_a_place_on_this_machine(sdist, wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        members = (member for member in archive.getmembers() if member.isfile())
        contents |= {member.name: archive.extractfile(member).read() for member in members}
    places = [re.escape(f"{place}/".encode()) for place in (ROOT, tree, sys.prefix)]
    place = re.compile(rb"(?<![\w.-])(?:" + b"|".join(places) + b")")
    assert not [name for name, content in contents.items() if place.search(content)]


def test_metadata(metadata_file, project):
    # As an index would judge it: every field, by the standards.
    Metadata.from_email(metadata_file, validate=True)
    metadata = message_from_bytes(metadata_file)
    assert metadata["Name"] == "fastrnn"
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    required = metadata.get_all("Requires-Dist")
    plain = [r for r in required if "extra ==" not in r]
    assert plain == project["project"]["dependencies"]
    # A plain `triton` would overwrite the one that ROCm and XPU builds of torch bring along.
    assert not [r for r in plain if r.startswith("triton")]
    extras = set(project["project"]["optional-dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == extras >= {"triton", "bench", "test", "dev"}


def test_entry_points(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (info,) = tmp_path.glob("*.dist-info")
    points = importlib.metadata.Distribution.at(info).entry_points
    assert {(p.group, p.name, p.value) for p in points} == {
        ("console_scripts", "fastrnn", "fastrnn.cli:main"),
        ("fastrnn", "reference", "fastrnn_reference"),
        ("fastrnn", "aten", "fastrnn_aten"),
        ("fastrnn", "rows", "fastrnn_rows"),
        ("fastrnn", "numba", "fastrnn_numba"),
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
    names = {re.match(r"[\w.-]+", r)[0].lower() for r in wanted} - {"fastrnn"}
    assert names <= pinned, names - pinned


def test_changelog_keeps_the_shape():
    """That of Keep a Changelog: versions, newest first, and within each the known groups."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.M)
    assert versions[0] == "[Unreleased]" or versions[0].startswith(f"[{VERSION}] - ")
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", v) for v in versions[1:])
    groups = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= groups


def test_citation_names_this_version_and_licence(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], str(citation["version"])) == ("fastrnn", VERSION)
    assert citation["license"] == project["project"]["license"]
