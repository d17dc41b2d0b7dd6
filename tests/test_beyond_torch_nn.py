"""docs/beyond_torch_nn.md says what happens, and its script would notice if it did not."""

from __future__ import annotations

import types

import pytest
import torch

import beyond_torch_nn as script
import fastrnn
from beyond_rows import LIBRARIES, ROWS, Outcome, Row, close, slow

QUICK = [row for row in ROWS if row.quick]
PAGE = script.TABLE.read_text(encoding="utf-8")
WRITTEN = script.committed(PAGE)
NOT_BY_A_CALL = {
    # pack_padded_sequence, which refuses it, is torch's
    "A row without a step in a PackedSequence": "fails",
    # `auto` takes torch's operators on a CPU, which make what nobody asked for
    "Frozen weights cost no gradient of weights": "by hand",
    "The final states only, the output not held in memory": "by hand",
}
"""Where fastrnn's cell is not `passes`."""


def test_the_page_has_the_scripts_rows_in_its_order():
    assert list(WRITTEN) == [row.name for row in ROWS]
    assert len(set(WRITTEN)) == len(ROWS) > 30


def test_fastrnn_passes_everywhere_but_where_it_is_known_not_to():
    others = {name: kinds["fastrnn"] for name, kinds in WRITTEN.items()}
    assert {name: kind for name, kind in others.items() if kind != "passes"} == NOT_BY_A_CALL


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_outcomes_are_those_on_the_page(row):
    found = script.attempt(row)
    if script.versions() not in PAGE:  # another torch may have learned something
        del found["torch.nn"]
    told = {row.name: found}
    written = {row.name: {name: WRITTEN[row.name][name] for name in found}}
    assert script.differences(told, written) == []


def off(cls):
    """Makes layers of a class that compute a little more than they should."""

    def make(*args, **kwargs):
        layer = cls(*args, **kwargs)
        layer.register_forward_hook(lambda layer, given, result: more(result))
        return layer

    return make


def more(result):
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        return result._replace(data=more(result.data))
    if isinstance(result, tuple):
        return tuple(more(each) for each in result)
    return result if result is None else 1.2 * result + 0.1


OF_NO_LAYERS_NUMBERS = {
    "A batch of no rows",
    "No steps are an error that says so",
    "An input of another dtype is refused, in torch's words",
    "The same bits in every run",
    "Inference step by step without an allocation",  # reads weights, calls nothing
    "How the gradient flows back: its norm at every step",  # so does this
    "A Jordan network, whose output is fed back",
    "An initialiser: every gate's block of W_hh orthogonal",
    "An initialiser: a reservoir of a given spectral radius",
    "A row without a step in a PackedSequence",
}


@pytest.mark.parametrize(
    "row", [row for row in QUICK if row.name not in OF_NO_LAYERS_NUMBERS], ids=lambda row: row.name
)
def test_a_row_notices_wrong_numbers(row):
    wrong = types.SimpleNamespace(**vars(fastrnn))
    wrong.LSTM, wrong.RNN = off(fastrnn.LSTM), off(fastrnn.RNN)
    assert row.run(wrong).kind == "wrong"


def test_attempts_are_told_apart():
    def row(attempt):
        return Row("name", "how", (), True, attempt).run(fastrnn)

    def refuse(library):
        raise ValueError("no\nmore `of` that" + "!" * 999)

    assert row(lambda library: None) == Outcome("passes")
    assert row(lambda library: "a loop") == Outcome("by hand", "a loop")
    assert row(refuse) == Outcome("fails", "ValueError: no")
    assert row(lambda library: library.LSTM(1, 1, warp=9)) == Outcome("missing", "`warp`")
    assert row(lambda library: close(torch.ones(2), torch.ones(3))).kind == "wrong"
    assert row(lambda library: close(torch.ones(2), torch.ones(2) * torch.nan)).kind == "wrong"
    assert row(lambda library: close(torch.ones(2), torch.ones(2) + 1e-6)).kind == "wrong"
    for kind in ("passes", "by hand", "fails", "wrong", "missing"):
        assert script.kind_of(str(Outcome(kind, "a|b"))) == kind


def test_a_page_is_read_as_it_was_written_and_differences_are_told():
    results = {row.name: {name: Outcome("passes") for name in LIBRARIES} for row in ROWS}
    name = ROWS[0].name
    results[name]["torch.nn"] = Outcome("fails", "Error: a|b")
    written = script.committed(script.markdown(results))
    assert script.differences(results, written) == []
    results[name]["torch.nn"] = Outcome("fails", "Error: in other words")
    assert script.differences(results, written) == []
    results[name]["torch.nn"] = Outcome("passes")
    assert script.differences(results, written) == [
        f"- {name}: torch.nn: fails",
        f"+ {name}: torch.nn: passes",
    ]
    del results[name]
    assert script.differences(results, written) == [f"- {name}: is no row any more"]
    del written[ROWS[1].name]
    assert f"+ {ROWS[1].name}: is not in the table" in script.differences(results, written)


@pytest.mark.parametrize("status", [0, 1])
def test_check_exits_with_what_it_found(monkeypatch, tmp_path, capsys, status):
    row = QUICK[-1]
    page = tmp_path / "page.md"
    monkeypatch.setattr(script, "TABLE", page)
    monkeypatch.setattr(script, "ROWS", [row])
    kinds = WRITTEN[row.name].items()
    cells = {row.name: {library: Outcome(kind, "so") for library, kind in kinds}}
    if status:
        cells[row.name]["fastrnn"] = Outcome("wrong", "off by 1")
    page.write_text(script.markdown(cells), encoding="utf-8")
    assert script.main(["--check", "--json", str(tmp_path / "out.json")]) == status
    assert ("+ " + row.name in capsys.readouterr().out) == bool(status)
    assert row.name in (tmp_path / "out.json").read_text(encoding="utf-8")


def test_the_truth_is_torchs_where_torch_has_one():
    torch.manual_seed(0)
    for layer in (torch.nn.LSTM(3, 4, 2, bidirectional=True), torch.nn.RNN(3, 4, 2)):
        x = torch.randn(5, 2, 3)
        output, state = layer(x)
        close((output, state), slow(layer, x)[:2], 1e-6)
