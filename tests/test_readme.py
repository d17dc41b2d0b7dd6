"""The README's Python runs, in order, and prints what the README says it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import pages
from fastrnn import plugins

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MEASURED = ROOT / "benchmarks/results/cpu-epyc-2-cores/readme-bench.json"


@pytest.fixture
def two_threads(monkeypatch):
    """Estimates depend on the threads; the README's were printed with two.

    It runs on one all the same: two wait for each other where other processes have the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    yield
    monkeypatch.undo()
    torch.set_num_threads(before)
    plugins.reset()  # the README registers a plugin


def test_python_blocks_print_what_follows_them(two_threads: None) -> None:
    ran, compared = pages.run(README)
    assert ran >= 5
    assert compared >= 4


def test_the_sample_table_is_what_the_committed_file_has() -> None:
    text = README.read_text(encoding="utf-8")
    rows = json.loads(MEASURED.read_text())["results"]
    timed = [row for row in rows if row["median_s"] is not None]
    printed = re.findall(
        r"^  (\S.*?) +(\*?) +([\d.]+) +([\d.]+)\.\.([\d.]+) +([\d.]+)x", text, re.M
    )
    assert printed == [
        (
            row["implementation"], "*" if row["auto"] else "",
            *(f"{1e3 * row[key]:.3f}" for key in ("median_s", "q20_s", "q80_s")),
            f"{row['speedup']:.2f}",
        )
        for row in timed
    ]  # fmt: skip


def test_what_it_shows_and_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
