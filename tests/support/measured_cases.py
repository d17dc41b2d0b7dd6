"""Measurements of two backends, `a` and `b`: to keep, to look up, and to read anew."""

from __future__ import annotations

import torch

from fastrnn import measured
from fastrnn.request import Request

REQUEST = Request(
    cell="lstm", seq_len=100, batch=8, input_size=3, hidden_size=4, proj_size=0, num_layers=1,
    bidirectional=False, bias=True, dropout=0.0, dtype=torch.float32, device="cpu", arch="",
    precision="ieee", needs_grad=False, training=False, varlen=False, compiling=False, threads=1,
)  # fmt: skip
VERSIONS = {"a": "dist 1", "b": "dist 1"}
SECONDS = {"a": 3e-3, "b": 1e-3}


def remember(request=REQUEST, seconds=SECONDS, versions=VERSIONS, keep=True):
    return measured.remember(request, seconds, versions, keep=keep)


def seconds(request=REQUEST, able=VERSIONS):
    return {name: cost.seconds for name, cost in measured.lookup(request, able).items()}


def read_anew(request=REQUEST, able=VERSIONS):
    """What another process would find."""
    measured.reset()
    return seconds(request, able)
