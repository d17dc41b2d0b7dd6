"""What a call costs on torch's CPU paths: oneDNN for most LSTMs, ATen's own loop else.

The constants are medians on a two-core x86 machine; `auto` needs their ratios to the reference
backend's, which travel better than the figures themselves.
"""

from __future__ import annotations

import torch

from fastrnn.request import Cost, Request
from fastrnn.roofline import CPU_BYTES, cpu_step, recurrent_weights, steps

CALL, CALL_TRAINING = 20e-6, 90e-6
STEP, STEP_TRAINING = 3e-6, 19e-6
"""Seconds of an Elman step of ATen's loop beside its product; training records and replays it."""
LSTM_STEP, LSTM_STEP_TRAINING = 8.5e-6, 55e-6
"""Of an LSTM's, and of a GRU's."""
ONEDNN_STEP = 0.5e-6
ONEDNN_DTYPES = (torch.float32, torch.bfloat16)


def estimate(request: Request) -> Cost:
    """Steps x (product + fixed part of a step)."""
    product, loop = cpu_step(request), steps(request) * request.directions
    gated = request.cell in ("lstm", "gru")
    by_onednn = request.cell == "lstm" and request.dtype in ONEDNN_DTYPES
    if by_onednn and not request.proj_size and not request.varlen:
        passes = 3 if request.needs_grad else 1
        return Cost(CALL + loop * (ONEDNN_STEP + 0.5 * passes * product), "oneDNN")
    if not request.needs_grad:
        return Cost(CALL + loop * ((LSTM_STEP if gated else STEP) + product), "ATen's loop")
    # autograd adds dW_hh up step by step, reading and writing all of it each time
    accumulate = 2 * recurrent_weights(request) * request.dtype.itemsize / CPU_BYTES
    step = (LSTM_STEP_TRAINING if gated else STEP_TRAINING) + 3 * product + accumulate
    return Cost(CALL_TRAINING + loop * step, "ATen's loop, differentiated step by step")
