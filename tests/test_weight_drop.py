"""`weight_drop`: dropout of recurrent weights, drawn once a call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn
from fastrnn.weight_drop import weight_drop

X = torch.randn(5, 3, 4, dtype=torch.float64)
KINDS = [fastrnn.LSTM, fastrnn.RNN]


def layer_of(kind: type, **how: Any) -> Any:
    torch.manual_seed(0)
    return kind(4, 5, 2, bidirectional=True, dtype=torch.float64, **how)


def hidden_names(layer: Any) -> list[str]:
    return [names[1] for names in layer.grouped_names()]


def raw(layer: Any, name: str) -> torch.Tensor:
    found: torch.Tensor = layer.parametrizations[name].original
    return found


@pytest.mark.parametrize("backend", ["reference", "aten"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_weight_masked_by_hand(kind: type, backend: str) -> None:
    plain, p = layer_of(kind, backend=backend), 0.4
    dropped = weight_drop(copy.deepcopy(plain), p)
    torch.manual_seed(1)
    got = dropped(X)[0]
    torch.manual_seed(1)
    masks = {}
    with torch.no_grad():
        for name in hidden_names(plain):
            weight = getattr(plain, name)
            masks[name] = nn.functional.dropout(torch.ones_like(weight), p)
            weight.mul_(masks[name])
    want = plain(X)[0]
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for name, parameter in plain.named_parameters():
        if name not in masks:
            torch.testing.assert_close(getattr(dropped, name).grad, parameter.grad)
            continue
        d_raw = raw(dropped, name).grad
        torch.testing.assert_close(d_raw, masks[name] * parameter.grad)
        assert (d_raw[masks[name] == 0] == 0).all()
        assert (d_raw[masks[name] != 0] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_in_every_call_of_training_mode_and_never_else(kind: type) -> None:
    plain = layer_of(kind)
    layer = weight_drop(copy.deepcopy(plain), 0.5)
    assert not torch.equal(layer(X)[0], layer(X)[0])
    layer.eval()
    before = torch.get_rng_state()
    assert torch.equal(layer(X)[0], plain(X)[0])
    assert torch.equal(torch.get_rng_state(), before)
    asleep = weight_drop(copy.deepcopy(plain).eval())
    assert torch.equal(asleep(X)[0], plain(X)[0])
    assert not torch.equal(asleep.train()(X)[0], plain(X)[0])


def test_share_and_scale_of_what_is_dropped() -> None:
    """Of every entry by itself, other than the units of recurrent dropout."""
    torch.manual_seed(0)
    layer = weight_drop(fastrnn.LSTM(4, 64), 0.25)
    ratio = (layer.weight_hh_l0 / raw(layer, "weight_hh_l0")).detach()
    dropped = ratio == 0
    torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 1 / 0.75))
    share = float(dropped.double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / dropped.numel()) ** 0.5
    assert len(dropped.unique(dim=0)) == len(dropped)
    assert len(dropped.unique(dim=1).T) == len(dropped.T)


def test_nothing_is_drawn_by_putting_it_on_and_the_parameters_stay() -> None:
    layer = layer_of(fastrnn.LSTM)
    parameters = {id(p) for p in layer.parameters()}
    before = torch.get_rng_state()
    assert weight_drop(layer) is layer
    assert torch.equal(torch.get_rng_state(), before)
    assert {id(p) for p in layer.parameters()} == parameters


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_and_copies(kind: type) -> None:
    layer = weight_drop(layer_of(kind), 0.3)
    other = weight_drop(kind(4, 5, 2, bidirectional=True, dtype=torch.float64), 0.3)
    other.load_state_dict(layer.state_dict())
    found = []
    for each in (layer, other, copy.deepcopy(layer)):
        torch.manual_seed(2)
        found.append(each(X)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)  # torch's word on all parametrized modules


@pytest.mark.parametrize("training", [True, False])
def test_removed(training: bool) -> None:
    layer, plain = layer_of(fastrnn.LSTM), layer_of(fastrnn.LSTM)
    weight = layer.weight_hh_l0
    weight_drop(layer).train(training)
    for name in hidden_names(layer):
        parametrize.remove_parametrizations(layer, name, leave_parametrized=not training)
    assert type(layer) is fastrnn.LSTM
    assert layer.weight_hh_l0 is weight
    assert torch.equal(layer(X)[0], plain(X)[0])
    pickle.dumps(layer)


def test_assigned_and_moved() -> None:
    layer = weight_drop(layer_of(fastrnn.RNN))
    with torch.no_grad():
        layer.weight_hh_l0 = torch.ones(5, 5, dtype=torch.float64)
    assert (raw(layer, "weight_hh_l0") == 1).all()
    layer.float()
    assert layer(X.float())[0].dtype == torch.float32
    assert "WeightDrop(p=0.5)" in repr(layer).replace("\n", "").replace("(0): ", "")


def test_on_top_of_another_parametrization() -> None:
    layer = parametrizations.orthogonal(fastrnn.RNN(4, 5, dtype=torch.float64), "weight_hh_l0")
    torch.manual_seed(0)
    whole = layer.weight_hh_l0.detach()
    weight_drop(layer, 0.5)
    dropped = layer.weight_hh_l0.detach()
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, 2 * whole))
    torch.testing.assert_close(layer.eval().weight_hh_l0.detach(), whole)


def test_everything_dropped_under_compile() -> None:
    torch.compiler.reset()
    layer = weight_drop(layer_of(fastrnn.RNN, backend="reference"), 1.0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = compiled(X)[0]
    plain = layer_of(fastrnn.RNN, backend="reference")
    with torch.no_grad():
        for name in hidden_names(plain):
            getattr(plain, name).zero_()
    torch.testing.assert_close(got, plain(X)[0])


@pytest.mark.parametrize(
    ("layer", "p", "error", "message"),
    [
        (nn.LSTM(4, 5), 0.5, TypeError, r"layer .* got: LSTM; fastrnn\.convert makes them"),
        (fastrnn.LSTMCell(4, 5), 0.5, TypeError, "layer .* got: LSTMCell"),
        (fastrnn.LSTM(4, 5), 1.5, ValueError, r"p should .* \[0, 1\], got: 1.5"),
        (fastrnn.LSTM(4, 5), -0.1, ValueError, "p should .* got: -0.1"),
        (fastrnn.LSTM(4, 5), "0.5", TypeError, "p should be a number, got: str"),
        (weight_drop(fastrnn.LSTM(4, 5)), 0.5, ValueError, "layer: its weights are dropped"),
    ],
)
def test_wrong_arguments_are_named(
    layer: Any, p: object, error: type[Exception], message: str
) -> None:
    before = repr(layer)
    with pytest.raises(error, match=message):
        weight_drop(layer, p)
    assert repr(layer) == before


def test_what_looks_at_weights_drops_none() -> None:
    torch.manual_seed(0)
    layer, x = weight_drop(fastrnn.LSTM(4, 5, dtype=torch.float64), 0.5), X
    with torch.no_grad():
        want = layer.eval()(x)[0]
    layer.train()
    stepper = fastrnn.Stepper(layer, batch=3)
    torch.testing.assert_close(torch.stack([stepper(step).clone() for step in x]), want)
    flows = [
        fastrnn.diagnostics.gradient_flow(layer, x, lambda output, _: output.sum())
        for _ in range(2)
    ]
    assert flows[0].loss == pytest.approx(want.sum().item())
    assert torch.equal(flows[0].h, flows[1].h)
    radii = fastrnn.diagnostics.spectral_radius(layer)
    assert radii == flows[0].spectral_radius == flows[1].spectral_radius
    assert not torch.equal(layer.weight_hh_l0, raw(layer, "weight_hh_l0"))  # as before
    assert radii == fastrnn.diagnostics.spectral_radius(layer.eval())


@pytest.mark.parametrize("look", ["explain", "Stepper", "InitialState", "to", "flatten", "assign"])
def test_who_only_looks_does_not_draw(look: str) -> None:
    layer = weight_drop(fastrnn.LSTM(4, 5), 0.5)
    looks: dict[str, Callable[[], object]] = {
        "explain": lambda: fastrnn.explain(layer, X.float()),
        "Stepper": lambda: fastrnn.Stepper(layer),
        "InitialState": lambda: fastrnn.InitialState(layer),
        "to": lambda: layer.to("cpu"),
        "flatten": layer.flatten_parameters,
        "assign": lambda: setattr(layer, "weight_hh_l0", torch.zeros(20, 5)),
    }
    before = torch.get_rng_state()
    looks[look]()
    assert torch.equal(torch.get_rng_state(), before)


def test_initialisers_reach_what_is_dropped() -> None:
    layer = weight_drop(fastrnn.LSTM(4, 5, 2, dtype=torch.float64), 0.5)
    fastrnn.init.orthogonal_(layer)
    eye = torch.eye(5, dtype=torch.float64)
    for name in hidden_names(layer):
        for block in raw(layer, name).split(5):
            torch.testing.assert_close(block @ block.T, eye)
    parametrizations.weight_norm(layer := fastrnn.LSTM(4, 5), "weight_hh_l0")
    with pytest.raises(ValueError, match="got a parametrized weight_hh_l0; initialize it before"):
        fastrnn.init.orthogonal_(layer)
