# mypy: ignore-errors
"""Back through time in the `step` regime: one launch per time step, the last one first.

Cut, masked and named as in `step.py`.
"""

import triton
import triton.language as tl

from .addressing import clipped, in_acc, load_cell_weights, store_gates, time_position
from .marks import load_dc, load_link, load_marks, only_alive, store_dc
from .regularisers import load_at, split_gradient
from .saved import load_step
from .step import accumulate_product, tile_of_program

_RUN_TIME = ["T", "B", "G", "t", "reverse", "stride_t", "stride_b", "stride_g"]


@triton.jit
def backward_step(
    t, g, rows, first_unit, d_output, d_h_n, weight_hh, gates, cells, output, c0, carry,
    d_cells, d_gates, marks, cell_weight, recurrent_mask, zoneout_h, zoneout_c, made, carry_h,
    T, B, G, reverse, stride_t, stride_b, stride_g,
    GRAD: tl.constexpr, H: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
    CELL_STATE: tl.constexpr, HAS_D_OUTPUT: tl.constexpr, HAS_D_H_N: tl.constexpr,
    HAS_D_CELLS: tl.constexpr, CLIP: tl.constexpr, MARKED: tl.constexpr,
    DROPOUT: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of dh = d_output[tau] + d_gates[next] W_hh (+ d_h_n at the last step), then GRAD."""
    units = first_unit + tl.arange(0, BLOCK_H)
    row_mask = rows < B
    unit_tile = row_mask[:, None] & (units < H)[None, :]

    tau, forwards = time_position(t, g, T, reverse)
    row_of_all = (tau * B + rows) * G + g
    row_of_group = g * B + rows
    unit_offsets = (row_of_all * H)[:, None] + units[None, :]
    gate_offsets = (row_of_all * (K * H))[:, None] + units[None, :]
    group_offsets = (row_of_group * H)[:, None] + units[None, :]
    states = tl.cast(G, tl.int64) * B * H

    first = t == 0
    last = t == T - 1
    link = row_mask[:, None]
    load_tile = unit_tile
    if MARKED:
        alive, first, last = load_marks(marks, tau, forwards, rows, row_mask, B)
        load_tile = unit_tile & alive  # before a row's first step there may be no place at all
        link = load_link(marks, tau, forwards, t, T, rows, row_mask, B)
    dy, d_cell, h, c_prev, activated = load_step(
        t, first, g, rows, units, load_tile, load_tile,
        d_output, d_cells, gates, cells, output, c0,
        T, B, G, reverse, stride_t, stride_b, stride_g,
        H, K, CELL_STATE, HAS_D_OUTPUT, HAS_D_CELLS, ALIGN,
    )  # fmt: skip
    if DROPOUT:
        mask = tl.load(recurrent_mask + group_offsets, mask=unit_tile, other=0.0).to(ACC)
    if ZONEOUT_H:
        kept_h = load_at(zoneout_h, tau, rows, g, units, unit_tile, B, G, H)
    if ZONEOUT_C:
        kept_c = load_at(zoneout_c, tau, rows, g, units, unit_tile, B, G, H)
    c = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
    dc = c
    if CELL_STATE:
        cells_made = cells
        if ZONEOUT_C:
            cells_made = made
        c = tl.load(cells_made + unit_offsets, mask=unit_tile, other=0.0).to(ACC)
        dc = load_dc(carry, group_offsets, unit_tile, states, link, last, MARKED)
    if HAS_D_CELLS:
        dc += d_cell.to(ACC)

    dh = dy.to(ACC)
    if HAS_D_H_N:
        dh += tl.load(d_h_n + group_offsets, mask=unit_tile & last, other=0.0).to(ACC)
    if ZONEOUT_H:
        dh += load_dc(carry_h, group_offsets, unit_tile, states, link, last, MARKED)
    # A branch, not zeros in place of d_gates: 0 * W_hh is NaN where W_hh is not finite.
    if t < T - 1:
        acc = dh
        if MARKED or DROPOUT:
            acc = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
        acc = accumulate_product(
            acc,
            d_gates + ((row_of_all + forwards * B * G) * (K * H))[:, None],
            link,
            weight_hh + g * (K * H * H) + units,
            units < H,
            K * H,
            H,
            ACC,
            PRECISION,
            UPCAST,
            BLOCK_K,
        )
        if DROPOUT:
            acc *= mask
        if MARKED or DROPOUT:
            acc = dh + tl.where(link, acc, 0.0)
        dh = acc
    if ZONEOUT_H:
        dh, dh_passed = split_gradient(kept_h, dh, ACC)
        store_dc(dh_passed, carry_h, group_offsets, unit_tile, states, first, MARKED)
    if ZONEOUT_C:
        dc, dc_passed = split_gradient(kept_c, dc, ACC)
    h, activated, c_prev = h.to(ACC), in_acc(activated, K, ACC), c_prev.to(ACC)
    if Q:
        own = load_cell_weights(cell_weight, g, units, H, Q, ACC)
        d_pre, dc = GRAD(h, activated, c, c_prev, dh, dc, own)
    else:
        d_pre, dc = GRAD(h, activated, c, c_prev, dh, dc)
    if ZONEOUT_C:
        dc += dc_passed
    d_pre = clipped(d_pre, K, CLIP)
    if MARKED:
        d_pre = only_alive(d_pre, alive, K)

    store_gates(d_gates + gate_offsets, d_pre, unit_tile, K, H)
    if CELL_STATE:
        store_dc(dc, carry, group_offsets, unit_tile, states, first, MARKED)


@triton.jit(do_not_specialize=_RUN_TIME)
def backward_kernel(
    d_output,  # (T, B, G, H), last dimension contiguous; read if HAS_D_OUTPUT
    d_h_n,  # (G, B, H); read if HAS_D_H_N
    weight_hh,  # (G, K*H, H)
    gates,  # (T, B, G, K*H), as saved; read if CELL_STATE
    cells,  # (T, B, G, H), as saved; read if CELL_STATE
    output,  # (T, B, G, H), as made by forward
    c0,  # (G, B, H); read if CELL_STATE
    carry,  # (G, B, H) in ACC: dL/dc_n before, dL/dc_0 after; (3, G, B, H) if MARKED: a place of
    # work, dL/dc_0 (rows of no steps before), dL/dc_n
    d_cells,  # (T, B, G, H), contiguous: dL/dcells; read if HAS_D_CELLS
    d_gates,  # (T, B, G, K*H), written: dL/dgates_x
    marks,  # (T, B) int32, read if MARKED; see `marks.py`
    cell_weight,  # (G, Q, H), read if Q: weights of the cell's own
    recurrent_mask,  # this one and the next four: see `regularisers.py`
    zoneout_h,
    zoneout_c,
    made,
    carry_h,
    T,
    B,
    G,
    t,
    reverse: tl.int64,
    stride_t: tl.int64,
    stride_b: tl.int64,
    stride_g: tl.int64,
    GRAD: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    Q: tl.constexpr,
    CELL_STATE: tl.constexpr,
    HAS_D_OUTPUT: tl.constexpr,
    HAS_D_H_N: tl.constexpr,
    HAS_D_CELLS: tl.constexpr,
    CLIP: tl.constexpr,
    MARKED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ZONEOUT_H: tl.constexpr,
    ZONEOUT_C: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Step t of backpropagation through time; steps are launched from the last to the first."""
    g, rows, first_unit = tile_of_program(B, H, BLOCK_B, BLOCK_H)
    backward_step(
        t, g, rows, first_unit,
        d_output, d_h_n, weight_hh, gates, cells, output, c0,
        carry, d_cells, d_gates, marks, cell_weight,
        recurrent_mask, zoneout_h, zoneout_c, made, carry_h,
        T, B, G, reverse, stride_t, stride_b, stride_g,
        GRAD, H, K, Q, CELL_STATE, HAS_D_OUTPUT, HAS_D_H_N, HAS_D_CELLS, CLIP, MARKED,
        DROPOUT, ZONEOUT_H, ZONEOUT_C, ACC, PRECISION, UPCAST, ALIGN, BLOCK_B, BLOCK_H, BLOCK_K,
    )  # fmt: skip
