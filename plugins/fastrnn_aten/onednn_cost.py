"""What rows of different lengths cost in rectangles of oneDNN's LSTM; see `rectangles.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastrnn.request import Cost
from fastrnn.roofline import rows, steps
from fastrnn_aten import cpu
from fastrnn_aten.cpu import ONEDNN_STEP, packed_rows, waiting

if TYPE_CHECKING:
    from fastrnn.request import Request

CALL, CALL_TRAINING = 240e-6, 250e-6
"""Seconds of looking at the lengths, and of putting together what the rectangles made."""
PACKING, PACKING_TRAINING = 300e-6, 500e-6
"""Of packing padded rows, and of putting them back, as against leaving them as they lie."""
ONE_CALL, ONE_CALL_TRAINING = 110e-6, 170e-6
"""Of saying what is no step of a row; see `fastrnn_aten.one_call`."""
RECTANGLE, RECTANGLE_TRAINING = 40e-6, 200e-6
"""Of a call of oneDNN, apart from its work; see `fastrnn_aten.rectangles`."""
RELAID, RELAID_HALVED, RELAID_TRAINING = 4e9, 1.5e7, 1e9
"""Bytes a second at which oneDNN lays out weights, once a call, the bytes at which that has halved,
and the rate in training, with their gradients."""
OPERATIONS = 1.6e11
"""Of its products on one core, a second."""
SHARED = 0.75
"""Of a forward pass's work with several threads, of which BLAS, in other estimates, makes less."""
UNIT, UNIT_TRAINING = 4e-9, 15e-9
"""Seconds of a hidden unit's gates and states, in one step of one row."""
EMPTIED = 2
"""Steps more that rows take which may start over, once in the mean."""
ALONE = 1.1
"""How much longer a packed row by itself takes here than in aten, which only runs it."""


def estimate(request: Request) -> Cost:
    """Calls of rectangles, their work, and that for rows that have ended; or one call.

    Of B rows that end T / B steps apart, a rectangle in which m end has m^2 T / 2 B such steps:
    `spare`, which cost as much as a call, or if there is only one rectangle fewer. Rows that may
    start over are taken to do so once, in the mean: to be two, of as many steps together.
    """
    if rows(request) == 1 and not (request.padded or request.resets):
        return Cost(ALONE * cpu.estimate(request).seconds, "a row by itself, as aten runs it")
    call, row = _call_and_row(request)
    length = steps(request) / request.num_layers
    places = packed_rows(request) if request.varlen else rows(request) * length
    if request.padded or request.resets:
        most, mean = (EMPTIED, 1) if request.resets else (0, 0)
        whole = (length + most) * rows(request)
        if whole - places - mean * rows(request) <= affordable(request):
            return Cost(_of_one_call(request, whole), "oneDNN, one call for rows as they lie")
    parts = rows(request) * (2 if request.resets else 1)
    number = min(math.sqrt(parts * length / (2 * spare(request))), parts)
    calls, frozen = max(number, 1), min(number, number**2)
    seconds = CALL_TRAINING if request.needs_grad else CALL
    layers = request.num_layers * request.directions
    seconds += layers * ((calls + frozen) * call + places * row)
    seconds += _of_steps(request, places / length * row)
    return Cost(seconds, f"oneDNN, about {calls:.0f} rectangles of steps and rows")


def _of_one_call(request: Request, places: float) -> float:
    """Seconds of it, with that many steps of all rows of one layer."""
    call, row = _call_and_row(request)
    layers, length = request.num_layers * request.directions, steps(request) / request.num_layers
    seconds = ONE_CALL_TRAINING if request.needs_grad else ONE_CALL
    seconds += layers * (call + places * row)
    return seconds + _of_steps(request, places / length * row)


def _of_steps(request: Request, work: float) -> float:
    """Seconds that all steps take apart from their work, of so much each."""
    loop = steps(request) * request.directions
    return loop * (ONEDNN_STEP + waiting(request, work))


def spare(request: Request) -> float:
    """Steps of a row that cost as much as another call."""
    call, row = _call_and_row(request)
    return call / row


def affordable(request: Request) -> float:
    """Steps of frozen rows that are no more than what packing them costs.

    With w of them, u = sqrt(w / spare) rectangles are best, which freeze w / u steps. What those
    cost more than one call, 2u - 1 calls and the packing, is as much as w steps if
    (u - 1)^2 = packing / call.
    """
    call, row = _call_and_row(request)
    packing = PACKING_TRAINING if request.needs_grad else PACKING
    return call / row * (1 + math.sqrt(packing / call)) ** 2


def _call_and_row(request: Request) -> tuple[float, float]:
    """Seconds of a call of oneDNN apart from its work, and of a step of one row."""
    hidden, size = request.hidden_size, request.dtype.itemsize
    weights = 4 * hidden * (request.input_size + hidden)
    product = 2 * weights / (OPERATIONS * max(request.threads, 1))
    if request.needs_grad:
        call = RECTANGLE_TRAINING + weights * size / RELAID_TRAINING
        return call, 3 * product + UNIT_TRAINING * hidden
    relaid = weights * size / RELAID * (1 + weights * size / RELAID_HALVED)
    gained = SHARED if request.threads > 1 else 1.0
    return RECTANGLE + relaid, gained * (product + UNIT * hidden)
