"""float16 and bfloat16 on `numba`: in float32, rounded once, whole or layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import roofline
from fastrnn.backend import Layer
from fastrnn.cell import cell_of
from fastrnn.roofline import HALVES
from fastrnn.testing import tolerance
from fastrnn_numba.backend import NumbaBackend
from half_cases import in_both, layer, made_of, same_bits
from numba_cases import rows_and_marks
from rows_cases import CELLS

LENGTHS = [6, 0, 4]
FORMS: dict[str, tuple[list[int] | None, float | None]] = {
    "padded": (None, None), "packed": (None, None), "lengths": (LENGTHS, None),
    "resets": (None, 0.3), "both": (LENGTHS, 0.3),
}  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_they_are_those_of_float32_rounded_once(cell: str, form: str, dtype: torch.dtype) -> None:
    half, full = in_both(cell, dtype, "numba", bidirectional=True)
    x, marks = rows_and_marks(6, 3, *FORMS[form], batch_first=False)
    x = x.to(dtype)
    states, rows = 1 + (cell == "lstm"), [x, x.float()]
    if form == "packed":
        lengths = torch.tensor([6, 1, 4])
        rows = [pack_padded_sequence(each, lengths, enforce_sorted=False) for each in rows]
    want = made_of(full, rows[1], states, dtype, **marks)
    assert same_bits(made_of(half, rows[0], states, dtype, **marks), want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_layer_by_layer(cell: str, dtype: torch.dtype) -> None:
    """What is between layers is rounded there, and so is h before its product with d_gates."""
    half, full = in_both(cell, dtype, "numba", bidirectional=True)
    x, marks = rows_and_marks(6, 3, LENGTHS, 0.3, batch_first=False)
    x, states = torch.nan_to_num(x).to(dtype), 1 + (cell == "lstm")
    how: dict[str, Any] = {"return_all_states": True, **marks}
    made, gradients = made_of(half, x, states, dtype, **how)
    want, wanted = made_of(full, x.float(), states, dtype, **how)
    allowed = tolerance(dtype, 6)
    for one, other in zip(made, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=allowed.output / 4)
    for one, other in zip(gradients, wanted, strict=True):
        atol = allowed.gradient / 4 * float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_casts_nothing_within(cell: str) -> None:
    """Neither forward nor back, where a caller has the backward pass in the same region."""
    module, x = layer(cell, torch.float32, backend="numba"), torch.randn(6, 3, 3)
    x.requires_grad_()
    want = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
        got = torch.autograd.grad(output.float().sum(), [x, *module.parameters()])
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize(("cell", "all_states"), [("lstm", False), ("lstm", True), ("gru", False)])
def test_what_is_saved_is_what_graphs_are_told(cell: str, *, all_states: bool) -> None:
    known, b = cell_of(cell), torch.bfloat16
    rows = known.gates * 5
    asked = Layer(
        cell=cell, x=torch.randn(4, 3, 2, dtype=b), weight_ih=torch.randn(1, rows, 2, dtype=b),
        weight_hh=torch.randn(1, rows, 5, dtype=b), bias=None, h0=torch.randn(1, 3, 5, dtype=b),
        c0=torch.randn(1, 3, 5, dtype=b), weight_hr=None, lengths=None, reverse=(False,),
        precision="ieee", save=True, all_states=all_states,
    )  # fmt: skip
    made = NumbaBackend().layer_forward(asked)
    told = NumbaBackend().saved_like(asked)
    assert [(s.shape, s.dtype) for s in made.saved] == [(s.shape, s.dtype) for s in told]
    assert {s.dtype for s in made.saved} == {torch.float32}
    assert {s.dtype for s in (*made[:3], made.cells) if isinstance(s, torch.Tensor)} == {b}


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_in_a_graph(cell: str) -> None:
    module, _ = in_both(cell, torch.bfloat16, "numba")
    x = torch.randn(6, 3, 3).bfloat16().requires_grad_()
    want = torch.autograd.grad(module(x)[0].float().sum(), [x, *module.parameters()])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(x)[0].float().sum(), [x, *module.parameters()])
    for one, other in zip(got, want, strict=True):
        allowed = tolerance(torch.bfloat16, 6).gradient
        atol = allowed / 4 * float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_auto_takes_it_for_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth to a twentieth of torch's time where the CPU has no such products."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(roofline, "_multiplies", lambda dtype: False)
    for make in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN):
        module, x = make(64, 64, dtype=torch.float16), torch.randn(20, 8, 64).half()
        assert fastrnn.explain(module, x.requires_grad_()).backend == "numba"


def test_where_casts_take_more_than_products_auto_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of `numba`'s time; products one number at a time need no more than themselves."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(roofline, "_multiplies", lambda dtype: False)
    module = fastrnn.RNN(16, 16, 2, bidirectional=True, dtype=torch.float16).requires_grad_(False)
    assert fastrnn.explain(module, torch.randn(1, 32, 16).half()).backend == "aten"
