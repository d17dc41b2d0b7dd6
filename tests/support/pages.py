"""A Markdown page's Python, run in order and compared with what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from pathlib import Path

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of every block with a language, also of those within lists."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def run(page: Path) -> tuple[int, int]:
    """Run a page's Python blocks in one namespace; whatever they print must follow as `text`.

    Returns:
        The number of blocks that ran, and of those whose output was compared.
    """
    found = blocks(page)
    namespace: dict[str, object] = {"__name__": page.stem}
    ran = compared = 0
    for index, (language, code) in enumerate(found):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page.name}, block {index}", "exec"), namespace)
        ran += 1
        following = found[index + 1] if index + 1 < len(found) else ("", "")
        if following[0] == "text" or printed.getvalue():
            assert portable(printed.getvalue()) == portable(following[1]), f"block {index}"
            compared += 1
    return ran, compared


def portable(text: str) -> list[str]:
    """Without the line that says what this machine lacks."""
    return [line for line in text.rstrip().splitlines() if not line.startswith("  - triton:")]
