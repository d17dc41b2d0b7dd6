"""How kernels are launched, in Triton's interpreter: graphs, what is kept, and what is refused.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_launch.py``; see test_interpreter.py.
"""

import contextlib
import os
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_launch.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from fastrnn_kernels import enqueue, graphs, table
from fastrnn_kernels.plan import REGIMES
from interpreter_cases import F32, SHARED, Case, make, run

pytestmark = pytest.mark.usefixtures("poisoned", "no_graphs")


@pytest.mark.parametrize("T", [1, 2, 3, 6])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.parametrize("how", ["direct", "graph", "resident", "grid"])
def test_states_are_the_same_if_no_output_is_kept(how, cell, T, monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 2)
    way = {"launch": how} if how in ("direct", "graph") else {"regime": how}
    case = Case(cell, T, 3, 20, F32, (False, True), **way)
    a = make(case)
    want, _ = run(case, a, save=False)
    forward = [a[name] for name in ("gates_x", "weight_hh", "h0", "c0")]
    options = case.forward_options | {"reverse": case.reverse}
    made = kernels.forward(cell, *forward, keep_output=False, **options)
    assert made.output.shape == (0, 3, 2, 20)
    assert torch.equal(made.h_n, want.h_n)
    assert made.c_n is want.c_n is None or torch.equal(made.c_n, want.c_n)


def test_an_output_that_the_way_back_needs_is_kept():
    a = make(Case("lstm", 1, 1, 3, F32))
    forward = [a[name] for name in ("gates_x", "weight_hh", "h0", "c0")]
    with pytest.raises(ValueError, match="keep_output: expected True with save"):
        kernels.forward("lstm", *forward, save=True, keep_output=False)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_gates_may_take_the_place_of_what_they_are_made_of(regime, strided):
    case = Case("lstm", 3, 3, 20, F32, (False, True), strided=strided, regime=regime)
    a = make(case)
    want, _ = run(case, a)
    forward = [a[name] for name in ("gates_x", "weight_hh", "h0", "c0")]
    options = case.forward_options | {"reverse": case.reverse}
    made = kernels.forward("lstm", *forward, save=True, overwrite=True, **options)
    assert (made.gates.data_ptr() == a["gates_x"].data_ptr()) != strided
    for got, expected in zip(made, want, strict=True):
        assert got is expected is None or torch.equal(got, expected)


@pytest.mark.parametrize(
    ("regime", "back"), [*((regime, None) for regime in REGIMES), ("grid", SHARED)]
)
@pytest.mark.parametrize("T", [1, 4])
def test_gate_gradients_in_the_place_of_gates(T, regime, back):
    """Each step's gates are read by the program that writes over them, and by nobody after."""
    case = Case("lstm", T, 3, 20, F32, (True, False), regime=regime, back=back)
    a = make(case)
    made, want = run(case, a)
    options = {n: a[n] for n in ("d_output", "d_h_n", "d_c_n")} | {"reverse": case.reverse}
    got = kernels.backward(
        "lstm", a["weight_hh"], made.output, made.gates, made.cells, a["c0"],
        overwrite=True, **options, **case.backward_options,
    )  # fmt: skip
    assert got.d_gates.data_ptr() == made.gates.data_ptr()
    for one, expected in zip(got, want, strict=True):
        assert one is expected is None or torch.equal(one, expected)


@pytest.mark.parametrize("T", [1, 4, 6, 9])
@pytest.mark.parametrize("cell", ["lstm", "rnn_relu"])
def test_graph_of_steps_is_the_same_recurrence_for_every_length(cell, T, monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 4)
    outcomes = []
    for how in ("direct", "graph"):
        case = Case(cell, T, 2, 5, F32, (False, True), launch=how, strided=True)
        outcomes.append(run(case, make(case)))
    for direct, graph in zip(*outcomes, strict=True):
        for x, y in zip(direct, graph, strict=True):
            assert x is y is None or torch.equal(x, y)


@pytest.mark.parametrize("T", [1, 4, 6, 9])
@pytest.mark.parametrize("cell", ["lstm", "rnn_relu"])
def test_in_a_callers_graph_steps_are_nodes_of_the_kernels_that_calls_before_loaded(
    cell, T, monkeypatch
):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 4)
    case = Case(cell, T, 2, 5, F32, (False, True), launch="graph", strided=True)
    want = run(case, make(case))
    graphs.clear()
    monkeypatch.setattr(graphs, "_is_captured", lambda: True)
    monkeypatch.setattr(enqueue, "run", None)  # launches of kernels without a table
    monkeypatch.setattr(table, "advance_table", None)
    got = run(case, make(case))
    assert not graphs._graphs, "nor is one of ours made"
    for before, captured in zip(want, got, strict=True):
        for x, y in zip(before, captured, strict=True):
            assert x is y is None or torch.equal(x, y)


def test_graphs_are_kept_for_new_lengths_and_addresses_and_bounded(monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 2)
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    for T, B in ((1, 2), (3, 3), (2, 16)):
        case = Case("rnn_tanh", T, B, 3, F32, launch="graph")
        run(case, make(case), save=False)
        assert len(graphs._graphs) == 1, "one graph for every length, batch in a tile and address"
    for H in (4, 5, 6):
        case = Case("rnn_tanh", 1, 2, H, F32, launch="graph")
        run(case, make(case), save=False)
    assert len(graphs._graphs) == 2


class Launches:
    """A kernel that notes where it is enqueued."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.log.append(self.name)


def test_graphs_are_captured_on_streams_of_their_own_devices_and_nothing_waits(monkeypatch):
    log = []

    @contextlib.contextmanager
    def current(stream):
        log.append(stream)
        yield
        log.append("restored")

    class Graph:
        def capture_begin(self, capture_error_mode):
            log.append(capture_error_mode)

        def capture_end(self):
            log.append("end")

        def replay(self):
            log.append("replayed")

    monkeypatch.setattr(graphs, "INTERPRETED", False)
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 2)
    monkeypatch.setattr(graphs.kernels, "forward_from_table", Launches("step", log))
    monkeypatch.setattr(graphs.kernels, "advance_table", Launches("advance", log))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream of", device))
    monkeypatch.setattr(torch.cuda, "stream", current)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *a, name=name: log.append(name))
    graphs._capture_stream.cache_clear()
    sweep = SimpleNamespace(
        problem=SimpleNamespace(direction="forward"), tensors=(torch.empty(1),), grid=(1,),
        constants={}, options={},
    )  # fmt: skip
    steps = ["step", "step", "advance"]
    for index in (0, 1, 0):
        log.clear()
        device = torch.device("cuda", index)
        graphs._capture(sweep, SimpleNamespace(device=device))()
        captured = [("stream of", device), "thread_local", *steps, "end", "restored"]
        assert log == [*steps, *captured, "replayed"]
    assert graphs._capture_stream.cache_info().misses == 2, "one stream a device"
    graphs._capture_stream.cache_clear()


def test_table_slots_are_those_that_the_kernels_read():
    filled = torch.full((table.TABLE_SIZE,), -1)
    table.fill_table[(1,)](filled, *range(100, 107), *range(200, 217))
    assert filled.tolist() == [0, *range(100, 107), *range(200, 217)]
    table.advance_table[(1,)](filled, 32)
    table.advance_table[(1,)](filled, 32)
    assert filled[0] == 64


def test_step_may_start_anywhere_in_memory_unless_a_graph_is_demanded():
    case = Case("rnn_tanh", 1, 1, 3, F32)
    a = make(case)
    want, _ = run(case, a, save=False)
    shifted = torch.empty(4)[1:]
    a["gates_x"] = shifted.copy_(a["gates_x"].flatten()).view(a["gates_x"].shape)
    made, _ = run(case, a, save=False)
    assert torch.equal(made.output, want.output)
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        kernels.forward("rnn_tanh", a["gates_x"], a["weight_hh"], a["h0"], launch="graph")


def test_empty_batch_launches_nothing(monkeypatch):
    monkeypatch.setattr(enqueue, "run", None)
    case = Case("lstm", 2, 0, 3, F32, (False, True))
    made, back = run(case, make(case))
    assert made.output.shape == (2, 0, 2, 3)
    assert made.h_n.shape == back.d_c0.shape == (2, 0, 3)


def test_many_groups_share_one_direction():
    case = Case("rnn_relu", 2, 1, 1, F32, (True,) * 65)
    a = make(case)
    made, _ = run(case, a, save=False)
    assert torch.equal(made.h_n[:, :, 0], made.output[0, :, :, 0].T)
    with pytest.raises(ValueError, match="reverse: expected one direction"):
        run(Case("rnn_relu", 2, 1, 1, F32, (False,) + (True,) * 64), a, save=False)


BAD_FORWARD = {
    "cell: expected one of .*, got 'gru'": {"cell": "gru"},
    r"gates_x: expected \(T, B, G, 4\*H\), got \(3, 2, 22\)": {"gates_x": torch.zeros(3, 2, 22)},
    "gates_x: T, G and H must be at least 1": {"gates_x": torch.zeros(0, 2, 1, 20)},
    "gates_x: the last dimension must be contiguous": {
        "gates_x": torch.zeros(3, 2, 1, 40)[..., ::2]
    },
    "gates_x: expected one of .*, got torch.int64": {
        "gates_x": torch.zeros(3, 2, 1, 20, dtype=torch.int64)
    },
    r"weight_hh: expected shape \(1, 20, 5\), got \(1, 20, 6\)": {
        "weight_hh": torch.zeros(1, 20, 6)
    },
    "weight_hh: expected a contiguous tensor": {"weight_hh": torch.zeros(1, 5, 20).mT},
    r"h0: expected shape \(1, 2, 5\)": {"h0": torch.zeros(1, 2, 4)},
    "h0: expected torch.float32 on cpu, got torch.float64": {"h0": torch.zeros(1, 2, 5).double()},
    "c0: expected a tensor .* got None": {"c0": None},
    "reverse: expected 1 directions, one a group, got 2": {"reverse": [True, False]},
    "precision: expected one of .*, got 'fast'": {"precision": "fast"},
    "launch: expected one of .*, got 'never'": {"launch": "never"},
    "config.block_h: expected a power of two, got 24": {"config": kernels.StepConfig(16, 24, 16)},
}


@pytest.mark.parametrize(("message", "change"), BAD_FORWARD.items(), ids=BAD_FORWARD)
def test_forward_names_the_argument_at_fault(message, change):
    good = {
        "cell": "lstm",
        "gates_x": torch.zeros(3, 2, 1, 20),
        "weight_hh": torch.zeros(1, 20, 5),
        "h0": torch.zeros(1, 2, 5),
        "c0": torch.zeros(1, 2, 5),
    }
    with pytest.raises(ValueError, match=message):
        kernels.forward(**(good | change))


def test_a_cell_without_cell_state_takes_none():
    x, w, h = torch.zeros(1, 1, 1, 2), torch.zeros(1, 2, 2), torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="c0: expected None, rnn_tanh has no cell state"):
        kernels.forward("rnn_tanh", x, w, h, h)
    with pytest.raises(ValueError, match="output: T, G and H must be at least 1"):
        kernels.backward("rnn_tanh", torch.zeros(1, 3, 3), torch.zeros(0, 2, 1, 3))
    with pytest.raises(ValueError, match="gates, d_c_n: expected None"):
        kernels.backward("rnn_tanh", w, x, x, d_c_n=h)


@pytest.mark.parametrize("name", ["gates", "cells", "c0", "d_output", "d_h_n", "d_c_n", "d_cells"])
def test_backward_names_the_argument_at_fault(name):
    y, s = torch.zeros(3, 2, 1, 5), torch.zeros(1, 2, 5)
    good = {
        "weight_hh": torch.zeros(1, 20, 5),
        "output": y,
        "gates": torch.zeros(3, 2, 1, 20),
        "cells": y,
        "c0": s,
        "d_output": y,
        "d_h_n": s,
        "d_c_n": s,
    }
    with pytest.raises(ValueError, match=f"{name}: expected shape .*, got \\(7,\\)"):
        kernels.backward("lstm", **(good | {name: torch.zeros(7)}))
