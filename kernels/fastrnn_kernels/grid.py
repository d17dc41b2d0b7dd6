# mypy: ignore-errors
"""The `grid` regime: the whole sequence in one launch, W_hh split over programs and kept on chip.

A program owns BLOCK_H hidden units. It reads their rows of W_hh once, before the loop over time,
and the compiler keeps them in shared memory. h of a step is exchanged through L2: each program
stores its units, arrives, and the next step waits until every program of the same batch tile and
group has. Batch tiles are independent recurrences and do not wait for each other; a program that
has several works on one while the others' exchange is on its way.

The contraction over h is split into PARTS, one a warp, and summed at the end. Without that, a tile
this small gives each warp one or two columns of tensor-core tiles, and every product waits for the
one before it: H/16 of them in a row, 33 cycles each, instead of H/16/PARTS.

With CHAIN the groups are the layers of a stack: group g > 0 takes h of group g - 1 at the same step
as its input, through weights of its own on chip. So it works one step behind, at the same time, and
the product with that input falls into the wait for its own h. Nobody waits for the group above.

Steps t_begin <= t < t_end: the interpreter, where programs run one after another and nobody could
wait, takes one step per launch. Constants are those of `step.py`.
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
from .exchange import COUNTER_STRIDE, arrive, wait
from .marks import load_marks
from .regularisers import hidden, load_at, mixed
from .rounding import as_multiplied

_RUN_TIME = ["T", "B", "G", "t_begin", "t_end", "reverse", "stride_t", "stride_b", "stride_g"]


@triton.jit
def sum_of_parts(acc, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """(PARTS, ROWS, COLS) -> (ROWS, COLS), pairwise.

    tl.sum over warps goes through shared memory twice; splitting the axis moves it once, together
    with the regrouping of gates by unit that the cell needs anyway.
    """
    acc = tl.permute(acc, (1, 2, 0))
    if PARTS == 8:
        even, odd = tl.split(tl.reshape(acc, (ROWS, COLS, 4, 2)))
        acc = even + odd
    if PARTS >= 4:
        even, odd = tl.split(tl.reshape(acc, (ROWS, COLS, 2, 2)))
        acc = even + odd
    if PARTS >= 2:
        even, odd = tl.split(tl.reshape(acc, (ROWS, COLS, 2)))
        acc = even + odd
    return tl.reshape(acc, (ROWS, COLS))


@triton.jit
def pieces(
    ptrs,  # of piece 0
    mask,
    k,  # positions of piece 0 in the contraction
    BEGIN: tl.constexpr,
    END: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    CACHE: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Pieces BEGIN <= n < END of an operand as a tuple of tiles, zero past DEPTH.

    BLOCK positions of the contraction lie from one piece to the next, STRIDE elements from one
    position to the next.
    """
    tiles = ()
    for n in tl.static_range(BEGIN, END):
        inside = mask & (k + n * BLOCK < DEPTH)
        tile = tl.load(ptrs + n * (BLOCK * STRIDE), mask=inside, other=0.0, cache_modifier=CACHE)
        if UPCAST:
            tile = tile.to(ACC)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def product(
    h_ptrs,  # (PARTS, BLOCK_B, BLOCK_K): piece 0 of h
    row_mask,
    k,
    w,  # PIECES tiles (PARTS, BLOCK_K, COLS)
    PIECES: tl.constexpr,
    AHEAD: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """H @ w, (ROWS, COLS); AHEAD pieces of h are on their way at a time.

    From L2 (.cg), where the others' stores are: a processor's own cache could hold older bytes.
    """
    BLOCK: tl.constexpr = PARTS * BLOCK_K
    acc = tl.zeros((PARTS, ROWS, COLS), dtype=ACC)
    h = pieces(h_ptrs, row_mask, k, 0, AHEAD, DEPTH, BLOCK, 1, ".cg", ACC, UPCAST)
    for n in tl.static_range(PIECES):
        acc = tl.dot(h[n], w[n], acc, input_precision=PRECISION, out_dtype=ACC)
        if n + AHEAD < PIECES:
            h = h + pieces(
                h_ptrs, row_mask, k, n + AHEAD, n + AHEAD + 1, DEPTH, BLOCK, 1, ".cg", ACC, UPCAST
            )
    return sum_of_parts(acc, PARTS, ROWS, COLS)


@triton.jit(do_not_specialize=_RUN_TIME)
def forward_grid(
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
    recurrent_mask,  # this one and the next four, not with CHAIN: see `regularisers.py`
    seen,
    zoneout_h,
    zoneout_c,
    made,
    weight_chain,  # (G-1, K*H, H), read if CHAIN: of the h of group g - 1, in group g
    bias_chain,  # (G-1, K*H), read if CHAIN; gates_x is of group 0 then, (T, B, 1, K*H)
    counters,  # (G, cdiv(B, BLOCK_B), COUNTER_STRIDE) int32, zero
    T,
    B,
    G,
    t_begin,
    t_end,
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
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    CHAIN: tl.constexpr,
    MARKED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ZONEOUT_H: tl.constexpr,
    ZONEOUT_C: tl.constexpr,
    MADE: tl.constexpr,
    INTERPRETED: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Launched with (G * lanes * cdiv(H, BLOCK_H),) programs, all resident at once.

    Lane l of a group takes batch tiles l, l + lanes, ... W_hh is cut along h into pieces of PARTS x
    BLOCK_K; AHEAD pieces of h are asked for before the first is multiplied.
    """
    PIECES: tl.constexpr = (H + PARTS * BLOCK_K - 1) // (PARTS * BLOCK_K)
    tiles_h: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    tiles_b = tl.cdiv(B, BLOCK_B)
    program = tl.program_id(0)
    lanes = tl.num_programs(0) // tiles_h // G
    g = (program // tiles_h // lanes).to(tl.int64)
    lane = program // tiles_h % lanes
    first_unit = (program % tiles_h) * BLOCK_H
    units = first_unit + tl.arange(0, BLOCK_H)
    cols = first_unit * K + tl.arange(0, K * BLOCK_H)
    k = tl.arange(0, PARTS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]

    own_weights = (weight_rows(cols, K, H) * H)[None, None, :] + k[:, :, None]
    col_mask = (cols < K * H)[None, None, :]
    w = pieces(
        weight_hh + g * (K * H * H) + own_weights,
        col_mask,
        k[:, :, None],
        0,
        PIECES,
        H,
        PARTS * BLOCK_K,
        1,
        "",
        ACC,
        UPCAST,
    )
    w = as_multiplied(w, PIECES, PRECISION)
    if CHAIN:
        chained = g > 0
        w_chain = pieces(
            weight_chain + (g - 1) * (K * H * H) + own_weights,
            col_mask & chained,
            k[:, :, None],
            0,
            PIECES,
            H,
            PARTS * BLOCK_K,
            1,
            "",
            ACC,
            UPCAST,
        )
        w_chain = as_multiplied(w_chain, PIECES, PRECISION)
    if Q:
        of_cell = load_cell_weights(cell_weight, g, units, H, Q, ACC)
    for t in range(t_begin, t_end):
        tau, forwards = time_position(t, g, T, reverse)
        arrivals = (t - t_begin) * tiles_h
        for tile in range(lane, tiles_b, lanes):
            rows = (tile * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
            row_mask = rows < B
            unit_tile = row_mask[:, None] & (units < H)[None, :]
            row_of_all = (tau * B + rows) * G + g  # index of (tau, row, g) in (T, B, G)
            row_of_group = g * B + rows  # index of (g, row) in (G, B)
            first = t == 0
            last = t == T - 1
            h_row, h_prev_row = output_rows(t, tau, forwards, rows, g, B, G, KEEP)
            has_state = row_mask[:, None]  # before the step, at a place that there is
            if MARKED:
                alive, first, last = load_marks(marks, tau, forwards, rows, row_mask, B)
                has_state = alive

            # What does not depend on the others is asked for before waiting for them.
            x_row = gates_x + (tau * stride_t + g * stride_g) * ALIGN
            x_rows = rows * (stride_b * ALIGN)
            if CHAIN:
                x_row = tl.where(chained, bias_chain + (g - 1) * (K * H), x_row)
                x_rows = tl.where(chained, 0, x_rows)
            x = load_gates(x_row + x_rows[:, None] + units[None, :], unit_tile, K, H)
            state_offsets = (row_of_group * H)[:, None] + units[None, :]
            if DROPOUT:
                mask = tl.load(recurrent_mask + state_offsets, mask=unit_tile, other=0.0)
            if ZONEOUT_H:
                kept_h = load_at(zoneout_h, tau, rows, g, units, unit_tile, B, G, H)
            if ZONEOUT_C:
                kept_c = load_at(zoneout_c, tau, rows, g, units, unit_tile, B, G, H)
            counter = counters + (g * tiles_b + tile) * COUNTER_STRIDE
            if CHAIN:
                below = tl.where(chained, counter - tiles_b * COUNTER_STRIDE, counter)
                wait(below, tl.where(chained, arrivals + tiles_h, 0), INTERPRETED)
                acc = product(
                    output + ((row_of_all - 1) * H)[None, :, None] + k[:, None, :],
                    (row_mask & chained)[None, :, None],
                    k[:, None, :],
                    w_chain,
                    PIECES,
                    AHEAD,
                    H,
                    BLOCK_B,
                    K * BLOCK_H,
                    PARTS,
                    BLOCK_K,
                    ACC,
                    PRECISION,
                    UPCAST,
                )
                x = add_gates(split_gates(acc, K, BLOCK_B, BLOCK_H), x, K, ACC)
            wait(counter, arrivals, INTERPRETED)
            # c comes after the wait, whose barrier stands between this load and the store of the
            # step before, which other threads may have done; it is not needed before the product.
            c = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
            if CELL_STATE:
                c = load_cell(c0, carry, state_offsets, unit_tile & has_state, first)
            h_prev_row = tl.where(first, row_of_group[:, None], h_prev_row[:, None])
            h_rows = tl.where(first, h0, output) + h_prev_row * H
            if ZONEOUT_H:
                h_prev = tl.load(h_rows + units[None, :], mask=unit_tile & has_state, other=0.0)
            if DROPOUT:
                states = tl.cast(G, tl.int64) * B * H
                seen_row, seen_prev_row = output_rows(t, tau, forwards, rows, g, B, G, False)
                seen_prev_row = tl.where(first, row_of_group[:, None], seen_prev_row[:, None])
                h_rows = tl.where(first, seen + 2 * states, seen) + seen_prev_row * H
            acc = product(
                h_rows[None, :, :] + k[:, None, :],
                has_state[None, :, :],
                k[:, None, :],
                w,
                PIECES,
                AHEAD,
                H,
                BLOCK_B,
                K * BLOCK_H,
                PARTS,
                BLOCK_K,
                ACC,
                PRECISION,
                UPCAST,
            )
            pre = add_gates(split_gates(acc, K, BLOCK_B, BLOCK_H), x, K, ACC)
            if Q:
                h_new, c_new, activated = STEP(pre, c, of_cell)
            else:
                h_new, c_new, activated = STEP(pre, c)

            state_made = h_new
            if CELL_STATE:
                state_made = c_new
            if ZONEOUT_H:
                h_new = mixed(kept_h, h_prev, h_new, ACC)
            if ZONEOUT_C:
                c_new = mixed(kept_c, c, c_new, ACC)
            c = c_new
            h_new = h_new.to(output.dtype.element_ty)
            if MARKED:
                h_new, c = tl.where(alive, h_new, 0.0), tl.where(alive, c, 0.0)
            h_ptrs = output + (h_row * H)[:, None] + units[None, :]
            if DROPOUT:
                seen_ptrs = seen + (seen_row * H)[:, None] + units[None, :]
                tl.store(seen_ptrs, hidden(h_new, mask, ACC, seen.dtype.element_ty), mask=unit_tile)
            else:
                tl.store(h_ptrs, h_new, mask=unit_tile)
            arrive(counter)
            # What nobody waits for is stored after the others have been told.
            if DROPOUT:
                tl.store(h_ptrs, h_new, mask=unit_tile)
            if MADE:
                made_ptrs = made + (row_of_all * H)[:, None] + units[None, :]
                tl.store(made_ptrs, state_made.to(made.dtype.element_ty), mask=unit_tile)
            tl.store(h_n + state_offsets, h_new, mask=unit_tile & last)
            if CELL_STATE:
                store_cell(c, carry, c_n, state_offsets, unit_tile, last)
                if SAVE:
                    unit_offsets = (row_of_all * H)[:, None] + units[None, :]
                    tl.store(cells + unit_offsets, c.to(cells.dtype.element_ty), mask=unit_tile)
                    gate_ptrs = gates + (row_of_all * (K * H))[:, None] + units[None, :]
                    store_gates(gate_ptrs, activated, unit_tile, K, H)
