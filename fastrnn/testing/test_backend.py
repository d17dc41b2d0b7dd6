"""The checks of `fastrnn.testing.conformance` as tests; see `fastrnn.testing.pytest_plugin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastrnn.testing import conformance, pytest_plugin

if TYPE_CHECKING:
    from fastrnn.testing.conformance import Check
    from fastrnn.testing.subjects import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of each backend."""
    # where nobody loaded it, there are no options, and still a report
    metafunc.config.pluginmanager.import_plugin(pytest_plugin.__name__)
    pairs = [
        pytest.param(subject, check, id=f"{subject.name}-{check.name}")
        for subject in pytest_plugin.subjects(metafunc.config)
        for check in conformance.checks()
    ]
    metafunc.parametrize(("subject", "check"), pairs)


def test_backend(subject: Subject, check: Check, pytestconfig: pytest.Config) -> None:
    """Skipped if the backend does not claim what the check needs."""
    outcome = conformance.perform(check, subject)
    kept = pytestconfig.stash.setdefault(pytest_plugin.OUTCOMES, {})
    kept.setdefault((subject.name, subject.device), []).append(outcome)
    if outcome.status == "not claimed":
        pytest.skip("; ".join(outcome.reasons))
    if outcome.status == "failed":
        pytest.fail(outcome.text, pytrace=False)
