"""Recurrent dropout, zoneout and clipped errors: the numbers of a loop that is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import calls, functional
from fastrnn.backend import Layer
from fastrnn.options import Options
from fastrnn.request import Spec
from fastrnn_reference.backend import ReferenceBackend
from regulariser_cases import (
    CELLS,
    CHOICES,
    MODULES,
    asked,
    flat,
    module_of,
    weights_of,
    x_of,
)
from written_out import (
    assert_equal_written_out,
    assert_same,
    fast,
    gradients,
    leaves_of,
    random_resets,
)


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]], ids=["equal", "lengths"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("cell", "proj"), CELLS)
def test_equal_a_loop(
    poisoned: None, cell: str, proj: int, choice: str, lengths: list[int] | None
) -> None:
    spec = Spec(cell, 2, 3, proj, 2, True, True)
    assert_equal_written_out(spec, 5, 3, lengths=lengths, options=asked(cell, **CHOICES[choice]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 0, 3]], ids=["equal", "lengths"])
@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize(("cell", "proj"), CELLS)
def test_equal_a_loop_in_chunks_and_in_eval_mode(
    poisoned: None, cell: str, proj: int, recompute: int, lengths: list[int] | None, training: bool
) -> None:
    options = asked(cell, **CHOICES["all"], recompute=recompute)
    spec = Spec(cell, 2, 3, proj, 2, True, True)
    assert_equal_written_out(spec, 5, 3, lengths=lengths, options=options, training=training)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
    layers=st.integers(1, 2),
    lengths=st.none() | st.lists(st.integers(0, 5), min_size=2, max_size=2).filter(any),
    resets=st.booleans(),
    recompute=st.sampled_from([0, 0, 1, 2, 7]),
    final_only=st.booleans(),
    all_states=st.booleans(),
    recurrent_dropout=st.sampled_from([0.0, 0.4, 1.0]),
    zoneout=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 2),
    error_clip=st.sampled_from([0.0, 0.02, 1e9]),
    dropout=st.sampled_from([0.0, 0.5]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equal_a_loop_with_whatever_else_is_asked(
    kind: tuple[str, int], bidirectional: bool, layers: int, lengths: list[int] | None,
    resets: bool, training: bool, dropout: float, seed: int, **how: Any,
) -> None:  # fmt: skip
    cell, proj = kind
    if resets:
        how["recompute"] = 0
    assert_equal_written_out(
        Spec(cell, 2, 3, proj, layers, True, bidirectional), 5, 2, lengths=lengths,
        resets=random_resets(5, 2) if resets else None, options=asked(cell, **how),
        training=training, dropout=dropout if training else 0.0, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_by_module_and_by_function(kind: type) -> None:
    how = {"recurrent_dropout": 0.3, "zoneout": 0.2, "error_clip": 0.1}
    module, x = module_of(kind, **how), x_of()
    function = functional.lstm if kind is fastrnn.LSTM else functional.rnn
    for training in (True, False):
        module.train(training)
        torch.manual_seed(1)
        want = flat(module(x))
        torch.manual_seed(1)
        got = flat(
            function(
                x, None, weights_of(module), num_layers=2, training=training, backend="reference",
                **how,
            )
        )  # fmt: skip
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
        d_want, d_got = (gradients(made, weights_of(module)) for made in (want, got))
        assert all(torch.equal(g, w) for g, w in zip(d_got, d_want, strict=True))
    plain = flat(module_of(kind)(x))
    assert not torch.equal(plain[0], want[0])


# Recurrent dropout


def masks_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> list[Any]:
    """The `recurrent_mask` of every layer that the reference is given."""
    seen = []
    forward = ReferenceBackend.layer_forward

    def spy(self: ReferenceBackend, layer: Layer) -> Any:
        seen.append(layer.recurrent_mask)
        return forward(self, layer)

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceBackend, "layer_forward", spy)
        call()
    return seen


@pytest.mark.parametrize("kind", MODULES)
def test_a_mask_of_its_own_for_every_layer_direction_row_and_call(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = kind(3, 50, 2, bidirectional=True, recurrent_dropout=0.25, backend="reference")
    module, x = module.double(), x_of(2, 40)
    masks = masks_of(monkeypatch, lambda: (module(x), module(x)))
    rows = torch.cat(masks).flatten(0, 1)
    assert rows.shape == (2 * 2 * 2 * 40, 50)
    assert set(rows.unique().tolist()) == {0.0, 1 / 0.75}
    assert len(rows.unique(dim=0)) == len(rows)
    hidden = (rows == 0).double()
    assert abs(float(hidden.mean()) - 0.25) < 5 * (0.25 * 0.75 / hidden.numel()) ** 0.5
    module.eval()
    assert masks_of(monkeypatch, lambda: module(x)) == [None, None]


@pytest.mark.parametrize("kind", MODULES)
def test_all_dropped_is_a_network_without_recurrence(kind: type) -> None:
    module, x = module_of(kind, recurrent_dropout=1.0), x_of()
    got = flat(module(x))
    d_got = gradients(got, weights_of(module))
    other = module_of(kind)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
        other.weight_hh_l1.zero_()
    want = flat(other(x))
    assert_same(got, want)
    for (name, _), g, w in zip(
        other.named_parameters(), d_got, gradients(want, weights_of(other)), strict=True
    ):
        torch.testing.assert_close(g, torch.zeros_like(w) if "weight_hh" in name else w)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("off", [{}, {"recurrent_dropout": 0.5, "error_clip": 1.0}])
def test_what_is_off_costs_nothing(
    kind: type, off: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision and the operator's arguments are those of a plain module; nothing is drawn."""
    x, plain = x_of(), module_of(kind).eval()
    # dropout is off in eval mode, a bound on gradients where there is none
    module = module_of(kind, **off).eval()
    made, given = [], []
    decide, forward = calls.decide, ReferenceBackend.layer_forward

    def deciding(request: Any, backend: str) -> Any:
        made.append(decide(request, backend))
        return made[-1]

    def spy(self: ReferenceBackend, layer: Layer) -> Any:
        given.append((layer.recurrent_mask, layer.zoneout_h, layer.zoneout_c))
        return forward(self, layer)

    monkeypatch.setattr(calls, "decide", deciding)
    monkeypatch.setattr(ReferenceBackend, "layer_forward", spy)
    before = torch.get_rng_state()
    with torch.no_grad():
        want, got = flat(plain(x)), flat(module(x))
    assert made[0] is made[1]
    assert set(given) == {(None, None, None)}
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


# Zoneout


@pytest.mark.parametrize("kind", MODULES)
def test_zoneout_keeps_so_many_units_to_the_bit(kind: type) -> None:
    p_h, p_c = 0.25, 0.6
    zoneout = (p_h, p_c) if kind is fastrnn.LSTM else p_h
    module = kind(3, 60, zoneout=zoneout, backend="reference")
    every = flat(module(torch.randn(30, 20, 3), return_all_states=True)[2:])
    for states, p in zip(every, (p_h, p_c), strict=False):
        kept = (states[0, 1:] == states[0, :-1]).double()
        assert abs(float(kept.mean()) - p) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
        # drawn for every step anew
        assert (kept.mean(0) > 0).all()
        assert (kept.mean(0) < 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_zoneout_of_everything_and_of_c_alone(training: bool) -> None:
    x, hx, weights = leaves_of(Spec("lstm", 3, 4), 4, 2)
    how = {"training": training}
    _, (h_n, c_n), _ = fast(
        Spec("lstm", 3, 4), x, hx, weights, options=Options(zoneout=(1, 1)), **how
    )
    assert torch.equal(h_n, hx[0])
    assert torch.equal(c_n, hx[1])
    _, (h_n, c_n), _ = fast(
        Spec("lstm", 3, 4), x, hx, weights, options=Options(zoneout=(0, 1)), **how
    )
    assert not torch.equal(h_n, hx[0])
    assert torch.equal(c_n, hx[1])


@pytest.mark.parametrize("kind", MODULES)
def test_zoneout_mixes_in_eval_mode(kind: type) -> None:
    """One step: p of the state before, 1 - p of the new one; and nothing is random."""
    module = kind(3, 4, zoneout=0.25, dtype=torch.float64, backend="reference").eval()
    h0 = torch.randn(1, 2, 4, dtype=torch.float64)
    hx = (h0, h0 + 1) if kind is fastrnn.LSTM else h0
    before = torch.get_rng_state()
    mixed = flat(module(x_of(1), hx)[1:])
    assert torch.equal(torch.get_rng_state(), before)
    module.zoneout = 0.0
    new = flat(module(x_of(1), hx)[1:])
    assert_same(mixed, [0.25 * b + 0.75 * n for b, n in zip((h0, h0 + 1), new, strict=False)])


# Clipped errors


@pytest.mark.parametrize("kind", MODULES)
def test_error_clip_bounds_gradients(kind: type) -> None:
    T, B, bound = 6, 3, 1e-3
    x = x_of(T, B)
    module = module_of(kind, error_clip=bound)
    made = module(x)[0]
    assert torch.equal(made, module_of(kind)(x)[0])
    made.mul(1e6).sum().backward()
    for name, parameter in module.named_parameters():
        largest = x.abs().max() if name == "weight_ih_l0" else 1  # what it multiplies
        assert 0 < float(parameter.grad.abs().max()) <= T * B * bound * float(largest) * (1 + 1e-12)
    module.error_clip = 1e12
    got = gradients([module(x)[0]], weights_of(module))
    module.error_clip = None
    want = gradients([module(x)[0]], weights_of(module))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
