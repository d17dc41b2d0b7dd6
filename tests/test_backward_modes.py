"""Backward passes other than the usual: in eval mode, twice, of some outputs, to some weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.request import Spec
from fastrnn_reference.backend import ReferenceBackend
from written_out import assert_same, fast, gradients, leaves_of, run

T, B, I, H = 5, 3, 2, 4
ON = [
    *(("reference", cell, proj) for cell, proj in (("lstm", 0), ("lstm", 2), ("rnn_tanh", 0))),
    *(("reference", cell, 0) for cell in ("rnn_relu", "rnn_sigmoid")),
    *(("aten", cell, proj) for cell, proj in (("lstm", 0), ("lstm", 2), ("rnn_tanh", 0))),
    ("aten", "rnn_relu", 0),
]
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
Made = tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]


def spec_of(cell: str, proj: int) -> Spec:
    return Spec(cell, I, H, proj, 2, True, True)


@pytest.mark.parametrize(("backend", "cell", "proj"), ON)
def test_in_eval_mode(backend: str, cell: str, proj: int) -> None:
    """Gradients are those of training mode, where there is no dropout."""
    spec = spec_of(cell, proj)
    x, hx, weights = leaves_of(spec, T, B)
    found = []
    for training, dropout in ((True, 0.0), (False, 0.9)):
        output, final, _ = fast(
            spec, x, hx, weights, backend=backend, training=training, dropout=dropout
        )
        found.append(gradients([output, *final], [x, *hx, *weights]))
    assert_same(*found)


@pytest.mark.parametrize(("backend", "cell", "proj"), ON)
def test_twice_through_one_graph(backend: str, cell: str, proj: int) -> None:
    spec = spec_of(cell, proj)
    x, hx, weights = leaves_of(spec, T, B)
    leaves = [x, *hx, *weights]
    output, final, _ = fast(spec, x, hx, weights, backend=backend)
    made = [output, *final]
    first = gradients(made, leaves, retain_graph=True)
    second = gradients(made, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # and through another part of it in between
    torch.autograd.grad(output[0].sum(), leaves, retain_graph=True, allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(made, leaves), strict=True))


PARTS: dict[str, Callable[[Made], torch.Tensor]] = {
    "output": lambda made: made[0],
    "h_n": lambda made: made[1][0],
    "c_n": lambda made: made[1][-1],
    "h_n of one layer": lambda made: made[1][0][0],
    "one step": lambda made: made[0][2],
    "one row": lambda made: made[0][:, 1],
    "one direction": lambda made: made[0].chunk(2, 2)[1],
    "one number": lambda made: made[0][1, 2, 0],
}


@pytest.mark.parametrize(
    ("backend", "cell", "proj", "part"),
    [(*case, part) for case in ON for part in PARTS if case[1] == "lstm" or part != "c_n"],
)
def test_of_a_part_of_what_was_made(backend: str, cell: str, proj: int, part: str) -> None:
    spec = spec_of(cell, proj)
    x, hx, weights = leaves_of(spec, T, B)
    assert_same(
        *(
            gradients(
                [PARTS[part](made)], [x, *hx, *weights], allow_unused=True, materialize_grads=True
            )
            for made in (fast(spec, x, hx, weights, backend=backend), run(spec, x, hx, weights))
        )
    )


FROZEN = {
    "nothing": (),
    "x": ("x",),
    "weight_ih": ("weight_ih",),
    "weight_hh": ("weight_hh",),
    "bias": ("bias",),
    "all but weight_hh": ("x", "weight_ih", "bias", "weight_hr"),
    "all but x": ("weight_ih", "weight_hh", "bias", "weight_hr"),
    "layer 0": ("x", "l0"),
    "layer 1": ("l1",),
}
PRODUCTS = {
    "nothing": (2, 2, 2),
    "x": (1, 2, 2),
    "weight_ih": (2, 0, 2),
    "weight_hh": (2, 2, 0),
    "bias": (2, 2, 2),
    "all but weight_hh": (1, 0, 2),
    "all but x": (2, 0, 0),
    "layer 0": (0, 1, 1),
    "layer 1": (2, 1, 1),
}
"""In how many of the two layers there are products for dx, dW_ih and dW_hh."""


def module_of(cell: str, proj: int, backend: str) -> Any:
    torch.manual_seed(0)
    how = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, "backend": backend}
    if cell == "lstm":
        return fastrnn.LSTM(I, H, proj_size=proj, **how)
    return fastrnn.RNN(I, H, nonlinearity=cell[4:], **how)


def found_with(
    cell: str, proj: int, backend: str, frozen: tuple[str, ...]
) -> dict[str, torch.Tensor | None]:
    """The gradients of x and of the weights, None of what is frozen."""
    module = module_of(cell, proj, backend)
    x = torch.randn(T, B, I, dtype=torch.float64).requires_grad_("x" not in frozen)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not any(word in name for word in frozen))
    module(x)[0].square().sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize(("backend", "cell", "proj"), ON)
def test_frozen_weights_change_no_other_gradient(
    backend: str, cell: str, proj: int, frozen: str
) -> None:
    want = found_with(cell, proj, backend, ())
    for name, got in found_with(cell, proj, backend, FROZEN[frozen]).items():
        if any(word in name for word in FROZEN[frozen]):
            assert got is None
        else:
            torch.testing.assert_close(got, want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize(("cell", "proj"), [case[1:] for case in ON if case[0] == "reference"])
def test_frozen_weights_have_no_products(
    cell: str, proj: int, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    multiply = ReferenceBackend.matmul

    def spy(self: ReferenceBackend, *given: Any, **how: Any) -> torch.Tensor:
        made = multiply(self, *given, **how)
        shapes.append(tuple(made.shape))
        return made

    monkeypatch.setattr(ReferenceBackend, "matmul", spy)
    found_with(cell, proj, "reference", FROZEN[frozen])
    rows, width = H * (4 if cell == "lstm" else 1), proj or H
    assert shapes[:2] == [(T, B, 2 * rows)] * 2  # the forward pass
    dx, dw_ih, dw_hh = (
        sum(shape in of_kind for shape in shapes[2:])
        for of_kind in (
            {(T, B, I), (T, B, 2 * width)},
            {(2 * rows, I), (2 * rows, 2 * width)},
            {(rows, width)},
        )
    )
    # each direction's dW_hh is two: the steps that follow another, and those that follow h0
    assert (dx, dw_ih, dw_hh) == (*PRODUCTS[frozen][:2], 4 * PRODUCTS[frozen][2])
    assert len(shapes) == 2 + dx + dw_ih + dw_hh


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN])
def test_a_request_says_that_no_weight_has_a_gradient(kind: type) -> None:
    """And whoever forms none of them then expects to take less; oneDNN forms them all."""
    layer, x = kind(64, 64), torch.randn(20, 8, 64)

    def asked(*wanted: str) -> fastrnn.Decision:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in wanted)
        return fastrnn.explain(layer, x.requires_grad_("x" in wanted))

    def seconds(decision: fastrnn.Decision) -> dict[str, float]:
        return {each.name: each.cost.seconds for each in decision.candidates if each.cost}

    assert not asked().request.frozen
    assert not asked("x", "bias_hh_l0").request.frozen
    assert not asked("weight_ih_l0").request.frozen
    with torch.no_grad():
        assert not asked("x").request.frozen
    frozen, whole = asked("x"), asked("x", "weight_hh_l0")
    assert frozen.request.frozen
    assert "weights frozen" in str(frozen)
    assert "weights frozen" not in str(whole)
    before, after = seconds(whole), seconds(frozen)
    assert after["rows"] < before["rows"]
    assert after["reference"] < before["reference"]
    assert (after["aten"] < before["aten"]) == (kind is fastrnn.RNN)
