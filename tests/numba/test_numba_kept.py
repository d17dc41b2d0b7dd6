"""What is compiled once is kept on disk, and made anew when any of the sources has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba import njit
from numba.core import caching

import fastrnn_numba
from fastrnn_numba.compiled import compiled

PROGRAM = """
import torch
import fastrnn
torch.manual_seed(0)
layer = fastrnn.RNN(2, 2, backend="numba")
with torch.no_grad():
    print(float(layer(torch.randn(3, 1, 2))[0].abs().sum()))
from fastrnn_numba import elman
print(sum(elman.forward.stats.cache_hits.values()))
"""


def test_nowhere_to_keep_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator available"):
        njit(cache=True)(lambda x: x + 1)
    assert compiled(lambda x: x + 1)(1) == 2


def test_a_change_of_any_file_is_seen(tmp_path: Path) -> None:
    (source,) = fastrnn_numba.__path__
    copy = tmp_path / "fastrnn_numba"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(tmp_path), *sys.path])

    def run() -> tuple[float, int]:
        said = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": path},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        value, hits = said.stdout.split()
        return float(value), int(hits)

    value, hits = run()
    assert (value > 0.1, hits) == (True, 0)
    assert run() == (value, 1)
    points = copy / "points.py"
    points.write_text(points.read_text().replace("m / (m + 2)", "m / (m + 3)"))
    changed, hits = run()
    assert (changed != value, hits) == (True, 0)
