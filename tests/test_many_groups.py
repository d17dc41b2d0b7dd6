"""Many groups of one layer, which the reference steps at once, against each by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrnn.backend import Layer, OutputGradients, Wanted
from fastrnn_reference import time
from fastrnn_reference.backend import ReferenceBackend

G, T, B, I, H = 5, 4, 2, 3, 6
CELLS = {"lstm": 4, "rnn_tanh": 1, "rnn_relu": 1, "rnn_sigmoid": 1}


def layer_of(cell: str, **how: object) -> Layer:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = CELLS[cell] * H
    fields = {
        "cell": cell, "x": draw(T, B, G, I), "weight_ih": draw(G, rows, I),
        "weight_hh": draw(G, rows, H), "bias": draw(G, rows), "h0": draw(G, B, H),
        "c0": draw(G, B, H) if cell == "lstm" else None, "weight_hr": None, "lengths": None,
        "reverse": (False,) * G, "precision": "ieee", "save": True,
    }  # fmt: skip
    return Layer(**{**fields, **how})


def alone(layer: Layer, g: int) -> Layer:
    """Group g as a layer."""
    own = slice(g, g + 1)
    return replace(
        layer, x=layer.x[:, :, own], weight_ih=layer.weight_ih[own],
        weight_hh=layer.weight_hh[own], bias=layer.bias[own], h0=layer.h0[own],
        c0=None if layer.c0 is None else layer.c0[own], reverse=layer.reverse[own],
    )  # fmt: skip


def run(layer: Layer) -> dict[str, tuple[int, torch.Tensor]]:
    """All that forward and backward make, each with the dim of its groups."""
    backend = ReferenceBackend()
    output, h_n, c_n, saved, cells = backend.layer_forward(layer)
    made = {"output": (2, output), "h_n": (0, h_n)}
    made |= {} if c_n is None else {"c_n": (0, c_n)}
    made |= {} if cells is None else {"cells": (2, cells)}
    if not layer.save:
        return made
    grad = OutputGradients(output.cos(), h_n.sin(), None if c_n is None else c_n.sin())
    absent = "weight_chain", "weight_hr", "cell_weight"
    wanted = Wanted(**{name: name not in absent for name in Wanted._fields})
    if cells is not None:
        grad, saved = grad._replace(cells=cells.cos()), (cells, *saved)
    gradients = backend.layer_backward(grad, layer, output, saved, wanted)._asdict()
    dims = {"x": 2}
    return made | {
        f"d {name}": (dims.get(name, 0), each) for name, each in gradients.items()
        if each is not None
    }  # fmt: skip


HOW = [
    {}, {"reverse": (True,) * G}, {"error_clip": 0.3}, {"save": False},
    {"save": False, "final_only": True},
]  # fmt: skip
EACH = [(cell, how) for cell in CELLS for how in HOW]


@pytest.mark.parametrize(("cell", "how"), [*EACH, ("lstm", {"all_states": True})], ids=str)
def test_all_at_once_is_each_by_itself(cell: str, how: dict[str, object]) -> None:
    layer = layer_of(cell, **how)
    assert time.are_alike(layer)
    together, one_by_one = run(layer), [run(alone(layer, g)) for g in range(G)]
    assert together.keys() == one_by_one[0].keys()
    for name, (dim, got) in together.items():
        want = torch.cat([each[name][1] for each in one_by_one], dim)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12, msg=name)


@pytest.mark.parametrize(
    "how",
    [
        {"lengths": torch.tensor([4, 2])},
        {"resets": torch.zeros(T, B, dtype=torch.bool)},
        {"reverse": (False, True, False, True, False)},
        {"recurrent_mask": torch.ones(G, B, H, dtype=torch.float64)},
    ],
    ids=lambda how: next(iter(how)),
)
def test_what_is_not_alike_is_run_one_by_one(how: dict[str, object]) -> None:
    layer = layer_of("lstm", **how)
    assert not time.are_alike(layer)


def test_large_groups_are_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("lstm")
    monkeypatch.setattr(time, "SMALL", B * 4 * H - 1)
    assert not time.are_alike(layer)
    apart = run(layer)
    monkeypatch.undo()
    for name, (_, got) in run(layer).items():
        torch.testing.assert_close(got, apart[name][1], atol=1e-12, rtol=1e-12, msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_results_share_no_memory(cell: str) -> None:
    made = run(layer_of(cell, save=False))
    output = made["output"][1].clone()
    made["h_n"][1].fill_(7)
    assert torch.equal(made["output"][1], output)
