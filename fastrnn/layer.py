"""The tensors that a layer backend is given and returns; see `fastrnn.backend` for the letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """The inputs of one layer. No tensor here may be written to."""

    cell: str
    """The name of a `fastrnn.cell.Cell`."""
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
    """(G, B, H), if the cell has a cell state, as an LSTM has; h0 once more if its c is h
    (`Cell.c_is_h`)."""
    weight_hr: Tensor | None
    """(G, P, H), projected LSTM only."""
    lengths: Tensor | None
    """(B,) int64: steps of each row, 0 to T; None if every row has T. With `save` x is zero past
    them, else it is anything, which must reach no result."""
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
    cell_weight: Tensor | None = None
    """(G, Q, H): the weights of a cell that has some of its own (`Cell.weights`)."""

    @property
    def gates(self) -> int:
        """K."""
        return self.weight_hh.shape[1] // self.hidden_size

    @property
    def groups(self) -> int:
        """G."""
        return self.weight_hh.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return (self.h0 if self.c0 is None else self.c0).shape[2]


class LayerOutput(NamedTuple):
    """What a layer's forward pass returns."""

    output: Tensor
    """(T, B, G, P), zero past a row's length; see `Layer.final_only`."""
    h_n: Tensor
    """(G, B, P): h after each row's last step in its direction, h0 of a row of length 0. Not a
    view of `output`."""
    c_n: Tensor | None
    """(G, B, H), if the cell has a cell state."""
    saved: tuple[Tensor, ...]
    """What the backward pass needs beside the inputs, `output` and `cells`: at most three tensors,
    none unless `Layer.save`."""
    cells: Tensor | None = None
    """(T, B, G, H), c after each step, zero past a row's length: of a cell with cell state, if
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
    cell_weight: bool = False


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
    cell_weight: Tensor | None = None


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


class Recurrence(NamedTuple):
    """The gradients of a time loop."""

    d_gates: Tensor
    """(T, B, G, K*H), with respect to `gates_x`; zero past a row's length."""
    d_h0: Tensor | None
    d_c0: Tensor | None
    d_weight_hr: Tensor | None = None
    d_cell_weight: Tensor | None = None
    """(G, Q, H)"""
