"""Keeps what writing_a_backend.md quotes from `examples/fastrnn-numpy`, and shows of it, true.

    python docs/writing_a_backend.py           # run the commands, write what they print
    python docs/writing_a_backend.py --check   # say what differs, and exit with 1 if anything does

In the page, a comment before a block says what the block is:

    <!-- quote: FILE -->, <!-- quote: FILE NAME --> or <!-- quote: FILE CLASS.METHOD -->
    <!-- run: fastrnn ... -->
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = ROOT / "examples" / "fastrnn-numpy"
BLOCK = re.compile(r"(?m)^<!-- (quote|run): (.+?) -->\n+```(\w+)\n((?s:.*?))^```$")
METADATA = "import sys, setuptools.build_meta as b; b.prepare_metadata_for_build_wheel(sys.argv[1])"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the page")
    options = parser.parse_args(arguments)
    written = PAGE.read_text(encoding="utf-8")
    made = filled(written, output)
    if not options.check:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    found = differences(made, written)
    print("\n".join(found) or f"{len(BLOCK.findall(made))} blocks are as written")
    return 1 if found else 0


def filled(page: str, run: Callable[[str], str]) -> str:
    """The page with every marked block as it should be.

    Args:
        page: the page.
        run: gives what a command prints.
    """

    def block(found: re.Match[str]) -> str:
        kind, what, language, _ = found.groups()
        text = quoted(*what.split()) if kind == "quote" else run(what)
        return f"<!-- {kind}: {what} -->\n```{language}\n{text}```"

    return BLOCK.sub(block, page)


def quoted(file: str, name: str = "") -> str:
    """A file of the distribution, or one of its functions, classes or methods.

    Raises:
        ValueError: it has nothing of that name.
    """
    source = (DISTRIBUTION / file).read_text(encoding="utf-8")
    if not name:
        return source
    nodes: list[ast.stmt] = ast.parse(source).body
    found: ast.FunctionDef | ast.ClassDef | None = None
    for part in name.split("."):
        own = (n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef))
        found = next((node for node in own if node.name == part), None)
        if found is None:
            raise ValueError(f"{file} has no {name}")
        nodes = found.body
    assert found is not None
    first = min([found.lineno, *(mark.lineno for mark in found.decorator_list)])
    return "".join(source.splitlines(keepends=True)[first - 1 : found.end_lineno])


def output(command: str) -> str:
    """What a command prints where fastrnn-numpy is installed beside this fastrnn."""
    program, *arguments = shlex.split(command)
    assert program == "fastrnn"
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-c", METADATA, folder]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTRNN_")}
        environment["FASTRNN_CACHE_DIR"] = str(Path(folder) / "cache")  # nothing is measured
        with tempfile.TemporaryDirectory() as copy:  # building leaves files behind
            for file in ("pyproject.toml", "README.md", "fastrnn_numpy.py"):
                Path(copy, file).write_bytes((DISTRIBUTION / file).read_bytes())
            subprocess.run(build, check=True, capture_output=True, cwd=copy)
        path = [folder, DISTRIBUTION, ROOT, ROOT / "kernels", ROOT / "plugins"]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", *arguments],
            check=True, capture_output=True, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        return done.stdout


def portable(page: str) -> list[str]:
    """The lines of a page without what another machine would say."""
    lines = []
    for line in page.splitlines():
        timed = re.fullmatch(r"(\w+ +\d+ +\d+ +\d+) +\d+\.\d", line)  # of the conformance table
        line = timed[1] if timed else line
        if not re.match(r" +- triton: |triton ", line):
            lines.append(re.sub(r"-{3,}", "---", re.sub(r"(?<=\S) {2,}", "  ", line)))
    return lines


def differences(made: str, written: str) -> list[str]:
    """Which lines differ, where it matters."""
    return [
        line
        for line in difflib.unified_diff(portable(written), portable(made), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]


if __name__ == "__main__":
    sys.exit(main())
