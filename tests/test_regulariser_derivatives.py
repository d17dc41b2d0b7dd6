"""Recurrent dropout, zoneout and clipped errors: derivatives of all kinds, dtypes, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastrnn
from derivatives import assert_first, assert_second
from fastrnn import testing
from fastrnn.request import Spec
from regulariser_cases import (
    CELLS,
    CHOICES,
    MODULES,
    asked,
    flat,
    weights_of,
    x_of,
)
from written_out import (
    assert_same,
    fast,
    gradients,
    leaves_of,
    run,
)

# Derivatives


def seeded(
    spec: Spec, training: bool = True, **how: Any
) -> tuple[Callable[..., tuple[torch.Tensor, ...]], list[torch.Tensor]]:
    """A function that draws the same at every call, and what to differentiate it by."""
    x, hx, weights = leaves_of(spec, 3, 2)

    def call(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        states, own = list(rest[: len(hx)]), list(rest[len(hx) :])
        output, final, _ = fast(
            spec, x, states, own, lengths=[3, 2], options=asked(spec.cell, **how), training=training
        )
        return (output, *final)

    return call, [x, *hx, *weights]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("cell", "proj"), [("lstm", 0), ("lstm", 1), ("rnn_tanh", 0)])
def test_gradcheck(cell: str, proj: int, training: bool) -> None:
    """With a bound that nothing reaches: what is cut is no derivative."""
    how = {"recurrent_dropout": 0.4, "zoneout": (0.3, 0.2), "error_clip": 1e9}
    call, leaves = seeded(Spec(cell, 1, 2, proj, 1, True, True), training, **how)
    assert_first(call, leaves)


@pytest.mark.parametrize(("cell", "proj"), [("lstm", 0), ("lstm", 1), ("rnn_tanh", 0)])
def test_gradgradcheck(cell: str, proj: int) -> None:
    """A gradient that was cut is a function too, and this is its derivative."""
    how = {"recurrent_dropout": 0.4, "zoneout": (0.3, 0.2), "error_clip": 0.05}
    call, leaves = seeded(Spec(cell, 1, 2, proj), **how)
    made = call(*leaves)
    cut, whole = (
        torch.cat([g.flatten() for g in gradients(list(each), leaves)])
        for each in (made, seeded(Spec(cell, 1, 2, proj), **{**how, "error_clip": 0.0})[0](*leaves))
    )
    assert not torch.allclose(cut, whole)
    assert_second(call, leaves)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("cell", "proj"), CELLS)
def test_gradients_of_gradients_equal_those_of_the_loop(cell: str, proj: int, choice: str) -> None:
    spec = Spec(cell, 2, 3, proj, 1, True, True)
    # in the loop the bound would apply to the second pass, too
    options = asked(cell, **CHOICES[choice])._replace(error_clip=1e9)
    x, hx, weights = leaves_of(spec, 4, 2)
    leaves, found = [x, *hx, *weights], []
    for backend in (fast, run):
        torch.manual_seed(0)
        made = backend(spec, x, hx, weights, options=options, lengths=[4, 2])
        first = gradients([made[0].square(), *made[1]], leaves, create_graph=True)
        found.append([*first, *gradients(first, leaves, allow_unused=True, materialize_grads=True)])
    assert_same(*found)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("cell", "proj"), CELLS)
def test_a_gradient_that_can_be_differentiated_again_is_the_same(
    cell: str, proj: int, choice: str
) -> None:
    spec = Spec(cell, 2, 3, proj, 1, True, True)
    x, hx, weights = leaves_of(spec, 4, 2)
    torch.manual_seed(0)
    output, final, _ = fast(spec, x, hx, weights, options=asked(cell, **CHOICES[choice]))
    made, leaves = [output, *final], [x, *hx, *weights]
    once = gradients(made, leaves, retain_graph=True)
    assert_same(gradients(made, leaves, create_graph=True), once)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_bfloat16(cell: str, choice: str) -> None:
    spec, options = Spec(cell, 3, 8, 0, 2, True, True), asked(cell, **CHOICES[choice])
    for dtype in (torch.bfloat16, torch.float32):
        x, hx, weights = leaves_of(spec, 5, 3, dtype)
        # in eval mode, since other dtypes draw other masks
        output, final, _ = fast(spec, x, hx, weights, options=options, training=False)
        for made in (output, *final):
            assert made.dtype == dtype
        if dtype == torch.bfloat16:
            low = output.float()
            torch.manual_seed(0)
            trained = fast(spec, x, hx, weights, options=options)[0]
            d_x, *_ = gradients([trained], [x, *weights])
            assert d_x.dtype == dtype
            assert d_x.isfinite().all()
    # one more rounding of the probabilities and of the mix
    allowed = 2 * testing.tolerance(torch.bfloat16, 5).output
    torch.testing.assert_close(low, output, rtol=0, atol=allowed)


@pytest.mark.parametrize("kind", MODULES)
def test_autocast(kind: type) -> None:
    module = kind(3, 4, 2, recurrent_dropout=0.3, zoneout=0.2, error_clip=0.1, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(torch.randn(4, 2, 3))
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


# torch.compile


@pytest.mark.parametrize("kind", MODULES)
def test_compile_equals_eager_where_nothing_is_random(kind: type) -> None:
    """Probabilities of 1, of which there is one draw, and what happens in eval mode."""
    torch.compiler.reset()
    x = x_of()
    zoneout = (0.0, 1.0) if kind is fastrnn.LSTM else 1.0
    for training, how in (
        (True, {"recurrent_dropout": 1.0, "zoneout": zoneout, "error_clip": 0.01}),
        (False, {"recurrent_dropout": 0.5, "zoneout": 0.3, "error_clip": 0.01}),
    ):
        module = kind(3, 4, bidirectional=True, dtype=torch.float64, backend="reference", **how)
        module.train(training)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        want, got = flat(module(x)), flat(compiled(x))
        assert_same(got, want)
        d_want, d_got = (
            gradients(made, weights_of(module), allow_unused=True, materialize_grads=True)
            for made in (want, got)
        )
        assert_same(d_got, d_want)


def test_compiled_draws_are_those_of_the_seed_and_new_in_each_call() -> None:
    torch.compiler.reset()
    module = fastrnn.LSTM(3, 60, recurrent_dropout=0.5, zoneout=(0.25, 0.0), backend="reference")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(30, 20, 3)
    torch.manual_seed(0)
    first, _, (h, _) = compiled(x, return_all_states=True)
    other, *_ = compiled(x, return_all_states=True)
    torch.manual_seed(0)
    again, *_ = compiled(x, return_all_states=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    kept = (h[0, 1:] == h[0, :-1]).double()
    assert abs(float(kept.mean()) - 0.25) < 5 * (0.25 * 0.75 / kept.numel()) ** 0.5
