"""What a call costs in plain torch: a few small operations a step.

The constants are medians on a two-core x86 machine; see `fastrnn_aten.cpu`, which they are
compared with.
"""

from __future__ import annotations

from fastrnn.cell import BUILTIN, cell_of
from fastrnn.request import Cost, Request
from fastrnn.roofline import (
    CPU_BYTES,
    CPU_STREAM,
    beside_onednn,
    calls,
    cpu_step,
    recurrent_weights,
    restarting,
    rows,
    steps,
)

CALL, CALL_TRAINING = 150e-6, 300e-6
STEP, STEP_TRAINING = 1.9e-6, 4.3e-6
"""Seconds of an Elman step beside its product."""
LSTM_STEP, LSTM_STEP_TRAINING = 15.5e-6, 38e-6
CUSTOM_STEP, CUSTOM_STEP_TRAINING = 28e-6, 44e-6
"""Of a plugin's cell, as a GRU's and that of an LSTM with peepholes."""
PASSES, LSTM_PASSES, CUSTOM_PASSES = 1, 6, 14
"""Times that training reads or writes an array of all gates that ATen's loop keeps in cache."""
VARLEN, VARLEN_TRAINING, VARLEN_STEP = 200e-6, 400e-6, 0.7e-6
"""Seconds of a call, and of a step, of looking at lengths and of padding packed rows."""
VARLEN_PASSES, VARLEN_PASSES_TRAINING = 2, 4
"""Times that input, gates and output are copied or looked through for it."""
RESETS, RESETS_TRAINING = 100e-6, 150e-6
"""Seconds of a call of looking for the steps at which rows start over."""
RESETS_STEP, RESETS_STEP_TRAINING = 10e-6, 20e-6
"""Of such a step."""
MARGIN = 1.05
"""Where the estimates are close, torch's path keeps the call: `auto` must not lose to it."""
LAUNCH = 7e-6
"""Seconds of one small operation on an accelerator, launched from Python."""
OPERATIONS = {"lstm": (9, 12), "rnn_tanh": (2, 2), "rnn_relu": (2, 2), "rnn_sigmoid": (2, 2)}
"""Operations of a step, forward and backward."""
CUSTOM_OPERATIONS = (14, 12)


def estimate(request: Request) -> Cost:
    """Steps x (product + fixed part of a step)."""
    loop = steps(request) * request.directions
    fixed, fixed_training, passes = _step_of(request.cell)
    if request.device != "cpu":
        forward, backward = OPERATIONS.get(request.cell, CUSTOM_OPERATIONS)
        operations = forward * (1 + _replays(request)) + (backward if request.needs_grad else 0)
        return Cost(2e-4 + loop * operations * LAUNCH, f"{operations} small operations a step")
    gates = cell_of(request.cell).gates
    product = cpu_step(request) * gates / request.gates
    if request.needs_grad:
        step = fixed_training + (2 if request.frozen else 3) * product
        array = rows(request) * gates * request.hidden_size * request.dtype.itemsize
        step += _replays(request) * (fixed + product)
        step += passes * array / CPU_STREAM
        # the weights and their gradients pass through the cache once, however short the sequence
        weights = recurrent_weights(request) * request.dtype.itemsize
        weights *= request.num_layers * request.directions * (1 if request.frozen else 3)
        call = calls(request) * CALL_TRAINING + weights / CPU_BYTES
        why = "hand-written BPTT, weight gradients in one product"
    else:
        product = beside_onednn(request) * gates / request.gates
        step, call, why = fixed + product, calls(request) * CALL, "a Python step loop"
    return Cost(MARGIN * (call + loop * step + _of_lengths(request) + _of_resets(request)), why)


def _of_lengths(request: Request) -> float:
    if not request.varlen:
        return 0.0
    fixed, passes = VARLEN, VARLEN_PASSES
    if request.needs_grad:
        fixed, passes = VARLEN_TRAINING, VARLEN_PASSES_TRAINING
    width = request.input_size + (cell_of(request.cell).gates + 1) * request.hidden_size
    loop = steps(request) * request.directions
    fixed += loop * VARLEN_STEP
    return fixed + passes * loop * rows(request) * width * request.dtype.itemsize / CPU_STREAM


def _of_resets(request: Request) -> float:
    if not request.resets:
        return 0.0
    fixed, step = RESETS, RESETS_STEP
    if request.needs_grad:
        fixed, step = RESETS_TRAINING, RESETS_STEP_TRAINING
    return fixed + restarting(request) * step


def _step_of(cell: str) -> tuple[float, float, int]:
    """Seconds of a step, forward and in training, and the passes of the latter."""
    if cell not in BUILTIN:
        return CUSTOM_STEP, CUSTOM_STEP_TRAINING, CUSTOM_PASSES
    if BUILTIN[cell].has_cell_state:
        return LSTM_STEP, LSTM_STEP_TRAINING, LSTM_PASSES
    return STEP, STEP_TRAINING, PASSES


def _replays(request: Request) -> int:
    """Forward passes within the backward pass; Elman steps need none."""
    replays = request.cell == "lstm" or request.cell not in BUILTIN
    return int(request.needs_grad and request.recompute > 0 and replays)
