"""What pytest needs to run the checks: the options, and the report at the end.

    pytest --pyargs fastrnn.testing --backend NAME

pytest reads the options of a command line before it looks for tests, so that a conftest.py beside
them comes too late (https://github.com/pytest-dev/pytest/issues/1596). `fastrnn_pytest`, which
every pytest of an environment loads, therefore loads this module where `fastrnn.testing` is asked
for, and does nothing else. From a source tree that is not installed: `-p
fastrnn.testing.pytest_plugin`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastrnn.dispatch import BackendError
from fastrnn.plugins import registry
from fastrnn.testing import conformance

if TYPE_CHECKING:
    from fastrnn.testing.subjects import Subject

OUTCOMES = pytest.StashKey[dict[tuple[str, str], list[conformance.Outcome]]]()
"""By the backend's name and the device."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("fastrnn")
    what = "the backend to check (default: every one that is available here)"
    group.addoption("--backend", metavar="NAME", help=what)
    what = "where (default: cpu, or cuda for a backend that runs nothing on a cpu)"
    group.addoption("--device", metavar="DEVICE", help=what)
    group.addoption("--conformance-json", metavar="FILE", help="write the report there, too")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse the name of a backend that is not there, before anything runs."""
    try:
        subjects(config)
    except (BackendError, ValueError) as error:
        raise pytest.UsageError(f"--backend: {error}") from None


def subjects(config: pytest.Config) -> list[Subject]:
    """The backends to check.

    Raises:
        BackendError: there is none of the name that was given.
    """
    name, device = (config.getoption(f"--{option}", None) for option in ("backend", "device"))
    if name is not None:
        return [conformance.subject(name, device)]
    backends = registry().backends.items()
    return [conformance.subject(n, device) for n, backend in backends if not backend.unavailable()]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print a report of each backend, and write them to the file that was asked for."""
    reports = [
        conformance.Report(name, device, tuple(outcomes))
        for (name, device), outcomes in config.stash.get(OUTCOMES, {}).items()
    ]
    for report in reports:
        terminalreporter.section(f"conformance of {report.backend}")
        terminalreporter.write_line(str(report))
    path = config.getoption("--conformance-json", None)
    if path is not None:
        content = json.dumps([report.as_json() for report in reports], indent=2)
        Path(path).write_text(content + "\n", encoding="utf-8")
