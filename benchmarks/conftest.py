"""What the suite shares: `--grid`, the machine in the JSON, and whether targets are met.

Of pytest-benchmark's fields, `machine_info` is what must be the same for a comparison to mean
something, since pytest-benchmark warns where it is not; what differs from run to run (the commit
with whether it was changed, the date, the clocks of the moment) is `environment` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastrnn.bench import as_installed
from fastrnn.doctor import environment

PASSING = ("commit", "date")
"""What of the environment is another in every run."""
TARGETS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--grid full` for more than a minute's worth."""
    parser.addoption("--grid", choices=("quick", "full"), default="quick", help="of the suite")


def pytest_configure(config: pytest.Config) -> None:
    """Lines to be shown at the end."""
    config.stash[TARGETS] = []


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Hardware, driver and versions, in place of what varies by itself."""
    found = {key: value for key, value in environment().items() if key not in PASSING}
    clocks: Any = found.get("clocks_mhz") or {}
    found["clocks_mhz"] = {name: clocks[name] for name in clocks if name.startswith("max.")}
    machine_info.clear()
    machine_info.update(found)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: object, output_json: dict[str, Any]
) -> None:
    """All of it, as it was at the end of this run."""
    output_json["environment"] = environment()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What was aimed at, and whether it was met."""
    for line in config.stash[TARGETS]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def fresh_installation() -> Iterator[None]:
    """What `fastrnn tune` has stored does not count."""
    with as_installed():
        yield


@pytest.fixture
def target(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[str, bool], None]:
    """Note whether a target is met, in the JSON and below the tables; none fails a run."""

    def note(text: str, met: bool) -> None:
        benchmark.extra_info["target_met"] = met
        line = f"{text}: {'met' if met else 'NOT MET'}"
        request.config.stash[TARGETS].append(line)

    return note
