"""The loader of backends and cells: built-ins first, then third parties one by one, in isolation.

pluggy's own entry-point loader lets one broken plugin stop the host and lets a name clash replace
a built-in silently. Here a plugin that fails in any way is left out, reported once as a
`PluginWarning` and kept on record for `fastrnn plugins`; nothing can replace what is there.

Third parties are loaded in the order of their distribution's normalised name, then of the entry
point's name; of two that claim one name, the first in that order has it.
"""

from __future__ import annotations

import itertools
import logging
import reprlib
import threading
import time
import warnings
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import pluggy

from fastrnn import hookspecs
from fastrnn.backend import Backend
from fastrnn.cell import BUILTIN, Cell
from fastrnn.discovery import (
    BUILTINS,
    DISABLE_VARIABLE,
    Brought,
    Entry,
    PluginRecord,
    as_problem,
    builtin_entries,
    checked_backend,
    checked_cell,
    describe,
    disabled_names,
    one_line,
    reason,
    returned,
    third_party_entries,
    too_slow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fastrnn.request import Candidate, Request

__all__ = ["PluginRecord", "PluginWarning", "Registry", "register", "registry", "unregister"]

_HOOKS = "the hooks are " + ", ".join(n for n in vars(hookspecs) if n.startswith("fastrnn_"))
_log = logging.getLogger("fastrnn")
_Named = TypeVar("_Named", Backend, Cell)


class PluginWarning(UserWarning):
    """A plugin, or one of its backends, was left out; the text says whose, why and what to do."""


class Registry:
    """The backends, cells and plugins in use. Get it from `registry()`.

    Attributes:
        backends: by name, in the order of registration, built-ins first. Replaced as a whole
            when a plugin comes or goes, so that a reader sees one state or the other.
        cells: likewise; those that every backend knows first.
        plugins: what became of every plugin found.
        generation: changes whenever plugins do and is never used again in this process, so that
            whatever was derived from the backends can be keyed on it.
    """

    backends: Mapping[str, Backend]
    cells: Mapping[str, Cell]
    plugins: tuple[PluginRecord, ...]
    generation: int

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._reported: set[tuple[str, str]] = set()
        self._change((), Brought({}, BUILTIN))

    def policy(
        self, request: Request, able_candidates: tuple[Candidate, ...]
    ) -> tuple[str, str] | None:
        """Ask the plugins' `fastrnn_choose_backend` hooks in turn; the first name given counts.

        They are asked in pluggy's order: those marked `tryfirst`, then the last registered first.
        One that raises or names what cannot run the request is reported once and passed over.

        Returns:
            The backend's name and the plugin's, or None if no plugin has a preference.
        """
        arguments = {"request": request, "candidates": able_candidates}
        names = [candidate.name for candidate in able_candidates]
        for impl in reversed(self._manager.hook.fastrnn_choose_backend.get_hookimpls()):
            try:
                answer = impl.function(*(arguments[name] for name in impl.argnames))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._report_policy(impl.plugin_name, "raised", describe(error))
                continue
            if isinstance(answer, str) and answer in names:
                return answer, impl.plugin_name
            if answer is not None:
                what = f"{reprlib.repr(answer)}, expected None or one of {', '.join(names)}"
                self._report_policy(impl.plugin_name, "returned", what)
        return None

    def _report_policy(self, plugin: str, verb: str, what: str) -> None:
        loaded = (r for r in self.plugins if r.name == plugin and r.state == "loaded")
        record = next(loaded, PluginRecord(plugin, "", ""))
        text = f"its choice is ignored, because fastrnn_choose_backend {verb} {what}"
        self.report(record, text, key=verb)

    def answers(self, hook: str) -> Iterator[tuple[PluginRecord, list[object], list[Exception]]]:
        """Ask every plugin that has a hook: who it is, what it returned, and what went wrong."""
        for record in self.plugins:
            if record.state == "loaded" and hook in record.hooks:
                problems: list[Exception] = []
                plugin = self._manager.get_plugin(record.name)
                yield record, self._returned(hook, plugin, problems), problems

    def report(self, record: PluginRecord, text: str, *, key: str = "") -> None:
        """Warn of a plugin, once a process.

        Args:
            record: whose fault it is.
            text: what is not used, and why; one line.
            key: what must be the same for a second report to be the same; `text` if empty.
        """
        with _lock:
            if (record.name, key or text) in self._reported:
                return
            self._reported.add((record.name, key or text))
        warnings.warn(f"{record}: {text}. {record.advice()}", PluginWarning, stacklevel=3)

    def _load(self, entry: Entry, disabled: frozenset[str]) -> list[str]:
        """Load one built-in or entry point and return its problems, as texts for warnings."""
        record = entry.record
        builtin = entry.point is None
        if record.name in disabled and (builtin or record.name not in BUILTINS):
            return self._skip(record)
        owner = None if builtin else self._owner(record.name)
        problems: list[Exception] = []
        begin = time.monotonic()
        if owner is not None:
            problems.append(ValueError(f"the name is taken by {owner}"))
        elif "all" in disabled and not builtin:
            return self._skip(record)
        else:
            try:
                plugin = entry.load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                _log.debug("%s", record, exc_info=True)
                problems.append(ImportError(f"its import raised {describe(error)}"))
        brought = Brought({}, {})
        if problems:
            record = replace(record, state="failed", reason=reason(problems))
        else:
            record, brought, problems = self._admit(plugin, record)
        done = "was not loaded" if record.state == "failed" else "was loaded in part"
        late = [] if builtin else too_slow(time.monotonic() - begin)
        if late and not problems:
            done, problems = "was loaded late", late
            record = replace(record, reason=reason(late))
        self._change((*self.plugins, record), self._brought.plus(brought))
        # disabling a name that belongs to another plugin would disable that one too
        advice = record.advice(can_disable=owner is None)
        return [f"{record} {done}: {problem}. {advice}" for problem in problems]

    def _skip(self, record: PluginRecord) -> list[str]:
        why = f"disabled by {DISABLE_VARIABLE}"
        skipped = replace(record, state="disabled", reason=why)
        self._change((*self.plugins, skipped), self._brought)
        return []

    def _owner(self, name: str) -> PluginRecord | None:
        """Who has a plugin name: a built-in whatever became of it, or a plugin that is loaded."""
        for record in self.plugins:
            if record.name == name and (record.state == "loaded" or name in BUILTINS):
                return record
        return None

    def _admit(
        self, plugin: object, record: PluginRecord
    ) -> tuple[PluginRecord, Brought, list[Exception]]:
        """Register `plugin` with pluggy and take from it what is in order; raise nothing.

        Returns:
            The record, what is good of what it brings, and everything that is wrong. If something
            is wrong and nothing good, the plugin has failed and is not registered.
        """
        problems: list[Exception] = []
        backends: dict[str, Backend] = {}
        cells: dict[str, Cell] = {}
        try:
            hooks = self._register_hooks(plugin, record.name)
            record = replace(record, hooks=hooks)
            backends = self._good("backend", plugin, checked_backend, self.backends, problems)
            cells = self._good("cell", plugin, checked_cell, self.cells, problems)
        except KeyboardInterrupt:
            self._drop(plugin, record.name)
            raise
        except BaseException as error:
            problems.append(as_problem(error))
        record = replace(
            record, backends=tuple(backends), cells=tuple(cells), reason=reason(problems)
        )
        if problems and not (backends or cells):
            self._drop(plugin, record.name)
            record = replace(record, state="failed")
        return record, Brought(backends, cells), problems

    def _good(
        self,
        kind: str,
        plugin: object,
        checked: Callable[[object], _Named],
        taken: Mapping[str, _Named],
        problems: list[Exception],
    ) -> dict[str, _Named]:
        """What the plugin's hook for things of a kind returns and is in order, by name."""
        good: dict[str, _Named] = {}
        for item in self._returned(f"fastrnn_{kind}s", plugin, problems):
            try:
                found = checked(item)
                if found.name in taken or found.name in good:
                    raise ValueError(f"the {kind} name {found.name!r} is taken")
                good[found.name] = found
            except Exception as error:
                problems.append(as_problem(error))
        return good

    def _drop(self, plugin: object, name: str) -> None:
        # a plugin whose validation fails is left registered by some versions of pluggy; one that
        # is known by another name stays
        if self._manager.get_name(plugin) == name:
            self._manager.unregister(plugin)

    def _register_hooks(self, plugin: object, name: str) -> tuple[str, ...]:
        known = self._manager.get_name(plugin)
        if known is not None:
            raise ValueError(f"it is registered already, as plugin {known!r}")
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise ValueError(f"{one_line(error)}; {_HOOKS}") from error
        callers = self._manager.get_hookcallers(plugin)
        if not callers:
            raise TypeError(
                f"it implements no hook; decorate its functions with @fastrnn.hookimpl ({_HOOKS})"
            )
        for impl in itertools.chain.from_iterable(caller.get_hookimpls() for caller in callers):
            if impl.plugin is plugin and (impl.wrapper or impl.hookwrapper):
                raise TypeError(f"{impl.function.__name__} is a hook wrapper; fastrnn takes none")
        return tuple(sorted(caller.name for caller in callers))

    def _returned(self, hook: str, plugin: object, problems: list[Exception]) -> list[object]:
        """What the plugin's hook returns, or yields before it raises."""
        impls = getattr(self._manager.hook, hook).get_hookimpls()
        own = (impl.function for impl in impls if impl.plugin is plugin)
        return [item for function in own for item in returned(hook, function, problems)]

    def _register(self, plugin: object, name: str) -> None:
        if name in BUILTINS or self._owner(name) is not None:
            raise ValueError(f"name: the plugin name {name!r} is taken")
        record, brought, problems = self._admit(plugin, PluginRecord(name, "", ""))
        if problems:
            if record.state == "loaded":
                self._manager.unregister(plugin)
            raise type(problems[0])(f"{record}: {reason(problems)}") from problems[0]
        self._change((*self.plugins, record), self._brought.plus(brought))

    def _unregister(self, name: str) -> None:
        if name in BUILTINS:
            raise ValueError(f"name: {name!r} is built in; {DISABLE_VARIABLE} can disable it")
        record = self._owner(name)
        if record is None:
            loaded = {r.name for r in self.plugins if r.state == "loaded"} - BUILTINS.keys()
            known = ", ".join(sorted(loaded)) or "none"
            raise ValueError(f"name: no plugin {name!r} is loaded; third parties loaded: {known}")
        self._manager.unregister(name=name)
        others = tuple(r for r in self.plugins if r is not record)
        self._change(others, self._brought.without(record))

    def _change(self, plugins: tuple[PluginRecord, ...], brought: Brought) -> None:
        self.plugins = plugins
        self._brought = brought
        self.backends = MappingProxyType(dict(brought.backends))
        self.cells = MappingProxyType(dict(brought.cells))
        self.generation = next(_generations)


_lock = threading.RLock()
_generations = itertools.count()
_registry: Registry | None = None
_building = False


def registry() -> Registry:
    """The registry of this process; the first call loads all plugins and reports what failed.

    Raises:
        RuntimeError: a plugin asked for it while it was being loaded itself.
    """
    if _registry is not None:
        return _registry
    return _first_registry()


def renew() -> None:
    """Give the registry, if there is one, another generation: what was decided by it is stale."""
    if _registry is not None:
        _registry.generation = next(_generations)


def register(plugin: object, name: str | None = None) -> None:
    """Register a plugin from Python, without an entry point.

    Nothing is registered if anything is wrong with it. FASTRNN_DISABLE_PLUGINS is not asked.

    Args:
        plugin: a module or an object whose functions are decorated with `fastrnn.hookimpl`.
        name: its name in errors and listings, and for `unregister`; the module's or the type's
            name if None.

    Raises:
        TypeError: `plugin` implements no hook, or brings what is not a backend.
        ValueError: a name is taken or not allowed, a hook is unknown, has a wrong signature or
            raises, or a backend was built for another contract.
    """
    if name is None:
        name = getattr(plugin, "__name__", type(plugin).__name__)
    if not isinstance(name, str):
        raise TypeError(f"name should be of type str, got: {type(name).__name__}")
    if isinstance(plugin, Backend):
        raise TypeError(
            "plugin should be a module or an object with hooks, got an instance of the backend "
            f"{type(plugin).__name__}; return it from a function fastrnn_backends that is "
            "decorated with @fastrnn.hookimpl"
        )
    current = registry()
    with _lock:
        current._register(plugin, name)


def unregister(name: str) -> None:
    """Remove a plugin that is not built in, and its backends.

    Args:
        name: the plugin's name, not its backend's.

    Raises:
        ValueError: no such plugin is loaded, or it is built in.
    """
    current = registry()
    with _lock:
        current._unregister(name)


def reset() -> None:
    """Forget all plugins; the next `registry()` loads, and reports, anew. For tests."""
    global _registry
    with _lock:
        _registry = None


def _first_registry() -> Registry:
    global _registry, _building
    with _lock:
        if _registry is not None:
            return _registry
        if _building:
            raise RuntimeError(
                "fastrnn is loading its plugins; while a plugin is imported or lists its "
                "backends, it may not run fastrnn's layers or ask for the registry"
            )
        _building = True
        try:
            built, problems = _build()
        finally:
            _building = False
        _registry = built
    # After it is in place: under `-W error` the first of these raises, and must do so only once.
    for problem in problems:
        warnings.warn(problem, PluginWarning, stacklevel=3)
    return built


def _build() -> tuple[Registry, list[str]]:
    disabled, problems = disabled_names()
    built = Registry()
    entries, unreadable = third_party_entries()
    for entry in builtin_entries() + entries:
        problems += built._load(entry, disabled)
    return built, problems + unreadable
