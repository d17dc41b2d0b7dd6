"""The hook `fastrnn_cells`: what is a cell, who runs one, and plugins that get it wrong."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch

import fastrnn
from fastrnn.backend import RecurrenceBackend
from fastrnn.cell import BUILTIN, Cell, cell_of
from fastrnn.dispatch import decide
from fastrnn.hookspecs import hookimpl
from fastrnn.plugins import register, registry, unregister
from fastrnn_reference.backend import ReferenceBackend
from fastrnn_triton import cells as triton_cells
from plugin_cases import REQUEST, installing, load, record_of

install = pytest.fixture(installing)
X = torch.randn(4, 3, 2)
OURS = [*BUILTIN, "gru", "peephole_lstm"]


def step(pre, c_prev, weights):
    return pre[0].sin(), c_prev


SINE = Cell("rnn_sine", 1, False, step, summary="Elman, sine")


def plugin_with(*cells, backends=()):
    module = types.ModuleType("my_cells")
    module.fastrnn_cells = hookimpl(lambda: cells)
    if backends:
        module.fastrnn_backends = hookimpl(lambda: backends)
    return module


def test_a_plugins_cell_comes_and_goes(install):
    register(plugin_with(SINE))
    assert list(registry().cells) == [*OURS, "rnn_sine"]
    assert record_of("my_cells").cells == ("rnn_sine",)
    module = fastrnn.CellRNN("rnn_sine", 2, 5)
    output, _ = module(X)
    output.sum().backward()
    w_ih, w_hh, b_ih, b_hh = module.parameters()
    h = torch.zeros(3, 5)
    for t in range(len(X)):
        h = torch.sin(X[t] @ w_ih.T + h @ w_hh.T + b_ih + b_hh)
        torch.testing.assert_close(output[t], h)
    unregister("my_cells")
    assert list(registry().cells) == OURS
    with pytest.raises(ValueError, match="cell: got 'rnn_sine', expected one of lstm, rnn_tanh"):
        module(X)


def test_decisions_say_who_does_not_know_the_cell(install):
    class Older(RecurrenceBackend):
        """As they were before there were other cells: none would have answered for one."""

        name, contract = "older", 1

        def can_run(self, request):
            raise AssertionError("never asked")

        def cost(self, request):
            raise AssertionError("never asked")

        def recurrence_forward(self, *arguments):
            raise AssertionError("never asked")

        recurrence_backward = recurrence_forward

    register(plugin_with(SINE, backends=[Older()]))
    decision = decide(REQUEST._replace(cell="rnn_sine"))
    assert decision.backend == "reference"
    reasons = {candidate.name: candidate.reasons for candidate in decision.candidates}
    unknown = "the cell rnn_sine is a plugin's, and not among those that it runs"
    assert reasons["reference"] == ()
    assert reasons["aten"] == reasons["older"] == (unknown,)
    assert "the cell rnn_sine names no Triton functions" in reasons["triton"]
    assert unknown in str(decision)
    with pytest.raises(fastrnn.BackendError, match=unknown):
        fastrnn.CellRNN("rnn_sine", 2, 5, backend="older")(X)
    gru = decide(REQUEST._replace(cell="gru"))
    assert gru.backend == "aten"
    assert {c.name for c in gru.candidates if not c.reasons} == {"aten", "reference", "rows"}


def test_a_backend_may_say_that_it_runs_a_cell(install):
    class Sine(ReferenceBackend):
        name = "sine"

        def runs_cell(self, cell):
            return cell is SINE

    register(plugin_with(SINE, backends=[Sine()]))
    able = {
        cell: {c.name for c in decide(REQUEST._replace(cell=cell)).candidates if c.cost}
        for cell in ("rnn_sine", "peephole_lstm", "lstm")
    }
    assert able == {
        "rnn_sine": {"reference", "sine"},
        "peephole_lstm": {"reference"},
        "lstm": {"reference", "aten", "rows", "sine"},
    }


def test_layers_of_plugins_cells_are_never_chained():
    several = REQUEST._replace(num_layers=3)
    assert several.stacks_plainly
    assert not several._replace(cell="gru").stacks_plainly


def test_what_is_good_of_a_plugin_is_kept(install):
    install("half_good_cells")
    warnings = load()
    prefix = "plugin 'half-good-cells' of half-good-cells 1.0 was loaded in part: "
    assert [warning.removeprefix(prefix).split(". ")[0] for warning in warnings] == [
        "fastrnn_cells raised RuntimeError: and no more",
        "the cell name 'gru' is taken",
        "fastrnn_cells returned 'rnn_cosine', expected instances of Cell",
    ]
    record = record_of("half-good-cells")
    assert (record.state, record.cells, record.backends) == ("loaded", ("rnn_sine",), ())
    assert cell_of("gru").gates == 4
    assert fastrnn.CellRNN("rnn_sine", 2, 5)(X)[0].shape == (4, 3, 5)


@pytest.mark.parametrize(
    ("plugin", "error", "text"),
    [
        (plugin_with(dataclasses.replace(SINE, name="lstm")), ValueError, "cell name 'lstm' is"),
        (plugin_with(SINE, SINE), ValueError, "the cell name 'rnn_sine' is taken"),
        (plugin_with(Cell), TypeError, "fastrnn_cells returned <class .*, expected instances of"),
    ],
)
def test_register_refuses(install, plugin, error, text):
    with pytest.raises(error, match=text):
        register(plugin)
    assert list(registry().cells) == OURS


def test_without_the_plugin_there_is_no_gru(install, monkeypatch):
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", "cells")
    assert load() == []
    with pytest.raises(ValueError, match="cell: got 'gru', expected one of lstm, rnn_tanh, "):
        fastrnn.GRU(2, 5)


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        (ValueError, "name: got 'Sine', expected lower-case", {"name": "Sine"}),
        (TypeError, "name should be of type str, got: int", {"name": 3}),
        (TypeError, "gates should be of type int, got: float", {"gates": 1.0}),
        (TypeError, "gates should be of type int, got: bool", {"gates": True}),
        (TypeError, "has_cell_state should be of type bool, got: str", {"has_cell_state": "no"}),
        (TypeError, "c_is_h should be of type bool, got: int", {"c_is_h": 1}),
        (TypeError, "rows should be of type int, got: str", {"rows": "3"}),
        (ValueError, r"gates, weights, rows: got \(0, 0, 0\)", {"gates": 0}),
        (ValueError, r"gates, weights, rows: got \(1, -1, 0\)", {"weights": -1}),
        (TypeError, "step should be a function, got: NoneType", {"step": None}),
        (ValueError, "kernel: got 'sine', expected 'module:NAME'", {"kernel": "sine"}),
        (ValueError, "c_is_h: got True, expected False", {"c_is_h": True}),
        (ValueError, "rows, layout: got one of them, expected both", {"rows": 3}),
    ],
)
def test_what_is_no_cell(error, text, changes):
    with pytest.raises(error, match=text):
        dataclasses.replace(SINE, **changes)


def test_why_a_cell_cannot_be_fused(install):
    three = Cell("three", 3, True, step, kernel="math:pi")
    register(plugin_with(three, Cell("bare", 1, False, step, weights=1, kernel="math:pi")))
    reasons = triton_cells.reasons_against(REQUEST._replace(cell="three"))
    assert reasons == ["the cell three has 3 gates; kernels take 1, 2 or 4"]
    (reason,) = triton_cells.reasons_against(REQUEST._replace(cell="bare"))
    assert reason.startswith("the cell bare has weights and no cell state")
    request = REQUEST._replace(cell="peephole_lstm")
    assert triton_cells.reasons_against(request) == []
    (reason,) = triton_cells.reasons_against(request._replace(error_clip=True))
    assert reason.startswith("error_clip was asked for")


def test_what_a_cell_names_must_be_its_kernel(install):
    pytest.importorskip("triton")
    kernel = "fastrnn_cells.gru_kernel:GRU"
    register(
        plugin_with(
            Cell("wrong_type", 1, False, step, kernel="math:pi"),
            Cell("wrong_kind", 4, True, step, weights=1, kernel=kernel),
        )
    )
    with pytest.raises(TypeError, match=r"math:pi should be a fastrnn_kernels\.Cell, got: float"):
        triton_cells.kernel_cell("wrong_type")
    with pytest.raises(ValueError, match=r"GRU: got gates, .* \(4, True, 0\), expected .* 1\)"):
        triton_cells.kernel_cell("wrong_kind")
    assert triton_cells.kernel_cell("gru").name == "gru"
    assert triton_cells.kernel_cell("lstm") == "lstm"
