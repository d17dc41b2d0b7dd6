"""What `numba` says it cannot run, what it says a call costs, and where `auto` takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.dispatch import BackendError, decide
from fastrnn_numba import backend, cost, tile


@pytest.mark.parametrize(
    ("layer", "x", "reason"),
    [
        (fastrnn.LSTM(3, 4, proj_size=2), torch.randn(5, 2, 3), "it has no projections"),
        (fastrnn.LSTM(3, 4, device="meta"), torch.randn(5, 2, 3, device="meta"), "device is meta"),
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


@pytest.mark.parametrize("told", ["0", "1"])
def test_told_not_to_compile(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's switch for debugging leaves functions that are none of its own."""
    backend._unavailable.cache_clear()
    monkeypatch.setenv("NUMBA_DISABLE_JIT", told)
    reasons = backend.NumbaBackend().unavailable()
    backend._unavailable.cache_clear()
    assert reasons == (
        ["NUMBA_DISABLE_JIT is set, with which Numba compiles nothing"] if told == "1" else []
    )


@pytest.mark.parametrize(
    ("make", "batch", "backend"),
    [
        (fastrnn.GRU, 1, "numba"),
        (fastrnn.LSTM, 8, "numba"),
        (fastrnn.RNN, 8, "numba"),
        (fastrnn.RNN, 1, "reference"),
    ],
)
def test_where_vmap_goes(make: Any, batch: int, backend: str) -> None:
    """Networks of few rows are stepped side by side where a step is little more than a product."""
    asked = fastrnn.explain(make(64, 64), torch.randn(50, batch, 64)).request
    assert decide(asked._replace(transformed=True, threads=1)).backend == backend


def test_a_thread_takes_a_whole_tile_of_rows() -> None:
    """Costs are looked at where there is no Numba, and so no tile."""
    assert cost.PART == tile.ROWS


def taken(layer: Any, x: torch.Tensor, **marks: Any) -> str:
    return fastrnn.explain(layer, x, **marks).backend


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("T", "B", "H"), [(100, 1, 64), (100, 8, 128), (512, 32, 64)])
def test_auto_takes_it_for_grus(T: int, B: int, H: int, grad: bool) -> None:
    """0.08 to 0.6 of torch's time, 0.3 to 0.8 of what `auto` took before."""
    assert taken(fastrnn.GRU(H, H), torch.randn(T, B, H, requires_grad=grad)) == "numba"
    with torch.no_grad():
        assert taken(fastrnn.GRU(H, H), torch.randn(T, B, H)) == "numba"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("layer", "T", "B", "why"),
    [
        (fastrnn.GRU(64, 64), 1, 1, "one step: W_hh would be laid out for it"),
        (fastrnn.RNN(64, 64), 1, 8, "likewise"),
        (fastrnn.LSTM(64, 64), 100, 32, "oneDNN's"),
        (fastrnn.LSTM(256, 256), 20, 128, "oneDNN's"),
    ],
)
def test_where_it_gains_nothing_auto_does_not(layer: Any, T: int, B: int, why: str) -> None:
    with torch.no_grad():
        assert taken(layer, torch.randn(T, B, layer.input_size)) != "numba", why


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("H", [32, 128])
def test_auto_takes_it_for_marked_rows_of_small_lstms(H: int) -> None:
    layer, x = fastrnn.LSTM(H, H), torch.randn(100, 8, H)
    assert taken(layer, x, lengths=[100, 90, 70, 50, 40, 30, 20, 10]) == "numba"
    assert taken(layer, x, resets=torch.rand(100, 8) < 0.1) == "numba"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("T", "B", "H"), [(100, 1, 64), (100, 1, 256), (20, 8, 256)])
def test_auto_takes_it_for_lstms_of_few_rows_that_are_trained(T: int, B: int, H: int) -> None:
    """0.7 to 0.9 of oneDNN's time."""
    assert taken(fastrnn.LSTM(H, H), torch.randn(T, B, H, requires_grad=True)) == "numba"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("B", [1, 8, 32])
def test_nothing_is_laid_out_for_a_single_step_of_an_lstm(B: int) -> None:
    """1.05 to 1.3 of what `rows` takes."""
    with torch.no_grad():
        assert taken(fastrnn.LSTM(256, 256), torch.randn(1, B, 256)) != "numba"


@pytest.mark.parametrize(("cell", "H"), [("LSTM", 256), ("LSTM", 512), ("GRU", 512)])
def test_rivals_share_large_weights_among_threads(
    cell: str, H: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of one row with two threads: 1.2 to 1.7 of torch's time, whose threads halve W_hh."""
    layer, x, found = getattr(fastrnn, cell)(H, H), torch.randn(100, 1, H), []
    for number in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=number: n)
        with torch.no_grad():
            found.append(taken(layer, x) == "numba")
    assert found == [True, False]


@pytest.mark.parametrize("cell", ["GRU", "RNN"])
def test_several_threads_share_rows(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.6 to 0.8 of what `rows` takes, whose products wait for all threads in every step."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer, x = getattr(fastrnn, cell)(256, 256), torch.randn(100, 32, 256)
    with torch.no_grad():
        assert taken(layer, x) == "numba"
        assert cost.threads(fastrnn.explain(layer, x).request) == 2


def request(**how: Any) -> Any:
    asked = fastrnn.explain(fastrnn.LSTM(64, 64), torch.randn(100, 8, 64)).request
    return asked._replace(**{"threads": 2} | how)


@pytest.mark.parametrize(
    ("how", "threads"),
    [
        ({}, 2),
        ({"threads": 1}, 1),
        ({"threads": 8}, 2),  # parts of four rows
        ({"batch": 7}, 1),
        ({"batch": 0}, 1),
        ({"seq_len": 100}, 1),  # too little work
    ],
)
def test_threads_share_rows_in_parts_of_a_tile(how: dict[str, int], threads: int) -> None:
    base = request(seq_len=2000)
    assert cost.threads(base._replace(**how)) == threads


def test_work_costs_more_the_more_there_is_of_it() -> None:
    base = request(seq_len=1000)
    seconds = cost.estimate(base).seconds
    for more in ("seq_len", "batch", "hidden_size", "num_layers"):
        larger = base._replace(**{more: 2 * getattr(base, more)})
        assert cost.estimate(larger).seconds > 1.3 * seconds, more
    assert cost.estimate(base._replace(needs_grad=False)).seconds < 0.7 * seconds
    assert cost.estimate(base._replace(frozen=True)).seconds < seconds
    assert cost.estimate(base._replace(dtype=torch.float64)).seconds > 1.3 * seconds
    assert cost.estimate(base._replace(bidirectional=True)).seconds > 1.9 * seconds


def test_padded_rows_are_packed_where_much_is_past_their_ends() -> None:
    base = request(varlen=True, padded=True)
    assert not cost.packs(base, 100)
    assert cost.packs(base._replace(input_size=1024, hidden_size=1024), 400)
