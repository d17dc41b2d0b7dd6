"""benchmarks.exchange: a GPU's rates, of what was measured on it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmark_cases import ENVIRONMENT
from benchmarks import exchange, regimes
from fastrnn_kernels.model import Rates


def figures_of(rates, barrier=0.0):
    """What would be measured on a GPU of these rates."""
    bytes_of_one = exchange.SHARE * 4
    rows, columns, depth = exchange.CHAIN_TILE

    def exchanged(count):
        loading = rates.l2_latency + count * bytes_of_one / rates.l2_bytes / rates.clock
        return rates.exchange + count * rates.exchange_of_one + loading

    in_a_row = {name: depth / step for name, step in exchange.MMA_DEPTH.items()}
    return {
        "multiprocessors": 132,
        "clock": rates.clock,
        "barrier": {str(count): barrier for count in exchange.PROGRAMS},
        "exchange": {str(count): exchanged(count) for count in exchange.PROGRAMS},
        "l2_latency": rates.l2_latency,
        "l2_bytes": {"one": 90.0, "all": rates.l2_bytes, "all_same": rates.l2_bytes + 1},
        "node": {"1": rates.launch / 2, "132": rates.launch},
        "launch": rates.start,
        "chain": {
            name: rows * columns * depth / (count * rates.chain) for name, count in in_a_row.items()
        },
        "products": {"bfloat16": rates.products[0][1], "tf32": rates.products[1][1]},
    }


def test_rates_are_what_figures_were_made_of():
    made_up = Rates(
        clock=1.9e9, exchange=0.9e-6, exchange_of_one=2e-9, l2_latency=0.3e-6, l2_bytes=40.0,
        products=((2, 1000.0), (4, 500.0)), chain=30.0, launch=1.5e-6, start=9e-6,
    )  # fmt: skip
    found = vars(exchange.rates_of(figures_of(made_up)))
    assert dict(found.pop("products")) == dict(made_up.products)
    for name, value in found.items():
        assert value == pytest.approx(getattr(made_up, name), rel=1e-6), name


def test_an_exchange_takes_no_less_than_its_barrier():
    rates = exchange.rates_of(figures_of(Rates(exchange=0.1e-6), barrier=0.5e-6))
    assert rates.exchange >= 0.5e-6 - 132 * rates.exchange_of_one
    assert rates.exchange_of_one >= 0


def test_rates_survive_their_file(tmp_path, monkeypatch, capsys):
    rates = Rates(exchange=0.8e-6, products=((2, 900.0), (4, 450.0)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(exchange, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(exchange, "measure", lambda device, repeats: figures_of(rates))
    path = tmp_path / "new" / "exchange.json"
    assert exchange.main(["--out", str(path)]) == 0
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["environment"] == ENVIRONMENT
    read = regimes.read_rates(path)
    assert read == exchange.rates_of(figures_of(rates))
    assert hash(read)
    assert read.exchange == pytest.approx(0.8e-6)
    assert "exchange_of_one" in capsys.readouterr().out


def test_a_broken_barrier_is_no_figure(monkeypatch, tmp_path, capsys):
    def fail(device, repeats):
        raise exchange.BarrierError("8 programs: one read h before another had stored it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(exchange, "measure", fail)
    assert exchange.main(["--out", str(tmp_path / "x.json")]) == 1
    assert "before another had stored it" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
