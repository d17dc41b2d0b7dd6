"""fastrnn.packing: how rows are cut up where they start over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import packing


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    steps=st.integers(1, 6),
    lengths=st.none() | st.lists(st.integers(0, 6), max_size=4),
    density=st.sampled_from([None, 0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_parts_are_what_lies_between_two_starts(
    steps: int, lengths: list[int] | None, density: float | None, seed: int
) -> None:
    batch = 3 if lengths is None else len(lengths)
    own = None if lengths is None else torch.tensor([min(n, steps) for n in lengths]).long()
    resets = None
    if density is not None:
        generator = torch.Generator().manual_seed(seed)
        resets = torch.rand(steps, batch, generator=generator) < density
    before = None if resets is None else resets.clone()
    want, last = [], []
    for row in range(batch):
        length = steps if own is None else int(own[row])
        begins = [0] + [t for t in range(1, length) if resets is not None and resets[t, row]]
        ends = [*begins[1:], length]
        cuts = zip(begins, ends, strict=True)
        want += [(row, row * steps + begin, end - begin) for begin, end in cuts]
        last.append(len(want) - 1)
    parts = packing.cut(own, resets, steps, batch)
    assert list(zip(*(each.tolist() for each in parts[:3]), strict=True)) == want
    assert parts.last.tolist() == last
    assert resets is None or before is None or torch.equal(resets, before), "the user's own"


@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_of_all_steps_are_not_packed(
    batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those that start over only where they start anyway."""
    monkeypatch.setattr(packing, "cut", lambda *call: pytest.fail("cut up"))
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[0, 1] = True
    for layer, backend in ((fastrnn.GRU, "rows"), (fastrnn.LSTM, "onednn")):
        module = layer(3, 4, 2, batch_first=batch_first, backend=backend)
        x = torch.randn(2, 5, 3) if batch_first else torch.randn(5, 2, 3)
        marks = resets.mT if batch_first else resets
        made = [
            module(x, **how)[0]
            for how in (
                {"lengths": [5, 5]},
                {"resets": marks},
                {"lengths": [5, 5], "resets": marks},
            )
        ]
        module.backend = "aten"
        for output in made:
            torch.testing.assert_close(output, module(x)[0])


def test_a_batch_of_no_rows() -> None:
    resets = torch.zeros(5, 0, dtype=torch.bool)
    for how in ({"lengths": []}, {"resets": resets}, {"lengths": [], "resets": resets}):
        for layer, backend in ((fastrnn.GRU, "rows"), (fastrnn.LSTM, "onednn")):
            module = layer(3, 4, 2, backend=backend)
            x = torch.randn(5, 0, 3, requires_grad=True)
            output, final = module(x, **how)
            states = final if isinstance(final, tuple) else (final,)
            assert output.shape == (5, 0, 4)
            assert all(state.shape == (2, 0, 4) for state in states)
            output.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape
            assert not any(weight.grad.any() for weight in module.parameters())
