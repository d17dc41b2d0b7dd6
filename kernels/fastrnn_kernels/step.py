# mypy: ignore-errors
"""The `step` regime: one launch per time step; back through time, `step_backward.py`.

``forward_step`` is one step of one tile (BLOCK_B batch rows x BLOCK_H hidden units of one group). A
launch is one step of all tiles, its end is the barrier between steps, and any number of programs
may run in any order: any size, any vendor. W_hh is streamed from L2.

Time: ``t`` counts steps in processing order; ``addressing.time_position`` says where that is.

Addresses are int64. Everything that may overrun is masked, with zeros read in place. Strides of
caller-made tensors come in units of ALIGN elements, which is how the compiler learns that they are
multiples of it, without being specialised on their values: T, B and G never recompile anything.

Constants that all kernels share:
    H, K, Q: hidden units; gates, and weights of the cell's own, per unit. ACC: accumulation dtype
    (float32; float64 for float64).
    PRECISION: input_precision of float32 products. UPCAST: convert operands to ACC before a product
    (the interpreter cannot multiply bfloat16). CELL_STATE: the cell carries c. SAVE: keep what the
    way back needs. KEEP: keep h of every step (SAVE needs it). CLIP: bound on gate gradients, or 0.
    DROPOUT, ZONEOUT_H, ZONEOUT_C, MADE: see `regularisers.py`.
"""

import triton
import triton.language as tl

from .addressing import (
    add_gates,
    load_cell,
    load_cell_weights,
    load_gates,
    output_rows,
    split_gates,
    store_cell,
    store_gates,
    time_position,
    weight_rows,
)
from .marks import load_marks
from .regularisers import hidden, load_at, mixed

_RUN_TIME = ["T", "B", "G", "t", "reverse", "stride_t", "stride_b", "stride_g"]


@triton.jit
def tile_of_program(B, H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """Program id -> (group, batch rows, first hidden unit).

    One flat grid dimension, because the others end at 65,535, and G and B are the caller's.
    """
    tiles_h: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    tiles_b = tl.cdiv(B, BLOCK_B)
    program = tl.program_id(0)
    tile = program // tiles_h
    first_unit = (program % tiles_h) * BLOCK_H
    rows = (tile % tiles_b) * BLOCK_B + tl.arange(0, BLOCK_B)
    return (tile // tiles_b).to(tl.int64), rows.to(tl.int64), first_unit


@triton.jit
def accumulate_product(
    acc,  # (BLOCK_B, N) in ACC
    a_rows,  # (BLOCK_B, 1) pointers: where each row of a starts, DEPTH numbers long
    row_mask,  # (BLOCK_B, 1)
    w_cols,  # (N,) pointers: where each column of the weights starts
    col_mask,
    DEPTH: tl.constexpr,
    STRIDE_K: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return acc + a @ w, with both operands streamed from L2 in chunks of BLOCK_K."""
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_rows + k[None, :]
    w_ptrs = w_cols[None, :] + (k * STRIDE_K)[:, None]
    for k_begin in range(0, DEPTH, BLOCK_K):
        a_mask = row_mask
        w_mask = col_mask[None, :]
        if DEPTH % BLOCK_K != 0:
            k_mask = k < DEPTH - k_begin
            a_mask = a_mask & k_mask[None, :]
            w_mask = w_mask & k_mask[:, None]
        a_tile = tl.load(a_ptrs, mask=a_mask, other=0.0)
        w_tile = tl.load(w_ptrs, mask=w_mask, other=0.0)
        if UPCAST:
            a_tile = a_tile.to(ACC)
            w_tile = w_tile.to(ACC)
        acc = tl.dot(a_tile, w_tile, acc, input_precision=PRECISION, out_dtype=ACC)
        a_ptrs += BLOCK_K
        w_ptrs += BLOCK_K * STRIDE_K
    return acc


@triton.jit
def forward_step(
    t, g, rows, first_unit, gates_x, weight_hh, h0, c0, carry, output, h_n, c_n, cells, gates,
    marks, cell_weight, recurrent_mask, seen, zoneout_h, zoneout_c, made,
    T, B, G, reverse, stride_t, stride_b, stride_g,
    STEP: tl.constexpr, H: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
    CELL_STATE: tl.constexpr, SAVE: tl.constexpr, KEEP: tl.constexpr, MARKED: tl.constexpr,
    DROPOUT: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr, MADE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of h, c <- STEP(gates_x[tau] + W_hh h, c); arguments: ``forward_kernel``."""
    units = first_unit + tl.arange(0, BLOCK_H)
    cols = first_unit * K + tl.arange(0, K * BLOCK_H)
    row_mask = rows < B
    unit_tile = row_mask[:, None] & (units < H)[None, :]

    tau, forwards = time_position(t, g, T, reverse)
    row_of_all = (tau * B + rows) * G + g  # index of (tau, row, g) in a contiguous (T, B, G)
    h_row, h_prev_row = output_rows(t, tau, forwards, rows, g, B, G, KEEP)
    row_of_group = g * B + rows  # index of (g, row) in a contiguous (G, B)

    # Asked for before the product, which then hides the latency.
    x_ptrs = (
        gates_x + (tau * stride_t + g * stride_g) * ALIGN + (rows * (stride_b * ALIGN))[:, None]
    ) + units[None, :]
    x = load_gates(x_ptrs, unit_tile, K, H)
    state_offsets = (row_of_group * H)[:, None] + units[None, :]
    first = t == 0
    last = t == T - 1
    has_state = row_mask[:, None]  # before the step, at a place that there is
    if MARKED:
        alive, first, last = load_marks(marks, tau, forwards, rows, row_mask, B)
        has_state = alive
    c_prev = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
    if CELL_STATE:
        c_prev = load_cell(c0, carry, state_offsets, unit_tile & has_state, first)
    if ZONEOUT_H:
        kept_h = load_at(zoneout_h, tau, rows, g, units, unit_tile, B, G, H)
    if ZONEOUT_C:
        kept_c = load_at(zoneout_c, tau, rows, g, units, unit_tile, B, G, H)

    h_prev_row = tl.where(first, row_of_group[:, None], h_prev_row[:, None])
    h_rows = tl.where(first, h0, output) + h_prev_row * H
    if ZONEOUT_H:
        h_prev = tl.load(h_rows + units[None, :], mask=unit_tile & has_state, other=0.0)
    if DROPOUT:
        states = tl.cast(G, tl.int64) * B * H
        seen_row, seen_prev_row = output_rows(t, tau, forwards, rows, g, B, G, False)
        seen_prev_row = tl.where(first, row_of_group[:, None], seen_prev_row[:, None])
        h_rows = tl.where(first, seen + 2 * states, seen) + seen_prev_row * H
        mask = tl.load(recurrent_mask + state_offsets, mask=unit_tile, other=0.0)
    w_cols = weight_hh + g * (K * H * H) + weight_rows(cols, K, H) * H
    acc = accumulate_product(
        tl.zeros((BLOCK_B, K * BLOCK_H), dtype=ACC),
        h_rows,
        has_state,
        w_cols,
        cols < K * H,
        H,
        1,
        ACC,
        PRECISION,
        UPCAST,
        BLOCK_K,
    )
    pre = add_gates(split_gates(acc, K, BLOCK_B, BLOCK_H), x, K, ACC)
    if Q:
        h, c, activated = STEP(pre, c_prev, load_cell_weights(cell_weight, g, units, H, Q, ACC))
    else:
        h, c, activated = STEP(pre, c_prev)

    state_made = h
    if CELL_STATE:
        state_made = c
    if ZONEOUT_H:
        h = mixed(kept_h, h_prev, h, ACC)
    if ZONEOUT_C:
        c = mixed(kept_c, c_prev, c, ACC)
    h = h.to(output.dtype.element_ty)
    if MARKED:
        h, c = tl.where(alive, h, 0.0), tl.where(alive, c, 0.0)
    unit_offsets = (row_of_all * H)[:, None] + units[None, :]
    tl.store(output + (h_row * H)[:, None] + units[None, :], h, mask=unit_tile)
    if DROPOUT:
        seen_ptrs = seen + (seen_row * H)[:, None] + units[None, :]
        tl.store(seen_ptrs, hidden(h, mask, ACC, seen.dtype.element_ty), mask=unit_tile)
    if MADE:
        tl.store(made + unit_offsets, state_made.to(made.dtype.element_ty), mask=unit_tile)
    tl.store(h_n + state_offsets, h, mask=unit_tile & last)
    if CELL_STATE:
        store_cell(c, carry, c_n, state_offsets, unit_tile, last)
        if SAVE:
            tl.store(cells + unit_offsets, c.to(cells.dtype.element_ty), mask=unit_tile)
            gate_ptrs = gates + (row_of_all * (K * H))[:, None] + units[None, :]
            store_gates(gate_ptrs, activated, unit_tile, K, H)


@triton.jit(do_not_specialize=_RUN_TIME)
def forward_kernel(
    gates_x,  # (T, B, G, K*H), last dimension contiguous: W_ih x + b
    weight_hh,  # (G, K*H, H)
    h0,  # (G, B, H)
    c0,  # (G, B, H); read if CELL_STATE
    carry,  # (G, B, H) in ACC: c from one step to the next
    output,  # (T, B, G, H), written; (2, B, G, H) unless KEEP
    h_n,  # (G, B, H), written
    c_n,  # (G, B, H), written if CELL_STATE
    cells,  # (T, B, G, H), written if SAVE
    gates,  # (T, B, G, K*H), written if SAVE: the activated gates
    marks,  # (T, B) int32, read if MARKED; see `marks.py`
    cell_weight,  # (G, Q, H), read if Q: weights of the cell's own
    recurrent_mask,  # this one and the next four: see `regularisers.py`
    seen,
    zoneout_h,
    zoneout_c,
    made,
    T,
    B,
    G,
    t,
    reverse: tl.int64,
    stride_t: tl.int64,
    stride_b: tl.int64,
    stride_g: tl.int64,
    STEP: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    Q: tl.constexpr,
    CELL_STATE: tl.constexpr,
    SAVE: tl.constexpr,
    KEEP: tl.constexpr,
    MARKED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ZONEOUT_H: tl.constexpr,
    ZONEOUT_C: tl.constexpr,
    MADE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Step t of the forward recurrence."""
    g, rows, first_unit = tile_of_program(B, H, BLOCK_B, BLOCK_H)
    forward_step(
        t, g, rows, first_unit,
        gates_x, weight_hh, h0, c0, carry, output, h_n, c_n, cells, gates, marks, cell_weight,
        recurrent_mask, seen, zoneout_h, zoneout_c, made,
        T, B, G, reverse, stride_t, stride_b, stride_g,
        STEP, H, K, Q, CELL_STATE, SAVE, KEEP, MARKED, DROPOUT, ZONEOUT_H, ZONEOUT_C, MADE,
        ACC, PRECISION, UPCAST, ALIGN, BLOCK_B, BLOCK_H, BLOCK_K,
    )  # fmt: skip
