"""Recurrent dropout, zoneout and clipped errors: as arguments and attributes of modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn import functional
from regulariser_cases import (
    MODULES,
    NAMES,
    module_of,
    weights_of,
    x_of,
)
from written_out import (
    gradients,
)

# What is said of them


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("recurrent_dropout", 1.5, ValueError, r"recurrent_dropout .* \[0, 1\], got: 1.5"),
        ("recurrent_dropout", -0.1, ValueError, "recurrent_dropout .* got: -0.1"),
        ("recurrent_dropout", True, TypeError, "recurrent_dropout .* number, got: bool"),
        ("recurrent_dropout", (0.1, 0.1), TypeError, "recurrent_dropout .* number, got: tuple"),
        ("zoneout", float("nan"), ValueError, "zoneout .* got: nan"),
        ("zoneout", None, TypeError, "zoneout .* number, got: NoneType"),
        ("error_clip", 0, ValueError, "error_clip .* greater than zero, or None, got: 0"),
        ("error_clip", -1.0, ValueError, "error_clip .* got: -1.0"),
        ("error_clip", float("nan"), ValueError, "error_clip .* got: nan"),
        ("error_clip", "1", TypeError, "error_clip .* number or None, got: str"),
    ],
)
def test_wrong_values_are_named(
    kind: type, name: str, value: object, error: type[Exception], message: str
) -> None:
    module = kind(3, 4, recurrent_dropout=0.1, zoneout=0.2, error_clip=3)
    before = repr(module)
    with pytest.raises(error, match=message):
        kind(3, 4, **{name: value})
    with pytest.raises(error, match=message):
        setattr(module, name, value)
    assert repr(module) == before
    function = functional.lstm if kind is fastrnn.LSTM else functional.rnn
    with pytest.raises(error, match=message):
        function(torch.randn(2, 3), None, weights_of(module), **{name: value})


def test_pairs_are_for_lstms() -> None:
    with pytest.raises(TypeError, match="zoneout should be a number, got: tuple"):
        fastrnn.RNN(3, 4, zoneout=(0.1, 0.2))
    for pair in ((0.1,), (0.1, 0.2, 0.3), ()):
        with pytest.raises(ValueError, match="zoneout should be a probability or two of them"):
            fastrnn.LSTM(3, 4, zoneout=pair)
    with pytest.raises(ValueError, match=r"zoneout .* got: 2"):
        fastrnn.LSTM(3, 4, zoneout=(0.1, 2))
    assert fastrnn.LSTM(3, 4, zoneout=[0.1, 0.2])._options.zoneout == (0.1, 0.2)


def test_repr() -> None:
    assert repr(fastrnn.LSTM(3, 4, recurrent_dropout=0.1, zoneout=(0.1, 0.2), error_clip=5)) == (
        "LSTM(3, 4, recurrent_dropout=0.1, zoneout=(0.1, 0.2), error_clip=5)"
    )
    assert repr(fastrnn.RNN(3, 4, zoneout=0.2)) == "RNN(3, 4, zoneout=0.2)"
    assert repr(fastrnn.RNN(3, 4)) == "RNN(3, 4)"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", MODULES)
def test_copies(kind: type, copied: Callable[[Any], Any]) -> None:
    module, x = module_of(kind, recurrent_dropout=0.3, zoneout=0.2, error_clip=0.01), x_of()
    other, found = copied(module), []
    assert repr(other) == repr(module)
    for each in (module, other):
        torch.manual_seed(0)
        output = each(x)[0]
        found.append([output, *gradients([output], weights_of(each))])
    assert all(torch.equal(g, w) for g, w in zip(*found, strict=True))


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_was_pickled_before_they_were_there(kind: type) -> None:
    module, x = module_of(kind), x_of()
    state = {name: value for name, value in module.__getstate__().items() if name not in NAMES}
    old = kind.__new__(kind)
    old.__setstate__(state)
    assert torch.equal(old(x)[0], module(x)[0])
    assert repr(old) == repr(module)
    old.zoneout = 0.5
    assert not torch.equal(old(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    ("name", "value"), [("recurrent_dropout", 0.5), ("zoneout", 0.1), ("error_clip", 1e-3)]
)
def test_set_later(kind: type, name: str, value: float) -> None:
    x, found = x_of(), []
    later = module_of(kind)
    later(x)
    setattr(later, name, value)
    for module in (later, module_of(kind, **{name: value}), module_of(kind)):
        torch.manual_seed(0)
        output = module(x)[0]
        found.append(torch.stack([g.sum() for g in gradients([output], weights_of(module))]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", NAMES)
def test_explain_names_who_cannot(name: str) -> None:
    module, x = fastrnn.LSTM(3, 4, **{name: 0.5}), torch.randn(2, 2, 3)
    decision = fastrnn.explain(module, x)
    assert decision.backend == "reference"
    reasons = {candidate.name: candidate.reasons for candidate in decision.candidates}
    assert f"{name} was asked for; torch has none" in reasons["aten"]
    assert name.replace("_", " ") in decision.request.describe()
    module.backend = "aten"
    with pytest.raises(fastrnn.BackendError, match=f"{name} was asked for; torch has none"):
        module(x)
    if name != "zoneout":  # which mixes in eval mode, too
        module.eval()
        with torch.no_grad():
            module(x)
