"""float16 and bfloat16 on `rows`: in float32, rounded once; and what that and others cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import roofline
from fastrnn.roofline import HALVES
from fastrnn.testing import tolerance
from fastrnn_rows.backend import RowsBackend
from half_cases import in_both, layer, made_of, same_bits
from rows_cases import CELLS

LENGTHS = [6, 1, 4]


def rows_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(3)).to(dtype)


FORMS: dict[str, tuple[Callable[[torch.Tensor], Any], dict[str, Any]]] = {
    "padded": (lambda x: x, {}),
    "packed": (lambda x: pack_padded_sequence(x, LENGTHS, enforce_sorted=False), {}),
    "lengths": (lambda x: x, {"lengths": LENGTHS}),
    "resets": (lambda x: x, {"resets": torch.arange(18).view(6, 3) % 4 == 2}),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_they_are_those_of_float32_rounded_once(cell: str, form: str, dtype: torch.dtype) -> None:
    half, full = in_both(cell, dtype, "rows", bidirectional=form != "resets")
    bring, marks = FORMS[form]
    states, x = 1 + (cell == "lstm"), rows_of(dtype)
    want = made_of(full, bring(x.float()), states, dtype, **marks)
    assert same_bits(made_of(half, bring(x), states, dtype, **marks), want)
    with torch.no_grad():
        output = half(bring(x), **marks)[0]
        expected = full(bring(x.float()), **marks)[0]
    output, expected = (each.data for each in (output, expected))
    assert torch.equal(output, expected.to(dtype))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_of_gradients(cell: str) -> None:
    half, full = in_both(cell, torch.bfloat16, "rows")
    found = []
    for module in (half, full):
        x = rows_of(torch.bfloat16).to(module.weight_hh_l0.dtype).requires_grad_()
        (first,) = torch.autograd.grad(module(x)[0].float().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.float().square().sum(), module.weight_hh_l0)[0])
    allowed = tolerance(torch.bfloat16, 6).gradient * float(found[1].abs().max())
    torch.testing.assert_close(found[0].float(), found[1], rtol=0, atol=allowed)


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_casts_nothing_within(cell: str) -> None:
    """Neither forward nor back, where a caller has the backward pass in the same region."""
    module, x = layer(cell, torch.float32, backend="rows"), rows_of(torch.float32)
    with torch.no_grad():
        plain = module(x)[0]
    x.requires_grad_()
    want = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
        got = torch.autograd.grad(output.float().sum(), [x, *module.parameters()])
    kind = torch.float32 if cell == "gru" else torch.bfloat16  # torch's, see test_torch_modes.py
    assert output.dtype == kind
    assert torch.equal(output, plain.to(kind))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_other_dtypes_are_refused() -> None:
    asked = fastrnn.explain(fastrnn.GRU(3, 4), torch.empty(5, 2, 3)).request
    (reason,) = RowsBackend().can_run(asked._replace(dtype=torch.float8_e5m2))
    assert reason == (
        "dtype is torch.float8_e5m2; needs torch.float32, torch.float64, torch.float16, "
        "torch.bfloat16"
    )


@pytest.fixture(params=[False, True], ids=["emulated", "multiplied"])
def multiplied(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU has products of 16 bits."""
    monkeypatch.setattr(roofline, "_multiplies", lambda dtype: request.param)
    return bool(request.param)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_where_they_are_emulated_float32_is_cheaper(
    cell: str, dtype: torch.dtype, *, multiplied: bool
) -> None:
    """With products of 16 bits torch's own path is, for what is mostly products."""
    asked = fastrnn.explain(layer(cell, dtype), rows_of(dtype)).request
    asked = asked._replace(seq_len=50, batch=64, hidden_size=256, input_size=256, threads=1)
    ours, theirs = (
        fastrnn.plugins.registry().backends[name].cost(asked).seconds for name in ("rows", "aten")
    )
    assert (ours < theirs) is not multiplied
    short = asked._replace(seq_len=1, batch=1, hidden_size=64, input_size=64)
    ours, theirs = (
        fastrnn.plugins.registry().backends[name].cost(short).seconds for name in ("rows", "aten")
    )
    assert ours > theirs
