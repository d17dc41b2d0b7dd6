"""What `numba` says it cannot run, what it says a call costs, and where `auto` takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.dispatch import BackendError
from fastrnn_numba import backend


@pytest.mark.parametrize(
    ("layer", "x", "reason"),
    [
        (fastrnn.LSTM(3, 4, proj_size=2), torch.randn(5, 2, 3), "it has no projections"),
        (fastrnn.LSTM(3, 4).bfloat16(), torch.randn(5, 2, 3).bfloat16(), "dtype is torch.bfloat16"),
        (fastrnn.LSTM(3, 4, device="meta"), torch.randn(5, 2, 3, device="meta"), "device is meta"),
        (fastrnn.LSTM(3, 4, recompute=2), torch.randn(5, 2, 3), "recompute was asked for"),
        (fastrnn.LSTM(3, 4, zoneout=0.1), torch.randn(5, 2, 3), "zoneout asked for"),
    ],
)
def test_what_it_refuses(layer: Any, x: torch.Tensor, reason: str) -> None:
    with (
        fastrnn.use_backend("numba"),
        pytest.raises(BackendError, match=f"numba: cannot run: .*{reason}"),
    ):
        layer(x)


def test_without_numba_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend._unavailable.cache_clear()
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    layer, x = fastrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    with (
        fastrnn.use_backend("numba"),
        pytest.raises(BackendError, match=r"numba is not installed; fastrnn\[numba\]"),
    ):
        layer(x)
    assert fastrnn.explain(layer, x).backend != "numba"
    backend._unavailable.cache_clear()
