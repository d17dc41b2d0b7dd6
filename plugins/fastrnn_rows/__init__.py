"""Elman RNNs, LSTMs and GRUs on a CPU, over the rows that go on and no others.

torch gives rows of different lengths, and GRUs and Elman RNNs of any, to a loop that records every
operation of a step for autograd. Here a step is a few operations in place, and all that does not
depend on the step before is done for all steps at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_rows.backend import RowsBackend

if TYPE_CHECKING:
    from fastrnn.backend import Backend


@hookimpl
def fastrnn_backends() -> list[Backend]:
    """Register `rows`."""
    return [RowsBackend()]
