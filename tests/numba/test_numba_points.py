"""tanh and the logistic function as the loops have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba import njit

from fastrnn_numba import points
from fastrnn_numba.vectors import Row, over_units

EVERYWHERE = np.concatenate(
    [
        np.linspace(-20, 20, 100_001),
        np.linspace(-1, 1, 100_001),
        np.linspace(-800, 0, 10_001),
        np.logspace(-37, 5, 20_001),
        -np.logspace(-37, 5, 20_001),
    ]
)
UNITS = {np.float32: 2.0**-23, np.float64: 2.0**-52}
NOTHING = {np.float32: 1e-30, np.float64: 1e-290}
"""What is left where exp ends, at -87 and -708, is 0 to anybody."""


@over_units
def _tanh(x: Row, made: Row) -> None:
    made[0] = points.tanh(x[0])


@over_units
def _sigmoid(x: Row, made: Row) -> None:
    made[0] = points.sigmoid(x[0])


@njit
def tanh_of(x: Any) -> Any:
    made = np.empty_like(x)
    _tanh(x.shape[1], x, 0, made, 0)
    return made


@njit
def sigmoid_of(x: Any) -> Any:
    made = np.empty_like(x)
    _sigmoid(x.shape[1], x, 0, made, 0)
    return made


def logistic(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("function", "truth"), [(tanh_of, np.tanh), (sigmoid_of, logistic)])
def test_it_is_right_to_two_units_in_the_last_place(function: Any, truth: Any, dtype: Any) -> None:
    x = EVERYWHERE.astype(dtype)
    want = truth(x.astype(np.longdouble))
    error = np.abs(function(x[None])[0] - want) / np.maximum(np.abs(want), NOTHING[dtype])
    assert float(error.max()) < 2 * UNITS[dtype]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_too_large_and_nan_stays(dtype: Any) -> None:
    x = np.array([1e4, -1e4, math.inf, -math.inf, math.nan, 0.0, -0.0], dtype)
    tanh, sigmoid = tanh_of(x[None])[0], sigmoid_of(x[None])[0]
    np.testing.assert_array_equal(tanh[:6], np.array([1, -1, 1, -1, math.nan, 0], dtype))
    np.testing.assert_array_equal(sigmoid[4:], np.array([math.nan, 0.5, 0.5], dtype))
    assert np.all(sigmoid[[0, 2]] == 1)
    assert np.all(np.abs(sigmoid[[1, 3]]) < 2e-38)
    assert np.signbit(tanh[6])
    assert tanh.dtype == sigmoid.dtype == dtype
