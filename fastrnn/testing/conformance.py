"""Does a backend keep the contract? One list of checks, for the command line and for pytest.

    >>> from fastrnn.testing import conformance
    >>> report = conformance.run("mine")
    >>> print(report)
    >>> report.failures
    []

A check that needs what the backend does not claim is no failure, and says why; a backend that
claims nothing at all fails. What is compared with float64 is held to `fastrnn.testing.tolerance`.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch

from fastrnn.discovery import describe
from fastrnn.dispatch import parse_names
from fastrnn.plugins import registry
from fastrnn.tables import table
from fastrnn.testing import (
    checks_autograd,
    checks_claims,
    checks_gradients,
    checks_isolation,
    checks_parity,
    checks_repeated,
)
from fastrnn.testing.cases import CELLS, DTYPES, Case, spec
from fastrnn.testing.subjects import NotClaimed, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Status = Literal["passed", "failed", "not claimed"]
TOPICS = {
    "claims": checks_claims,
    "parity": checks_parity,
    "gradients": checks_gradients,
    "repeated": checks_repeated,
    "isolation": checks_isolation,
    "autograd": checks_autograd,
}
"""Modules with `CHECKS`, functions of a `Subject` by name."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is asked of a backend."""

    topic: str
    name: str
    """With the topic before it: `parity/lstm-bias`."""
    run: Callable[[Subject], None]
    """Returns if all is well.

    Raises:
        NotClaimed: the backend does not claim what the check needs.
        Exception: any other is a failure.
    """


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a check."""

    check: str
    status: Status
    seconds: float
    text: str = ""
    """What went wrong, if it failed."""
    reasons: tuple[str, ...] = ()
    """Why the backend does not claim what the check needs, each a clause of its own."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all checks of one backend."""

    backend: str
    device: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> list[Outcome]:
        """The checks that failed."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    def __str__(self) -> str:
        """A table of topics, and below it the failures, and why the rest is not claimed."""
        rows = []
        for topic in TOPICS:
            own = [o for o in self.outcomes if o.check.startswith(f"{topic}/")]
            number = Counter(outcome.status for outcome in own)
            seconds = sum(outcome.seconds for outcome in own)
            counts = [str(number[s]) for s in ("passed", "failed", "not claimed")]
            if own:
                rows.append([topic, *counts, f"{seconds:.1f}"])
        lines = [
            f"backend {self.backend} on {self.device}",
            table(["topic", "passed", "failed", "not claimed", "seconds"], rows, "lrrrr"),
        ]
        refused = Counter(reason for outcome in self.outcomes for reason in outcome.reasons)
        lines += [f"not claimed, in {n} checks: {reason}" for reason, n in refused.most_common()]
        for failure in self.failures:
            lines += [f"FAILED {failure.check}", *(f"    {t}" for t in failure.text.splitlines())]
        number = Counter(outcome.status for outcome in self.outcomes)
        lines.append(", ".join(f"{count} {status}" for status, count in sorted(number.items())))
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """The same for a program: `backend`, `device`, `passed` and every outcome."""
        return {
            "backend": self.backend,
            "device": self.device,
            "passed": not self.failures,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }


def checks(text: str = "") -> list[Check]:
    """Every check, or those with `text` in their names, in the order in which they are run.

    Cells that plugins bring are looked at as well.
    """
    brought = [cell for cell in registry().cells if cell not in CELLS]
    found = []
    for topic, module in TOPICS.items():
        functions = dict(module.CHECKS)
        if module is checks_parity:
            functions |= checks_parity.of_cells(brought)
        found += [Check(topic, f"{topic}/{name}", function) for name, function in functions.items()]
    return [check for check in found if text in check.name]


def subject(name: str, device: str | None = None) -> Subject:
    """A backend under test.

    Args:
        name: the backend's.
        device: of the tensors; if None, `cpu`, or `cuda` for a backend that runs nothing on a CPU
            where there is a GPU.

    Raises:
        BackendError: there is no such backend.
        ValueError: `name` is a list of several.
    """
    parse_names(name)
    if name not in registry().backends:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(registry().backends)}")
    if device is None:
        on_cpu = Subject(name)
        cases = [Case(spec(cell), dtype=dtype) for cell in CELLS for dtype in DTYPES]
        runs_there = any(not on_cpu.reasons(case) for case in cases)
        device = "cpu" if runs_there or not torch.cuda.is_available() else "cuda"
    return Subject(name, device)


def perform(check: Check, subject: Subject) -> Outcome:
    """Run one check. What torch warns of is not shown: a check looks at results."""
    start = time.perf_counter()

    def end(status: Status, text: str = "", reasons: tuple[str, ...] = ()) -> Outcome:
        return Outcome(check.name, status, time.perf_counter() - start, text, reasons)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check.run(subject)
    except NotClaimed as refusal:
        return end("not claimed", reasons=refusal.reasons)
    except AssertionError as error:
        return end("failed", str(error))
    except Exception as error:  # a backend's bug is a line of the table
        return end("failed", f"raised {describe(error)}")
    return end("passed")


def run(
    name: str,
    *,
    device: str | None = None,
    only: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run the checks of one backend.

    Args:
        name: the backend's.
        device: see `subject`.
        only: run the checks with this in their names.
        progress: called with a check's name before it runs.

    Raises:
        BackendError: there is no such backend.
        ValueError: `name` is several, or no check's name has `only` in it.
    """
    under_test = subject(name, device)
    chosen: Sequence[Check] = checks(only)
    if not chosen:
        raise ValueError(f"only: got {only!r}, expected a part of a check's name")
    outcomes = []
    for check in chosen:
        progress(check.name)
        outcomes.append(perform(check, under_test))
    return Report(under_test.name, under_test.device, tuple(outcomes))
