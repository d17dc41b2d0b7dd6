"""From a `Request` to a `Decision`: which backend runs a call, and why.

In this order: the `backend` argument, the innermost `use_backend` context, the environment
variable FASTRNN_BACKEND, a plugin's policy hook, the lowest estimated cost. The first three name
backends, and a named backend that cannot run the request is an error that lists every reason;
only `auto` may choose. Where `fastrnn tune` has measured all that can run a request on this
machine, policy and cost go by what it measured.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fastrnn import measured
from fastrnn.backend import LayerBackend, StackBackend
from fastrnn.cell import BUILTIN, cell_of
from fastrnn.discovery import describe
from fastrnn.plugins import registry, renew
from fastrnn.request import Candidate, Cost, Decision, Request, describe_candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastrnn.backend import Backend

ENVIRONMENT_VARIABLE = "FASTRNN_BACKEND"
AUTO = "auto"

_log = logging.getLogger("fastrnn")
_CACHE_LIMIT = 4096  # distinct requests; lengths vary, so it must be bounded
_cache: dict[tuple[int, Request, str, str | None, bool], Decision] = {}
_environment: list[str | None] = []


class _Overrides(threading.local):
    """The names given by `use_backend`, innermost last; a thread has its own.

    A thread-local rather than a ContextVar: torch.compile traces and guards the former and
    breaks the graph at the latter.
    """

    def __init__(self) -> None:
        self.names: list[str] = []


_overrides = _Overrides()


class BackendError(ValueError):
    """A backend that was asked for by name is unknown or cannot run the request."""


def parse_names(names: str) -> tuple[str, ...]:
    """Split a comma-separated preference such as `triton,auto` and check every name.

    Raises:
        TypeError: `names` is not a string.
        BackendError: a name is unknown; the message lists the known ones with what each is.
    """
    if not isinstance(names, str):
        raise TypeError(f"backend should be of type str, got: {type(names).__name__}")
    parts = tuple(part.strip() for part in names.split(","))
    known = registry().backends
    unknown = [part for part in parts if part != AUTO and part not in known]
    if unknown:
        lines = [f"  - {name}: {backend.summary}" for name, backend in known.items()]
        raise BackendError(
            f"unknown backend {unknown[0]!r}; expected {AUTO!r} or, in order of preference and "
            "separated by commas, any of\n" + "\n".join(lines)
        )
    return parts


@contextmanager
def use_backend(names: str) -> Iterator[None]:
    """Within this context (and this thread), calls with `backend="auto"` use `names`.

    Args:
        names: a backend's name, several separated by commas in order of preference, or `auto`.

    Raises:
        BackendError: a name is unknown (here, not at the first call).
    """
    parse_names(names)
    _overrides.names.append(names)
    try:
        yield
    finally:
        _overrides.names.pop()


def current_override() -> str | None:
    """What the innermost `use_backend` of this thread names; None outside any."""
    return _overrides.names[-1] if _overrides.names else None


def environment_backend() -> str | None:
    """FASTRNN_BACKEND as it was at the first decision of this process; None if unset."""
    if not _environment:
        _environment.append(os.environ.get(ENVIRONMENT_VARIABLE) or None)
    return _environment[0]


def decide(request: Request, backend: str = AUTO, *, here: bool = True) -> Decision:
    """Choose a backend for `request`; cached.

    A function of its arguments, the overrides, and what was measured on this machine.

    Args:
        request: what the call asks for.
        backend: `auto`, a name, or names separated by commas in order of preference. An `auto`
            after a name leaves the choice to policy and cost.
        here: whether the call is for this machine; if not, what this machine lacks does not count.

    Raises:
        BackendError: a named backend is unknown or none of the named ones can run `request`,
            or no backend at all can. The message holds every backend's reasons.
    """
    context = current_override()
    key = (registry().generation, request, backend, context, here)
    decision = _cache.get(key)
    if decision is None:
        decision = decide_anew(request, backend, context, here)
        if len(_cache) >= _CACHE_LIMIT:
            _cache.clear()
        _cache[key] = decision
        _log.debug("%s", decision)
    return decision


def clear_decisions() -> None:
    """Forget all decisions, so that they are taken anew from what is known by now."""
    _cache.clear()
    renew()


def clear_cache() -> None:
    """Forget all decisions, the environment's word and what was measured; for tests."""
    clear_decisions()
    _environment.clear()
    measured.reset()


def decide_anew(
    request: Request, argument: str, context: str | None, here: bool = True
) -> Decision:
    """`decide`, not cached, with the override of `use_backend` as an argument."""
    decision = _choose(request, argument, context, here)
    backend = registry().backends[decision.backend]
    return replace(
        decision,
        layers_at_once=_layers_at_once(backend, request),
        whole=_takes_whole(backend, request),
    )


def _takes_whole(backend: Backend, request: Request) -> bool:
    if isinstance(backend, LayerBackend) and (request.recompute or request.all_states):
        return False  # no stack's `run` does these
    return isinstance(backend, StackBackend) and backend.takes(request)


def _layers_at_once(backend: Backend, request: Request) -> int:
    """What the backend says; see `LayerBackend.layers_at_once`."""
    if not isinstance(backend, LayerBackend) or not request.stacks_plainly:
        return 1
    answer: object = backend.layers_at_once(request)
    if not isinstance(answer, int) or not 1 <= answer <= request.num_layers:
        raise BackendError(
            f"backend {backend.name!r}: layers_at_once is {answer!r}, "
            f"expected 1 to {request.num_layers}"
        )
    return answer


def _choose(request: Request, argument: str, context: str | None, here: bool) -> Decision:
    rules = (
        ("argument", argument),
        ("use_backend context", context),
        (f"environment variable {ENVIRONMENT_VARIABLE}", environment_backend()),
    )
    backends = registry().backends.values()
    candidates = tuple(_ask(backend, request, here) for backend in backends)
    if here:
        candidates = _with_measurements(request, candidates)
    able = {c.name: c for c in candidates if c.cost is not None}
    for rule, names in rules:
        if names is None or names == AUTO:
            continue
        for name in _parse(names, rule):
            if name == AUTO:
                break
            if name in able:
                return Decision(request, name, rule, candidates)
        else:
            raise _refusal(f"backend {names!r} (from {rule}) cannot run", request, candidates)
        break  # `auto` within the names: leave it to policy and cost
    if not able:
        raise _refusal("no backend can run", request, candidates)
    chosen = registry().policy(request, tuple(able.values()))
    if chosen is not None:
        return Decision(request, chosen[0], f"policy of plugin {chosen[1]}", candidates)
    cheapest = min(able.values(), key=lambda c: c.cost.seconds if c.cost else math.inf)
    return Decision(request, cheapest.name, "lowest estimated cost", candidates)


def _parse(names: str, rule: str) -> tuple[str, ...]:
    try:
        return parse_names(names)
    except BackendError as error:
        raise BackendError(f"from {rule}: {error}") from None


def _ask(backend: Backend, request: Request, here: bool) -> Candidate:
    """A backend's answers. One that raises, or answers nonsense, cannot run and that is why."""
    try:
        reasons = checked_reasons(backend.unavailable()) if here else ()
        if request.cell not in BUILTIN and not backend.runs_cell(cell_of(request.cell)):
            unknown = f"the cell {request.cell} is a plugin's, and not among those that it runs"
            return Candidate(backend.name, (*reasons, unknown), None)
        reasons += checked_reasons(backend.can_run(request))
        if request.recompute and request.needs_grad and not backend.recomputes:
            reasons += ("recompute was asked for; it keeps what every step needs",)
        reasons = reasons or _unheeded(backend, request)
        return Candidate(
            backend.name, reasons, None if reasons else _checked_cost(backend, request)
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a third party's bug, or sys.exit, must not stop the others
        return Candidate(backend.name, (f"it raised {describe(error)}",), None)


def _unheeded(backend: Backend, request: Request) -> tuple[str, ...]:
    """What a backend would ignore in silence, were it older than that part of a request."""
    reasons: tuple[str, ...] = ()
    whole = _takes_whole(backend, request)
    if request.padded and whole and "lengths" not in backend.options:
        reasons += ("lengths of padded rows were given; it takes whole stacks, packed",)
    unknown = [name for name in request.options if name not in backend.options]
    if unknown:
        reasons += (f"{', '.join(unknown)} asked for; not among the options that it heeds",)
    if request.transformed and whole:
        reasons += ("vmap and forward-mode derivatives need single layers; it takes whole stacks",)
    return reasons


def _with_measurements(
    request: Request, candidates: tuple[Candidate, ...]
) -> tuple[Candidate, ...]:
    """The candidates with measured costs in place of their estimates: all of them, or none."""
    current = registry()
    able = measured.competitors(candidates, current.plugins, request.cell)
    costs = measured.lookup(request, able)

    def cost_of(candidate: Candidate) -> Cost | None:
        known, estimate = costs.get(candidate.name), candidate.cost
        if known is None or estimate is None:
            return estimate
        # Calls were measured, not graphs. A layer is one operator in a graph too, but a stack
        # backend is traced into it; what it charges for that, no measurement takes away.
        traced = request.compiling and _takes_whole(current.backends[candidate.name], request)
        return max(known, estimate, key=lambda cost: cost.seconds) if traced else known

    return tuple(replace(candidate, cost=cost_of(candidate)) for candidate in candidates)


def checked_reasons(reasons: object) -> tuple[str, ...]:
    """What `unavailable` or `can_run` answered.

    Raises:
        TypeError: it is no list of non-empty strings.
    """
    if isinstance(reasons, list | tuple) and all(isinstance(r, str) and r for r in reasons):
        return tuple(reasons)
    raise TypeError(f"its reasons are {reasons!r}, expected a list of non-empty strings")


def _checked_cost(backend: Backend, request: Request) -> Cost:
    cost = backend.cost(request)
    if isinstance(cost, Cost) and isinstance(cost.seconds, float | int) and cost.seconds >= 0:
        return cost
    raise TypeError(f"its cost is {cost!r}, expected a Cost with seconds of at least 0")


def _refusal(what: str, request: Request, candidates: tuple[Candidate, ...]) -> BackendError:
    lines = describe_candidates(candidates)
    text = [f"{what} this request", f"request: {request.describe()}", *lines]
    return BackendError("\n".join(text))
