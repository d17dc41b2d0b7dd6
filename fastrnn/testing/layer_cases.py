"""Single layers as a backend is given them, with what fastrnn draws at random held fixed.

Their truth is `fastrnn.unrolled`, the layer written out in torch's operations, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from fastrnn import unrolled
from fastrnn.backend import Layer, Wanted
from fastrnn.ops import layer_forward
from fastrnn.options import Options
from fastrnn.request import GATES
from fastrnn.testing.cases import PLAIN, Case, gradients, spec, upstream
from fastrnn.testing.problems import Result, assert_close
from fastrnn.testing.subjects import Subject

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerCase:
    """A layer of two groups, the second of which runs backwards in time."""

    cell: str
    T: int = 6
    B: int = 3
    I: int = 4
    H: int = 5
    proj: int = 0
    bias: bool = True
    lengths: bool = False
    resets: bool = False
    options: Options = PLAIN
    save: bool = True
    seed: int = 0

    @property
    def case(self) -> Case:
        """The call that such a layer comes from."""
        shape = spec(
            self.cell, self.H, input_size=self.I, proj_size=self.proj, bias=self.bias,
            bidirectional=True,
        )  # fmt: skip
        return Case(
            shape, self.T, self.B, lengths=self.lengths, resets=self.resets, options=self.options,
            needs_grad=self.save, seed=self.seed,
        )  # fmt: skip

    def layer(self, dtype: torch.dtype, device: str, precision: str = "ieee") -> Layer:
        """The layer, without gradients."""
        generator = torch.Generator().manual_seed(self.seed)
        T, B, H, G, P = self.T, self.B, self.H, 2, self.proj or self.H
        rows, asked, case = GATES[self.cell] * H, self.options, self.case
        has_c = case.spec.has_cell_state

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        def weight(*shape: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator) * 2 - 1
            return (drawn / math.sqrt(H)).to(device, dtype)

        def chosen(share: float, *shape: int) -> Tensor | None:
            drawn = torch.rand(shape, generator=generator) < share
            return drawn.to(device, dtype) if share else None

        hidden = chosen(asked.recurrent_dropout, G, B, P)
        lengths = torch.tensor(case.row_lengths).to(device) if self.lengths else None
        x = normal(T, B, self.I)
        if lengths is not None:
            x[torch.arange(T, device=device).unsqueeze(1) >= lengths] = 0
        return Layer(
            cell=self.cell,
            x=x,
            weight_ih=weight(G, rows, self.I),
            weight_hh=weight(G, rows, P),
            bias=weight(G, rows) if self.bias else None,
            h0=normal(G, B, P),
            c0=normal(G, B, H) if has_c else None,
            weight_hr=weight(G, P, H) if self.proj else None,
            lengths=lengths,
            reverse=(False, True),
            precision=precision,
            save=self.save,
            final_only=asked.final_only,
            resets=case.reset_steps(device) if self.resets else None,
            recurrent_mask=None if hidden is None else 2 * (1 - hidden),
            zoneout_h=chosen(asked.zoneout[0], T, B, G, P),
            zoneout_c=chosen(asked.zoneout[1], T, B, G, H) if has_c else None,
            error_clip=asked.error_clip,
            all_states=asked.all_states,
        )


def layer_for(subject: Subject, case: LayerCase) -> Layer:
    """The layer, if the backend takes layers and claims the call that it comes from.

    Raises:
        NotClaimed: it does not.
    """
    subject.layers()
    subject.must_claim(case.case)
    return case.layer(subject.dtype, subject.device, subject.precision())


def tensors_of(layer: Layer) -> dict[str, Tensor]:
    """Every tensor that a layer has, by its field's name."""
    named = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def differentiable(layer: Layer) -> tuple[Layer, dict[str, Tensor]]:
    """A copy with gradients, and what has them."""
    own = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in tensors_of(layer).items()
        if name in Wanted._fields
    }
    changed: dict[str, Any] = dict(own)
    return replace(layer, **changed), own


def assert_layer_true(subject: Subject, case: LayerCase) -> None:
    """Compare a layer, forward and backward, with the layer written out in float64.

    Raises:
        NotClaimed: the backend cannot run it.
        AssertionError: something is out of tolerance.
    """
    layer = layer_for(subject, case)
    own, leaves = differentiable(layer)
    names = ("output", "h_n", "c_n", "cells")
    found = zip(names, layer_forward(own, subject.name), strict=True)
    made = {name: tensor for name, tensor in found if tensor is not None}
    got = _result(made, gradients(made, leaves, upstream(made, subject.dtype)))
    in_float64: dict[str, Any] = {
        name: tensor.to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors_of(layer).items()
    }
    own, leaves = differentiable(replace(layer, **in_float64))
    true = dict(zip(names, unrolled.run(own), strict=False))
    true = {name: true[name] for name in made}
    want = _result(true, gradients(true, leaves, upstream(true, subject.dtype)))
    assert_close(got, want, subject.allowed(case.case))


def _result(made: dict[str, Tensor], found: dict[str, Tensor]) -> Result:
    output, *states = (tensor.detach() for tensor in made.values())
    return Result(output, tuple(states), found)
