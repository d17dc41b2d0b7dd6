"""plugins/README.md has every hook, with its signature, an example and a plugin that uses it."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from fastrnn import hookspecs

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8").split("\n## Hooks\n")[1]
PARTS = SECTION.split("\n## ")[0].split("\n### ")[1:]
HOOKS = [name for name in vars(hookspecs) if name.startswith("fastrnn_")]


def parameters(source):
    """Of the first function: its name and those of its parameters."""
    (function,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    return function.name, [argument.arg for argument in function.args.args]


def test_every_hook_has_a_part_and_every_part_a_hook():
    found = [re.search(r"def (fastrnn_\w+)", part)[1] for part in PARTS]
    assert sorted(found) == sorted(HOOKS)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.splitlines()[0])
def test_signature_and_example_are_the_hooks_and_a_plugin_uses_it(part):
    signature, example = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    name, given = parameters(signature.strip() + ": ...")
    assert given == list(inspect.signature(getattr(hookspecs, name)).parameters)
    assert example.startswith("@fastrnn.hookimpl\n")
    implemented, used = parameters(example)
    assert implemented == name
    assert set(used) <= set(given)
    path = ROOT / re.search(r"Used by\s+`([\w/.-]+)`", part)[1]
    source = path.read_text(encoding="utf-8")
    assert re.search(rf"@(fastrnn\.)?hookimpl\ndef {name}\(", source), path
