"""tanh and the logistic function: a few multiply-adds and one division, without a branch.

Right to two units in the last place, in float32 and in float64, where the result is a normal
number: a logistic function stops above zero, at the least of those. Safe from -inf to inf, and NaN
is handed on.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrnn_numba.vectors import Numbers

LOG2E = 1 / math.log(2)


class Precision:
    """How exp is formed in numbers of some bits.

    Attributes:
        mantissa: bits of it.
        least: exp of it is still a normal number.
        terms: of the series of exp(r) - 1, |r| <= ln 2 / 2; the next is nothing beside the first.
        whole: added to a number, leaves its nearest whole one in the low bits.
        ln2: ln 2 in two parts, the first of so few bits that its product with k is exact.
    """

    def __init__(self, mantissa: int, exponent: int, least: float, terms: int) -> None:
        self.mantissa, self.least, self.terms = mantissa, least, terms
        self.whole = 1.5 * 2.0**mantissa
        few = 2.0 ** (mantissa - exponent)
        upper = math.floor(math.log(2) * few) / few
        self.ln2 = upper, float(Decimal(2).ln() - Decimal(upper))


PRECISIONS = {32: Precision(23, 8, -87.0, 7), 64: Precision(52, 11, -708.0, 13)}


def _parts_of_exp(x: Numbers) -> tuple[Numbers, Numbers]:
    """2^k and p: exp(x) = 2^k (1 + p), of x <= 0. k is 0 near 0, where p is exp(x) - 1."""
    own = PRECISIONS[x.lanes.bits]
    x = x.same(own.least).where(x.is_at_most(own.least), x)
    shifted = x * LOG2E + own.whole
    k = shifted - own.whole
    r = x - k * own.ln2[0] - k * own.ln2[1]
    series = r * (1 / math.factorial(own.terms))
    for term in range(own.terms - 1, 0, -1):
        series = r * (1 / math.factorial(term) + series)
    return shifted.low_bits_as_exponent(own.mantissa), series


def tanh(x: Numbers) -> Numbers:
    """-m / (2 + m), m = exp(-2|x|) - 1, with the sign of x."""
    power, p = _parts_of_exp(abs(x) * -2)
    m = power * p + (power - 1)
    return (m / (m + 2)).with_sign_of(x)


def sigmoid(x: Numbers) -> Numbers:
    """1 / (1 + exp(-x)); of x <= 0 exp(x) / (1 + exp(x))."""
    power, p = _parts_of_exp(x.same(0) - abs(x))
    e = power * p + power
    return e.where(x.is_at_most(0), 1) / (1 + e)
