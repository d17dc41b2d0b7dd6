"""Honest answers: it runs what it says it can, and says why where it cannot."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.backend import LayerBackend, StackBackend
from fastrnn.dispatch import BackendError, decide
from fastrnn.request import OPTIONS, Cost, Request
from fastrnn.testing.cases import CELLS, DTYPES, Case, run_case, spec
from fastrnn.testing.checks_parity import mixtures
from fastrnn.testing.subjects import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTILE: tuple[dict[str, Any], ...] = (
    {"compiling": True, "seq_len": None, "batch": None},
    {"compiling": True, "seq_len": None, "batch": None, "threads": 0, "needs_grad": False},
    {"device": "meta", "threads": 0},
    {"device": "xpu", "threads": 0},
    {"device": "mps", "threads": 0},
    *({"device": "cuda", "threads": 0, "arch": arch, "precision": precision}
      for arch in ("sm_30", "sm_75", "sm_90", "sm_120", "gfx906", "gfx942", "")
      for precision in ("ieee", "tf32", "tf32x3")),
    *({"dtype": dtype}
      for dtype in (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)),
    {"batch": 2**20, "seq_len": 2**20, "hidden_size": 2**16, "input_size": 2**16},
    {"batch": 0},
    {"hidden_size": 1, "input_size": 1, "batch": 1, "seq_len": 1},
    {"num_layers": 50, "dropout": 0.5},
    {"transformed": True},
    {"frozen": True},
    {"recompute": 1000},
    {"varlen": True, "padded": True, "compiling": True, "seq_len": None, "batch": None},
    dict.fromkeys(OPTIONS, True),
)  # fmt: skip
"""Fields of requests that hardly anybody makes; no backend may stumble over them."""


def _cases() -> Iterator[Case]:
    for cell, dtype in itertools.product(CELLS, DTYPES):
        yield Case(spec(cell), dtype=dtype)
        yield Case(spec(cell), dtype=dtype, needs_grad=False, training=False)
        both = spec(cell, 33, num_layers=2, bidirectional=True)
        yield Case(both, 2, 2, dtype=dtype, lengths=True)
        yield Case(both, 2, 2, dtype=dtype, form="packed")
        yield Case(spec(cell, 70), 1, 1, dtype=dtype)
        yield Case(spec(cell, 2, num_layers=4), 2, 33, dtype=dtype)
    yield from mixtures().values()


CASES = tuple(_cases())


def _requests(subject: Subject) -> Iterator[Request]:
    yield from (subject.request(case) for case in CASES)
    for cell, needs_grad in itertools.product(CELLS, (False, True)):
        request = subject.request(Case(spec(cell), needs_grad=needs_grad))
        yield from (request._replace(**fields) for fields in HOSTILE)


def _something(subject: Subject) -> None:
    """There is something that it can run."""
    found = [subject.reasons(case) for case in CASES]
    if all(found):
        common = [reason for reason in found[0] if all(reason in reasons for reasons in found)]
        raise AssertionError(
            f"it claims none of the {len(CASES)} cases on {subject.device}: "
            + "; ".join(common or found[0])
        )


def _runs_what_it_claims(subject: Subject) -> None:
    """Every call that it accepts, however odd; whether the numbers are right is asked elsewhere."""
    claimed = [case for case in CASES if not subject.reasons(case)]
    for case in claimed:
        dtype = case.dtype or subject.dtype
        try:
            run_case(case, subject.problem(case), subject.name, dtype)
        except Exception as error:
            raise AssertionError(
                f"it said that it can run {subject.request(case).describe()}, and raised "
                f"{type(error).__name__}: {error}"
            ) from error


def _checked(reasons: object, request: Request | None = None) -> list[str]:
    about = "" if request is None else f" for {request.describe()}"
    good = isinstance(reasons, list | tuple) and all(isinstance(r, str) and r for r in reasons)
    assert good, f"reasons are {reasons!r}, expected a list of non-empty strings{about}"
    assert isinstance(reasons, list | tuple)
    return list(reasons)


def _asked(subject: Subject, request: Request) -> list[str]:
    try:
        return _checked(subject.backend.can_run(request), request)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"can_run raised {type(error).__name__}: {error}, for {request.describe()}"
        ) from error


def _reasons(subject: Subject) -> None:
    """`can_run` never raises, gives non-empty strings in a list, and the same when asked twice."""
    for request in _requests(subject):
        first, second = _asked(subject, request), _asked(subject, request)
        assert first == second, (
            f"can_run said {first} and then {second}, expected a function of the request alone: "
            f"{request.describe()}"
        )


def _unavailable(subject: Subject) -> None:
    """`unavailable` is a list of strings, and does not raise."""
    assert _checked(subject.backend.unavailable()) == _checked(subject.backend.unavailable())


def _refusals(subject: Subject) -> None:
    """Asked for by name, what it refuses raises `BackendError` with its reasons."""
    for request in _requests(subject):
        reasons = _asked(subject, request)
        if not reasons:
            continue
        error = _named(subject, request)
        assert error is not None, f"it refused, and runs all the same: {request.describe()}"
        missing = [reason for reason in reasons if reason not in str(error)]
        assert not missing, f"{missing} is not in the error: {error}"


def _named(subject: Subject, request: Request) -> BackendError | None:
    try:
        decide(request, subject.name)
    except BackendError as error:
        return error
    return None


def _costs(subject: Subject) -> None:
    """An estimate of what it accepts: seconds of at least 0, infinity too, and in words why."""
    for request in _requests(subject):
        if _asked(subject, request):
            continue
        try:
            cost: object = subject.backend.cost(request)
        except Exception as error:
            raise AssertionError(
                f"cost raised {type(error).__name__}: {error}, for {request.describe()}"
            ) from error
        good = (
            isinstance(cost, Cost)
            and isinstance(cost.seconds, float | int)
            and not math.isnan(cost.seconds)
            and cost.seconds >= 0
            and isinstance(cost.why, str)
            and bool(cost.why)
        )
        assert good, f"cost is {cost!r}, expected a Cost with a why, for {request.describe()}"


def _layers_at_once(subject: Subject) -> None:
    """From 1 to the number of layers."""
    backend = subject.layers()
    assert isinstance(backend, LayerBackend)
    for cell, layers in itertools.product(CELLS, (2, 3, 8)):
        request = subject.request(Case(spec(cell, num_layers=layers)))
        compiling = request._replace(compiling=True, seq_len=None, batch=None)
        for each in (request, compiling):
            if not subject.reasons(each):
                answer: object = backend.layers_at_once(each)
                good = isinstance(answer, int) and 1 <= answer <= layers
                assert good, f"layers_at_once is {answer!r}, expected 1 to {layers}"


def _options(subject: Subject) -> None:
    """`options` names what there is, and what it names `can_run` accepts somewhere."""
    known = subject.backend.options
    asked: dict[str, dict[str, Any]] = {name: {name: True} for name in OPTIONS}
    if isinstance(subject.backend, StackBackend):
        asked["lengths"] = {"padded": True, "varlen": True}
    unknown = [name for name in known if name not in asked]
    assert not unknown, f"options: got {unknown}, expected some of {', '.join(asked)}"
    requests = [subject.request(Case(spec(cell))) for cell in CELLS]
    able = [request for request in requests if not subject.reasons(request)]
    for name in known if able else ():
        changed = [request._replace(**asked[name]) for request in able]
        assert any(not subject.reasons(request) for request in changed), (
            f"options: {name} is among them, and no cell can be run with it"
        )


CHECKS: dict[str, Callable[[Subject], None]] = {
    "claims-something": _something,
    "runs-what-it-claims": _runs_what_it_claims,
    "reasons-are-strings-in-a-list": _reasons,
    "unavailable-is-a-list": _unavailable,
    "refuses-when-named": _refusals,
    "cost-has-a-why": _costs,
    "layers_at_once": _layers_at_once,
    "options-exist": _options,
}
