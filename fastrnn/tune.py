"""`fastrnn tune`: measure the backends and let `auto` go by what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fastrnn import bench, measured
from fastrnn.bench_cases import request_for
from fastrnn.discovery import describe
from fastrnn.dispatch import clear_decisions, decide
from fastrnn.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fastrnn.benchmark import Case
    from fastrnn.request import Decision


class Choice(NamedTuple):
    """What `auto` chooses for a case."""

    case: Case
    before: str
    after: str


@dataclass
class Outcome:
    """What became of the cases."""

    rows: list[bench.Row] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    """One per case."""
    missing: dict[str, int] = field(default_factory=dict)
    """In how many cases estimates go on to count because this backend could run but has no
    timing."""
    faults: list[str] = field(default_factory=list)
    """Backends whose own search failed; they were timed as they are."""
    path: Path | None = None
    """The file of this machine's measurements; None for a dry run."""
    stored: int = 0
    """How many cases have a timing in it."""

    @property
    def changed(self) -> list[Choice]:
        """The choices that are others than before."""
        return [choice for choice in self.choices if choice.before != choice.after]


def tune(
    cases: Sequence[Case],
    *,
    backends: Sequence[str] | None = None,
    repeats: int = bench.REPEATS,
    keep: bool = True,
    progress: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Measure every case, and keep the seconds of every backend that is right.

    A case is stored as soon as it is measured, so that an interruption loses none before it.

    Args:
        cases: see `bench_cases.cases`; all on one device.
        backends: names; None for all.
        repeats: samples per backend.
        keep: whether to write the measurements to the file, and to have backends search for
            their own best configurations, which they remember. If not, `Outcome` says what
            would be.
        progress: called with a line before each case.
        note: called with what a backend says of its search.

    Raises:
        BackendError: FASTRNN_BACKEND names none that can run a case.
        OSError: the file cannot be written, or there is no place for it; said before anything is
            measured.
    """
    outcome = Outcome()
    requests = [request_for(case) for case in cases]
    if keep and requests:
        measured.prepare(requests[0])
    before = [decide(request) for request in requests]
    plugins = registry().plugins
    try:
        for case, decision in zip(cases, before, strict=True):
            progress(str(case))
            if keep:
                outcome.faults += _search(case, decision, backends, note)
            rows = list(bench.measure([case], backends=backends, repeats=repeats))
            outcome.rows += rows
            seconds = {
                row.implementation: row.median
                for row in rows
                if row.is_backend and row.status != "cannot run"
            }
            version = measured.versions(plugins, case.cell)
            current = measured.remember(decision.request, seconds, version, keep=keep)
            if keep:
                outcome.path = current.path
                outcome.stored += any(seconds[name] for name in seconds.keys() & version)
        clear_decisions()
        after = [decide(request) for request in requests]
        for case, old, new in zip(cases, before, after, strict=True):
            outcome.choices.append(Choice(case, old.backend, new.backend))
            for name in _missing(new, measured.competitors(new.candidates, plugins, case.cell)):
                outcome.missing[name] = outcome.missing.get(name, 0) + 1
    finally:
        clear_decisions()
        if not keep:
            measured.reset()
    if keep:
        chosen = {choice.case: choice.after for choice in outcome.choices}
        for row in outcome.rows:
            row.auto = row.implementation == chosen[row.case]
    return outcome


def _search(
    case: Case,
    decision: Decision,
    backends: Sequence[str] | None,
    note: Callable[[str], None],
) -> list[str]:
    """Have the backends that can run a case look for their own best configurations."""
    faults = []
    for candidate in decision.candidates:
        if candidate.cost is None or (backends is not None and candidate.name not in backends):
            continue
        try:
            registry().backends[candidate.name].tune(decision.request, note)
        except Exception as error:  # it is timed as it is
            faults.append(f"{candidate.name} failed to tune itself on {case}: {describe(error)}")
    return faults


def _missing(decision: Decision, competitors: dict[str, str]) -> list[str]:
    """For want of which backends' timings the estimates go on to count."""
    request = decision.request
    if measured.lookup(request, competitors):
        return []
    own = measured.timings(request)
    return [n for n, version in competitors.items() if n not in own or own[n].version != version]
