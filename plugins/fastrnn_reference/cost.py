"""What a call costs in plain torch: a few small operations a step.

The constants are medians on a two-core x86 machine; see `fastrnn_aten.cpu`, which they are
compared with.
"""

from __future__ import annotations

from fastrnn.request import Cost, Request
from fastrnn.roofline import CPU_BYTES, cpu_step, recurrent_weights, rows, steps

CALL, CALL_TRAINING = 60e-6, 300e-6
STEP, STEP_TRAINING = 3.2e-6, 9.5e-6
"""Seconds of an Elman step beside its product."""
LSTM_STEP, LSTM_STEP_TRAINING = 15.5e-6, 38e-6
PASSES, LSTM_PASSES = 1, 6
"""Times that training reads or writes an array of all gates that ATen's loop keeps in cache."""
STREAM = 8e9
"""Bytes a second of such a pass."""
MARGIN = 1.05
"""Where the estimates are close, torch's path keeps the call: `auto` must not lose to it."""
LAUNCH = 7e-6
"""Seconds of one small operation on an accelerator, launched from Python."""
OPERATIONS = {"lstm": (9, 12)}
"""Operations of a step, forward and backward; an Elman step has 2 and 2."""


def estimate(request: Request) -> Cost:
    """Steps x (product + fixed part of a step)."""
    loop, lstm = steps(request) * request.directions, request.cell == "lstm"
    if request.device != "cpu":
        forward, backward = OPERATIONS.get(request.cell, (2, 2))
        operations = forward * (1 + _replays(request)) + (backward if request.needs_grad else 0)
        return Cost(2e-4 + loop * operations * LAUNCH, f"{operations} small operations a step")
    product = cpu_step(request)
    if request.needs_grad:
        step = (LSTM_STEP_TRAINING if lstm else STEP_TRAINING) + 3 * product
        gates = rows(request) * request.gates * request.hidden_size * request.dtype.itemsize
        step += _replays(request) * (LSTM_STEP + product)
        step += (LSTM_PASSES if lstm else PASSES) * gates / STREAM
        # the weights and their gradients pass through the cache once, however short the sequence
        weights = 3 * recurrent_weights(request) * request.num_layers * request.dtype.itemsize
        call = CALL_TRAINING + weights / CPU_BYTES
        why = "hand-written BPTT, weight gradients in one product"
    else:
        step, call, why = (LSTM_STEP if lstm else STEP) + product, CALL, "a Python step loop"
    return Cost(MARGIN * (call + loop * step), why)


def _replays(request: Request) -> int:
    """Forward passes within the backward pass; Elman steps need none."""
    return int(request.needs_grad and request.recompute > 0 and request.cell == "lstm")
