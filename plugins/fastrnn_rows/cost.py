"""What a call costs in steps over packed rows.

Rows of different lengths are taken to end evenly spread over the T steps, and rows that may start
over to do so seldom (`roofline.SELDOM`). The constants lie between what two x86 machines of two
cores took, as ratios to torch's own path beside them; see `fastrnn_aten.cpu`, which they are
compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastrnn.request import Cost
from fastrnn.roofline import (
    CPU_BYTES,
    CPU_STREAM,
    HALVES,
    PACKING,
    beside_onednn,
    calls,
    cpu_step,
    in_full,
    packing,
    recurrent_weights,
    restarting,
    rows,
    steps,
    widened,
)
from fastrnn_rows import laid_out

if TYPE_CHECKING:
    from fastrnn.request import Request


class Loop(NamedTuple):
    """Seconds of a cell's loop, forward alone and in training."""

    call: float
    """Of one layer in one direction; see `roofline.calls`."""
    step: float
    """Beside its product."""
    call_training: float
    step_training: float
    passes: int
    """Times that training reads or writes an array of all gates that ATen's loop keeps in cache."""


ELMAN = Loop(60e-6, 1.7e-6, 165e-6, 3.2e-6, 1)
LOOPS = {
    "lstm": Loop(110e-6, 14e-6, 300e-6, 20e-6, 3),
    "gru": Loop(200e-6, 13.5e-6, 220e-6, 13e-6, 3),
}
TURNING, TURNED = 2.5e9, 0.8
"""Bytes a second at which W_hh is turned over, and what share of itself the product then takes.

That of a hundred rows takes all of it: there the share stands for what ATen's loop loses by memory,
which no other term counts in training.
"""
SHARED, SOME, MOST = 0.6, 16, 48
"""That share with several threads, which gain nothing for W_hh as it lies where a step has from so
many rows to so many and W_hh is not large; LSTMs, whose rivals gain from them, are left out."""
PAGE = 4096
"""Bytes of a row of W_hh from which it gains nothing where a step has few rows and BLAS several
threads, from which the product gains more with W_hh as it lies."""
MANY, SMALL = 96, 1e5
"""Rows of a GRU's step, forward, from which it gains nothing, either, where W_hh is not large, and
bytes of W_hh from which that shows."""
UNEQUAL, UNEQUAL_TRAINING = 50e-6, 150e-6
"""Of finding where rows of different lengths end."""
RUNNING_ON = 70e-6
"""Of setting zero what rows make past their ends, where they run on."""
STARTING, STARTING_TRAINING = 80e-6, 120e-6
"""Of looking for the steps at which rows start over where they stand."""
RESTARTING, RESTARTING_TRAINING = 8e-6, 20e-6
"""Of such a step."""
BOUNDED = ("gru", "rnn_tanh")
"""Cells whose states cannot grow beyond all bounds, and whose only state is what they return."""
MARGIN = 1.05
"""Where the estimates are close, torch's path keeps the call: `auto` must not lose to it."""


def estimate(request: Request) -> Cost:
    """Steps x (product + fixed part of a step); of 16 bits, those in float32."""
    if request.dtype in HALVES:
        return widened(estimate(in_full(request)), request)
    if request.padded and may_run_on(request):
        length = steps(request) / request.num_layers
        if runs_on(request, round(length * (rows(request) - 1) / 2)):
            seconds, why = estimate(request._replace(varlen=False, padded=False))
            return Cost(seconds + MARGIN * RUNNING_ON, why)
    loop = LOOPS.get(request.cell, ELMAN)
    unequal = request.varlen and rows(request) > 1
    number = steps(request) * request.directions
    share = 0.5 if unequal else 1.0
    product, size = share * cpu_step(request), request.dtype.itemsize
    padded_forward = not (request.varlen or request.needs_grad)
    forward = beside_onednn(request) if padded_forward else product
    weights = recurrent_weights(request) * size * request.num_layers * request.directions
    seconds = _marked(request)
    if _turns(request, share):
        forward *= _turned(request, share * rows(request))
        seconds += weights / TURNING
    if not request.needs_grad:
        seconds += calls(request) * loop.call + UNEQUAL * unequal + number * (loop.step + forward)
        return Cost(MARGIN * seconds, "Python steps over the rows that go on")
    array = share * rows(request) * request.gates * request.hidden_size * size
    back = (1 if request.frozen else 2) * product
    step = loop.step_training + forward + back + loop.passes * array / CPU_STREAM
    # the weights and their gradients pass through the cache once, however short the sequence
    weights *= 1 if request.frozen else 3
    seconds += calls(request) * loop.call_training + UNEQUAL_TRAINING * unequal
    seconds += weights / CPU_BYTES + number * step
    return Cost(
        MARGIN * seconds,
        "hand-written BPTT over the rows that go on, weight gradients in one product",
    )


def may_run_on(request: Request) -> bool:
    """Whether rows that end may run on to the last step with no harm."""
    return request.cell in BOUNDED and not request.bidirectional


def runs_on(request: Request, idle: int) -> bool:
    """Whether rows are better left to run on past their ends than packed.

    Args:
        request: what is asked for.
        idle: steps of a row past its end, which count with their part of a step's products; input
            and output are copied either way.
    """
    return _idle(request, idle) < PACKING


def starts_over(request: Request, idle: int, number: int, longest: float) -> bool:
    """Whether rows better start over where they stand than that they are cut up there.

    Args:
        request: what is asked for.
        idle: as of `runs_on`.
        number: steps at which rows start over.
        longest: steps of the longest part: time takes as many if they are cut up, of more rows.
    """
    loop, length = LOOPS.get(request.cell, ELMAN), steps(request) / request.num_layers
    step, restart, unequal = loop.step, RESTARTING, UNEQUAL
    if request.needs_grad:
        step, restart, unequal = loop.step_training, RESTARTING_TRAINING, UNEQUAL_TRAINING
    more = request._replace(batch=round(length * rows(request) / longest))
    as_it_lies = _idle(request, idle) + number * restart + length * (step + _products(request))
    return as_it_lies < packing(request) + unequal + longest * (step + _products(more))


def _products(request: Request) -> float:
    return (3 if request.needs_grad else 1) * cpu_step(request)


def _idle(request: Request, idle: int) -> float:
    return idle * _products(request) / max(rows(request), 1)


def _turns(request: Request, share: float) -> bool:
    gates, hidden = request.gates * request.hidden_size, request.hidden_size
    length = steps(request) // request.num_layers
    return laid_out.turns(gates, hidden, request.dtype.itemsize, length, share * rows(request))


def _turned(request: Request, a_step: float) -> float:
    """What share of itself a product of so many rows takes with W_hh turned over."""
    if request.threads <= 1:
        return TURNED
    size = request.dtype.itemsize
    weights = recurrent_weights(request) * size
    if a_step < laid_out.SEVERAL and request.hidden_size * size >= PAGE:
        return 1.0
    if request.cell != "lstm" and SOME <= a_step < MOST and weights <= laid_out.LARGE:
        return SHARED
    full = a_step >= MANY and SMALL < weights <= laid_out.LARGE
    return 1.0 if full and request.cell == "gru" and not request.needs_grad else TURNED


def _marked(request: Request) -> float:
    """Seconds of rows that end, if they do not run on, or start over."""
    if request.padded:
        return packing(request)
    if not request.resets:
        return 0.0
    if request.needs_grad:
        return STARTING_TRAINING + restarting(request) * RESTARTING_TRAINING
    return STARTING + restarting(request) * RESTARTING
