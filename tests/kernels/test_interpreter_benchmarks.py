"""What benchmarks/ runs on a GPU, run small in Triton's interpreter: right, and nothing forgotten.

Times mean nothing here. ``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_benchmarks.py``.
"""

import dataclasses
import json
import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_benchmarks.py",
        allow_module_level=True,
    )

import fastrnn_kernels
from benchmarks import exchange, forward_case, forward_grid
from fastrnn.bench_cases import Case
from fastrnn_kernels import launch
from fastrnn_kernels.model import Rates
from fastrnn_kernels.plan import REGIMES

CASE = Case("lstm", "forward", 3, 11, 8, 8, 1, False, "float32", "cpu")


@pytest.fixture
def perturbed(monkeypatch):
    """Have the kernels return something else in one regime."""

    def perturb(regime, change):
        original = launch.forward

        def forward(*arguments, **options):
            made = original(*arguments, **options)
            return change(made) if options["regime"] == regime else made

        monkeypatch.setattr(launch, "forward", forward)

    return perturb


def test_every_part_of_an_exchange_runs_and_becomes_rates():
    figures = exchange.measure("cpu", 1)
    rates = exchange.rates_of(figures)
    assert {f.name for f in dataclasses.fields(Rates)} == vars(rates).keys()
    assert all(value for value in vars(rates).values() if value != rates.exchange_of_one)
    json.dumps(figures, allow_nan=False)
    text = exchange.report(figures, rates)
    assert "exchange_of_one" in text


def test_a_barrier_that_opens_too_early_is_an_error(monkeypatch):
    bench = exchange.Bench("cpu", 1, 2)

    class Early:
        """Launches nothing: as if nobody had waited, stored or arrived."""

        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    monkeypatch.setattr(bench.kernels, "exchanges", Early())
    monkeypatch.setattr(bench.kernels, "barriers", Early())
    with pytest.raises(exchange.BarrierError, match="before another had stored it"):
        bench.exchange(1)
    with pytest.raises(exchange.BarrierError, match="1 programs arrived 0 times in 2 rounds"):
        bench.barrier(1)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cell": "rnn_tanh", "layers": 2}, {"bidirectional": True}],
    ids=["lstm", "rnn-layers", "both"],
)
def test_a_case_is_checked_timed_and_predicted_in_every_regime(changes):
    case = CASE._replace(**changes)
    rows = forward_case.measure(case, 2, Rates())
    assert [row["implementation"] for row in rows] == ["torch.nn", *REGIMES, "projection"]
    assert {row["status"] for row in rows} == {"ok"}, [row["reason"] for row in rows]
    assert [len(row["samples_s"]) for row in rows] == [2] * len(rows)
    own = [row for row in rows if row["implementation"] in REGIMES]
    assert sum(row["auto"] for row in rows) == sum(row["auto"] for row in own) == 1
    states = 1 if case.cell == "rnn_tanh" else 2
    for row in own:
        assert row["speedup"] > 0
        assert 0 < row["floor_s"] < row["predicted_s"]
        assert len(row["rms"]) == 1 + states
        assert all(0 < rms < 1e-6 for rms in row["rms"])
    json.dumps(rows, allow_nan=False)
    assert fastrnn_kernels.forward is launch.forward


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("output", "output off by"),
        ("cell", "root mean square error 1.0e-03, torch.nn's"),
        ("nan", "not finite"),
        ("raises", "raised RuntimeError: no such kernel"),
    ],
)
def test_a_wrong_regime_gets_no_time_and_the_others_do(name, reason, perturbed):
    def change(made):
        if name == "raises":
            raise RuntimeError("no such kernel")
        if name == "output":
            made.output[-1, 0] += 1.0
        if name == "nan":  # in a row that is not compared
            made.output[0, 2] = torch.nan
        # within what its dtype allows, but not within what torch.nn does
        return made._replace(c_n=made.c_n + 1e-3) if name == "cell" else made

    perturbed("grid", change)
    rows = {row["implementation"]: row for row in forward_case.measure(CASE, 1, Rates())}
    assert rows["grid"]["status"] == ("failed" if name == "raises" else "wrong")
    assert reason in rows["grid"]["reason"]
    assert (rows["grid"]["samples_s"], rows["grid"]["speedup"]) == ([], None)
    assert rows["step"]["status"] == rows["resident"]["status"] == "ok"


def test_rows_that_are_not_compared_are_found():
    assert forward_case.exact(CASE, *weights_and_input()).rows.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]


def weights_and_input():
    theirs = forward_case.baseline(CASE)
    return [weight.detach() for weight in theirs.parameters()], torch.randn(3, 11, 8)


def test_compiling_ahead_runs_the_regime_that_it_is_told(perturbed):
    assert forward_grid.compile_one(CASE, "grid") == ""

    def fail(made):
        raise RuntimeError("out of registers")

    perturbed("grid", fail)
    assert forward_grid.compile_one(CASE, "resident") == ""
    told = forward_grid.compile_one(CASE, "grid")
    assert told.endswith("float32 grid: raised RuntimeError: out of registers")
