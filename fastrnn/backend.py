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
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fastrnn.products import (
    input_gradient,
    input_weight_gradient,
    product,
    project,
    recurrent_weight_gradient,
)
from fastrnn.request import GATES, Cost, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

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
    recomputes: ClassVar[bool] = False
    """Whether it can run a `Request.recompute`; layer backends can, through fastrnn."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Which of `fastrnn.request.OPTIONS` it heeds; without a word, it is taken not to know them."""

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

    def tune(self, request: Request, progress: Callable[[str], None]) -> None:  # noqa: B027 # optional
        """Search the backend's own launch configurations for `request` and remember the best.

        Optional. Called by `fastrnn tune`, on the machine that it tunes and before it times the
        backend, once per problem that `can_run` accepts and not for a dry run. What it raises is
        reported, and the backend is timed as it is.

        Args:
            request: the problem; T and B are known.
            progress: takes a line for the user.
        """

    def forget(self) -> list[Path]:
        """Delete what `tune` remembered on this machine, and say which files that were.

        Optional. Called by `fastrnn tune --forget`.
        """
        return []


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
    """(B,) int64: steps of each row, 0 to T; None if every row has T. x is zero past them."""
    reverse: tuple[bool, ...]
    """Per group: does time run backwards?"""
    precision: str
    """`ieee`, `tf32` or `tf32x3` for float32 products."""
    save: bool
    """Whether a backward pass may follow."""
    final_only: bool = False
    """Nobody reads `LayerOutput.output`. With `save` the backward pass does and it is returned as
    ever; without, it may be of no steps, (0, B, G, P), and fastrnn drops what is returned."""
    recompute: int = 0
    """fastrnn runs the layer in chunks of so many steps and saves the states between them; 0 for
    the whole sequence at once, which is all that a backend ever sees."""
    overwrite_saved: bool = False
    """Of a backward pass: nobody needs what was saved after it, so that it may be written over."""
    weight_chain: Tensor | None = None
    """(G - 1, K*H, H): the groups are layers, and group g + 1 takes h of group g as its input,
    through weight_chain[g]. Only group 0 takes x then, weight_ih is (1, K*H, I), and of the outputs
    only that of the last group is returned or has a gradient, (T, B, 1, H). None where groups are
    independent, as they are for a backend that does not override `layers_at_once`."""
    resets: Tensor | None = None
    """(T, B) bool, shared by all groups: where true, the state that enters that step, in the
    group's own direction of time, is not that of the step before but h0 and c0 of the row. The
    gradient of that state is then added to those of h0 and c0. Ignored past a row's length; None
    if nothing is reset. Only for a backend with the option `resets`."""
    recurrent_mask: Tensor | None = None
    """(G, B, P): W_hh takes recurrent_mask * h(t-1) in place of h(t-1). Option `recurrent_dropout`.
    """
    zoneout_h: Tensor | None = None
    """(T, B, G, P), between 0 and 1: how much of the state that entered a step is kept,
    h(t) = zoneout_h h(t-1) + (1 - zoneout_h) times what the cell makes. Option `zoneout`."""
    zoneout_c: Tensor | None = None
    """(T, B, G, H): the same for c; h(t) is made from the c that the cell makes, not the mix."""
    error_clip: float = 0.0
    """If not 0, the gradient of every gate's pre-activation is cut to +-error_clip before it goes
    on to weights, inputs and the step before. Option `error_clip`."""
    all_states: bool = False
    """c of every step is an output too, `LayerOutput.cells`. Option `all_states`."""

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
    """(T, B, G, P), zero past a row's length; see `Layer.final_only`."""
    h_n: Tensor
    """(G, B, P): h after each row's last step in its direction, h0 of a row of length 0. Not a
    view of `output`."""
    c_n: Tensor | None
    """(G, B, H), LSTM only."""
    saved: tuple[Tensor, ...]
    """What the backward pass needs beside the inputs, `output` and `cells`: at most three tensors,
    none unless `Layer.save`."""
    cells: Tensor | None = None
    """(T, B, G, H), c after each step, zero past a row's length: of an LSTM, if
    `Layer.all_states`."""


class Wanted(NamedTuple):
    """Which gradients of a layer somebody asked for; the others need not be computed."""

    x: bool
    weight_ih: bool
    weight_hh: bool
    bias: bool
    h0: bool
    c0: bool
    weight_hr: bool
    weight_chain: bool = False


class LayerGradients(NamedTuple):
    """The gradients of a layer's inputs, each in its input's shape; None where not wanted."""

    x: Tensor | None = None
    weight_ih: Tensor | None = None
    weight_hh: Tensor | None = None
    bias: Tensor | None = None
    h0: Tensor | None = None
    c0: Tensor | None = None
    weight_hr: Tensor | None = None
    weight_chain: Tensor | None = None


class OutputGradients(NamedTuple):
    """The gradients that reach a layer's outputs; None where nobody used the output."""

    output: Tensor | None
    """(T, B, G, P)"""
    h_n: Tensor | None
    """(G, B, P)"""
    c_n: Tensor | None
    """(G, B, H)"""
    cells: Tensor | None = None
    """(T, B, G, H)"""


class LayerBackend(Backend):
    """A backend that runs one layer, in all its directions; fastrnn stacks the layers."""

    recomputes: ClassVar[bool] = True

    def layers_at_once(self, request: Request) -> int:
        """How many of the request's layers to pass in one `Layer`, chained; 1: one by one.

        Optional, for backends that work on several layers at the same time. Asked only of stacks
        in one direction without dropout, projection, variable lengths, options or `recompute`. The
        last `Layer` of a stack may have fewer.
        """
        return 1

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

        `saved` holds what `layer_forward` saved, padded with empty tensors to three; it may be
        written over if `Layer.overwrite_saved`. `LayerOutput.cells`, if there are some, come
        before it and may not.
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

    @abstractmethod
    def recurrence_forward(self, gates_x: Tensor, weight_hh: Tensor, layer: Layer) -> LayerOutput:
        """Run the time loop over gates_x (T, B, G, K*H) with weight_hh (G, K*H, P).

        `gates_x` is the backend's: unlike what is in `layer` it may be written over. Gates are
        ordered as torch orders them: all units of i, then of f, g and o. With
        `Layer.weight_chain` gates_x is that of group 0, and the first of what is saved must be
        the outputs of all groups, (T, B, G, H).
        """

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

    def matmul(self, a: Tensor, b: Tensor, add: Tensor | None = None, *, precision: str) -> Tensor:
        """Return a @ b (+ add): every matrix product around the time loop comes through here.

        torch's, in the precision that torch is set to for products; override it to heed
        `precision`.

        Args:
            a: (..., M, K), or (G, M, K) if b is batched; any strides.
            b: (K, N) or (G, K, N); any strides.
            add: (N,), or (M, N) if a is a matrix, or (G, 1, N) if b is batched.
            precision: `Layer.precision`.

        Returns:
            (..., M, N) or (G, M, N).
        """
        return product(a, b, add)

    def saved_like(self, layer: Layer) -> tuple[Tensor, ...]:
        """Cells (T, B, G, H) and activated gates (T, B, G, K*H) for an LSTM, else nothing.

        No cells where they are an output. Before them the outputs (T, B, G, H) of chained groups.
        With zoneout an Elman RNN has activated gates, too.
        """
        if not layer.save:
            return ()
        hidden, gates = layer.hidden_size, layer.gates * layer.hidden_size
        sizes = [] if layer.weight_chain is None else [hidden]
        if layer.c0 is not None:
            sizes += [gates] if layer.all_states else [hidden, gates]
        elif layer.zoneout_h is not None:
            sizes += [gates]
        shape = (*layer.x.shape[:2], layer.groups)
        return tuple(layer.x.new_empty((*shape, size)) for size in sizes)

    def layer_forward(self, layer: Layer) -> LayerOutput:
        """Project the inputs of all steps at once, then run the time loop."""
        multiply = partial(self.matmul, precision=layer.precision)
        # of chained groups, that of group 0
        bias = None if layer.bias is None else layer.bias[: len(layer.weight_ih)]
        gates_x = project(layer.x, layer.weight_ih, bias, multiply)
        return self.recurrence_forward(gates_x, layer.weight_hh, layer)

    def layer_backward(
        self,
        grad: OutputGradients,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> LayerGradients:
        """Run the time loop backwards, then form the weight gradients as one product each."""
        d_gates, d_h0, d_c0, d_weight_hr = self.recurrence_backward(
            grad, layer.weight_hh, layer, output, saved, wanted
        )
        multiply = partial(self.matmul, precision=layer.precision)
        d_weight_ih = d_weight_hh = d_weight_chain = None
        outputs = output if layer.weight_chain is None else saved[0]
        d_gates_x = d_gates[:, :, : len(layer.weight_ih)]
        if wanted.weight_ih:
            d_weight_ih = input_weight_gradient(d_gates_x, layer.x, multiply)
        if wanted.weight_hh:
            d_weight_hh = recurrent_weight_gradient(d_gates, outputs, layer, multiply)
        if wanted.weight_chain:
            below = outputs[:, :, :-1]
            d_weight_chain = input_weight_gradient(d_gates[:, :, 1:], below, multiply)
        d_bias = d_gates.sum((0, 1)) if wanted.bias else None
        return LayerGradients(
            x=input_gradient(d_gates_x, layer.weight_ih, layer.x, multiply) if wanted.x else None,
            weight_ih=d_weight_ih,
            weight_hh=d_weight_hh,
            bias=d_bias,
            h0=d_h0 if wanted.h0 else None,
            c0=d_c0 if wanted.c0 else None,
            weight_hr=d_weight_hr if wanted.weight_hr else None,
            weight_chain=d_weight_chain,
        )
