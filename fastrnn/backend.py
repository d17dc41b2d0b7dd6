"""The contract between fastrnn and a backend.

A backend answers two questions about a `Request`: can it run it (`can_run`, a list of reasons
against; empty means yes), and what would it cost (`cost`). It then does the work on one of three
levels; choose the highest that is still convenient:

`StackBackend`
    takes the whole call, every layer and direction (cuDNN does, through torch).
`LayerBackend`
    takes one layer, all directions of it, forward and backward.
`RecurrenceBackend`
    takes only what is sequential: the time loop and its gradient. The input projection before
    the loop and the weight gradients after it are large matrix products that this class does.

A plugin imports this module and `fastrnn.request`, never the modules or the dispatcher.

Shapes: T steps, B rows of the batch, I inputs, H hidden units, K gates per unit (LSTM 4 in the
order i, f, g, o; Elman 1), P the width of h (H, or proj_size), G independent recurrences that
run side by side, each with its own weights and time direction. The two directions of a
bidirectional layer are G = 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from fastrnn.request import GATES, Cost, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CONTRACT_VERSION = 1
"""Raised when a change here would break a plugin; a backend names the one it was built for."""


class Backend(ABC):
    """What every backend has: a name, one line about it, and two answers.

    Subclass one of the three levels below rather than this class.
    """

    name: ClassVar[str]
    """How users choose it: lower-case letters, digits, `_` and `-`; not `auto`."""
    summary: ClassVar[str] = ""
    """One line for `fastrnn backends`."""
    contract: ClassVar[int]
    """The `CONTRACT_VERSION` it was written for, as a literal: `contract = 1`. Without a default,
    which would follow the host's and hide every change."""

    def unavailable(self) -> list[str]:
        """Why this machine can run nothing at all with it; empty if it can.

        Asked by `fastrnn backends` and by `can_run`'s caller; must be cheap after the first call.
        """
        return []

    @abstractmethod
    def can_run(self, request: Request) -> list[str]:
        """Every reason why `request` cannot be run, each a clause a user can act on.

        A pure function of `request`: its result is cached. Empty means that it can.
        """

    @abstractmethod
    def cost(self, request: Request) -> Cost:
        """An estimate of the seconds one call takes; asked only if `can_run` found no reason.

        With `request.compiling`, `seq_len` and `batch` are None: answer for a typical size.
        """


class StackCall(NamedTuple):
    """One call of a whole stack, as torch.nn takes it."""

    request: Request
    input: Tensor
    """(T, B, I), or (B, T, I) if `batch_first`, or (sum of lengths, I) if `batch_sizes`."""
    batch_sizes: Tensor | None
    """(T,) int64 on the CPU: a PackedSequence's, or None."""
    hx: tuple[Tensor, ...]
    """(h0,) or (h0, c0), each (num_layers * directions, B, P or H)."""
    weights: Sequence[Tensor]
    """Flat, in torch's order: per layer and direction w_ih, w_hh[, b_ih, b_hh][, w_hr]."""
    batch_first: bool


class StackBackend(Backend):
    """A backend that runs every layer and direction of a call itself."""

    @abstractmethod
    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        """Output and final states as torch.lstm / torch.rnn_tanh return them.

        The result must be differentiable by torch wherever `request.needs_grad`.
        """


@dataclass(frozen=True, slots=True)
class Layer:
    """The inputs of one layer. No tensor here may be written to."""

    cell: str
    x: Tensor
    """(T, B, I), shared by all groups, or (T, B, G, I)."""
    weight_ih: Tensor
    """(G, K*H, I)"""
    weight_hh: Tensor
    """(G, K*H, P)"""
    bias: Tensor | None
    """(G, K*H): torch's two bias vectors, added."""
    h0: Tensor
    """(G, B, P)"""
    c0: Tensor | None
    """(G, B, H), LSTM only."""
    weight_hr: Tensor | None
    """(G, P, H), projected LSTM only."""
    lengths: Tensor | None
    """(B,) int64: steps of each row; None if every row has T."""
    reverse: tuple[bool, ...]
    """Per group: does time run backwards?"""
    precision: str
    """`ieee`, `tf32` or `tf32x3` for float32 products."""
    save: bool
    """Whether a backward pass may follow."""

    @property
    def gates(self) -> int:
        """K."""
        return GATES[self.cell]

    @property
    def groups(self) -> int:
        """G."""
        return self.weight_hh.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight_hh.shape[1] // self.gates


class LayerOutput(NamedTuple):
    """What a layer's forward pass returns."""

    output: Tensor
    """(T, B, G, P), zero past a row's length."""
    h_n: Tensor
    """(G, B, P): h after each row's last step in its direction. Not a view of `output`."""
    c_n: Tensor | None
    """(G, B, H), LSTM only."""
    saved: tuple[Tensor, ...]
    """What the backward pass needs beside the inputs and `output`: at most three tensors, none
    unless `Layer.save`."""


class Wanted(NamedTuple):
    """Which gradients of a layer somebody asked for; the others need not be computed."""

    x: bool
    weight_ih: bool
    weight_hh: bool
    bias: bool
    h0: bool
    c0: bool
    weight_hr: bool


class LayerGradients(NamedTuple):
    """The gradients of a layer's inputs, each in its input's shape; None where not wanted."""

    x: Tensor | None = None
    weight_ih: Tensor | None = None
    weight_hh: Tensor | None = None
    bias: Tensor | None = None
    h0: Tensor | None = None
    c0: Tensor | None = None
    weight_hr: Tensor | None = None


class OutputGradients(NamedTuple):
    """The gradients that reach a layer's outputs; None where nobody used the output."""

    output: Tensor | None
    """(T, B, G, P)"""
    h_n: Tensor | None
    """(G, B, P)"""
    c_n: Tensor | None
    """(G, B, H)"""


class LayerBackend(Backend):
    """A backend that runs one layer, in all its directions; fastrnn stacks the layers."""

    @abstractmethod
    def layer_forward(self, layer: Layer) -> LayerOutput:
        """Run one layer over the whole sequence."""

    @abstractmethod
    def layer_backward(
        self,
        grad: OutputGradients,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> LayerGradients:
        """Backpropagate through one layer: the sums over time of its gradients.

        `saved` holds what `layer_forward` saved, padded with empty tensors to three.
        """

    @abstractmethod
    def saved_like(self, layer: Layer) -> tuple[Tensor, ...]:
        """Empty tensors shaped as `layer_forward` would save them, for torch.compile's tracing.

        Called with tensors that have no data.
        """


class Recurrence(NamedTuple):
    """The gradients of a time loop."""

    d_gates: Tensor
    """(T, B, G, K*H), with respect to `gates_x`; zero past a row's length."""
    d_h0: Tensor | None
    d_c0: Tensor | None
    d_weight_hr: Tensor | None = None


class RecurrenceBackend(LayerBackend):
    """A backend that runs only the time loop: gates_x(t) + W_hh h(t-1), the gates, the state.

    `gates_x` is the input projection W_ih x + b of every step, done before the loop as one
    matrix product; dx, dW_ih, dW_hh and db follow from `d_gates` after it, one product each.
    """

    interleaved: ClassVar[bool] = False
    """How gate columns and weight rows are ordered: all of i, then f, g, o (False, as torch
    stores them), or the gates of unit 0, then of unit 1, ... (True). Permuting the weights once
    a call gives the second without touching an activation."""

    @abstractmethod
    def recurrence_forward(self, gates_x: Tensor, weight_hh: Tensor, layer: Layer) -> LayerOutput:
        """Run the time loop over gates_x (T, B, G, K*H) with weight_hh (G, K*H, P)."""

    @abstractmethod
    def recurrence_backward(
        self,
        grad: OutputGradients,
        weight_hh: Tensor,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> Recurrence:
        """Backpropagate through the time loop; of `wanted`, h0, c0 and weight_hr matter here."""

    def saved_like(self, layer: Layer) -> tuple[Tensor, ...]:
        """Activated gates (T, B, G, K*H) and cells (T, B, G, H) for an LSTM, else nothing."""
        if not layer.save or layer.c0 is None:
            return ()
        steps, batch = layer.x.shape[:2]
        shape = (steps, batch, layer.groups, layer.gates * layer.hidden_size)
        return (
            layer.x.new_empty(shape),
            layer.x.new_empty((*shape[:3], layer.hidden_size)),
        )

    def layer_forward(self, layer: Layer) -> LayerOutput:
        """Project the inputs of all steps at once, then run the time loop."""
        weight_ih, weight_hh, bias = layer.weight_ih, layer.weight_hh, layer.bias
        if self.interleaved and layer.gates > 1:
            weight_ih, weight_hh = (interleave(w, layer.gates) for w in (weight_ih, weight_hh))
            bias = None if bias is None else interleave(bias, layer.gates)
        return self.recurrence_forward(project(layer.x, weight_ih, bias), weight_hh, layer)

    def layer_backward(
        self,
        grad: OutputGradients,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> LayerGradients:
        """Run the time loop backwards, then form the weight gradients as one product each."""
        weight_ih, weight_hh = layer.weight_ih, layer.weight_hh
        reorder = self.interleaved and layer.gates > 1
        if reorder:
            weight_ih, weight_hh = (interleave(w, layer.gates) for w in (weight_ih, weight_hh))
        d_gates, d_h0, d_c0, d_weight_hr = self.recurrence_backward(
            grad, weight_hh, layer, output, saved, wanted
        )
        d_weight_ih = input_weight_gradient(d_gates, layer.x) if wanted.weight_ih else None
        d_weight_hh = None
        if wanted.weight_hh:
            d_weight_hh = recurrent_weight_gradient(d_gates, output, layer)
        d_bias = d_gates.sum((0, 1)) if wanted.bias else None
        if reorder:
            d_weight_ih, d_weight_hh, d_bias = (
                None if d is None else deinterleave(d, layer.gates)
                for d in (d_weight_ih, d_weight_hh, d_bias)
            )
        return LayerGradients(
            x=input_gradient(d_gates, weight_ih, layer.x) if wanted.x else None,
            weight_ih=d_weight_ih,
            weight_hh=d_weight_hh,
            bias=d_bias,
            h0=d_h0 if wanted.h0 else None,
            c0=d_c0 if wanted.c0 else None,
            weight_hr=d_weight_hr if wanted.weight_hr else None,
        )


def interleave(weight: Tensor, gates: int) -> Tensor:
    """Reorder rows (G, K*H, ...) from all-of-a-gate to all-of-a-unit; a copy of the weight."""
    groups, rows = weight.shape[:2]
    by_gate = weight.reshape(groups, gates, rows // gates, *weight.shape[2:])
    return by_gate.transpose(1, 2).reshape(weight.shape)


def deinterleave(weight: Tensor, gates: int) -> Tensor:
    """The inverse of `interleave`."""
    groups, rows = weight.shape[:2]
    by_unit = weight.reshape(groups, rows // gates, gates, *weight.shape[2:])
    return by_unit.transpose(1, 2).reshape(weight.shape)


def project(x: Tensor, weight_ih: Tensor, bias: Tensor | None) -> Tensor:
    """W_ih x + b for every step and group as one product: (T, B, G, K*H).

    With inputs of their own per group (x of four dims) it is one batched product, and the result
    is a view whose group dimension is outermost in memory.
    """
    groups, rows, _ = weight_ih.shape
    if x.dim() == 3:
        flat_bias = None if bias is None else bias.flatten()
        gates_x = torch.nn.functional.linear(x, weight_ih.flatten(0, 1), flat_bias)
        return gates_x.view(*x.shape[:2], groups, rows)
    steps, batch = x.shape[:2]
    by_group = x.permute(2, 0, 1, 3).reshape(groups, steps * batch, -1)
    if bias is None:
        gates_x = torch.bmm(by_group, weight_ih.mT)
    else:
        gates_x = torch.baddbmm(bias.unsqueeze(1), by_group, weight_ih.mT)
    return gates_x.view(groups, steps, batch, rows).permute(1, 2, 0, 3)


def input_gradient(d_gates: Tensor, weight_ih: Tensor, x: Tensor) -> Tensor:
    """dL/dx(t) = W_ih^T dgates(t), summed over the groups that share x."""
    if x.dim() == 3:
        return d_gates.flatten(2) @ weight_ih.flatten(0, 1)
    return torch.einsum("tbgk,gki->tbgi", d_gates, weight_ih)


def input_weight_gradient(d_gates: Tensor, x: Tensor) -> Tensor:
    """dL/dW_ih = sum over t of dgates(t) x(t)^T: (G, K*H, I)."""
    groups, rows = d_gates.shape[2:]
    if x.dim() == 3:
        flat = d_gates.reshape(-1, groups * rows).mT @ x.reshape(-1, x.shape[-1])
        return flat.view(groups, rows, -1)
    return torch.einsum("tbgk,tbgi->gki", d_gates, x)


def recurrent_weight_gradient(d_gates: Tensor, output: Tensor, layer: Layer) -> Tensor:
    """dL/dW_hh = sum over t of dgates(t) h(t-1)^T: (G, K*H, P).

    The sum splits into the steps that follow a stored output, one product over all of them, and
    each row's first step, which follows h0.
    """
    steps, batch = d_gates.shape[:2]
    total = []
    for group, reverse in enumerate(layer.reverse):
        d_group, h = d_gates[:, :, group], output[:, :, group]
        later, earlier = (d_group[:-1], h[1:]) if reverse else (d_group[1:], h[:-1])
        if not reverse or layer.lengths is None:
            first = d_group[-1 if reverse else 0]
        else:
            last_step = (layer.lengths - 1).clamp(min=0)
            first = d_group[last_step, torch.arange(batch, device=last_step.device)]
        d_weight = first.mT @ layer.h0[group]
        if steps > 1:
            d_weight = torch.addmm(
                d_weight,
                later.reshape(-1, later.shape[-1]).mT,
                earlier.reshape(-1, earlier.shape[-1]),
            )
        total.append(d_weight)
    return torch.stack(total)
