# mypy: ignore-errors
"""The step kernels once more, with their arguments in a table on the device.

A CUDA graph bakes its kernels' arguments in. Here they are all one address, that of an int64 table
that holds the real ones, so that one captured graph serves every length, batch and set of tensors.
"""

import triton
import triton.language as tl

from .step import forward_step, tile_of_program
from .step_backward import backward_step

STEP_SLOT = 0  # steps done so far, moved on by advance_table
SIZE_SLOTS = 1  # T, B, G, reverse, stride_t, stride_b, stride_g
POINTER_SLOTS = 8  # the tensor arguments, in the kernel's order
MAX_POINTERS = 17
TABLE_SIZE = POINTER_SLOTS + MAX_POINTERS

_UNSPECIALIZED = [f"size{i}" for i in range(7)] + [f"pointer{i}" for i in range(MAX_POINTERS)]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def fill_table(
    table,  # (TABLE_SIZE,) int64
    size0: tl.int64,
    size1: tl.int64,
    size2: tl.int64,
    size3: tl.int64,
    size4: tl.int64,
    size5: tl.int64,
    size6: tl.int64,
    pointer0: tl.int64,
    pointer1: tl.int64,
    pointer2: tl.int64,
    pointer3: tl.int64,
    pointer4: tl.int64,
    pointer5: tl.int64,
    pointer6: tl.int64,
    pointer7: tl.int64,
    pointer8: tl.int64,
    pointer9: tl.int64,
    pointer10: tl.int64,
    pointer11: tl.int64,
    pointer12: tl.int64,
    pointer13: tl.int64,
    pointer14: tl.int64,
    pointer15: tl.int64,
    pointer16: tl.int64,
):
    """Write a sweep's arguments, and go back to step 0.

    A kernel and not a copy: arguments travel with the launch, so that no host buffer has to live on
    until the stream gets there.
    """
    tl.store(table, 0)
    tl.store(table + 1, size0)
    tl.store(table + 2, size1)
    tl.store(table + 3, size2)
    tl.store(table + 4, size3)
    tl.store(table + 5, size4)
    tl.store(table + 6, size5)
    tl.store(table + 7, size6)
    tl.store(table + 8, pointer0)
    tl.store(table + 9, pointer1)
    tl.store(table + 10, pointer2)
    tl.store(table + 11, pointer3)
    tl.store(table + 12, pointer4)
    tl.store(table + 13, pointer5)
    tl.store(table + 14, pointer6)
    tl.store(table + 15, pointer7)
    tl.store(table + 16, pointer8)
    tl.store(table + 17, pointer9)
    tl.store(table + 18, pointer10)
    tl.store(table + 19, pointer11)
    tl.store(table + 20, pointer12)
    tl.store(table + 21, pointer13)
    tl.store(table + 22, pointer14)
    tl.store(table + 23, pointer15)
    tl.store(table + 24, pointer16)


@triton.jit(do_not_specialize=["steps"])
def advance_table(table, steps):
    """The last node of a graph: the next replay starts ``steps`` further on."""
    tl.store(table, tl.load(table) + steps)


@triton.jit
def load_pointer(table, slot: tl.constexpr, DTYPE: tl.constexpr):
    """Slot ``POINTER_SLOTS + slot`` as a pointer that is a multiple of 16 bytes."""
    pointer = tl.load(table + 8 + slot).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16)


@triton.jit(do_not_specialize=["index"])
def forward_from_table(
    table,  # (TABLE_SIZE,) int64
    index,  # which of the graph's steps this node is
    DTYPE: tl.constexpr,
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
    """One step of ``forward_kernel``; nothing at all past the end of the sequence."""
    t = tl.load(table).to(tl.int32) + index
    T = tl.load(table + 1).to(tl.int32)
    if t < T:
        B = tl.load(table + 2).to(tl.int32)
        g, rows, first_unit = tile_of_program(B, H, BLOCK_B, BLOCK_H)
        forward_step(
            t,
            g,
            rows,
            first_unit,
            load_pointer(table, 0, DTYPE),
            load_pointer(table, 1, DTYPE),
            load_pointer(table, 2, DTYPE),
            load_pointer(table, 3, DTYPE),
            load_pointer(table, 4, ACC),
            load_pointer(table, 5, DTYPE),
            load_pointer(table, 6, DTYPE),
            load_pointer(table, 7, DTYPE),
            load_pointer(table, 8, DTYPE),
            load_pointer(table, 9, DTYPE),
            load_pointer(table, 10, tl.int32),
            load_pointer(table, 11, DTYPE),
            load_pointer(table, 12, DTYPE),
            load_pointer(table, 13, DTYPE),
            load_pointer(table, 14, DTYPE),
            load_pointer(table, 15, DTYPE),
            load_pointer(table, 16, DTYPE),
            T,
            B,
            tl.load(table + 3),
            tl.load(table + 4),
            tl.load(table + 5),
            tl.load(table + 6),
            tl.load(table + 7),
            STEP,
            H,
            K,
            Q,
            CELL_STATE,
            SAVE,
            KEEP,
            MARKED,
            DROPOUT,
            ZONEOUT_H,
            ZONEOUT_C,
            MADE,
            ACC,
            PRECISION,
            UPCAST,
            ALIGN,
            BLOCK_B,
            BLOCK_H,
            BLOCK_K,
        )


@triton.jit(do_not_specialize=["index"])
def backward_from_table(
    table,  # (TABLE_SIZE,) int64
    index,  # which of the graph's steps this node is
    DTYPE: tl.constexpr,
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
    """One step of ``backward_kernel``, last step first; nothing at all past the first step."""
    done = tl.load(table).to(tl.int32) + index
    T = tl.load(table + 1).to(tl.int32)
    if done < T:
        B = tl.load(table + 2).to(tl.int32)
        g, rows, first_unit = tile_of_program(B, H, BLOCK_B, BLOCK_H)
        backward_step(
            T - 1 - done,
            g,
            rows,
            first_unit,
            load_pointer(table, 0, DTYPE),
            load_pointer(table, 1, DTYPE),
            load_pointer(table, 2, DTYPE),
            load_pointer(table, 3, DTYPE),
            load_pointer(table, 4, DTYPE),
            load_pointer(table, 5, DTYPE),
            load_pointer(table, 6, DTYPE),
            load_pointer(table, 7, ACC),
            load_pointer(table, 8, DTYPE),
            load_pointer(table, 9, DTYPE),
            load_pointer(table, 10, tl.int32),
            load_pointer(table, 11, DTYPE),
            load_pointer(table, 12, DTYPE),
            load_pointer(table, 13, DTYPE),
            load_pointer(table, 14, DTYPE),
            load_pointer(table, 15, DTYPE),
            load_pointer(table, 16, ACC),
            T,
            B,
            tl.load(table + 3),
            tl.load(table + 4),
            tl.load(table + 5),
            tl.load(table + 6),
            tl.load(table + 7),
            GRAD,
            H,
            K,
            Q,
            CELL_STATE,
            HAS_D_OUTPUT,
            HAS_D_H_N,
            HAS_D_CELLS,
            CLIP,
            MARKED,
            DROPOUT,
            ZONEOUT_H,
            ZONEOUT_C,
            ACC,
            PRECISION,
            UPCAST,
            ALIGN,
            BLOCK_B,
            BLOCK_H,
            BLOCK_K,
        )
