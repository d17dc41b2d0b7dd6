"""tanh and the logistic function, in arithmetic that LLVM turns into vector instructions.

In float32, right to two units in the last place; float64, the dtype of truths, takes the C
library's. Both are safe from -inf to inf, and hand NaN on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from fastrnn_numba.compiled import chosen_by_types, compiled, part

_float = np.float32
LOG2E = _float(1 / math.log(2))
# ln 2 in two parts, the first of so few bits that a whole number of them is exact
LN2 = _float(355 / 512)
LN2_REST = _float(math.log(2) - 355 / 512)
LEAST = _float(-87.0)
"""exp of it is still a normal number."""
C0, C1, C2, C3, C4, C5, C6, C7 = (_float(1 / math.factorial(n)) for n in range(8))
SMALL = _float(0.6)
"""Below it 1 - exp(-2x) would lose digits."""
_half, _one, _two = _float(0.5), _float(1), _float(2)
_n15, _n105, _n420, _n945 = (_float(n) for n in (15, 105, 420, 945))
_exponent, _bias = np.int32(23), np.int32(127)


@compiled
def exp_of_negative(x: Any) -> Any:
    """exp(x) of x <= 0: 2^k exp(r), |r| <= ln 2 / 2, of which the series has eight terms."""
    x = max(x, LEAST)
    k = np.floor(x * LOG2E + _half)
    r = x - k * LN2 - k * LN2_REST
    series = C4 + r * (C5 + r * (C6 + r * C7))
    series = C0 + r * (C1 + r * (C2 + r * (C3 + r * series)))
    return series * np.int32((np.int32(k) + _bias) << _exponent).view(np.float32)


def tanh(x: Any) -> Any:
    """Tanh of float32 or float64."""
    return _tanh_double(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) of float32 or float64."""
    return _sigmoid_double(x)


@chosen_by_types(tanh)
def _(x: Any) -> Any:
    return _tanh_single if x == types.float32 else _tanh_double


@chosen_by_types(sigmoid)
def _(x: Any) -> Any:
    return _sigmoid_single if x == types.float32 else _sigmoid_double


@part
def _tanh_single(x: Any) -> Any:
    """(1 - e) / (1 + e), e = exp(-2|x|); near 0 Lambert's continued fraction of five levels."""
    y = abs(x)
    s, e = y * y, exp_of_negative(-_two * y)
    near = y < SMALL
    above = x * (_n945 + s * (_n105 + s)) if near else _float(math.copysign(_one - e, x))
    return above / (_n945 + s * (_n420 + s * _n15) if near else _one + e)


@part
def _sigmoid_single(x: Any) -> Any:
    e = exp_of_negative(-abs(x))
    return (_one if x >= 0 else e) / (_one + e)


@part
def _tanh_double(x: Any) -> Any:
    return math.tanh(x)


@part
def _sigmoid_double(x: Any) -> Any:
    e = math.exp(-abs(x))
    return (1.0 if x >= 0 else e) / (1.0 + e)
