"""What `rows` expects to take, and where `auto` takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn_rows import cost
from rows_cases import rows_of_steps


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
        # in small layers what a step has beside its product counts: of a GRU's, ATen's loop, in
        # C++, has less
        takes = hidden == 512 or kind is fastrnn.RNN
        assert (fastrnn.explain(layer, rows).backend == "rows") == takes


@pytest.mark.parametrize(
    ("kind", "steps", "batch", "hidden", "one_thread", "two_threads"),
    [
        (fastrnn.RNN, 100, 8, 1024, "rows", "aten"),  # a step has few rows
        (fastrnn.RNN, 100, 32, 1024, "rows", "rows"),
        (fastrnn.RNN, 20, 32, 256, "rows", "rows"),
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


@pytest.mark.parametrize(
    ("kind", "dtype", "steps", "batch", "hidden", "backend"),
    [
        (fastrnn.RNN, torch.float32, 20, 1, 64, "aten"),
        (fastrnn.RNN, torch.float32, 64, 1, 64, "rows"),
        (fastrnn.RNN, torch.float32, 20, 128, 32, "rows"),  # ATen's loop writes sums anew
        (fastrnn.GRU, torch.float32, 20, 8, 64, "aten"),
        (fastrnn.GRU, torch.float32, 512, 8, 64, "rows"),
        (fastrnn.GRU, torch.float32, 100, 64, 256, "rows"),
        (fastrnn.GRU, torch.float32, 100, 128, 256, "aten"),
        (fastrnn.GRU, torch.float32, 100, 128, 1024, "rows"),
        (fastrnn.GRU, torch.float32, 512, 128, 64, "rows"),
        (fastrnn.GRU, torch.float32, 20, 32, 256, "rows"),  # the product of which threads share
        (fastrnn.GRU, torch.float32, 100, 7, 1024, "aten"),  # not turned over for so few rows
        (fastrnn.GRU, torch.float32, 100, 8, 1024, "rows"),
        (fastrnn.LSTM, torch.float32, 100, 32, 128, "aten"),
        (fastrnn.LSTM, torch.float64, 100, 32, 128, "rows"),  # which oneDNN has not
        (fastrnn.LSTM, torch.float64, 512, 32, 64, "rows"),
        (fastrnn.LSTM, torch.float64, 20, 8, 64, "aten"),
    ],
)
def test_forward_loops(
    kind: Any, dtype: torch.dtype, steps: int, batch: int, hidden: int, backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = kind(hidden, hidden, dtype=dtype)
    with torch.no_grad():
        x = torch.empty(steps, batch, hidden, dtype=dtype)
        assert fastrnn.explain(layer, x).backend == backend


@pytest.mark.parametrize(
    ("options", "path"),
    [({}, "oneDNN"), ({"proj_size": 16}, "ATen's loop"), ({"dtype": torch.float64}, "ATen's loop")],
)
def test_not_every_lstm_is_onednns(options: dict[str, Any], path: str) -> None:
    layer = fastrnn.LSTM(32, 32, **options)
    x = torch.empty(9, 3, 32, dtype=options.get("dtype"))
    with torch.no_grad():
        asked = fastrnn.explain(layer, x).candidates
    (cost,) = (one.cost for one in asked if one.name == "aten")
    assert cost is not None
    assert cost.why == path


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("batch", "hidden", "backend"), [(32, 64, "aten"), (8, 512, "rows"), (128, 256, "rows")]
)
def test_large_lstms_with_frozen_weights_are_not_onednns(
    batch: int, hidden: int, backend: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It forms the gradients of weights, asked for or not."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, x = fastrnn.LSTM(hidden, hidden), torch.empty(100, batch, hidden, requires_grad=True)
    assert fastrnn.explain(layer, x).backend == "aten"
    layer.requires_grad_(False)
    assert fastrnn.explain(layer, x).backend == backend


@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "training", "forward"),
    [
        (1, 1, 128, "aten", "aten"),
        (1, 1, 256, "rows", "rows"),  # 2 MB
        (5, 8, 256, "aten", "aten"),
        (1, 1, 1024, "rows", "rows"),
        (5, 1, 512, "rows", "rows"),  # 4 MB of W_hh, which oneDNN waits for no less
        (20, 1, 1024, "rows", "aten"),
        (100, 1, 256, "aten", "aten"),
        (100, 1, 1024, "aten", "aten"),
    ],
)
def test_few_steps_do_not_pay_for_weights_laid_out_anew(
    steps: int, batch: int, hidden: int, training: str, forward: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer, x = fastrnn.LSTM(hidden, hidden), torch.empty(steps, batch, hidden)
    assert fastrnn.explain(layer, x).backend == training
    with torch.no_grad():
        assert fastrnn.explain(layer, x).backend == forward


@pytest.mark.parametrize("name", ["aten", "rows", "reference"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("hidden", [64, 512])
def test_a_second_direction_costs_what_the_first_does(
    name: str, grad: bool, kind: Any, hidden: int
) -> None:
    def a_step(bidirectional: bool) -> float:
        layer = kind(hidden, hidden, bidirectional=bidirectional)

        def seconds(steps: int) -> float:
            asked = fastrnn.explain(layer, torch.empty(steps, 8, hidden)).candidates
            return next(one.cost.seconds for one in asked if one.name == name and one.cost)

        with torch.set_grad_enabled(grad):
            return seconds(200) - seconds(100)

    assert a_step(True) == pytest.approx(2 * a_step(False))


@pytest.mark.parametrize("name", ["aten", "rows", "reference"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_every_layer_of_a_short_call_costs(name: str, grad: bool, kind: Any) -> None:
    """A further layer or direction takes about half of what the first does, however few steps."""

    def seconds(layers: int, bidirectional: bool) -> float:
        layer = kind(8, 8, num_layers=layers, bidirectional=bidirectional)
        with torch.set_grad_enabled(grad):
            asked = fastrnn.explain(layer, torch.empty(1, 1, 8)).candidates
        return next(one.cost.seconds for one in asked if one.name == name and one.cost)

    one, three, six = seconds(1, False), seconds(3, False), seconds(3, True)
    assert 0.4 * one < (three - one) / 2 < 1.1 * one
    assert six - three == pytest.approx(1.5 * (three - one))


def test_estimates_know_which_rows_run_on() -> None:
    for (steps, batch, hidden), runs_on in (((20, 8, 32), True), ((200, 64, 256), False)):
        layer, x = fastrnn.GRU(hidden, hidden, backend="rows"), torch.empty(steps, batch, hidden)
        plain, padded = (
            next(each.cost.seconds for each in fastrnn.explain(layer, x, **how).candidates
                 if each.name == "rows" and each.cost is not None)
            for how in ({}, {"lengths": [steps] * batch})
        )  # fmt: skip
        assert (padded == pytest.approx(plain + cost.MARGIN * cost.RUNNING_ON)) == runs_on


@pytest.mark.parametrize(
    ("kind", "steps", "batch", "hidden", "every", "stays"),
    [
        (fastrnn.GRU, 20, 8, 32, 18, True),  # packing takes longer than the steps that it saves
        (fastrnn.GRU, 128, 1, 32, 10, False),
        (fastrnn.GRU, 128, 64, 128, 100, True),
        (fastrnn.RNN, 128, 64, 128, 100, True),
        (fastrnn.RNN, 128, 1, 512, 10, False),
        (fastrnn.LSTM, 128, 4, 256, 10, False),
    ],
)
def test_rows_are_cut_up_where_that_saves_steps(
    kind: Any, steps: int, batch: int, hidden: int, every: int, stays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    resets = (torch.arange(steps).unsqueeze(1) + 7 * torch.arange(batch)) % every == 0
    sizes = rows_of_steps(kind(hidden, hidden), resets)
    assert (sizes == [batch] * steps) == stays
    assert stays or len(sizes) <= every


def test_a_row_that_goes_on_keeps_the_others_from_being_cut_up() -> None:
    resets = torch.zeros(128, 8, dtype=torch.bool)
    resets[60:68, 1:] = True
    assert rows_of_steps(fastrnn.GRU(32, 32), resets) == [8] * 128
    resets[::4] = True
    assert len(rows_of_steps(fastrnn.GRU(32, 32), resets)) == 4


@pytest.mark.parametrize("name", ["rows", "reference"])
def test_estimates_count_what_starting_over_takes(name: str) -> None:
    def seconds(batch: int, **how: Any) -> float:
        layer, x = fastrnn.RNN(32, 32, backend=name), torch.empty(20, batch, 32)
        (found,) = [e for e in fastrnn.explain(layer, x, **how).candidates if e.name == name]
        return found.cost.seconds

    more = [seconds(n, resets=torch.ones(20, n, dtype=torch.bool)) - seconds(n) for n in (1, 50)]
    assert cost.STARTING_TRAINING < more[0] < more[1] < 10 * cost.STARTING_TRAINING
