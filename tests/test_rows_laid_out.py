"""fastrnn_rows.laid_out: when W_hh is copied, and that no result depends on it."""

from __future__ import annotations

import pytest
import torch

from fastrnn_rows import laid_out
from fastrnn_rows.steps import Steps
from rows_cases import CELLS, assert_same, modules, results


# Weights that lie in memory otherwise than the parameter: by steps and rows enough, and by size.
@pytest.mark.parametrize(
    ("T", "B", "H", "turned", "spread"),
    [
        (15, 4, 20, False, False),
        (16, 4, 20, True, False),
        (16, 3, 20, False, False),
        (200, 1, 20, False, False),  # float64
        (16, 5, 280, True, False),  # in strips, the last one short
        (16, 33, 512, True, True),
        (15, 33, 512, False, False),
        (16, 31, 512, True, False),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_weights_change_no_result(cell, T, B, H, turned, spread, monkeypatch):
    made = []
    for name in ("turned", "spread"):
        copy = getattr(laid_out, name)
        monkeypatch.setattr(
            laid_out, name, lambda weight, name=name, copy=copy: made.append(name) or copy(weight)
        )
    theirs, ours = modules(cell, 3, H)
    x = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(3)).double()
    assert_same(results(ours, x), results(theirs, x))
    assert made == [*["turned"] * turned, *["spread"] * spread]


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (800, 200), (300, 513)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_weights_are_the_weights(shape, dtype):
    for weight in (torch.randn(shape, dtype=dtype), torch.randn(shape[::-1], dtype=dtype).mT):
        assert torch.equal(laid_out.turned(weight), weight.mT)
        assert torch.equal(laid_out.spread(weight), weight)
        for copy in (laid_out.turned(weight), laid_out.spread(weight)):
            assert copy.stride() == (copy.shape[1] + laid_out.GAP, 1)


def test_rows_that_end_count_for_what_they_are():
    """Sixteen steps of four rows on average, or fewer."""
    weight = torch.randn(20, 20)
    for sizes, copied in (([7] + [4] * 14 + [1], True), ([4] * 15 + [3], False)):
        found = laid_out.forward(weight, Steps(sizes, reverse=False))
        assert (found.data_ptr() != weight.data_ptr()) == copied
    single = Steps([1] * 64, reverse=False)
    assert laid_out.forward(weight, single).data_ptr() != weight.data_ptr()
    assert laid_out.forward(weight.double(), single).stride() == (1, 20)
    assert laid_out.forward(weight, Steps([1] * 63, reverse=False)).stride() == (1, 20)


@pytest.mark.parametrize(
    ("gates", "itemsize", "rows", "copied"),
    [
        (2000, 4, 7, False),  # 8 MB
        (2000, 4, 8, True),
        (2000, 4, 128, True),
        (4000, 4, 8, True),
        (1000, 8, 7, False),
        (1000, 8, 8, True),
        (2000, 8, 8, False),
        (400, 4, 3, False),
        (400, 4, 4, True),
        (400, 8, 4, True),
        (400, 4, 128, True),
    ],
)
def test_large_weights_are_copied_for_many_rows_and_small_ones_for_few(
    gates: int, itemsize: int, rows: int, copied: bool
) -> None:
    assert laid_out.turns(gates, 1000, itemsize, 16, rows) == copied
    assert not laid_out.turns(gates, 1000, itemsize, 15, rows)
