"""Truth and tolerances: what every backend is compared with, and how close it must come.

The truth is the reference backend in float64; `tolerance` is the one table of how far a result may
be from it. `fastrnn.testing.conformance` asks all of this of a backend by itself, in one run:
`fastrnn conformance NAME`, or `pytest --pyargs fastrnn.testing --backend NAME`.
"""

from __future__ import annotations

from fastrnn.testing.problems import (
    Difference,
    Problem,
    Result,
    assert_close,
    compare,
    random_problem,
    run,
    truth,
    weight_shapes,
)
from fastrnn.testing.tolerances import (
    PER_STEP,
    TF32_ROUNDOFF,
    UNIT_ROUNDOFF,
    Tolerance,
    tolerance,
)

__all__ = [
    "PER_STEP",
    "TF32_ROUNDOFF",
    "UNIT_ROUNDOFF",
    "Difference",
    "Problem",
    "Result",
    "Tolerance",
    "assert_close",
    "compare",
    "random_problem",
    "run",
    "tolerance",
    "truth",
    "weight_shapes",
]
