"""Every public name of fastrnn, read off the modules.

    python docs/public_names.py           # write public_names.md
    python docs/public_names.py --check   # say what differs, and exit with 1 if anything does

A name that is taken away, or a new one, changes the page: in a commit, one sees it.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar, get_origin

PAGE = Path(__file__).with_suffix(".md")
MODULES = {
    "for models": (
        "fastrnn",
        "fastrnn.functional",
        "fastrnn.init",
        "fastrnn.diagnostics",
    ),
    "for plugins": (
        "fastrnn.backend",
        "fastrnn.request",
        "fastrnn.cell",
        "fastrnn.roofline",
        "fastrnn.hookspecs",
        "fastrnn.benchmark",
        "fastrnn.testing",
        "fastrnn.testing.conformance",
    ),
}
BEFORE = """# Public names

What may be relied on: the names on this page, the command `fastrnn` with its options and JSON, the
environment variables in [README.md](../README.md), and the entry-point group `fastrnn`. While the
version is 0.x a release may change a name, and then its minor number and the changelog say so;
from 1.0 on, a major number. Anything else may change at any time.

What a plugin has to do is versioned apart from that, by `fastrnn.backend.CONTRACT_VERSION`: a
backend says which it was built for, and one that was built for another is left out with a message
that says which is which. Additions that old backends need not know about (an option, a hook, an
optional method, a field with a default) do not change it.

Written by `python docs/public_names.py`, from the modules; members are those of a class beyond what
Python or torch give it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the page")
    options = parser.parse_args(arguments)
    made = page()
    if not options.check:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    found = differences(made, PAGE.read_text(encoding="utf-8"))
    print("\n".join(found) or "the public names are as written")
    return 1 if found else 0


def page() -> str:
    """The whole page."""
    lines = [BEFORE]
    for heading, modules in MODULES.items():
        lines += [f"## {heading[:1].upper()}{heading[1:]}", ""]
        for module in map(importlib.import_module, modules):
            lines += [f"### `{module.__name__}`", "", first_line(module), ""]
            lines += ["| name | what it is | members |", "|---|---|---|"]
            lines += [row(module, name) for name in public(module)]
            lines += [""]
    return "\n".join(lines)


def public(module: ModuleType) -> list[str]:
    """A module's public names: its `__all__`, or else what it defines without an underscore."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [name for name in defined(module) if not is_of_types(getattr(module, name))]
    return sorted(listed)


def is_of_types(value: object) -> bool:
    """Whether it is there for annotations alone."""
    return isinstance(value, TypeVar) or get_origin(value) is not None


def defined(module: ModuleType) -> Iterator[str]:
    """What a module's own statements define; not what it imports."""
    for node in tree(module):
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def row(module: ModuleType, name: str) -> str:
    """A line of the table.

    Raises:
        ValueError: nothing says what it is.
    """
    value = getattr(module, name)
    told = of_assignment(module, name) or first_line(value)
    if not told:
        raise ValueError(f"{module.__name__}.{name} has no docstring")
    own = ", ".join(f"`{member}`" for member in members(value))
    return f"| `{name}` | {told} | {own} |".replace(" |  |", " | |")


def first_line(value: object) -> str:
    """The first sentence or line of a docstring."""
    text = (value.__doc__ or "") if callable(value) or inspect.ismodule(value) else ""
    return " ".join(text.strip().split("\n\n")[0].split()).replace("|", "\\|")


def of_assignment(module: ModuleType, name: str) -> str:
    """The string that follows `name = ...`, in this module or in the one it imports it from."""
    before: ast.stmt | None = None
    for node in tree(module):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            source = importlib.import_module(node.module or "")
            return "" if source is module else of_assignment(source, name)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and before:
            targets = before.targets if isinstance(before, ast.Assign) else []
            if isinstance(before, ast.AnnAssign):
                targets = [before.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return " ".join(str(node.value.value).split()).replace("|", "\\|")
        before = node
    return ""


def members(value: object) -> list[str]:
    """A class's public attributes and methods, of its own and of bases within fastrnn."""
    if not isinstance(value, type):
        return []
    bases = [base for base in value.__mro__ if base.__module__.split(".")[0] == "fastrnn"]
    names = {name for base in bases for name in (*vars(base), *inspect.get_annotations(base))}
    return sorted(name for name in names if not name.startswith("_"))


def tree(module: ModuleType) -> list[ast.stmt]:
    """A module's statements."""
    return ast.parse(inspect.getsource(module)).body


def differences(made: str, written: str) -> list[str]:
    """Which lines are on one page only, with the module that they are of."""
    now, before = (list(named(text)) for text in (made, written))
    return [f"- {line}" for line in before if line not in now] + [
        f"+ {line}" for line in now if line not in before
    ]


def named(text: str) -> Iterator[str]:
    """The lines of a page; those of tables with their module."""
    module = ""
    for line in text.splitlines():
        module = line.strip("# `") if line.startswith("### ") else module
        yield f"{module}: {line}" if line.startswith("| `") else line


if __name__ == "__main__":
    sys.exit(main())
