"""The README's Python runs, in order, and prints what the README says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from fastrnn import plugins

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def two_threads():
    """Estimates depend on the threads; the README's were printed with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    plugins.reset()  # the README registers a plugin


def portable(text: str) -> list[str]:
    """Without the line that says what this machine lacks."""
    return [line for line in text.rstrip().splitlines() if not line.startswith("  - triton:")]


def test_python_blocks_print_what_follows_them(two_threads: None) -> None:
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks].count("python") >= 5
    namespace: dict[str, object] = {}
    compared = 0
    for index, (language, code) in enumerate(blocks):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"README.md, block {index}", "exec"), namespace)
        following = blocks[index + 1] if index + 1 < len(blocks) else ("", "")
        if following[0] == "text" or printed.getvalue():
            assert portable(printed.getvalue()) == portable(following[1]), f"block {index}"
            compared += 1
    assert compared >= 4
