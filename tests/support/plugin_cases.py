"""Third parties' distributions for one test, and what the loader makes of them."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path

import torch

import fastrnn
from fastrnn import discovery, plugins
from fastrnn.plugins import PluginWarning, registry
from fastrnn.request import Request

DISTRIBUTIONS = Path(__file__).parents[1] / "distributions"
PLUGINS = ["reference", "aten", "rows", "numba", "triton", "cells"]
BUILTINS = ["reference", "aten", "onednn", "rows", "numba", "triton"]
"""Backends that these plugins bring."""
REQUEST = Request(
    cell="lstm", seq_len=7, batch=2, input_size=3, hidden_size=4, proj_size=0, num_layers=1,
    bidirectional=False, bias=True, dropout=0.0, dtype=torch.float32, device="cpu", arch="",
    precision="ieee", needs_grad=False, training=False, varlen=False, compiling=False, threads=1,
)  # fmt: skip


def write_distribution(folder, module, *names, distribution=None, entries=None):
    """What an installer leaves of a distribution with one module: itself and its metadata."""
    distribution = distribution or module.replace("_", "-")
    shutil.copy(DISTRIBUTIONS / f"{module}.py", folder)
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name in names or (module.replace("_", "-"),)]
    (info / "entry_points.txt").write_text(entries or "\n".join(["[fastrnn]", *lines, ""]))


def installing(tmp_path, monkeypatch):
    """Install distributions for one test; nothing is loaded until `load()`."""
    monkeypatch.delenv("FASTRNN_DISABLE_PLUGINS", raising=False)
    monkeypatch.setattr(discovery, "SLOW_SECONDS", 60)  # however busy the machine
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    plugins.reset()

    def install(module, *names, **how):
        write_distribution(tmp_path, module, *names, **how)

    yield install
    plugins.reset()
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def load():
    """Make the registry and return the texts of its plugin warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry()
        registry()  # must not report again
    assert all(w.category is PluginWarning for w in caught)
    return [str(w.message) for w in caught]


def record_of(name):
    (record,) = (r for r in registry().plugins if r.name == name)
    return record


def run(backend, **how):
    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return fastrnn.LSTM(3, 4, backend=backend, **how)(x)
