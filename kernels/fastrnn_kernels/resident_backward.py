# mypy: ignore-errors
"""Back through time in the `resident` regime: one launch, each program with all of W_hh.

A program owns BLOCK_B batch rows of one group. The gate gradients of the step after never leave the
program: dh = d_output[t] + d_gates[t+1] W_hh is one product per gate, of what it has just computed
with what it holds in shared memory. Constants are those of `step.py`.
"""

import triton
import triton.language as tl

from .addressing import clipped, in_acc, load_cell_weights, store_gates, time_position
from .marks import load_marks, only_alive
from .regularisers import load_at, split_gradient
from .rounding import as_multiplied
from .saved import load_step

_RUN_TIME = ["T", "B", "G", "reverse", "stride_t", "stride_b", "stride_g"]


@triton.jit
def operands(tiles, mask, K: tl.constexpr, DTYPE: tl.constexpr, PADDED: tl.constexpr):
    """K tiles as rounded as they are in memory, and zero in units that only pad a tile."""
    rounded = ()
    for q in tl.static_range(K):
        tile = tiles[q].to(DTYPE)
        if PADDED:
            tile = tl.where(mask, tile, 0.0)
        rounded = rounded + (tile,)
    return rounded


@triton.jit(do_not_specialize=_RUN_TIME)
def backward_resident(
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
):
    """Launched with (G * cdiv(B, BLOCK_B),) programs; BLOCK_H >= H."""
    DTYPE: tl.constexpr = d_gates.dtype.element_ty
    tiles_b = tl.cdiv(B, BLOCK_B)
    g = (tl.program_id(0) // tiles_b).to(tl.int64)
    rows = ((tl.program_id(0) % tiles_b) * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    units = tl.arange(0, BLOCK_H)
    row_mask = rows < B
    unit_tile = row_mask[:, None] & (units < H)[None, :]
    states = tl.cast(G, tl.int64) * B * H
    state_offsets = ((g * B + rows) * H)[:, None] + units[None, :]

    w = ()
    w_ptrs = weight_hh + g * (K * H * H) + (units * H)[:, None] + units[None, :]
    w_tile = (units < H)[:, None] & (units < H)[None, :]
    for q in tl.static_range(K):
        w_q = tl.load(w_ptrs + q * (H * H), mask=w_tile, other=0.0)
        if UPCAST:
            w_q = w_q.to(ACC)
        w = w + (w_q,)
    w = as_multiplied(w, K, PRECISION)

    if Q:
        of_cell = load_cell_weights(cell_weight, g, units, H, Q, ACC)
    zero = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
    c, dc, dc0, dh_after, dh0 = zero, zero, zero, zero, zero
    d_pre = ()
    for _q in tl.static_range(K):
        d_pre = d_pre + (zero.to(DTYPE),)
    tau, forwards = time_position(T - 1, g, T, reverse)
    first_next = T == 1
    load_tile = unit_tile
    if MARKED:
        alive_next, first_next, last_next = load_marks(marks, tau, forwards, rows, row_mask, B)
        link_next = alive_next & (alive_next == 0)  # nothing comes after
        load_tile = unit_tile & alive_next
        if CELL_STATE:
            dc0 = tl.load(carry + states + state_offsets, mask=unit_tile, other=0.0)
        if ZONEOUT_H:
            dh0 = tl.load(carry_h + states + state_offsets, mask=unit_tile, other=0.0)
    else:
        if CELL_STATE:
            dc = tl.load(carry + state_offsets, mask=unit_tile, other=0.0)
        if ZONEOUT_H:
            dh_after = tl.load(carry_h + state_offsets, mask=unit_tile, other=0.0)
    if DROPOUT:
        mask = tl.load(recurrent_mask + state_offsets, mask=unit_tile, other=0.0)
    if CELL_STATE and not ZONEOUT_C:
        last_offsets = (((tau * B + rows) * G + g) * H)[:, None] + units[None, :]
        c = tl.load(cells + last_offsets, mask=unit_tile, other=0.0).to(ACC)
    dy_next, d_cell_next, h_next, c_prev_next, gates_next = load_step(
        T - 1, first_next, g, rows, units, load_tile, load_tile,
        d_output, d_cells, gates, cells, output, c0,
        T, B, G, reverse, stride_t, stride_b, stride_g,
        H, K, CELL_STATE, HAS_D_OUTPUT, HAS_D_CELLS, ALIGN,
    )  # fmt: skip
    for done in range(0, T):
        t = T - 1 - done
        dy, d_cell, h = dy_next, d_cell_next, h_next
        c_prev, activated = c_prev_next.to(ACC), gates_next
        last, link = done == 0, done > 0
        if MARKED:
            alive, first, last, link = alive_next, first_next, last_next, link_next
            tau, forwards = time_position(t - 1, g, T, reverse)
            alive_next, first_next, last_next = load_marks(
                marks, tau, forwards, rows, row_mask & (t > 0), B
            )
        else:
            first_next = t == 1
        # What the next step needs is on its way while this one is computed.
        earlier = unit_tile & (t > 0)
        if MARKED:
            earlier = unit_tile & alive_next  # before a row's first step there may be no place
        dy_next, d_cell_next, h_next, c_prev_next, gates_next = load_step(
            t - 1, first_next, g, rows, units, earlier, earlier,
            d_output, d_cells, gates, cells, output, c0,
            T, B, G, reverse, stride_t, stride_b, stride_g,
            H, K, CELL_STATE, HAS_D_OUTPUT, HAS_D_CELLS, ALIGN,
        )  # fmt: skip
        # These in this one: registers are what is short.
        if ZONEOUT_H or ZONEOUT_C:
            tau, _forwards = time_position(t, g, T, reverse)
        if ZONEOUT_H:
            kept_h = load_at(zoneout_h, tau, rows, g, units, unit_tile, B, G, H)
        if ZONEOUT_C:
            kept_c = load_at(zoneout_c, tau, rows, g, units, unit_tile, B, G, H)
            c = load_at(made, tau, rows, g, units, unit_tile, B, G, H).to(ACC)
        product = zero
        for q in tl.static_range(K):
            d_q = d_pre[q]
            if UPCAST:
                d_q = d_q.to(ACC)
            # Each gate has a sum of its own: a shorter chain of products that wait for each other.
            product += tl.dot(d_q, w[q], input_precision=PRECISION, out_dtype=ACC)
        if DROPOUT:
            product *= mask.to(ACC)
        # Not by zeros in d_pre: 0 * W_hh is NaN where W_hh is not finite.
        dh = tl.where(link, product, 0.0) + dy.to(ACC)
        if HAS_D_H_N:
            dh += tl.load(d_h_n + state_offsets, mask=unit_tile & last, other=0.0).to(ACC)
        if MARKED and CELL_STATE:
            final = tl.load(carry + 2 * states + state_offsets, mask=unit_tile & last, other=0.0)
            dc = tl.where(link, dc, 0.0) + final
        if MARKED and CELL_STATE and not ZONEOUT_C:
            # c of this step came along as that before the next one, if the next one goes on with it
            tau, _forwards = time_position(t, g, T, reverse)
            c_ptrs = cells + (((tau * B + rows) * G + g) * H)[:, None] + units[None, :]
            own = tl.load(c_ptrs, mask=unit_tile & alive & (link == 0), other=0.0)
            c = tl.where(link, c, own.to(ACC))
        if HAS_D_CELLS:
            dc += d_cell.to(ACC)
        if ZONEOUT_H:
            if MARKED:
                final = unit_tile & last
                final = tl.load(carry_h + 2 * states + state_offsets, mask=final, other=0.0)
                dh_after = tl.where(link, dh_after, 0.0) + final
            dh, dh_after = split_gradient(kept_h, dh + dh_after, ACC)
        if ZONEOUT_C:
            dc, dc_passed = split_gradient(kept_c, dc, ACC)
        if Q:
            d_made, dc = GRAD(h.to(ACC), in_acc(activated, K, ACC), c, c_prev, dh, dc, of_cell)
        else:
            d_made, dc = GRAD(h.to(ACC), in_acc(activated, K, ACC), c, c_prev, dh, dc)
        d_made = clipped(d_made, K, CLIP)
        if ZONEOUT_C:
            dc += dc_passed
        else:
            c = c_prev
        if MARKED:
            d_made = only_alive(d_made, alive, K)
            dc0 += tl.where(first, dc, 0.0)
            if ZONEOUT_H:
                dh0 += tl.where(first, dh_after, 0.0)
            link_next = alive & (first == 0)
        d_pre = operands(d_made, (units < H)[None, :], K, DTYPE, BLOCK_H != H)

        tau, _forwards = time_position(t, g, T, reverse)
        gate_offsets = (((tau * B + rows) * G + g) * (K * H))[:, None] + units[None, :]
        store_gates(d_gates + gate_offsets, d_pre, unit_tile, K, H)
    if CELL_STATE:
        if MARKED:
            tl.store(carry + states + state_offsets, dc0, mask=unit_tile)
        else:
            tl.store(carry + state_offsets, dc, mask=unit_tile)
    if ZONEOUT_H:
        if MARKED:
            tl.store(carry_h + states + state_offsets, dh0, mask=unit_tile)
        else:
            tl.store(carry_h + state_offsets, dh_after, mask=unit_tile)
