"""The loop over time with a compiled step: what torch.compile makes of a recurrent network.

The step is compiled, not the loop. A compiled loop is unrolled: its compile time grows with T, to
minutes for a hundred steps, and every T is compiled anew. A step is compiled once per size and is
what one writes who wants both; that each is called from Python is part of the figure. Compiling
is not: it is done when the result is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.bench_cases import CellLoop, placed, torch_lacks
from fastrnn.benchmark import Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fastrnn.benchmark import Case

COMPILED = "compiled loop"
COMPILER = "inductor"
"""Of torch.compile."""


def lstm(
    x: Tensor, state: tuple[Tensor, Tensor], W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """A step of an LSTM: x (B, I), h and c (B, H)."""
    h, c = state
    i, f, g, o = (linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(
    x: Tensor, state: tuple[Tensor], W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor]:
    """A step of a GRU: x (B, I), h (B, H)."""
    (h,) = state
    r_x, z_x, n_x = linear(x, W_ih, b_ih).chunk(3, -1)
    r_h, z_h, n_h = linear(h, W_hh, b_hh).chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * h,)


def rnn_tanh(
    x: Tensor, state: tuple[Tensor], W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor]:
    """A step of an Elman RNN: x (B, I), h (B, H)."""
    return ((linear(x, W_ih, b_ih) + linear(state[0], W_hh, b_hh)).tanh(),)


def rnn_relu(
    x: Tensor, state: tuple[Tensor], W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor]:
    """The same with a rectifier."""
    return ((linear(x, W_ih, b_ih) + linear(state[0], W_hh, b_hh)).relu(),)


STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "lstm": lstm,
    "gru": gru,
    "rnn_tanh": rnn_tanh,
    "rnn_relu": rnn_relu,
}


class CompiledLoop(CellLoop):
    """A Python loop over a compiled step, with the parameters of torch.nn's cells."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        # Dynamo counts what it compiled by function: with so many sizes it would refuse more
        torch.compiler.reset()
        # with a break in the graph, or without a compiler, it raises rather than run uncompiled
        self.compiled = torch.compile(
            STEPS[case.cell], fullgraph=True, dynamic=False, backend=COMPILER
        )

    def step(
        self, cell: nn.Module, x_t: Tensor, states: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...]:
        """The states after x_t (B, I)."""
        W_ih, W_hh, b_ih, b_hh = cell.parameters()
        if states is None:
            # with a gradient like any other state's, or the first step would be compiled apart
            zero = x_t.new_zeros(x_t.shape[0], W_hh.shape[1])
            zero.requires_grad_(torch.is_grad_enabled())
            states = (zero, zero.clone()) if self.is_lstm else (zero,)
        return self.compiled(x_t, states, W_ih, W_hh, b_ih, b_hh)


def compiled_loop(case: Case) -> nn.Module:
    """A loop over a compiled step for a case."""
    return placed(CompiledLoop(case), case)


PEER = Peer(
    COMPILED,
    "a Python loop over a step that torch.compile made; up to a minute to compile for a size",
    compiled_loop,
    torch_lacks,
    on_demand=True,
)
