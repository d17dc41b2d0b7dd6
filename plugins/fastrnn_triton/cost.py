"""What a call costs as one launch per time step. On a GPU this has not been measured yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.request import Cost
from fastrnn.roofline import recurrent_weights, rows, steps

if TYPE_CHECKING:
    from fastrnn.request import Request

LAUNCH = 1.5e-6
"""Seconds from one kernel of a CUDA graph to the next (1.2 to 1.3 us are published for H100)."""
CHAIN = 1.5e-6
"""Seconds of a step's dependent work: load h, multiply, activate, store (0.5 us a load from L2)."""
L2_BYTES = 4e12
"""Bytes a second that a whole GPU reads from L2; a step reads all of W_hh."""
PRODUCTS = {2: 300e12, 4: 50e12}
"""Attainable operations a second of small products, by bytes per element."""
CALL = 60e-6
"""Seconds of a call beside its steps: Python, the projection's launch, filling the table."""
UNMEASURED = 4.0
"""How much worse the kernels are taken to be until they have run on a GPU: `auto` then prefers
torch's path wherever that is at all good, and these kernels only where it is hopeless."""
INTERPRETER_STEP = 5e-3
"""Seconds of a step in the interpreter, which exists to test and never to win."""


def estimate(request: Request) -> Cost:
    """Steps x (launch + dependent chain + W_hh from L2 + products), times a penalty."""
    if request.device == "cpu":
        return Cost(steps(request) * INTERPRETER_STEP, "the interpreter, for tests")
    passes = 3 if request.needs_grad else 1  # backward: the recurrence again, and the weights
    weights, size = recurrent_weights(request), request.dtype.itemsize
    step = LAUNCH + CHAIN + weights * size / L2_BYTES
    step += 2 * rows(request) * weights / PRODUCTS.get(size, 10e12)
    seconds = CALL + passes * steps(request) * step
    return Cost(seconds * UNMEASURED, f"{step * 1e6:.1f} us a step, x{UNMEASURED:g}: unmeasured")
