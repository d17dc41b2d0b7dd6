"""Two cells beside the four that every backend knows: a GRU, and an LSTM with peepholes.

Examples of the hook `fastrnn_cells` as much as layers: each is a step in torch's operations, and a
pair of Triton functions in a module that is imported when a kernel runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_cells.gru import GRU
from fastrnn_cells.peephole import PEEPHOLE_LSTM

if TYPE_CHECKING:
    from fastrnn.cell import Cell


@hookimpl
def fastrnn_cells() -> list[Cell]:
    """Register `gru` and `peephole_lstm`."""
    return [GRU, PEEPHOLE_LSTM]
