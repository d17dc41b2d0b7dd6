"""Which plugins there are, and what a backend must be to be taken.

The plugins are the built-ins and the entry points of installed distributions. Nothing here imports
one; `fastrnn.plugins` does.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal, NamedTuple

from fastrnn._version import __version__
from fastrnn.backend import CONTRACT_VERSION, Backend, LayerBackend, StackBackend
from fastrnn.cell import Cell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GROUP = "fastrnn"
"""The entry-point group; an entry point's name is the plugin's name."""
DISABLE_VARIABLE = "FASTRNN_DISABLE_PLUGINS"
"""Names of plugins that are not to be loaded, separated by commas; `all` for all third parties."""
BUILTINS = {
    "reference": "fastrnn_reference",
    "aten": "fastrnn_aten",
    "rows": "fastrnn_rows",
    "numba": "fastrnn_numba",
    "triton": "fastrnn_triton",
    "cells": "fastrnn_cells",
}
"""Reserved plugin names and the modules behind them. Imported directly, because entry points are
not found in a checkout that is not installed."""
SLOW_SECONDS = 0.5
"""A plugin that takes longer to be imported and to list what it brings is reported."""
_BACKEND_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_OWN_DISTRIBUTION = "fastrnn"
_log = logging.getLogger("fastrnn")


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What became of one plugin."""

    name: str
    distribution: str
    """Empty for a plugin registered from Python."""
    version: str
    hooks: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    """Names of the backends it brought and that are in use."""
    cells: tuple[str, ...] = ()
    """Names of the cells likewise."""
    state: Literal["loaded", "disabled", "failed"] = "loaded"
    reason: str = ""
    """Why it, or a part of it, is not in use."""

    def __str__(self) -> str:
        """The plugin and where it comes from, as errors and warnings name it."""
        origin = f"of {self.distribution} {self.version}" if self.distribution else "(from Python)"
        return f"plugin {self.name!r} {origin}"

    def advice(self, can_disable: bool = True) -> str:
        """What a user can do if it fails; `can_disable` unless its name belongs to another."""
        if not self.distribution:
            return f"Correct it, or call fastrnn.unregister({self.name!r})."
        if self.distribution == _OWN_DISTRIBUTION:
            return "Reinstall fastrnn."
        advice = f"Update or remove {self.distribution}"
        return f"{advice}, or set {DISABLE_VARIABLE}={self.name}." if can_disable else f"{advice}."


class Brought(NamedTuple):
    """What plugins bring, by name, in the order of registration."""

    backends: Mapping[str, Backend]
    cells: Mapping[str, Cell]

    def plus(self, other: Brought) -> Brought:
        """With what another plugin brings."""
        return Brought({**self.backends, **other.backends}, {**self.cells, **other.cells})

    def without(self, record: PluginRecord) -> Brought:
        """Less what one plugin brought."""
        return Brought(
            {name: each for name, each in self.backends.items() if name not in record.backends},
            {name: each for name, each in self.cells.items() if name not in record.cells},
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A plugin that has not been imported; `point` is None for a built-in."""

    record: PluginRecord
    point: metadata.EntryPoint | None = None

    def load(self) -> object:
        """Import it."""
        if self.point is None:
            return importlib.import_module(BUILTINS[self.record.name])
        return self.point.load()


def builtin_entries() -> list[Entry]:
    """The built-ins, in the order in which they are registered."""
    return [Entry(PluginRecord(name, _OWN_DISTRIBUTION, __version__)) for name in BUILTINS]


def third_party_entries() -> tuple[list[Entry], list[str]]:
    """The entry points of other distributions, and what is wrong with distributions' metadata.

    Sorted by the distribution's normalised name, then by the entry point's. Distributions are
    read one by one: `importlib.metadata.entry_points` raises if the metadata of any is malformed.
    """
    entries: dict[tuple[str, str], Entry] = {}
    problems = []
    for distribution in metadata.distributions():
        try:
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            points = distribution.entry_points.select(group=GROUP)
            name, version = str(distribution.name), str(distribution.version)
        except Exception as error:
            where = getattr(distribution, "_path", distribution)
            problems.append(
                f"the entry points in {where} cannot be read: {describe(error)}. Reinstall or "
                "remove that distribution."
            )
            continue
        normalised = re.sub(r"[-_.]+", "-", name).lower()
        if normalised == _OWN_DISTRIBUTION:  # declares the built-ins, for other tools to see
            continue
        for point in points:
            # an earlier directory on sys.path hides a later one, as it hides its modules
            entry = Entry(PluginRecord(point.name, name, version), point)
            entries.setdefault((normalised, point.name), entry)
    return [entries[key] for key in sorted(entries)], problems


def checked_backend(found: object) -> Backend:
    """`found`, if it is a backend that this fastrnn can use.

    Raises:
        TypeError: it is not an instance of one of the levels of the contract, or has a summary that
            is no string.
        ValueError: its name is not allowed, or it was built for another contract.
    """
    if not isinstance(found, StackBackend | LayerBackend):
        what = reprlib.repr(found)
        if isinstance(found, type):
            what = f"the class {found.__name__}"
        raise TypeError(
            f"fastrnn_backends returned {what}, expected instances of "
            "StackBackend, LayerBackend or RecurrenceBackend"
        )
    name: object = getattr(found, "name", None)
    if not isinstance(name, str) or not _BACKEND_NAME.fullmatch(name) or name == "auto":
        raise ValueError(
            f"the backend name {name!r} is not allowed; expected lower-case letters, digits, _ "
            "and -, a letter first, and not 'auto'"
        )
    summary: object = found.summary
    if not isinstance(summary, str):
        raise TypeError(
            f"backend {name!r}: summary should be a string, got {reprlib.repr(summary)}"
        )
    contract = getattr(found, "contract", None)
    if contract != CONTRACT_VERSION:
        own = "does not say its contract"
        if contract is not None:
            own = f"was built for contract {contract!r}"
        raise ValueError(
            f"backend {name!r} {own}, and this fastrnn ({__version__}) has contract "
            f"{CONTRACT_VERSION}"
        )
    return found


def checked_cell(found: object) -> Cell:
    """`found`, if it is a cell.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(found, Cell):
        raise TypeError(f"fastrnn_cells returned {reprlib.repr(found)}, expected instances of Cell")
    return found


def returned(hook: str, function: Callable[[], object], problems: list[Exception]) -> list[object]:
    """What one plugin's implementation of a hook returns, or yields before it raises.

    Args:
        hook: the hook's name.
        function: the implementation.
        problems: what is wrong is added here.
    """
    found: list[object] = []
    try:
        items = function()
        if isinstance(items, str) or not isinstance(items, Iterable):
            what = reprlib.repr(items)
            problems.append(TypeError(f"{hook} returned {what}, expected a list"))
            return []
        for item in items:  # by hand, to keep what came before an exception
            found.append(item)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _log.debug("%s of %r", hook, function, exc_info=True)
        problems.append(ValueError(f"{hook} raised {describe(error)}"))
    return found


def as_problem(error: BaseException) -> Exception:
    """An exception whose text is for users."""
    return error if isinstance(error, TypeError | ValueError) else ValueError(describe(error))


def reason(problems: list[Exception]) -> str:
    """All that is wrong with a plugin, on one line."""
    return "; ".join(str(problem) for problem in problems)


def too_slow(seconds: float) -> list[Exception]:
    """What is wrong with a plugin that took so long to load; nothing, but beyond `SLOW_SECONDS`."""
    if seconds <= SLOW_SECONDS:
        return []
    return [ValueError(f"it took {seconds:.1f} s, for which the first use of fastrnn had to wait")]


def disabled_names() -> tuple[frozenset[str], list[str]]:
    """The plugins that FASTRNN_DISABLE_PLUGINS names, and what is wrong with it."""
    names = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")} - {""}
    if "reference" not in names:
        return frozenset(names), []
    problem = f"{DISABLE_VARIABLE} names 'reference', which cannot be disabled. Leave it out."
    return frozenset(names - {"reference"}), [problem]


def describe(error: BaseException) -> str:
    """An exception's type and text on one line."""
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: object) -> str:
    """`text` with its line breaks and indents made single spaces."""
    return " ".join(str(text).split())
