"""Brings the repository's other pages into the site, with links that lead somewhere there.

A line of a page in docs/ that is nothing but a link to a Markdown file outside docs/ stands for
that file, or for the section that the link names: there is one copy of each text, where it belongs,
and GitHub shows a link. Links within the repository become links within the site; what they point
to and the site does not have (a script, a folder) keeps its name and loses its link. Pictures of
the examples and of the README are put beside the pages.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "examples/pictures"
DRAWN = "benchmarks/results/cpu-xeon-2-cores"
ALONE = re.compile(r"(?m)^\[[^\]\n]+\]\((\.\./[^)#\s]+\.md)(?:#([\w-]+))?\)$")
FENCED = re.compile(r"(?ms)^(```+)[^\n]*\n.*?^\1$")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of the examples and of the README."""
    from mkdocs.structure.files import File

    for picture in sorted(each for top in (PICTURES, DRAWN) for each in (ROOT / top).glob("*.png")):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's text as the site shows it."""
    return for_site(markdown, f"docs/{page.file.src_uri}")


def for_site(markdown: str, page: str) -> str:
    """A page with what its lone links stand for, and with the site's links.

    Args:
        markdown: the page's own text.
        page: its path in the repository.

    Raises:
        ValueError: a lone link names a section that its file does not have.
    """

    def brought(link: re.Match[str]) -> str:
        path, anchor = link.groups()
        source = _resolved(page, path)
        text = (ROOT / source).read_text(encoding="utf-8")
        return relinked(section(text, anchor) if anchor else text, source, page)

    parts = ALONE.split(markdown)
    own, links = parts[::3], list(ALONE.finditer(markdown))
    made = [relinked(own[0], page, page)]
    for link, after in zip(links, own[1:], strict=True):
        made += [brought(link), relinked(after, page, page)]
    return "".join(made)


def section(text: str, anchor: str) -> str:
    """The section of a page with a heading of this anchor, the heading included.

    Raises:
        ValueError: there is none.
    """
    heading = re.compile(r"(?m)^(#+) (.+)$")
    plain = FENCED.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    found = list(heading.finditer(plain))
    for index, each in enumerate(found):
        if anchor_of(each[2]) == anchor:
            rest = (later for later in found[index + 1 :] if len(later[1]) <= len(each[1]))
            end = next(rest, None)
            return text[each.start() : end.start() if end else None].rstrip() + "\n"
    raise ValueError(f"anchor: no heading {anchor!r} among {[each[2] for each in found]}")


def anchor_of(heading: str) -> str:
    """What a link to a heading says after the #."""
    kept = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


def relinked(text: str, source: str, page: str) -> str:
    """A text with its links as they are to be on a page of the site.

    Args:
        text: of a file.
        source: the file's path in the repository.
        page: the path of the page that shows it.
    """

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if re.match(r"#|[a-z]+:", target):
            return found[0]
        path, _, anchor = target.partition("#")
        there = _site_path(_resolved(source, path))
        if not there:
            return words
        here = posixpath.relpath(there, posixpath.dirname(_site_path(page)) or ".")
        return f"{image}[{words}]({here}{'#' if anchor else ''}{anchor})"

    done, at = [], 0
    for block in FENCED.finditer(text):
        done += [LINK.sub(link, text[at : block.start()]), block[0]]
        at = block.end()
    return "".join([*done, LINK.sub(link, text[at:])])


def _resolved(source: str, path: str) -> str:
    """A relative path in a file of the repository, from the repository's top."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path))


def _site_path(path: str) -> str:
    """Where the site has a file of the repository; empty if it does not."""
    if path.startswith("docs/") and path.endswith((".md", ".svg", ".png")):
        return path.removeprefix("docs/")
    if path.startswith((f"{PICTURES}/", f"{DRAWN}/")):
        return path
    return _brought().get(path, "")


@cache
def _brought() -> dict[str, str]:
    """The pages that show whole files from elsewhere, by file."""
    found = {}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT).as_posix()
        for link in ALONE.finditer(page.read_text(encoding="utf-8")):
            if not link[2]:
                found[_resolved(name, link[1])] = name.removeprefix("docs/")
    return found
