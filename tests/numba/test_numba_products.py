"""The product of a step: any sizes, some rows, in the order of their lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn_numba import products


def numbers(*shape: int, dtype: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    rows=st.integers(0, 21),
    length=st.integers(1, 70),
    columns=st.integers(1, 300),
    begin=st.integers(0, 3),
    k_begin=st.integers(0, 5),
    data=st.data(),
)
def test_it_is_numpys(
    dtype: Any, rows: int, length: int, columns: int, begin: int, k_begin: int, data: Any
) -> None:
    count = data.draw(st.integers(0, rows))
    order = np.array(data.draw(st.permutations(range(rows))), np.int64)
    of = numbers(begin + rows, k_begin + length + 2, dtype=dtype)
    weight = numbers(length, columns, dtype=dtype, seed=1)
    by = products.panels(weight)
    into = np.full((rows + 1, by.shape[0] * by.shape[2]), np.nan, dtype)
    products.product(into, of, begin, order, count, k_begin, by)
    want = of[begin + order[:count], k_begin : k_begin + length] @ weight
    tolerance = length * 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(into[:count, :columns], want, tolerance, tolerance * 4)
    assert np.all(into[:count, columns:] == 0)
    assert np.isnan(into[count:]).all()  # of no other row


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("length", "columns"), [(1, 1), (17, 31), (16, 32), (40, 33), (5, 200), (70, 96)]
)
def test_panels_lie_side_by_side(length: int, columns: int, dtype: Any) -> None:
    weight = numbers(length, columns, dtype=dtype)
    by = products.panels(weight)
    np.testing.assert_array_equal(by.transpose(1, 0, 2).reshape(length, -1)[:, :columns], weight)
    turned = products.panels_turned(np.ascontiguousarray(weight.T))
    np.testing.assert_array_equal(turned, by)
    assert by.ctypes.data % 64 == turned.ctypes.data % 64 == 0  # else a vector is in two lines
    assert not by.transpose(1, 0, 2).reshape(length, -1)[:, columns:].any()
