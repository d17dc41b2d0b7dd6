"""What a call costs on torch's CPU paths: oneDNN for most LSTMs, ATen's own loop else.

Rows of different lengths are taken to end evenly spread over the T steps.

The constants are medians on a two-core x86 machine; `auto` needs their ratios to the reference
backend's, which travel better than the figures themselves.
"""

from __future__ import annotations

from typing import NamedTuple

from fastrnn.request import Cost, Request
from fastrnn.roofline import (
    CPU_BYTES,
    CPU_CACHE,
    CPU_MEMORY,
    calls,
    cpu_input_product,
    cpu_product,
    cpu_step,
    is_onednns,
    recurrent_weights,
    rows,
    steps,
)


class Step(NamedTuple):
    """Seconds of a step of ATen's loop beside its product, forward alone and in training."""

    forward: float
    training: float
    packed: float
    """More of the former where rows are packed: each step is a slice of the data."""


CALL, CALL_TRAINING = 20e-6, 90e-6
ELMAN = Step(3e-6, 19e-6, 1.5e-6)
STEPS = {"lstm": Step(13.5e-6, 55e-6, 1e-6), "gru": Step(15e-6, 55e-6, 0.0)}
PACKED_TRAINING = 8e-6
"""Of such a slice in training, more."""
SUM = 8e9
"""Bytes a second at which an Elman step, forward, writes the sum of both its products anew."""
ONEDNN_STEP = 0.5e-6
CACHED, RELAID = 9e5, 4.6e9
"""oneDNN lays out a layer's weights in its own way, once a call: bytes that it does in no time, and
bytes a second of the rest."""
CACHE_TRAINING, RELAID_TRAINING, RELAID_HALVED = 1.5e6, 2.6e9, 1.4e7
"""In training, where their gradients are laid out, too: bytes above which that shows; the rate is
that for few bytes, and has halved at so many."""
SLICED = 1.5e10
"""Bytes a second at which the gradient of such a slice is made, which is as long as the data."""


def estimate(request: Request) -> Cost:
    """Steps x (product + fixed part of a step)."""
    by_onednn = is_onednns(request)
    if request.varlen and not (by_onednn and rows(request) == 1):  # a single row is a padded one
        return Cost(_packed_loop(request), "ATen's loop, over packed rows")
    loop = steps(request) * request.directions
    if by_onednn:
        passes = 3 if request.needs_grad else 1
        product = 0.5 * cpu_product(request)
        product += waiting(request, product)
        seconds = calls(request) * CALL + loop * (ONEDNN_STEP + passes * product)
        if request.frozen:
            # It forms the gradients of weights all the same, those of W_ih, too: over all steps at
            # once, in products that are no faster than others' are.
            seconds += loop * (0.5 * cpu_product(request) + cpu_input_product(request))
        return Cost(seconds + _laying_out(request), "oneDNN")
    why = "ATen's loop" + (", differentiated step by step" if request.needs_grad else "")
    return Cost(_loop(request, 1.0), why)


def waiting(request: Request, work: float) -> float:
    """Seconds that a product of so much work waits for W_hh, where no cache holds it."""
    size = recurrent_weights(request) * request.dtype.itemsize
    return max(size / CPU_MEMORY - work, 0.0) if size > CPU_CACHE else 0.0


def _laying_out(request: Request) -> float:
    """Seconds of laying out weights: more than all work where they are large and steps are few."""
    seconds, below = 0.0, request.state_size * request.directions
    for layer in range(request.num_layers):
        inputs = below if layer else request.input_size
        weights = request.gates * request.hidden_size * (inputs + request.state_size)
        size = weights * request.dtype.itemsize
        one = max(size - CACHED, 0.0) / RELAID
        if request.needs_grad:
            shows = size > CACHE_TRAINING
            one = size / RELAID_TRAINING * (1 + size / RELAID_HALVED) if shows else 0.0
        seconds += request.directions * one
    return seconds / max(request.threads, 1)


def _loop(request: Request, share: float) -> float:
    """Seconds where a step has that share of the rows, on average."""
    loop, product = steps(request) * request.directions, share * cpu_step(request)
    own = STEPS.get(request.cell, ELMAN)
    if not request.needs_grad:
        step = own.forward + product + (own.packed if request.varlen else 0.0)
        if own is ELMAN:
            step += share * rows(request) * request.hidden_size * request.dtype.itemsize / SUM
        return calls(request) * CALL + loop * step
    step = own.training + 2 * product
    if not request.frozen:
        # autograd adds dW_hh up step by step, reading and writing all of it each time
        step += product + 2 * recurrent_weights(request) * request.dtype.itemsize / CPU_BYTES
    return calls(request) * CALL_TRAINING + loop * step


def _packed_loop(request: Request) -> float:
    share = 0.5 if rows(request) > 1 else 1.0  # a single row ends with the last step
    seconds = _loop(request, share)
    if request.needs_grad:
        gates = request.gates * request.hidden_size * request.dtype.itemsize
        a_slice = PACKED_TRAINING + packed_rows(request) * gates / SLICED
        seconds += steps(request) * request.directions * a_slice
    return seconds


def packed_rows(request: Request) -> float:
    """Steps of all rows of one layer, where they end evenly spread."""
    return steps(request) / request.num_layers * (rows(request) + 1) / 2
