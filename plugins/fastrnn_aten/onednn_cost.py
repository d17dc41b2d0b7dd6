"""What rows of different lengths cost in rectangles of oneDNN's LSTM; see `rectangles.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastrnn.request import Cost
from fastrnn.roofline import rows, steps
from fastrnn_aten.cpu import CALL, ONEDNN_STEP, packed_rows

if TYPE_CHECKING:
    from fastrnn.request import Request

RECTANGLE, RECTANGLE_TRAINING = 40e-6, 200e-6
"""Seconds of a call of oneDNN, apart from its work; see `fastrnn_aten.rectangles`."""
RELAID, RELAID_TRAINING = 4e9, 0.5e9
"""Bytes a second at which oneDNN lays out weights, and their gradients, once a call."""
ONEDNN_OPERATIONS = 1e11
"""Of one core, a second."""


def estimate(request: Request) -> Cost:
    """Calls and work of all rectangles, with as much of it for rows that have ended as for calls.

    Of B rows that end T / B steps apart, a rectangle in which m end has m^2 T / 2 B such steps.
    """
    call, row = _call_and_row(request)
    ends = rows(request) * steps(request) / request.num_layers
    number = min(max(math.sqrt(ends / (2 * spare(request))), 1), rows(request))
    layers = request.num_layers * request.directions
    seconds = CALL + layers * (2 * number * call + packed_rows(request) * row)
    seconds += ONEDNN_STEP * steps(request) * request.directions
    return Cost(seconds, f"oneDNN, about {number:.0f} rectangles of steps and rows")


def spare(request: Request) -> float:
    """Steps of a row that cost as much as another call."""
    call, row = _call_and_row(request)
    return call / row


def _call_and_row(request: Request) -> tuple[float, float]:
    """Seconds of a call of oneDNN apart from its work, and of a step of one row."""
    weights = 4 * request.hidden_size * (request.input_size + request.hidden_size)
    row = 2 * weights / (ONEDNN_OPERATIONS * max(request.threads, 1))
    size = weights * request.dtype.itemsize
    if request.needs_grad:
        return RECTANGLE_TRAINING + size / RELAID_TRAINING, 3 * row
    return RECTANGLE + size / RELAID, row
