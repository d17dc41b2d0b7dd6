"""The hand-written pages of docs/: what they run, quote, draw and link to is there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
import torch

import kernel_ladder
import mkdocs_hook
import pages
import public_names
from fastrnn import plugins

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GENERATED = {"beyond_torch_nn.md", "public_names.md", "writing_a_backend.md"}
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.name not in GENERATED]
WITH_PYTHON = [path for path in PAGES if "```python" in path.read_text(encoding="utf-8")]
TROUBLE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"\*\*`([^`]+)`\*\*", TROUBLE)
TORCHS = {"Length of all samples has to be greater than 0"}
ERRORS = re.compile(r"\w*(Error|Warning)")


@pytest.fixture
def one_thread():
    """Estimates depend on the threads; the pages' were printed with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    plugins.reset()  # a page registers a cell


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_print_what_follows_them(page, one_thread):
    ran, _ = pages.run(page)
    assert ran >= 1


def test_pages_with_python_are_found():
    assert len(WITH_PYTHON) >= 6


# Troubleshooting


@functools.cache
def literals():
    """Every string of the sources, with … in place of what is formatted into it."""
    files = [path for top in ("fastrnn", "plugins") for path in (ROOT / top).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(files)]
    return [text for tree in trees for node in ast.walk(tree) if (text := template(node))]


def template(node):
    """The string that a node is; empty if it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\s+", " ", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (template(node.left) or "…") + (template(node.right) or "…")
    return ""


def constant(text):
    """What a quoted or formatted message says whatever happens."""
    return [part.strip() for part in text.split("…") if part.strip(" .:;'\"()")]


def fits(quoted, source):
    """Whether a message of the page can be one of the source: its parts, in order."""
    pattern = ".*".join(re.escape(part) for part in constant(quoted))
    find = re.search if quoted.startswith("…") else re.match
    return bool(pattern) and find(pattern, source, re.DOTALL) is not None


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_source(quoted):
    if quoted in TORCHS:
        with pytest.raises(RuntimeError, match=quoted):
            torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(1, 1, 1), [0])
        return
    assert any(fits(quoted, source) for source in literals())


def test_a_message_that_is_in_no_source_would_be_noticed():
    assert not any(fits("dropout should be … in range [0, 2]", source) for source in literals())


def raised():
    """The texts of all exceptions that the sources make, but for those of the tests' own part."""
    for top in ("fastrnn", "plugins"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if "testing" in path.parts or path.name == "hookspecs.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and ERRORS.fullmatch(name(node.func)):
                    yield path.name, template(node.args[0])


def name(node):
    """Of a class, however it is reached."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_every_error_has_its_place_on_the_page():
    # a few letters around what another message says
    told = [(file, text) for file, text in raised() if len("".join(constant(text))) >= 12]
    assert len(told) > 100
    page = [quoted for quoted in QUOTED if len("".join(constant(quoted))) >= 8]
    missing = [each for each in told if not any(fits(quoted, each[1]) for quoted in page)]
    assert missing == []


# Pictures and tables


def test_the_ladder_and_the_pictures_are_what_the_model_says(capsys):
    status = kernel_ladder.main(["--check"])
    assert (status, capsys.readouterr().out) == (0, "all is as written\n")


def test_a_changed_rate_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(kernel_ladder, "LAUNCH", 8e-6)
    assert kernel_ladder.main(["--check"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out == ["how_the_kernels_work.md differs", "ladder.svg differs"]


def test_each_rung_is_predicted_to_gain():
    for direction in ("forward", "backward"):
        for H in kernel_ladder.SIZES:
            times = [rung(direction, H) for rung in kernel_ladder.RUNGS.values()]
            known = [seconds for seconds in times if seconds is not None]
            assert known == sorted(known, reverse=True)


# Pages and links


def test_every_page_has_its_place_in_the_navigation():
    listed = re.findall(r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1], re.M)
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def test_every_public_module_is_on_an_api_page():
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    assert shown >= {module for modules in public_names.MODULES.values() for module in modules}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_that_exist(page):
    text = mkdocs_hook.FENCED.sub("", page.read_text(encoding="utf-8"))
    for _, _, target in mkdocs_hook.LINK.findall(text):
        path, _, anchor = target.partition("#")
        if not re.match(r"[a-z]+:", path) and path:
            there = page.parent / path
            assert there.exists(), target
            if anchor:
                shown = mkdocs_hook.for_site(
                    there.read_text(encoding="utf-8"), there.resolve().relative_to(ROOT).as_posix()
                )
                mkdocs_hook.section(shown, anchor)


def test_a_lone_link_stands_for_the_file_with_its_links_made_the_sites():
    made = mkdocs_hook.for_site("[x](../plugins/README.md)\n", "docs/plugins.md")
    assert made.startswith("# The built-in backends\n")
    assert "[docs/writing_a_backend.md](writing_a_backend.md)" in made
    deep = mkdocs_hook.for_site("[x](../../plugins/README.md)\n", "docs/api/other.md")
    assert "[docs/writing_a_backend.md](../writing_a_backend.md)" in deep


def test_a_lone_link_to_a_section_stands_for_the_section():
    made = mkdocs_hook.for_site("a\n\n[x](../plugins/README.md#hooks)\n\nb\n", "docs/cells.md")
    assert made.startswith("a\n\n## Hooks\n")
    assert made.endswith("\n\nb\n")
    assert "## Cells" not in made
    assert "### Bring cells" in made
    with pytest.raises(ValueError, match="no heading 'nothing'"):
        mkdocs_hook.for_site("[x](../plugins/README.md#nothing)\n", "docs/cells.md")


def test_links_out_of_the_site_keep_their_words_and_code_keeps_its_brackets():
    code = "\n```\n[m](../Makefile)\n```\n"
    text = "[m](../Makefile) [t](../README.md#use) [w](https://a.b) [h](#x)" + code
    made = mkdocs_hook.for_site(text, "docs/index.md")
    assert made == "m [t](tour.md#use) [w](https://a.b) [h](#x)" + code


def test_pictures_of_the_examples_are_beside_the_pages():
    text = "![a](pictures/a.png)"
    assert mkdocs_hook.relinked(text, "examples/README.md", "docs/gallery.md") == (
        "![a](examples/pictures/a.png)"
    )
