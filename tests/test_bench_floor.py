"""The floor: what a case needs, counted by hand, and what a machine attains."""

from __future__ import annotations

import types

import pytest
import torch

from fastrnn import floor
from fastrnn.benchmark import Case
from fastrnn.floor import Attained, floor_of
from fastrnn_kernels.model import Rates

LSTM = Case("lstm", "forward", 10, 3, 5, 7, 1, False, "float32", "cpu")
ONE = Attained(1.0, ((1, 1.0),), 1.0, 0.0, None, "measured")
WEIGHTS = 4 * 7 * (5 + 7)


def test_operations_are_those_of_the_products():
    assert floor.operations(LSTM) == 2 * 10 * 3 * WEIGHTS
    assert floor.operations(LSTM._replace(mode="inference")) == 2 * 10 * 3 * WEIGHTS
    assert floor.operations(LSTM._replace(mode="train")) == 3 * 2 * 10 * 3 * WEIGHTS
    assert floor.operations(LSTM._replace(cell="rnn_relu")) == 2 * 10 * 3 * 7 * (5 + 7)
    stack = LSTM._replace(layers=2, bidirectional=True)
    second = 4 * 7 * (2 * 7 + 7)
    assert floor.operations(stack) == 2 * 10 * 3 * 2 * (WEIGHTS + second)


def test_bytes_are_those_of_what_a_caller_sees():
    x, y, parameters = 10 * 3 * 5, 10 * 3 * 7, WEIGHTS + 2 * 4 * 7
    assert floor.bytes_of(LSTM) == 4 * (x + y + parameters + 2 * 3 * 7)
    half = LSTM._replace(dtype="bfloat16", cell="rnn_tanh")
    assert floor.bytes_of(half) == 2 * (x + y + parameters // 4 + 3 * 7)
    train = floor.bytes_of(LSTM._replace(mode="train"))
    assert train - floor.bytes_of(LSTM) == 4 * 2 * (x + y + parameters)
    both = LSTM._replace(bidirectional=True)
    assert floor.bytes_of(both) == 4 * (x + 2 * y + 2 * parameters + 2 * 2 * 3 * 7)


def test_steps_are_those_that_wait_for_one_another():
    assert floor.dependent_steps(LSTM) == 10
    assert floor.dependent_steps(LSTM._replace(mode="train")) == 20
    assert floor.dependent_steps(LSTM._replace(layers=3)) == 12, "each a step behind the one below"
    assert floor.dependent_steps(LSTM._replace(bidirectional=True)) == 10, "at the same time"
    assert floor.dependent_steps(LSTM._replace(bidirectional=True, layers=3)) == 30


def test_the_floor_is_the_largest_of_three():
    bounds = floor_of(LSTM, ONE)
    assert bounds == (floor.operations(LSTM), floor.bytes_of(LSTM), 10)
    for index, name in enumerate(("operations_per_s", "bytes_per_s", "step_s")):
        fast = Attained(1e30, ((1, 1e30),), 0.0, 0.0, None, "measured")
        found = floor_of(LSTM, fast._replace(**{name: ONE[index]}))
        assert found.seconds == bounds[index] == found[index]


def test_an_exchange_counts_where_one_multiprocessor_does_not_hold_the_weights():
    held = 4 * 4 * 7 * 7
    rates = ONE._replace(exchange_s=2.0, on_chip_bytes=held)
    assert floor_of(LSTM, rates).steps == 10
    assert floor_of(LSTM, rates._replace(on_chip_bytes=held - 1)).steps == 30
    assert (
        floor_of(LSTM._replace(dtype="float16"), rates._replace(on_chip_bytes=held // 2)).steps
        == 10
    )
    assert floor_of(LSTM, ONE._replace(exchange_s=2.0)).steps == 10


def test_bandwidth_is_that_of_the_next_smaller_copy():
    rates = ONE._replace(bytes_per_s=((100, 9.0), (1000, 5.0), (10000, 1.0)))
    assert [rates.bandwidth(size) for size in (1, 100, 999, 1000, 10**6)] == [9, 9, 9, 5, 1]


@pytest.fixture
def fresh(monkeypatch):
    """Nothing that was measured before, and tiny things to measure."""
    floor._attained.cache_clear()
    monkeypatch.setattr(floor, "SECONDS", 0.0)
    monkeypatch.setattr(floor, "SIZES", {"cpu": (8, 16)})
    monkeypatch.setattr(floor, "COPIES", {"cpu": (64, 256)})
    monkeypatch.setattr(floor, "STEPS", 5)
    yield
    floor._attained.cache_clear()


def test_a_cpu_is_measured_once(fresh, monkeypatch):
    found = floor.attained_for(LSTM)
    assert found.operations_per_s > 0
    assert [size for size, _ in found.bytes_per_s] == [128, 512]
    assert all(rate > 0 for _, rate in found.bytes_per_s)
    assert 0 < found.step_s < 1
    assert (found.exchange_s, found.on_chip_bytes, found.steps_are) == (0, None, "measured")
    monkeypatch.setattr(floor, "_best", lambda *_: 1 / 0)
    assert floor.attained_for(LSTM._replace(T=3, mode="train")) is found
    with pytest.raises(ZeroDivisionError):
        floor.attained_for(LSTM._replace(dtype="float64"))


def test_what_counts_is_the_best_of_sizes_dtypes_and_numbers_of_threads(fresh, monkeypatch):
    """With made-up times: the second thread halves products and makes copies slower."""
    asked = []

    def best(call, device):
        made = call()
        threads = torch.get_num_threads()
        if isinstance(made, tuple):
            asked.append(("lstm", threads))
            return 10.0
        if made.numel() == 1:
            asked.append(("one by one", threads))
            return 5.0
        asked.append((made.dtype, made.shape[0], threads))
        if made.dtype == torch.uint8:
            return made.shape[0] * threads
        return (
            {8: 2.0, 16: 8.0}[made.shape[0]] / threads * (4 if made.dtype != torch.float32 else 1)
        )

    monkeypatch.setattr(floor, "_best", best)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = floor.attained_for(LSTM._replace(dtype="bfloat16"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found.operations_per_s == 2 * 16**3 / 4
    assert found.bytes_per_s == ((128, 2.0), (512, 2.0))
    assert found.step_s == 1.0
    assert {(torch.bfloat16, 8, 1), (torch.float32, 16, 2), (torch.uint8, 64, 2)} <= set(asked)
    assert {("lstm", 1), ("one by one", 1)} <= set(asked)


def test_a_gpus_step_is_the_cost_models(fresh, monkeypatch):
    gpu = types.SimpleNamespace(shared_memory_per_multiprocessor=1000, regs_per_multiprocessor=25)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(floor, "_operations", lambda *_: 7.0)
    monkeypatch.setattr(floor, "_copy", lambda *_: 9.0)
    monkeypatch.setitem(floor.COPIES, "cuda", (50,))
    found = floor.attained_for(LSTM._replace(device="cuda"))
    rates = Rates()
    assert found.step_s == pytest.approx(3 * rates.barrier / rates.clock)
    assert found.exchange_s == pytest.approx(rates.exchange + rates.l2_latency)
    assert found[:2] == (7.0, ((100, 9.0),))
    assert (found.on_chip_bytes, found.steps_are) == (1100, "assumed")


def test_products_are_formed_in_the_precision_that_layers_have(fresh, monkeypatch):
    seen = []
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    monkeypatch.setattr(torch, "ones", lambda *size, **_: torch.zeros(*size))
    monkeypatch.setattr(floor, "_best", lambda *_: seen.append(setting.fp32_precision) or 1.0)
    monkeypatch.setitem(floor.SIZES, "cuda", (4,))
    for precision in ("tf32", "ieee"):
        floor._operations("cuda", torch.float32, precision)
    assert seen == ["tf32", "ieee"]
    assert setting.fp32_precision == before


def test_the_fastest_call_counts_and_the_first_does_not(monkeypatch):
    # the end is at 1.0; calls of 0.25 s and of 2.0 s; then it is over
    now = iter([0.0, 0.1, 0.35, 0.5, 0.6, 2.6, 5.0])
    monkeypatch.setattr(floor.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(floor, "SECONDS", 1.0)
    calls = []
    assert floor._best(lambda: calls.append(0), "cpu") == pytest.approx(0.25)
    assert len(calls) == 3
