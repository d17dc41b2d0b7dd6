# mypy: ignore-errors
"""Where things lie in memory: time positions, and the K gates of a tile of hidden units.

In memory gates are ordered as torch orders them, all units of gate 0, then of gate 1, ...: column
``q*H + j`` is gate q of unit j. In a kernel's product the gates of a unit lie side by side (column
``j*K + q``), so that a tile holds whole units and one product serves all gates; that costs nothing,
since it only decides which row of W_hh a column of the product reads.
"""

import triton
import triton.language as tl


@triton.jit
def time_position(t, g, T, reverse):
    """(tau, +1 or -1): where step t lies in memory, and where the next step lies from there.

    Bit g of ``reverse`` is the direction of group g; bit 63 that of every group from 63 on.
    """
    backwards = (reverse >> tl.minimum(g, 63)) & 1
    return t + backwards * (T - 1 - 2 * t), 1 - 2 * backwards


@triton.jit
def output_rows(t, tau, forwards, rows, g, B, G, KEEP: tl.constexpr):
    """Rows of (.., B, G, H) that h of step t goes to, and that h of the step before came from.

    Where nobody reads h of all steps there are two positions in time, used in turn: whoever writes
    h(t) over h(t-2) has seen h(t-1), which everyone stored after having read h(t-2).
    """
    if KEEP:
        row = (tau * B + rows) * G + g
        return row, row - forwards * B * G
    else:
        return (t % 2 * B + rows) * G + g, ((t + 1) % 2 * B + rows) * G + g


@triton.jit
def weight_rows(cols, K: tl.constexpr, H: tl.constexpr):
    """The row of W_hh, (K*H, H), that column ``j*K + q`` of a product reads."""
    return ((cols % K) * H + cols // K).to(tl.int64)


@triton.jit
def load_gates(ptrs, mask, K: tl.constexpr, H: tl.constexpr):
    """K tiles, one a gate, in memory's dtype; ``ptrs`` are those of gate 0."""
    tiles = ()
    for q in tl.static_range(K):
        tiles = tiles + (tl.load(ptrs + q * H, mask=mask, other=0.0),)
    return tiles


@triton.jit
def load_cell_weights(cell_weight, g, units, H: tl.constexpr, Q: tl.constexpr, ACC: tl.constexpr):
    """Q tiles (1, UNITS) of a group's (Q, H), in ACC."""
    tiles = ()
    for q in tl.static_range(Q):
        tile = tl.load(cell_weight + (g * Q + q) * H + units, mask=units < H, other=0.0)
        tiles = tiles + (tile.to(ACC)[None, :],)
    return tiles


@triton.jit
def store_gates(ptrs, tiles, mask, K: tl.constexpr, H: tl.constexpr):
    """Store K tiles where load_gates would find them, rounded to memory's dtype."""
    for q in tl.static_range(K):
        tl.store(ptrs + q * H, tiles[q].to(ptrs.dtype.element_ty), mask=mask)


@triton.jit
def load_cell(c0, carry, offsets, mask, first):
    """Read c before a step: from ``c0`` before the first one, as carried before the others.

    ``first`` is a scalar, or (ROWS, 1) where rows have first steps of their own.
    """
    given = tl.load(c0 + offsets, mask=mask & first, other=0.0).to(carry.dtype.element_ty)
    carried = tl.load(carry + offsets, mask=mask & (first == 0), other=0.0)
    return tl.where(first, given, carried)


@triton.jit
def store_cell(c, carry, c_n, offsets, mask, last):
    """Write c after a step: to ``c_n`` after the last one, carried after the others."""
    tl.store(carry + offsets, c, mask=mask & (last == 0))
    tl.store(c_n + offsets, c.to(c_n.dtype.element_ty), mask=mask & last)


@triton.jit
def in_acc(tiles, K: tl.constexpr, ACC: tl.constexpr):
    """K tiles converted to ACC."""
    converted = ()
    for q in tl.static_range(K):
        converted = converted + (tiles[q].to(ACC),)
    return converted


@triton.jit
def add_gates(pre, x, K: tl.constexpr, ACC: tl.constexpr):
    """The sum of K tiles and K tiles, in ACC."""
    total = ()
    for q in tl.static_range(K):
        total = total + (pre[q] + x[q].to(ACC),)
    return total


@triton.jit
def clipped(tiles, K: tl.constexpr, CLIP: tl.constexpr):
    """K gate gradients cut to +-CLIP, if that is not 0; NaN stays NaN (a minimum would drop it)."""
    if CLIP == 0:
        return tiles
    else:
        kept = ()
        for q in tl.static_range(K):
            tile = tl.where(tiles[q] > CLIP, CLIP, tiles[q])
            kept = kept + (tl.where(tile < -CLIP, -CLIP, tile),)
        return kept


@triton.jit
def split_gates(x, K: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """(ROWS, K*UNITS), column j*K + q -> K tiles (ROWS, UNITS) in order of q; K is 1, 2 or 4."""
    # Not early returns: Triton's compiler types what follows one as well.
    if K == 1:
        return (x,)
    elif K == 2:
        q0, q1 = tl.split(tl.reshape(x, (ROWS, UNITS, 2)))
        return (q0, q1)
    else:
        # q = 2*q1 + q0; tl.split takes the last axis apart, first q0, then q1.
        even, odd = tl.split(tl.reshape(x, (ROWS, UNITS, 2, 2)))
        q0, q2 = tl.split(even)
        q1, q3 = tl.split(odd)
        return (q0, q1, q2, q3)
