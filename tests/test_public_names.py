"""docs/public_names.md lists every public name, and a name that goes or comes is noticed."""

from __future__ import annotations

import importlib
import sys

import pytest

import fastrnn
import fastrnn.backend
import public_names as script

WRITTEN = script.PAGE.read_text(encoding="utf-8")
MODULES = [name for names in script.MODULES.values() for name in names]


def test_the_page_is_what_the_modules_have():
    assert script.differences(script.page(), WRITTEN) == []


def test_every_name_is_there_to_be_imported():
    for name in MODULES:
        module = importlib.import_module(name)
        assert len(set(script.public(module))) == len(script.public(module)) > 0
        for each in script.public(module):
            getattr(module, each)


def test_a_name_that_disappears_is_noticed(monkeypatch):
    names = [name for name in fastrnn.backend.__all__ if name != "LayerBackend"]
    monkeypatch.setattr(fastrnn.backend, "__all__", names)
    (gone,) = script.differences(script.page(), WRITTEN)
    assert gone.startswith("- fastrnn.backend: | `LayerBackend` |")


def test_a_member_that_disappears_is_noticed(monkeypatch):
    monkeypatch.delattr(fastrnn.backend.LayerBackend, "layers_at_once")
    lines = script.differences(script.page(), WRITTEN)
    assert [line[:1] for line in lines] == ["-", "-", "+", "+"]  # of a subclass, too
    assert "`layers_at_once`" in lines[0]
    assert "`layers_at_once`" not in lines[2]


def test_a_new_name_is_noticed_and_needs_a_docstring(monkeypatch):
    def more():
        """One more."""

    monkeypatch.setattr(fastrnn, "more", more, raising=False)
    monkeypatch.setattr(fastrnn, "__all__", [*fastrnn.__all__, "more"])
    assert script.differences(script.page(), WRITTEN) == ["+ fastrnn: | `more` | One more. | |"]
    more.__doc__ = None
    with pytest.raises(ValueError, match=r"fastrnn\.more has no docstring"):
        script.page()


def test_what_a_module_imports_is_not_its_own(monkeypatch, tmp_path):
    path = tmp_path / "some_module.py"
    path.write_text(
        '"""Text."""\nfrom math import pi\nOWN = 1\n"""A number."""\n_B = 2\nclass A:\n    x: int\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("some_module")
    try:
        assert script.public(module) == ["A", "OWN"]
        assert script.row(module, "OWN") == "| `OWN` | A number. | |"
    finally:
        del sys.modules["some_module"]


def test_check_exits_with_what_it_found(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    assert capsys.readouterr().out == "the public names are as written\n"
    script.PAGE.write_text(script.PAGE.read_text().replace("| `LSTM` |", "| `LTSM` |"))
    assert script.main(["--check"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("- fastrnn: | `LTSM` |")
    assert "+ fastrnn: | `LSTM` |" in out
