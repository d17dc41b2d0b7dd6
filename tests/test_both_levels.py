"""A backend that takes some calls as whole stacks and the others layer by layer."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import dispatch
from fastrnn.backend import Layer, LayerOutput, StackBackend, StackCall
from fastrnn.plugins import registry
from fastrnn.request import Request
from fastrnn_reference.backend import ReferenceBackend

X = torch.randn(4, 3, 2)


class Both(ReferenceBackend, StackBackend):
    """The reference's layers, and torch's stacks."""

    name = "both"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def takes(self, request: Request) -> bool:
        return not request.compiling

    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        self.seen.append("stack")
        aten = registry().backends["aten"]
        assert isinstance(aten, StackBackend)
        return aten.run(call)

    def layer_forward(self, layer: Layer) -> LayerOutput:
        self.seen.append("layer")
        return super().layer_forward(layer)


@pytest.fixture
def both() -> Iterator[Both]:
    made, module = Both(), types.ModuleType("both_levels")
    vars(module)["fastrnn_backends"] = fastrnn.hookimpl(lambda: [made])
    fastrnn.register(module, "both_levels")
    yield made
    fastrnn.unregister("both_levels")


@pytest.mark.parametrize(
    ("how", "call", "seen"),
    [
        ({}, {}, ["stack"]),
        ({}, {"return_all_states": True}, ["layer", "layer"]),
        ({"recompute": 2}, {}, ["layer"] * 4),  # two chunks of each
        ({"recompute": 2, "final_only": True}, {}, ["layer"] * 4),
        ({"final_only": True}, {}, ["stack"]),
    ],
)
def test_which_calls(both: Both, how: Any, call: Any, seen: list[str]) -> None:
    ours = fastrnn.LSTM(2, 5, 2, backend="both", **how)
    true = fastrnn.LSTM(2, 5, 2, backend="reference", **how)
    true.load_state_dict(ours.state_dict())
    assert fastrnn.explain(ours, X).whole == (not how.get("recompute"))
    for _ in range(2):  # the second goes by what the first came to
        both.seen.clear()
        found, want = ours(X, **call), true(X, **call)
        assert both.seen == seen
        torch.testing.assert_close(found, want)


def test_graphs_have_layers(both: Both) -> None:
    torch.compiler.reset()
    ours = fastrnn.LSTM(2, 5, 2, backend="both")
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X)[0], ours(X)[0])
    assert both.seen == ["layer", "layer", "stack"]
    program = torch.export.export(ours, (X,))
    both.seen.clear()
    program.module()(X)
    assert both.seen == ["layer", "layer"]


def test_what_is_transformed_is_of_layers_if_it_is_not_taken(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, many = fastrnn.LSTM(2, 5, backend="both"), torch.randn(6, 4, 3, 2)
    with pytest.raises(fastrnn.BackendError, match="it takes whole stacks"):
        torch.func.vmap(lambda x: ours(x)[0])(many)
    monkeypatch.setattr(Both, "takes", lambda self, request: not request.transformed)
    dispatch.clear_cache()
    found = torch.func.vmap(lambda x: ours(x)[0])(many)
    assert both.seen == ["layer"]
    torch.testing.assert_close(found[5], ours(many[5])[0])
