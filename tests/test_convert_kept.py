"""`convert` and what a model keeps of its layers beside its submodules."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import fastrnn

X = torch.randn(5, 3, 4)


class Keeps(nn.Module):
    """Holds a layer as a submodule, and otherwise."""

    def __init__(self, keep):
        super().__init__()
        self.layer = nn.LSTM(4, 4, 2, dropout=0.5)
        self.kept, self.find = keep(self)

    def forward(self, x):
        return self.find(self)(x)[0]


def _round(model):
    """A list that holds itself."""
    found = [model.layer]
    found.append(found)
    return found


KEPT = {
    "a list": (lambda model: [model.layer], lambda model: model.kept[0]),
    "a tuple": (lambda model: (0, model.layer), lambda model: model.kept[1]),
    "a dict": (lambda model: {"a": model.layer}, lambda model: model.kept["a"]),
    "lists in a dict": (lambda model: {"a": [model.layer]}, lambda model: model.kept["a"][0]),
    "an ordered dict": (
        lambda model: OrderedDict(a=model.layer),
        lambda model: model.kept["a"],
    ),
    "a list in itself": (_round, lambda model: model.kept[1][1][0]),
    "a bound method": (lambda model: model.layer.forward, lambda model: model.kept),
}


@pytest.mark.parametrize("kept", KEPT)
def test_swapped_with_whatever_else_the_model_keeps(kept):
    """The old layer would compute the same, but not hear of `eval`."""
    keep, find = KEPT[kept]
    model = Keeps(lambda model: (keep(model), find))
    want = model.eval()(X)
    ours = fastrnn.convert(model.train(), backend="aten")
    called = find(ours)
    assert getattr(called, "__self__", called) is ours.layer
    torch.testing.assert_close(ours.eval()(X), want)
    back = fastrnn.revert(ours)
    assert getattr(find(back), "__self__", find(back)) is back.layer


def test_what_a_model_keeps_is_the_same_object_as_before():
    model = Keeps(lambda model: (([model.layer], (1, 2)), None))
    kept = model.kept
    outer, inner = {"list": kept[0], "tuple": kept[1]}, kept[0]
    model.kept = outer
    fastrnn.convert(model)
    assert model.kept is outer
    assert outer["list"] is inner
    assert outer["tuple"] is kept[1]
    assert inner == [model.layer]
