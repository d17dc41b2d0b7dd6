# mypy: ignore-errors
"""Back through time in the `grid` regime: one launch, W_hh split over programs and kept on chip.

dh = d_output[t] + d_gates[t+1] W_hh contracts over all K*H gate gradients, K times what the forward
pass exchanges, and a multiprocessor reads only so many bytes a cycle from L2. So SPLITS programs
share a tile of SPLITS x BLOCK_H columns of W_hh: each contracts one part of the gate gradients for
all of the columns (first phase), stores what it got, waits for the others of its tile, and adds up
the SPLITS parts of its own BLOCK_H units (second phase). With SPLITS = 1 there is no second phase.
Sums are added in the same order on every run.

With CHAIN (see `grid.py`) the group above hands down what d_output is to the last group: its gate
gradients of the same step, through weight_chain. That product falls into the wait for one's own.

As in `grid.py`, a step waits for the gate gradients of the step after; batch tiles do not wait for
each other; each warp contracts one of PARTS parts. ``done`` counts steps in processing order: t is
T - 1 - done, and a launch does steps done_begin <= done < done_end. PHASE is 0 (both), or in the
interpreter, where nobody can wait, 1 or 2. Constants are those of `step.py`.
"""

import triton
import triton.language as tl

from .addressing import clipped, in_acc, load_cell_weights, store_gates, time_position
from .exchange import COUNTER_STRIDE, arrive, wait
from .grid import pieces, product
from .marks import load_dc, load_link, load_marks, only_alive, store_dc
from .regularisers import load_at, split_gradient
from .rounding import as_multiplied
from .saved import load_step

_RUN_TIME = [
    "T", "B", "G", "done_begin", "done_end", "reverse", "stride_t", "stride_b", "stride_g",
]  # fmt: skip


@triton.jit
def sum_of_splits(
    ptrs,  # (BLOCK_B, BLOCK_H): of the part of program 0
    stride,  # from one program's part to the next
    SPLITS: tl.constexpr,
):
    """The parts of one's own units, stored by SPLITS programs; all are asked for at once."""
    parts = ()
    for n in tl.static_range(SPLITS):
        parts = parts + (tl.load(ptrs + n * stride, cache_modifier=".cg"),)
    total = parts[0]
    for n in tl.static_range(1, SPLITS):
        total += parts[n]
    return total


@triton.jit(do_not_specialize=_RUN_TIME)
def backward_grid(
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
    recurrent_mask,  # this one and the next four, not with CHAIN: see `regularisers.py`
    zoneout_h,
    zoneout_c,
    made,
    carry_h,
    weight_chain,  # (G-1, K*H, H), read if CHAIN; d_output is of the last group, (T, B, 1, H)
    parts,  # (G, cdiv(B, BLOCK_B), tiles_h, SPLITS, BLOCK_B, COLS) in ACC; not used if SPLITS is 1
    counters,  # (G, cdiv(B, BLOCK_B), 1 + tiles_h, COUNTER_STRIDE) int32, zero
    T,
    B,
    G,
    done_begin,
    done_end,
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
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAIN: tl.constexpr,
    MARKED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ZONEOUT_H: tl.constexpr,
    ZONEOUT_C: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PHASE: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Launched with (G * lanes * tiles_h * SPLITS,) programs, all resident at once.

    tiles_h is cdiv(H, SPLITS * BLOCK_H); SPLITS divides K*H. Lanes are as in `grid.py`. In the
    interpreter a chained group runs one launch behind the group above it: G - 1 steps more.
    """
    COLS: tl.constexpr = SPLITS * BLOCK_H
    DEPTH: tl.constexpr = K * H // SPLITS
    PIECES: tl.constexpr = (DEPTH + PARTS * BLOCK_K - 1) // (PARTS * BLOCK_K)
    tiles_h: tl.constexpr = (H + COLS - 1) // COLS
    programs: tl.constexpr = tiles_h * SPLITS  # that share a batch tile
    tiles_b = tl.cdiv(B, BLOCK_B)
    states = tl.cast(G, tl.int64) * B * H
    program = tl.program_id(0)
    lanes = tl.num_programs(0) // programs // G
    g = (program // programs // lanes).to(tl.int64)
    if CHAIN:
        g = G - 1 - g  # those that the others wait for come first
    lane = program // programs % lanes
    tile_h = program % programs // SPLITS
    split = program % SPLITS
    cols = tile_h * COLS + tl.arange(0, COLS)
    units = tile_h * COLS + split * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.arange(0, PARTS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]

    own_weights = (split * DEPTH + k[:, :, None]).to(tl.int64) * H + cols[None, None, :]
    col_mask = (cols < H)[None, None, :]
    w = pieces(
        weight_hh + g * (K * H * H) + own_weights,
        col_mask,
        k[:, :, None],
        0,
        PIECES,
        DEPTH,
        PARTS * BLOCK_K,
        H,
        "",
        ACC,
        UPCAST,
    )
    w = as_multiplied(w, PIECES, PRECISION)
    if Q:
        of_cell = load_cell_weights(cell_weight, g, units, H, Q, ACC)
    begin, end = done_begin, done_end
    if CHAIN:
        chained = g < G - 1
        w_chain = pieces(
            weight_chain + g * (K * H * H) + own_weights,
            col_mask & chained,
            k[:, :, None],
            0,
            PIECES,
            DEPTH,
            PARTS * BLOCK_K,
            H,
            "",
            ACC,
            UPCAST,
        )
        w_chain = as_multiplied(w_chain, PIECES, PRECISION)
        if INTERPRETED:
            behind = (G - 1 - g).to(tl.int32)
            begin, end = tl.maximum(begin - behind, 0), tl.minimum(end - behind, T)
    for done in range(begin, end):
        t = T - 1 - done
        tau, forwards = time_position(t, g, T, reverse)
        for tile in range(lane, tiles_b, lanes):
            rows = (tile * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
            row_mask = rows < B
            unit_tile = row_mask[:, None] & (units < H)[None, :]
            row_of_all = (tau * B + rows) * G + g
            counter = counters + (g * tiles_b + tile) * ((1 + tiles_h) * COUNTER_STRIDE)
            own_part = ((g * tiles_b + tile) * tiles_h + tile_h) * (SPLITS * BLOCK_B * COLS)
            part_rows = (tl.arange(0, BLOCK_B) * COLS)[:, None]

            first, last, link = t == 0, done == 0, (row_mask & (done > 0))[:, None]
            load_tile = unit_tile
            if MARKED:
                alive, first, last = load_marks(marks, tau, forwards, rows, row_mask, B)
                link = load_link(marks, tau, forwards, t, T, rows, row_mask, B)
                load_tile = unit_tile & alive  # before a row's first step may be no place at all
            dy_tile = load_tile
            if CHAIN:
                dy_tile = load_tile & (not chained)
            # What does not depend on the others is asked for before waiting for them.
            dy, d_cell, h, c_prev, activated = load_step(
                t, first, g, rows, units, load_tile, dy_tile,
                d_output, d_cells, gates, cells, output, c0,
                T, B, G, reverse, stride_t, stride_b, stride_g,
                H, K, CELL_STATE, HAS_D_OUTPUT, HAS_D_CELLS, ALIGN,
            )  # fmt: skip
            c = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
            if CELL_STATE:
                cells_made = cells
                if ZONEOUT_C:
                    cells_made = made
                c = load_at(cells_made, tau, rows, g, units, unit_tile, B, G, H).to(ACC)
            state_offsets = ((g * B + rows) * H)[:, None] + units[None, :]
            if DROPOUT:
                mask = tl.load(recurrent_mask + state_offsets, mask=unit_tile, other=0.0)
            if ZONEOUT_H:
                kept_h = load_at(zoneout_h, tau, rows, g, units, unit_tile, B, G, H)
            if ZONEOUT_C:
                kept_c = load_at(zoneout_c, tau, rows, g, units, unit_tile, B, G, H)

            if PHASE != 2:
                if CHAIN:
                    above = counter + tiles_b * ((1 + tiles_h) * COUNTER_STRIDE)
                    wait(
                        tl.where(chained, above, counter),
                        tl.where(chained, (done + 1 - done_begin) * programs, 0),
                        INTERPRETED,
                    )
                    handed_down = product(
                        d_gates
                        + ((row_of_all + 1) * (K * H) + split * DEPTH)[None, :, None]
                        + k[:, None, :],
                        (row_mask & chained)[None, :, None],
                        k[:, None, :],
                        w_chain,
                        PIECES,
                        AHEAD,
                        DEPTH,
                        BLOCK_B,
                        COLS,
                        PARTS,
                        BLOCK_K,
                        ACC,
                        PRECISION,
                        UPCAST,
                    )
                wait(counter, (done - done_begin) * programs, INTERPRETED)
                next_rows = (row_of_all + forwards * B * G) * (K * H) + split * DEPTH
                acc = product(
                    d_gates + next_rows[None, :, None] + k[:, None, :],
                    link[None, :, :],
                    k[:, None, :],
                    w,
                    PIECES,
                    AHEAD,
                    DEPTH,
                    BLOCK_B,
                    COLS,
                    PARTS,
                    BLOCK_K,
                    ACC,
                    PRECISION,
                    UPCAST,
                )
                # Not by the zeros that were read: 0 * W_hh is NaN where W_hh is not finite.
                acc = tl.where(link, acc, 0.0)
                if CHAIN:
                    acc += handed_down
                if SPLITS > 1:
                    part_cols = split * (BLOCK_B * COLS) + tl.arange(0, COLS)
                    tl.store(parts + own_part + part_rows + part_cols[None, :], acc)
                    arrive(counter + (1 + tile_h) * COUNTER_STRIDE)
            if PHASE != 1:
                if SPLITS > 1:
                    tile_counter = counter + (1 + tile_h) * COUNTER_STRIDE
                    if PHASE == 0:
                        wait(tile_counter, (done - done_begin + 1) * SPLITS, INTERPRETED)
                    own_cols = split * BLOCK_H + tl.arange(0, BLOCK_H)
                    part_ptrs = parts + own_part + part_rows + own_cols[None, :]
                    dh = sum_of_splits(part_ptrs, BLOCK_B * COLS, SPLITS)
                else:
                    dh = acc
                if DROPOUT:
                    dh *= mask.to(ACC)
                dh += dy.to(ACC)
                if HAS_D_H_N:
                    final = unit_tile & last
                    dh += tl.load(d_h_n + state_offsets, mask=final, other=0.0).to(ACC)
                dc = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
                if CELL_STATE:
                    # After a wait, whose barrier stands between this and the store before it.
                    dc = load_dc(carry, state_offsets, unit_tile, states, link, last, MARKED)
                if HAS_D_CELLS:
                    dc += d_cell.to(ACC)
                if ZONEOUT_H:
                    dh += load_dc(carry_h, state_offsets, unit_tile, states, link, last, MARKED)
                    dh, dh_passed = split_gradient(kept_h, dh, ACC)
                if ZONEOUT_C:
                    dc, dc_passed = split_gradient(kept_c, dc, ACC)
                h, activated, c_prev = h.to(ACC), in_acc(activated, K, ACC), c_prev.to(ACC)
                if Q:
                    d_pre, dc = GRAD(h, activated, c, c_prev, dh, dc, of_cell)
                else:
                    d_pre, dc = GRAD(h, activated, c, c_prev, dh, dc)
                if ZONEOUT_C:
                    dc += dc_passed
                d_pre = clipped(d_pre, K, CLIP)
                if MARKED:
                    d_pre = only_alive(d_pre, alive, K)

                gate_offsets = (row_of_all * (K * H))[:, None] + units[None, :]
                store_gates(d_gates + gate_offsets, d_pre, unit_tile, K, H)
                arrive(counter)
                if CELL_STATE:
                    store_dc(dc, carry, state_offsets, unit_tile, states, first, MARKED)
                if ZONEOUT_H:
                    offsets = state_offsets
                    store_dc(dh_passed, carry_h, offsets, unit_tile, states, first, MARKED)
