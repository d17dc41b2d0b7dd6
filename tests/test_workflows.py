"""The workflows of .github/: what they run exists, and is what .ci/run runs."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
OURS = re.compile(r"^(?:make|\.venv/bin/python|\.ci/|examples/)")


def load(path):
    workflow = yaml.safe_load(path.read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 takes the key `on` for a truth value
    return workflow


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(workflow):
    """Every line of every `run:`."""
    runs = [step["run"] for step in steps(workflow) if "run" in step]
    return [line for run in runs for line in run.splitlines() if line.strip()]


def names(command):
    """What of this project a command names: make's goals, or the script and how it is asked."""
    words = [word for word in shlex.split(command) if not re.match(r"[&>]|\d>", word)]
    if words[0] == "make":
        return ["make", *(word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word))]
    return words


def test_there_are_workflows():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "gpu-check.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_they_run_exists(path):
    for command in commands(load(path)):
        words = shlex.split(command)
        if words[0] == "make":
            dry = subprocess.run(
                ["make", "-n", "-B", *words[1:]], cwd=ROOT, capture_output=True, text=True
            )
            assert dry.returncode == 0, f"{command}: {dry.stderr}"
            # as make says of a folder, such as docs/, that is no target
            assert "Nothing to be done" not in dry.stdout, f"{command}: {dry.stdout}"
            continue
        script = words[1] if words[0] == ".venv/bin/python" else words[0]
        assert (ROOT / script).is_file(), command
        assert script != words[0] or os.access(ROOT / script, os.X_OK), (
            f"{script} is not executable"
        )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_they_may_only_read(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    checkouts = [s for s in steps(workflow) if s.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(workflow["jobs"])
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_input_is_pasted_into_a_command(path):
    """It would be run; by the environment it stays a word."""
    assert not [command for command in commands(load(path)) if "${{" in command]


def test_ci_runs_what_the_local_script_runs():
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    wanted = [names(line) for line in lines if OURS.match(line)]
    assert ["make", "lint"] in wanted
    got = [names(line) for line in commands(load(ROOT / ".github/workflows/ci.yml"))]
    assert not [command for command in wanted if command not in got]


def test_the_oldest_python_is_the_one_that_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    lint = load(ROOT / ".github/workflows/ci.yml")["jobs"]["lint"]
    assert lint["strategy"]["matrix"]["python"][0] == oldest
    assert f"Programming Language :: Python :: {oldest}" in project["classifiers"]


def test_gpu_check_is_started_by_hand_and_keeps_what_it_wrote():
    workflow = load(ROOT / ".github/workflows/gpu-check.yml")
    assert list(workflow["on"]) == ["workflow_dispatch"]
    (command,) = commands(workflow)
    out = Path(re.search(r"--out (\S+\.json)", command)[1])
    *_, upload = steps(workflow)
    assert upload["if"] == "always()"
    assert out.match(upload["with"]["path"])
