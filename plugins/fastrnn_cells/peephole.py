"""An LSTM whose gates see the cell state, through one weight a unit and gate.

    i = sigmoid(a_i + p_i c)   f = sigmoid(a_f + p_f c)   g = tanh(a_g)
    c' = f c + i g
    o = sigmoid(a_o + p_o c')
    h' = o tanh(c')

with a = W_ih x + b_ih + W_hh h + b_hh. Gers and Schmidhuber, "Recurrent nets that time and count",
IJCNN 2000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.cell import Cell

if TYPE_CHECKING:
    from torch import Tensor


def step(
    pre: tuple[Tensor, ...], c_prev: Tensor, weights: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The equations above, once a is formed."""
    a_i, a_f, a_g, a_o = pre
    p_i, p_f, p_o = weights
    i, f = (a_i + p_i * c_prev).sigmoid(), (a_f + p_f * c_prev).sigmoid()
    c = f * c_prev + i * a_g.tanh()
    o = (a_o + p_o * c).sigmoid()
    return o * c.tanh(), c


PEEPHOLE_LSTM = Cell(
    "peephole_lstm",
    gates=4,
    has_cell_state=True,
    step=step,
    weights=3,
    kernel="fastrnn_cells.peephole_kernel:PEEPHOLE_LSTM",
    summary="an LSTM whose gates see c (Gers and Schmidhuber), gates i, f, g, o",
)
