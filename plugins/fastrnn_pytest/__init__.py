"""For pytest, in whose every run this is imported: it must cost nothing and change nothing.

`pytest --pyargs fastrnn.testing` has options, and they come from `fastrnn.testing.pytest_plugin`.
That imports torch, and one of the options is called `--backend`, as others' may be; so it is loaded
only where `fastrnn.testing` is what somebody asks for. Nothing of fastrnn is imported otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

TESTS = "fastrnn.testing"


def pytest_load_initial_conftests(early_config: pytest.Config, args: Sequence[str]) -> None:
    """Load the options in time: after this, pytest reads the command line."""
    modules = [argument.split("::")[0] for argument in args]
    if "--pyargs" in args and any(m == TESTS or m.startswith(f"{TESTS}.") for m in modules):
        early_config.pluginmanager.import_plugin(f"{TESTS}.pytest_plugin")
