"""Layers in float64 of every cell that `numba` runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def rows_and_marks(
    steps: int, batch: int, lengths: list[int] | None, density: float | None, *, batch_first: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Rows three wide, NaN past their ends, which nobody must care for, and marks of a call."""
    x, marks = torch.randn(steps, batch, 3, dtype=torch.float64), dict[str, Any]()
    if lengths is not None:
        marks["lengths"] = lengths
        for row, length in enumerate(lengths):
            x[length:, row] = torch.nan
    if density is not None:
        resets = torch.rand(steps, batch) < density
        marks["resets"] = resets.mT if batch_first else resets
    return x.transpose(0, 1) if batch_first else x, marks
