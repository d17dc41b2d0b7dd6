"""How far from the truth a result may be.

A result in a lower precision may be wrong by the rounding of its own arithmetic and by nothing
else, so each tolerance is made of the dtype's unit roundoff and of counts of roundings, and none
was chosen to let something pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
"""Half the distance from 1 to the next number: the relative error of one rounding."""

TF32_ROUNDOFF = 2.0**-11
"""Of a product's factors when float32 products run on TF32 tensor cores."""

PER_STEP = 16.0
"""Roundings that a step of a recurrence may add, in units of roundoff relative to the largest
value: a product accumulated in a wider type rounds its inputs and its result (about 3), the gates
and the state are stored and read again (about 5), and the activations are accurate to about 2
units each; the rest is room for another order of summation."""


class Tolerance(NamedTuple):
    """How far from the truth a result may be: |got - want| <= absolute, everywhere."""

    output: float
    """For outputs and states, relative to the largest of 1 and the largest true value."""
    gradient: float
    """For gradients, relative to the largest true value of each gradient."""


def tolerance(dtype: torch.dtype, seq_len: int, precision: str = "ieee") -> Tolerance:
    """The table's row for a dtype and a number of steps.

    Rounding errors of different steps are independent to first order, so they add up as a
    random walk: with sqrt(T), not T. A gradient passes every step twice, forward and back, and
    sums over steps; its own roundings count like the forward's again, hence four times.

    Args:
        dtype: of the computation.
        seq_len: T.
        precision: `ieee`, `tf32` or `tf32x3` for float32 products.

    Raises:
        ValueError: there is no row for `dtype`.
    """
    if dtype not in UNIT_ROUNDOFF:
        known = ", ".join(str(d) for d in UNIT_ROUNDOFF)
        raise ValueError(f"dtype: no tolerance for {dtype}; expected one of {known}")
    roundoff = UNIT_ROUNDOFF[dtype]
    if dtype == torch.float32 and precision == "tf32":
        roundoff = TF32_ROUNDOFF
    output = PER_STEP * roundoff * math.sqrt(max(seq_len, 1))
    return Tolerance(output, 4 * output)
