"""docs/writing_a_backend.md quotes the tutorial's files, and what it prints is what is printed.

The conformance suite, which takes longer, is run by `docs/writing_a_backend.py --check`.
"""

from __future__ import annotations

import re

import pytest

import writing_a_backend as script

PAGE = script.PAGE.read_text(encoding="utf-8")
BLOCKS = script.BLOCK.findall(PAGE)
PRINTED = {what: text for kind, what, _, text in BLOCKS if kind == "run"}


def test_what_is_quoted_is_in_the_files():
    assert script.differences(script.filled(PAGE, PRINTED.get), PAGE) == []
    assert len(BLOCKS) >= 12


def test_all_python_on_the_page_is_quoted():
    unmarked = script.BLOCK.sub("", PAGE)
    assert re.findall(r"^```(\w+)$", unmarked, re.MULTILINE) == ["sh", "sh", "sh", "yaml"]
    assert "```python" not in unmarked


def test_the_whole_backend_is_quoted_but_for_what_repeats_itself():
    source = script.quoted("fastrnn_numpy.py")
    functions = set(re.findall(r"def (\w+)", source))
    quoted = {what.split(".")[-1].split()[-1] for kind, what, *_ in BLOCKS if kind == "quote"}
    assert functions - quoted == {"sigmoid", "groups", "elman_forward", "elman_backward"}


def test_a_backend_that_is_installed_is_listed_as_the_page_says():
    command = "fastrnn backends"
    assert script.portable(script.output(command)) == script.portable(PRINTED[command])


def test_it_is_a_hundred_odd_lines_long():
    code = [line for line in script.quoted("fastrnn_numpy.py").splitlines() if line.strip()]
    assert len(code) < 140


def test_a_change_of_the_files_or_of_what_is_printed_is_noticed(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("reasons = []", "reasons = list()").replace("  yes ", "  no "))
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "output", PRINTED.get)
    assert script.main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "+        reasons = []" in out
    assert "-numpy  numpy  fastrnn-numpy 0.1.0  no" in out
    assert script.main([]) == 0
    assert page.read_text(encoding="utf-8") == PAGE
    assert script.main(["--check"]) == 0
    assert capsys.readouterr().out == f"{len(BLOCKS)} blocks are as written\n"


def test_times_and_what_a_machine_lacks_do_not_count():
    text = "claims          8       0            0      {}\ntriton     triton     {}\n"
    here, there = text.format("0.7", "yes"), text.format("9.1", "no: nothing")
    assert script.differences(here, there) == []
    assert script.differences(here, there.replace("  8", "  7")) == [
        "-claims  7  0  0", "+claims  8  0  0",
    ]  # fmt: skip


def test_a_name_that_a_file_lacks_is_an_error():
    with pytest.raises(ValueError, match="has no NumpyBackend"):
        script.quoted("fastrnn_numpy.py", "NumpyBackend.run")
