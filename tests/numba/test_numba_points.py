"""tanh and the logistic function as the loops have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba import njit

from fastrnn_numba import points

EVERYWHERE = np.concatenate(
    [
        np.linspace(-20, 20, 100_001),
        np.logspace(-37, 5, 20_001),
        -np.logspace(-37, 5, 20_001),
    ]
)
UNITS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


@njit
def tanh_of(x: Any) -> Any:
    made = np.empty_like(x)
    for k in range(len(x)):
        made[k] = points.tanh(x[k])
    return made


@njit
def sigmoid_of(x: Any) -> Any:
    made = np.empty_like(x)
    for k in range(len(x)):
        made[k] = points.sigmoid(x[k])
    return made


def logistic(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("function", "truth"), [(tanh_of, np.tanh), (sigmoid_of, logistic)])
def test_it_is_right_to_two_units_in_the_last_place(function: Any, truth: Any, dtype: Any) -> None:
    x = EVERYWHERE.astype(dtype)
    want = truth(x.astype(np.longdouble))
    # where float32's exp ends, at -87, what is left is 0 to anybody
    error = np.abs(function(x) - want) / np.maximum(np.abs(want), 1e-30)
    assert float(error.max()) < 2 * UNITS[dtype]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_too_large_and_nan_stays(dtype: Any) -> None:
    x = np.array([1e4, -1e4, math.inf, -math.inf, math.nan, 0.0, -0.0], dtype)
    tanh, sigmoid = tanh_of(x), sigmoid_of(x)
    np.testing.assert_array_equal(tanh[:6], np.array([1, -1, 1, -1, math.nan, 0], dtype))
    np.testing.assert_array_equal(sigmoid[4:], np.array([math.nan, 0.5, 0.5], dtype))
    assert np.all(sigmoid[[0, 2]] == 1)
    assert np.all(np.abs(sigmoid[[1, 3]]) < 2e-38)
    assert np.signbit(tanh[6])
    assert tanh.dtype == sigmoid.dtype == dtype
