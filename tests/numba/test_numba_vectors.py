"""Formulas over the units of a row: any number of units, and nothing is written beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from fastrnn_numba.vectors import Row, over_units


@over_units
def _formula(a: Row, b: Row, made: Row) -> None:
    made[1] = 2 - a[0] * b[1] / (1 + abs(b[0]))
    made[0] = (a[0].same(3) - b[0]).where(a[0].is_at_most(0.25), 0.5 * a[0] - 1)


@njit
def run(units: int, a: Any, i: int, b: Any, j: int, made: Any, k: int) -> None:
    _formula(units, a, i, b, j, made, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70])
def test_it_is_numpys_and_writes_its_own_row(units: int, dtype: Any) -> None:
    random = np.random.default_rng(units)
    a, b = (random.standard_normal((3, k * units)).astype(dtype) for k in (1, 2))
    made = np.full((4, 2 * units), np.nan, dtype)
    run(units, a, 1, b, 2, made, 2)
    x, (y0, y1) = a[1], b[2].reshape(2, units)
    want = np.where(x <= 0.25, 3 - y0, 0.5 * x - 1), 2 - x * y1 / (1 + abs(y0))
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(made[2], np.concatenate(want), tolerance, tolerance)
    assert np.isnan(made[[0, 1, 3]]).all()


def test_nan_is_not_at_most_anything() -> None:
    a, made = np.full((1, 5), np.nan, np.float32), np.zeros((1, 10), np.float32)
    run(5, a, 0, np.ones((1, 10), np.float32), 0, made, 0)
    assert np.isnan(made).all()  # 0.5 * a - 1, not 2
