# mypy: ignore-errors
"""The `resident` regime: the whole sequence in one launch, each program with all of W_hh.

A program owns BLOCK_B batch rows of one group. W_hh is read once and kept in shared memory; h and c
never leave the registers, and no program waits for another. For as many hidden units as fit.

Constants are those of `step.py`.
"""

import triton
import triton.language as tl

from .addressing import add_gates, load_cell_weights, load_gates, store_gates, time_position
from .marks import load_marks
from .regularisers import hidden, load_at, mixed
from .rounding import as_multiplied

_RUN_TIME = ["T", "B", "G", "reverse", "stride_t", "stride_b", "stride_g"]


@triton.jit(do_not_specialize=_RUN_TIME)
def forward_resident(
    gates_x,  # (T, B, G, K*H), last dimension contiguous: W_ih x + b
    weight_hh,  # (G, K*H, H)
    h0,  # (G, B, H)
    c0,  # (G, B, H); read if CELL_STATE
    carry,  # not used: c stays in registers
    output,  # (T, B, G, H), written if KEEP
    h_n,  # (G, B, H), written
    c_n,  # (G, B, H), written if CELL_STATE
    cells,  # (T, B, G, H), written if SAVE
    gates,  # (T, B, G, K*H), written if SAVE: the activated gates
    marks,  # (T, B) int32, read if MARKED; see `marks.py`
    cell_weight,  # (G, Q, H), read if Q: weights of the cell's own
    recurrent_mask,  # this one and the next four: see `regularisers.py`
    seen,  # not used: h stays in registers
    zoneout_h,
    zoneout_c,
    made,
    T,
    B,
    G,
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
):
    """Launched with (G * cdiv(B, BLOCK_B),) programs; BLOCK_H >= H."""
    tiles_b = tl.cdiv(B, BLOCK_B)
    g = (tl.program_id(0) // tiles_b).to(tl.int64)
    rows = ((tl.program_id(0) % tiles_b) * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    units = tl.arange(0, BLOCK_H)
    row_mask = rows < B
    unit_tile = row_mask[:, None] & (units < H)[None, :]

    # Rows and columns past H are zero, and so is h there: a padded unit reaches no other.
    w = ()
    w_ptrs = weight_hh + g * (K * H * H) + (units * H)[None, :] + units[:, None]
    w_tile = (units < H)[:, None] & (units < H)[None, :]
    for q in tl.static_range(K):
        w_q = tl.load(w_ptrs + q * (H * H), mask=w_tile, other=0.0)
        if UPCAST:
            w_q = w_q.to(ACC)
        w = w + (w_q,)
    w = as_multiplied(w, K, PRECISION)
    state_offsets = ((g * B + rows) * H)[:, None] + units[None, :]
    h = tl.load(h0 + state_offsets, mask=unit_tile, other=0.0)
    c = tl.zeros((BLOCK_B, BLOCK_H), dtype=ACC)
    if CELL_STATE:
        c = tl.load(c0 + state_offsets, mask=unit_tile, other=0.0).to(ACC)

    if Q:
        of_cell = load_cell_weights(cell_weight, g, units, H, Q, ACC)
    x_ptrs = gates_x + g * (stride_g * ALIGN) + (rows * (stride_b * ALIGN))[:, None]
    x_ptrs += units[None, :]
    tau, forwards = time_position(0, g, T, reverse)
    x_next = load_gates(x_ptrs + tau * (stride_t * ALIGN), unit_tile, K, H)
    for t in range(0, T):
        # The next step's input is on its way while this step is computed.
        x = x_next
        tau, forwards = time_position(t, g, T, reverse)
        later = unit_tile & (t + 1 < T)
        x_next = load_gates(x_ptrs + (tau + forwards) * (stride_t * ALIGN), later, K, H)
        # These in this one: registers are what is short.
        if DROPOUT:
            mask = tl.load(recurrent_mask + state_offsets, mask=unit_tile, other=0.0)
        if ZONEOUT_H:
            kept_h = load_at(zoneout_h, tau, rows, g, units, unit_tile, B, G, H)
        if ZONEOUT_C:
            kept_c = load_at(zoneout_c, tau, rows, g, units, unit_tile, B, G, H)
        if MARKED:
            alive, first, last = load_marks(marks, tau, forwards, rows, row_mask, B)
            starting = unit_tile & first
            h = tl.where(first, tl.load(h0 + state_offsets, mask=starting, other=0.0), h)
            if CELL_STATE:
                given = tl.load(c0 + state_offsets, mask=starting, other=0.0)
                c = tl.where(first, given.to(ACC), c)
        seen_h = h
        if DROPOUT:
            seen_h = hidden(h, mask, ACC, output.dtype.element_ty)
        if UPCAST:
            seen_h = seen_h.to(ACC)
        products = ()
        for q in tl.static_range(K):
            product = tl.dot(seen_h, w[q], input_precision=PRECISION, out_dtype=ACC)
            products = products + (product,)
        if Q:
            h_new, c_new, activated = STEP(add_gates(products, x, K, ACC), c, of_cell)
        else:
            h_new, c_new, activated = STEP(add_gates(products, x, K, ACC), c)
        state_made = h_new
        if CELL_STATE:
            state_made = c_new
        if ZONEOUT_H:
            h_new = mixed(kept_h, h, h_new, ACC)
        if ZONEOUT_C:
            c_new = mixed(kept_c, c, c_new, ACC)
        c = c_new
        h = h_new.to(output.dtype.element_ty)  # as rounded as what other regimes read back
        if BLOCK_H != H:
            h = tl.where((units < H)[None, :], h, 0.0)  # where h is infinite, padding is NaN
        if MARKED:
            h, c = tl.where(alive, h, 0.0), tl.where(alive, c, 0.0)
            tl.store(h_n + state_offsets, h, mask=unit_tile & last)
            if CELL_STATE:
                tl.store(c_n + state_offsets, c.to(c_n.dtype.element_ty), mask=unit_tile & last)

        row_of_all = (tau * B + rows) * G + g
        unit_offsets = (row_of_all * H)[:, None] + units[None, :]
        if KEEP:
            tl.store(output + unit_offsets, h, mask=unit_tile)
        if MADE:
            tl.store(made + unit_offsets, state_made.to(made.dtype.element_ty), mask=unit_tile)
        if SAVE:
            tl.store(cells + unit_offsets, c.to(cells.dtype.element_ty), mask=unit_tile)
            gate_ptrs = gates + (row_of_all * (K * H))[:, None] + units[None, :]
            store_gates(gate_ptrs, activated, unit_tile, K, H)
    if not MARKED:
        tl.store(h_n + state_offsets, h, mask=unit_tile)
        if CELL_STATE:
            tl.store(c_n + state_offsets, c.to(c_n.dtype.element_ty), mask=unit_tile)
