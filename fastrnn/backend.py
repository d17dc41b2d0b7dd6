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

A backend may be of whole calls and of layers at once: `StackBackend.takes` then says which calls it
takes whole.

A plugin imports this module and `fastrnn.request`, never the modules or the dispatcher.

Shapes: T steps, B rows of the batch, I inputs, H hidden units, K gates per unit (LSTM 4 in the
order i, f, g, o; Elman 1), P the width of h (H, or proj_size), G independent recurrences that
run side by side, each with its own weights and time direction. The two directions of a
bidirectional layer are G = 2. Q weights a unit belong to a cell itself: none, but of a plugin's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fastrnn.cell import BUILTIN, Cell
from fastrnn.layer import (
    Layer,
    LayerGradients,
    LayerOutput,
    OutputGradients,
    Recurrence,
    Wanted,
)
from fastrnn.products import (
    input_gradient,
    input_weight_gradient,
    product,
    project,
    recurrent_weight_gradient,
)
from fastrnn.request import Cost, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "CONTRACT_VERSION",
    "Backend",
    "Cell",
    "Layer",
    "LayerBackend",
    "LayerGradients",
    "LayerOutput",
    "OutputGradients",
    "Recurrence",
    "RecurrenceBackend",
    "StackBackend",
    "StackCall",
    "Wanted",
]

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
    """Which of `fastrnn.request.OPTIONS` it heeds; without a word, it is taken not to know them.
    Of a stack backend `lengths` too: see `StackCall.lengths`."""

    def runs_cell(self, cell: Cell) -> bool:
        """Whether it can run layers of this cell: by default those that every backend knows.

        Override it to be asked about requests for cells of plugins (`fastrnn_cells`).
        """
        return cell.name in BUILTIN

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
    """Flat, in torch's order: per layer and direction w_ih and w_hh, then, where they exist, b_ih
    and b_hh, w_hr, the cell's own (Q, H). In the layout of a module (a GRU: 3H rows, r, z, n)."""
    batch_first: bool
    lengths: Tensor | None = None
    """(B,) int64 of padded rows, on the input's device, for a backend whose `options` name
    `lengths`: output is zero past them, and the final states are those of a row's own last step."""
    resets: Tensor | None = None
    """(T, B) bool of padded rows, on the input's device, for a backend whose `options` name
    `resets`: where true, a row enters the step with its state of `hx`. See `fastrnn.packing`."""


class StackBackend(Backend):
    """A backend that runs every layer and direction of a call itself."""

    def takes(self, request: Request) -> bool:
        """Whether `run` is what gets a call that `can_run` accepts.

        Override it in a backend that is a `LayerBackend`, too: what it does not take comes to that
        layer by layer, such as graphs (`compiling`) or what is `transformed`. Calls with
        `recompute` or `all_states` do so unasked.
        """
        return True

    @abstractmethod
    def run(self, call: StackCall) -> tuple[Tensor, ...]:
        """Output and final states as torch.lstm / torch.rnn_tanh return them.

        The result must be differentiable by torch wherever `request.needs_grad`.
        """


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
        """Backpropagate through the time loop.

        Of `wanted`, h0, c0, weight_hr and cell_weight matter here.
        """

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
        """Cells (T, B, G, H) and gates (T, B, G, K*H) of a cell with cell state, else nothing.

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
        bias = layer.bias
        if bias is not None and layer.weight_chain is not None:
            bias = bias[:1]  # that of group 0
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
        # by name, for backends that know fewer of them, or return a plain tuple
        made = Recurrence(
            *self.recurrence_backward(grad, layer.weight_hh, layer, output, saved, wanted)
        )
        d_gates = made.d_gates
        multiply = partial(self.matmul, precision=layer.precision)
        d_weight_ih = d_weight_hh = d_weight_chain = None
        outputs, d_gates_x = output, d_gates
        if layer.weight_chain is not None:
            outputs, d_gates_x = saved[0], d_gates[:, :, :1]
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
            h0=made.d_h0 if wanted.h0 else None,
            c0=made.d_c0 if wanted.c0 else None,
            weight_hr=made.d_weight_hr if wanted.weight_hr else None,
            weight_chain=d_weight_chain,
            cell_weight=made.d_cell_weight if wanted.cell_weight else None,
        )
