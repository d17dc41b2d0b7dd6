# mypy: ignore-errors
"""What the gradient of a time step needs, read back: the same in every regime."""

import triton
import triton.language as tl

from .addressing import load_gates, time_position


@triton.jit
def load_step(
    t,
    first,
    g,
    rows,
    units,
    mask,
    dy_mask,
    d_output,
    d_cells,
    gates,
    cells,
    output,
    c0,
    T,
    B,
    G,
    reverse,
    stride_t,
    stride_b,
    stride_g,
    H: tl.constexpr,
    K: tl.constexpr,
    CELL_STATE: tl.constexpr,
    HAS_D_OUTPUT: tl.constexpr,
    HAS_D_CELLS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """(dy, d_cell, h, c_prev, gates) of step t: tiles in memory's dtype, K of them for gates.

    Zeros in place of what there is not, or what the mask leaves out; ``first`` is a scalar or
    (ROWS, 1): whether c0 comes before it. Other arguments: ``step.py``.
    """
    tau, forwards = time_position(t, g, T, reverse)
    row_of_all = (tau * B + rows) * G + g
    unit_offsets = (row_of_all * H)[:, None] + units[None, :]
    h = tl.load(output + unit_offsets, mask=mask, other=0.0)
    dy = tl.zeros_like(h)
    if HAS_D_OUTPUT:
        dy_ptrs = (
            d_output
            + (tau * stride_t + g * stride_g) * ALIGN
            + (rows * (stride_b * ALIGN))[:, None]
        ) + units[None, :]
        dy = tl.load(dy_ptrs, mask=dy_mask, other=0.0)
    d_cell = tl.zeros_like(h)
    if HAS_D_CELLS:
        d_cell = tl.load(d_cells + unit_offsets, mask=mask, other=0.0)
    c_prev = tl.zeros_like(h)
    activated = (c_prev,)
    if CELL_STATE:
        row_before = row_of_all - forwards * B * G
        prev_row = tl.where(first, (g * B + rows)[:, None], row_before[:, None])
        c_ptrs = tl.where(first, c0, cells) + prev_row * H + units[None, :]
        c_prev = tl.load(c_ptrs, mask=mask, other=0.0)
        gate_ptrs = gates + (row_of_all * (K * H))[:, None] + units[None, :]
        activated = load_gates(gate_ptrs, mask, K, H)
    return dy, d_cell, h, c_prev, activated
