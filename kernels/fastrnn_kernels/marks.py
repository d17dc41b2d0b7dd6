# mypy: ignore-errors
"""Rows that end early or start anew: what each row does at each step, a word of marks.

Lengths and resets are both said by three bits: the row is alive at the step, the state that enters
it is the initial one, the state that leaves it is the final one. Which step is a row's first and
which its last depends on the direction of time, so that these two bits exist for either; the
kernels know nothing else of lengths or resets. A row that is not alive goes through the motions:
what it computes is stored nowhere, or as zero, and nobody reads it.

A byte would do. But h is what it is because of the marks, and Triton lays the operands of a product
out for the narrowest load that they depend on: for bytes, in a way that `ldmatrix` cannot fill.
"""

import torch
import triton
import triton.language as tl

ALIVE = tl.constexpr(1)
FIRST = tl.constexpr(2)  # forwards in time; twice to the left: backwards
LAST = tl.constexpr(4)
BACKWARDS = tl.constexpr(2)  # bits from a mark of the one direction to that of the other


@triton.jit(do_not_specialize=["T", "B", "stride_t", "stride_b"])
def write_marks(
    lengths,  # (B,) int64, read if HAS_LENGTHS; taken as within 0 <= length <= T
    resets,  # (T, B) bool as bytes, read if HAS_RESETS
    marks,  # (T, B) int32, written
    T,
    B,
    stride_t: tl.int64,
    stride_b: tl.int64,
    HAS_LENGTHS: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Launched with (cdiv(T * B, BLOCK),) programs."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < T.to(tl.int64) * B
    t, row = i // B, i % B
    length = tl.zeros((BLOCK,), dtype=tl.int64) + T
    if HAS_LENGTHS:
        length = tl.load(lengths + row, mask=inside, other=0)
        length = tl.minimum(tl.maximum(length, 0), T)
    reset = tl.zeros((BLOCK,), dtype=tl.int1)
    if HAS_RESETS:
        reset = tl.load(resets + t * stride_t + row * stride_b, mask=inside, other=0) != 0
    starts, ends = t == 0, t == length - 1
    found = tl.where(starts | reset, FIRST, 0) + tl.where(ends, LAST, 0)
    other = tl.where(ends | reset, FIRST, 0) + tl.where(starts, LAST, 0)
    found = ALIVE + found + (other << BACKWARDS)
    tl.store(marks + i, tl.where(t < length, found, 0), mask=inside)


@triton.jit
def load_marks(
    marks,  # (T, B) int32
    tau,
    forwards,
    rows,
    mask,
    B,
):
    """(alive, first, last) at one position in time, each (BLOCK_B, 1); all false where masked."""
    found = tl.load(marks + tau * B + rows, mask=mask, other=0)[:, None]
    alive = (found & ALIVE) != 0
    found = tl.where(forwards == 1, found, found >> BACKWARDS)
    return alive, (found & FIRST) != 0, (found & LAST) != 0


@triton.jit
def load_link(marks, tau, forwards, t, T, rows, row_mask, B):
    """(BLOCK_B, 1): whether the state that leaves a step is the one that enters the next."""
    alive, first, _last = load_marks(
        marks, tau + forwards, forwards, rows, row_mask & (t < T - 1), B
    )
    return alive & (first == 0)


@triton.jit
def only_alive(tiles, alive, K: tl.constexpr):
    """K tiles with zeros in rows that are not alive."""
    kept = ()
    for q in tl.static_range(K):
        kept = kept + (tl.where(alive, tiles[q], 0.0),)
    return kept


@triton.jit
def load_dc(carry, offsets, mask, states, link, last, MARKED: tl.constexpr):
    """dL/dc that reaches a step; ``states``: elements of (G, B, H), three of which carry holds."""
    if not MARKED:
        return tl.load(carry + offsets, mask=mask, other=0.0)
    else:  # from the step after, or dL/dc_n: no step has both
        ptrs = tl.where(last, carry + 2 * states, carry) + offsets
        return tl.load(ptrs, mask=mask & (link | last), other=0.0)


@triton.jit
def store_dc(dc, carry, offsets, mask, states, first, MARKED: tl.constexpr):
    """Carry dL/dc on to the step before, or add it to dL/dc0 where that is the initial state."""
    if not MARKED:
        tl.store(carry + offsets, dc, mask=mask)
    else:
        ptrs = tl.where(first, carry + states, carry) + offsets
        tl.store(ptrs, dc + tl.load(ptrs, mask=mask & first, other=0.0), mask=mask)


def marks_of(
    lengths: torch.Tensor | None, resets: torch.Tensor | None, T: int, B: int
) -> torch.Tensor | None:
    """(T, B) int32 of lengths (B,) int64 and resets (T, B) bool; None where there is neither."""
    given = next((each for each in (lengths, resets) if each is not None), None)
    if given is None:
        return None
    marks = torch.empty(T, B, dtype=torch.int32, device=given.device)
    block = 1024
    write_marks[(triton.cdiv(T * B, block),)](
        marks if lengths is None else lengths.contiguous(),
        marks if resets is None else resets.view(torch.uint8),
        marks,
        T,
        B,
        *((0, 0) if resets is None else resets.stride()),
        HAS_LENGTHS=lengths is not None,
        HAS_RESETS=resets is not None,
        BLOCK=block,
    )
    return marks
