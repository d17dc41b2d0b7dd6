"""The README's Python runs, in order, and prints what the README says it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pages
from fastrnn import plugins

README = Path(__file__).parent.parent / "README.md"


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
