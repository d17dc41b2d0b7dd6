"""The compiled loop: torch's layer, by one graph a size, and never uncompiled in silence."""

from __future__ import annotations

import pytest
import torch

from fastrnn import bench, bench_cases, bench_compiled
from fastrnn.bench_cases import PEERS
from fastrnn.benchmark import Case

CASE = Case("lstm", "train", 5, 3, 4, 6, 1, False, "float32", "cpu")

# Dynamo looks at it, and hides the warning from everybody but pytest
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that Dynamo makes, which are run as they are."""
    made = []

    def compiler(graph, inputs):
        made.append(graph)
        return graph

    monkeypatch.setattr(bench_compiled, "COMPILER", compiler)
    yield made
    torch.compiler.reset()


def row_of(case):
    rows = list(
        bench.measure([case], backends=[], peers=[PEERS[0], bench_compiled.PEER], repeats=1)
    )
    return rows[1]


@pytest.mark.parametrize("mode", ["forward", "inference", "train"])
@pytest.mark.parametrize("cell", bench_cases.OF_TORCH)
def test_it_is_torchs_layer_and_one_graph_does_for_all_steps(graphs, cell, mode):
    row = row_of(CASE._replace(cell=cell, mode=mode))
    assert (row.status, row.reason) == ("ok", "")
    assert len(row.samples) == 1
    assert len(graphs) == 1


def test_layers_and_directions(graphs):
    case = CASE._replace(layers=2, bidirectional=True)
    theirs, loop = bench_cases.baseline(case), bench_compiled.compiled_loop(case)
    bench.load_weights(loop, list(theirs.parameters()))
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(loop(x), theirs(x))
    assert len(graphs) == 2, "one a width of the input"


def test_as_many_sizes_as_one_likes(graphs):
    with torch._dynamo.config.patch(recompile_limit=1):
        for B in (2, 3, 4):
            assert row_of(CASE._replace(B=B, mode="forward")).status == "ok"
    assert len(graphs) == 3, "none was run uncompiled"


def test_a_break_in_the_graph_is_a_failure(graphs, monkeypatch):
    def broken(x, state, *weights):
        torch._dynamo.graph_break()
        return bench_compiled.lstm(x, state, *weights)

    monkeypatch.setitem(bench_compiled.STEPS, "lstm", broken)
    row = row_of(CASE)
    assert (row.status, row.samples) == ("failed", [])
    assert row.reason.startswith("raised Unsupported: ")


def test_without_a_compiler_the_row_says_so(graphs, monkeypatch):
    def compiler(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(bench_compiled, "COMPILER", compiler)
    row = row_of(CASE)
    assert row.status == "failed"
    assert "No working C++ compiler found" in row.reason


def test_it_has_torchs_cells_only_and_is_there_when_asked_for():
    assert bench_compiled.PEER.on_demand
    assert bench_compiled.PEER.can_run(CASE._replace(cell="rnn_sigmoid")) == [
        "torch.nn has no rnn_sigmoid"
    ]


@pytest.mark.slow
# what inductor imports does so
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_inductor_compiles_it():
    row = row_of(CASE)
    torch.compiler.reset()
    assert (row.status, row.reason) == ("ok", "")
