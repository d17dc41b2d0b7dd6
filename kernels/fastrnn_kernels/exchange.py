# mypy: ignore-errors
"""How programs of one launch wait for each other: a counter in global memory per set of programs.

A program that has stored its part arrives; a program that needs all parts waits until the counter
says that everyone has arrived. All programs of the launch must be resident at the same time, or one
waits for another that cannot start: `onchip.py` counts them before a launch, and the launch is a
cooperative one, which the driver refuses rather than let it hang.

With Triton's debug mode (TRITON_DEBUG=1) a wait is bounded: after MAX_POLLS it stops the kernel
with a message instead of waiting for ever.

PTX's memory model, section "Causality order": the threads' stores, the barrier of the block, one
thread's release, another block's acquire of what it wrote, that block's barrier, and the loads
behind it are ordered in this sequence. `cooperative_groups` synchronises a grid the same way.
"""

import triton
import triton.language as tl

# int32 elements from one counter to the next: 128 bytes, so that no two share a cache line.
COUNTER_STRIDE = tl.constexpr(32)
# A poll takes about half a microsecond: this is some minutes, and no step lasts as long.
MAX_POLLS = tl.constexpr(1 << 29)


@triton.jit
def arrive(counter):
    """Say that this program's stores up to here are done. Does not wait."""
    tl.debug_barrier()  # the stores of all threads come before the release of one
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target, INTERPRETED: tl.constexpr):
    """Return when ``target`` arrivals have been counted; their stores can then be read.

    The count may wrap around: only differences are looked at.
    """
    missing = target - _poll(counter, target, INTERPRETED)
    polls = 0
    while missing > 0:
        missing = target - _poll(counter, target, INTERPRETED)
        polls += 1
        tl.device_assert(polls < MAX_POLLS, "fastrnn: a program waited too long for the others")
    tl.debug_barrier()  # all threads go on once the one that polls has seen the last arrival


@triton.jit
def _poll(counter, target, INTERPRETED: tl.constexpr):
    """The count as one thread of the program sees it; the other threads get ``target``.

    One thread polls, since requests for one address queue up where the arrivals must get through.
    """
    if INTERPRETED:  # has no inline assembly
        return tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    return tl.inline_asm_elementwise(
        """
        {
            .reg .pred %first;
            .reg .b32 %thread;
            mov.u32 %thread, %tid.x;
            setp.eq.u32 %first, %thread, 0;
            mov.b32 $0, $2;
            @%first ld.acquire.gpu.global.b32 $0, [$1];
        }
        """,
        "=&r,l,r",
        [counter, target],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
