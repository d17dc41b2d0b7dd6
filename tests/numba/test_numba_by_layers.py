"""The backend `numba` where calls come layer by layer: graphs, states of every step, recompute."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

import fastrnn
from fastrnn import dispatch
from fastrnn.backend import Layer
from fastrnn.cell import cell_of
from fastrnn.ops import layer_forward
from fastrnn_numba import cost
from fastrnn_numba.backend import NumbaBackend
from numba_cases import CELLS, layer, rows_and_marks
from rows_cases import assert_same, results, start

SIZES = {
    "x": (4, 3, 2), "ih": (15, 2), "hh": (15, 5), "b_ih": (15,), "b_hh": (15,), "h": (1, 3, 5),
}  # fmt: skip


def whole(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that grows by one with each call of a whole stack."""
    made: list[bool] = []
    run = NumbaBackend.run

    def counted(self: NumbaBackend, call: Any) -> Any:
        made.append(True)
        return run(self, call)

    monkeypatch.setattr(NumbaBackend, "run", counted)
    return made


def every_state(module: Any, x: Tensor, used: str, **marks: Any) -> Any:
    """What `results` gives, with states of every step among what is made, and used."""
    x = x.clone().requires_grad_()
    hx = start(module, x.shape[0 if module.batch_first else 1])
    output, final, every = module(
        x, tuple(hx) if len(hx) == 2 else hx[0], return_all_states=True, **marks
    )
    made = [output, *(final if len(hx) == 2 else (final,)), *(every if len(hx) == 2 else (every,))]
    names = "yhcHC" if len(hx) == 2 else "yhH"
    chosen = [each for each, name in zip(made, names, strict=True) if name in used]
    chosen = chosen or made[-1:]
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(c.shape, generator=generator, dtype=c.dtype) for c in chosen]
    leaves = [x, *hx, *module.parameters()]
    return made, torch.autograd.grad(chosen, leaves, upstream, allow_unused=True)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    steps=st.integers(1, 6),
    batch=st.sampled_from([1, 2, 3, 5, 17]),
    has_lengths=st.booleans(),
    density=st.sampled_from([None, 0.2, 1.0]),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    used=st.sampled_from(["yhcHC", "y", "h", "c", "H", "C", "HC"]),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_states_of_every_step(
    cell: str, steps: int, batch: int, has_lengths: bool, density: float | None,
    batch_first: bool, bidirectional: bool, layers: int, bias: bool, used: str, threads: int,
    data: Any,
) -> None:  # fmt: skip
    how = {"batch_first": batch_first, "bidirectional": bidirectional, "bias": bias}
    ours = layer(cell, 3, 5, layers, **how)
    lengths = None
    if has_lengths:
        lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    x, marks = rows_and_marks(steps, batch, lengths, density, batch_first=batch_first)
    made, plain = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "threads", lambda request: threads)
        for ours.backend in ("numba", "reference"):
            made.append(every_state(ours, x, used, **marks))
            with torch.no_grad():
                plain.append(ours(x, return_all_states=True, **marks))
    assert_same(*made)
    for one, other in zip(*plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_recomputing_is_the_same(
    cell: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, calls = layer(cell, 3, 5, 2, bidirectional=bidirectional), whole(monkeypatch)
    ours.backend, x = "numba", torch.randn(7, 4, 3, dtype=torch.float64)
    made = []
    for ours.recompute in (False, 2, 3, 7):
        made.append(results(ours, x, lengths=[7, 0, 3, 5]))
    assert len(calls) == 1, "of the first"
    for other in made[1:]:
        assert_same(other, made[0])


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "two directions, marked"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_of_any_sizes(cell: str, marked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    ours = layer(cell, 3, 5, 2, bidirectional=marked)
    ours.backend, graphs, calls = "auto", [], whole(monkeypatch)
    true = copy.deepcopy(ours)
    true.backend = "reference"

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(
        ours, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=keep)
    )
    for steps, batch in ((4, 6), (7, 2), (9, 17)):  # no two sizes alike at first
        x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
        marks = {}
        if marked:
            marks["lengths"] = torch.randint(1, steps + 1, (batch,))
            marks["resets"] = torch.rand(steps, batch) < 0.3
        found = []
        for module, function in ((ours, compiled), (true, true)):
            output, final = function(x, **marks)
            every = (output, *(final if isinstance(final, tuple) else (final,)))
            total = sum((each * torch.linspace(-1, 1, each.shape[-1])).sum() for each in every)
            found.append((every, torch.autograd.grad(total, [x, *module.parameters()])))
        assert_same(*found)
    torch.compiler.reset()
    forward, backward = graphs[0], graphs[1]
    names = [str(node.args[-1]) for node in forward.graph.nodes if "layer_forward" in str(node)]
    assert names == ["numba", "numba"], "one operator a layer"
    assert len(graphs) == 2, "one graph forward and one back"
    assert any("layer_backward" in str(node.target) for node in backward.graph.nodes)
    assert not calls


def test_an_exported_program() -> None:
    ours = fastrnn.GRU(3, 5, 2, bidirectional=True)
    x = torch.randn(6, 4, 3)
    sizes = {0: torch.export.Dim("T", min=2, max=100), 1: torch.export.Dim("B", min=2, max=100)}
    program = torch.export.export(ours, (x,), dynamic_shapes=(sizes,))
    assert "'numba'" in str(program.graph_module.code)
    for each in (x, torch.randn(9, 2, 3)):
        torch.testing.assert_close(program.module()(each)[0], ours(each)[0])


def test_other_calls_are_whole_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, calls = fastrnn.LSTM(3, 5, backend="numba"), whole(monkeypatch)
    ours(torch.randn(4, 2, 3))
    assert calls == [True]
    decision = fastrnn.explain(ours, torch.randn(4, 2, 3))
    assert decision.whole
    asked = decision.request
    for changes in (
        {"all_states": True},
        {"recompute": 3},
        {"compiling": True},
        {"transformed": True},
    ):
        other = dispatch.decide(asked._replace(**changes), "numba")
        assert not other.whole


@pytest.mark.parametrize("used", ["h_n", "c_n", "both"])
def test_a_layers_grus_c_is_h(used: str) -> None:
    """Nobody but a caller of layers sees its c, whose gradient is that of the same state."""
    given = {name: torch.randn(size, dtype=torch.float64) for name, size in SIZES.items()}
    leaves = [each.requires_grad_() for each in given.values()]
    weights = cell_of("gru").as_layer(*(given[name] for name in ("ih", "hh", "b_ih", "b_hh")))
    weight_ih, weight_hh, bias = (None if each is None else each[None] for each in weights)
    found = []
    for backend in ("numba", "reference"):
        layer = Layer(
            "gru", given["x"], weight_ih, weight_hh, bias, given["h"], given["h"], None, None,
            (True,), "ieee", save=True,
        )  # fmt: skip
        _, h_n, c_n, _ = layer_forward(layer, backend)
        total = {"h_n": h_n, "c_n": c_n, "both": h_n + 2 * c_n}[used].square().sum()
        found.append(((h_n, c_n), torch.autograd.grad(total, leaves, retain_graph=True)))
    assert_same(*found)


@pytest.mark.parametrize("all_states", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_saved_looks_as_graphs_are_told(cell: str, all_states: bool) -> None:
    backend, known = NumbaBackend(), cell_of(cell)
    gates = known.gates
    h = torch.randn(2, 3, 5)
    layer = Layer(
        cell, torch.randn(4, 3, 2), torch.randn(2, 5 * gates, 2), torch.randn(2, 5 * gates, 5),
        None, h, h if known.has_cell_state else None, None, torch.tensor([4, 0, 2]), (False, True),
        "ieee", save=True, all_states=all_states and not known.c_is_h,
    )  # fmt: skip
    made, told = backend.layer_forward(layer).saved, backend.saved_like(layer)
    assert [(each.shape, each.stride()) for each in made] == [
        (each.shape, each.stride()) for each in told
    ]
    assert not backend.layer_forward(replace(layer, save=False)).saved
    assert not backend.saved_like(replace(layer, save=False))


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN, fastrnn.GRU])
def test_final_states_of_layers_are_written_to(kind: Any) -> None:
    module, x = kind(3, 4, backend="numba"), torch.randn(5, 2, 3)

    def gradients(change: Any) -> Any:
        output, final, _ = module(x, return_all_states=True)
        changed = [change(state) for state in (final if isinstance(final, tuple) else (final,))]
        total = output.square().sum() + sum(state.square().sum() for state in changed)
        return torch.autograd.grad(total, [*module.parameters()])

    want = gradients(lambda state: state * 2)
    torch.testing.assert_close(gradients(lambda state: state.mul_(2)), want)
