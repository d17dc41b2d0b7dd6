"""What a call costs on torch's own path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.request import Cost
from fastrnn.roofline import rows, steps
from fastrnn_aten import cpu

if TYPE_CHECKING:
    from fastrnn.request import Request

UNROLLED = 1.0
"""Seconds charged under torch.compile, which takes the loop apart step by step: a graph that
grows with T, compiled anew for every T."""


def estimate(request: Request) -> Cost:
    """By the path that torch takes on the device."""
    if request.compiling:
        return Cost(UNROLLED, "torch.compile unrolls torch's loop step by step")
    if request.device == "cuda":
        return _cudnn(request)
    if request.device == "cpu":
        return cpu.estimate(request)
    loop = steps(request) * request.directions
    return Cost(2e-5 + 1e-5 * loop, f"torch's path on {request.device}, not modelled")


def _cudnn(request: Request) -> Cost:
    """Microseconds a step as published for cuDNN; which algorithm runs is torch's choice."""
    gated = request.cell in ("lstm", "gru")
    persistent = (
        request.dtype == torch.float16
        and request.num_layers * request.directions == 1
        and request.hidden_size <= 1024
        and request.hidden_size % 128 == 0
        and request.input_size % 128 == 0
        and rows(request) % 8 == 0
        and rows(request) <= 128
    )
    if request.dtype == torch.float64 or request.proj_size or request.varlen:
        step, why = 15.0, "standard"
    elif request.hidden_size <= (192 if gated else 384):
        step, why = (1.5 if gated else 1.0), "small-size persistent"
    elif persistent:
        step, why = 2.0, "persistent"
    else:
        step, why = (10.0 if gated else 7.0), "standard"
    passes = 2.6 if request.needs_grad else 1.0
    # the two directions of a layer overlap; layers follow each other
    seconds = 4e-5 + steps(request) * passes * step * 1e-6
    return Cost(seconds, f"cuDNN's {why} algorithm, about {step:g} us a step as published")
