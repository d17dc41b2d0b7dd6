"""FlashRNN in `benchmarks.regimes`: which cases it stands beside; the rest is fastrnn's own.

It compiles for a minute or more per size: few cases have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.bench_flashrnn import FLASHRNN as PEER
from fastrnn.bench_flashrnn import PUBLISHED, FlashRNN, absent

if TYPE_CHECKING:
    from fastrnn.benchmark import Case

__all__ = ["BUILD_SECONDS", "PEER", "PUBLISHED", "FlashRNN", "absent", "takes"]

BUILD_SECONDS = 90.0
"""A guess of what compiling for one size takes."""


def takes(case: Case) -> bool:
    """Whether `benchmarks.regimes` has it beside a case: the published size, in 16 bits."""
    sizes = zip((case.cell, case.T, case.B, case.H), PUBLISHED, strict=True)
    published = all(size in axis for size, axis in sizes)
    alone = case.layers == 1 and not case.bidirectional
    return alone and published and case.torch_dtype.itemsize == 2
