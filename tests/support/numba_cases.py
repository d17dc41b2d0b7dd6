"""Layers in float64 of every cell that `numba` runs."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn
from rows_cases import CELLS as OF_TORCH
from rows_cases import modules

SIGMOID = "rnn_sigmoid"
CELLS = (*OF_TORCH, SIGMOID)


def layer(cell: str, *sizes: int, **how: Any) -> Any:
    """One of ours."""
    if cell == SIGMOID:
        return fastrnn.RNN(*sizes, nonlinearity="sigmoid", dtype=torch.float64, **how)
    return modules(cell, *sizes, **how)[1]
