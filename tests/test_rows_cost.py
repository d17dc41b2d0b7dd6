"""What `rows` expects to take, and where `auto` takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn_rows import cost


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("hidden", [64, 512])
def test_auto_takes_it_for_training_and_where_the_product_of_a_step_counts(
    kind, hidden, packed, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = torch.empty(100, 8, hidden)
    if packed:
        rows = pack_padded_sequence(rows, [100, 90, 80, 70, 60, 50, 40, 30])
    layer = kind(hidden, hidden)
    assert fastrnn.explain(layer, rows).backend == "rows"
    with torch.no_grad():
        # in small layers what a step has beside its product counts, of which ATen's loop, in C++,
        # has less, unless it slices packed rows
        takes = hidden == 512 or (packed and kind is fastrnn.RNN)
        assert (fastrnn.explain(layer, rows).backend == "rows") == takes


@pytest.mark.parametrize(
    ("kind", "steps", "batch", "hidden", "one_thread", "two_threads"),
    [
        (fastrnn.RNN, 100, 8, 1024, "rows", "aten"),  # a step has few rows
        (fastrnn.RNN, 100, 32, 1024, "rows", "rows"),
        (fastrnn.LSTM, 100, 32, 512, "rows", "rows"),  # torch's path for it is ATen's loop
        (fastrnn.LSTM, 512, 32, 256, "rows", "onednn"),
    ],
)
def test_two_threads_choose_anew(
    kind: Any, steps: int, batch: int, hidden: int, one_thread: str, two_threads: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lengths = torch.linspace(steps, 1, batch).round().long()
    packed = pack_padded_sequence(torch.empty(steps, batch, hidden), lengths)
    layer = kind(hidden, hidden)
    for threads, backend in ((1, one_thread), (2, two_threads)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with torch.no_grad():
            assert fastrnn.explain(layer, packed).backend == backend


def test_estimates_know_which_rows_run_on() -> None:
    for (steps, batch, hidden), runs_on in (((20, 8, 32), True), ((200, 64, 256), False)):
        layer, x = fastrnn.GRU(hidden, hidden, backend="rows"), torch.empty(steps, batch, hidden)
        plain, padded = (
            next(each.cost.seconds for each in fastrnn.explain(layer, x, **how).candidates
                 if each.name == "rows" and each.cost is not None)
            for how in ({}, {"lengths": [steps] * batch})
        )  # fmt: skip
        assert (padded == pytest.approx(plain + cost.MARGIN * cost.RUNNING_ON)) == runs_on
