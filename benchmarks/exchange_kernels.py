# mypy: ignore-errors
"""The kernels of `benchmarks/exchange.py`: each repeats one part of a time step and nothing else.

They wait and arrive through `fastrnn_kernels.exchange`, so that what is timed is what the `grid`
regime runs. Run times are long beside a launch: the number of rounds is an argument.
"""

import triton
import triton.language as tl

from fastrnn_kernels.exchange import arrive, wait


@triton.jit(do_not_specialize=["rounds"])
def barriers(counter, rounds, INTERPRETED: tl.constexpr):
    """Each program arrives and waits for all others, ``rounds`` times; ``counter`` starts at 0."""
    target = 0
    for _ in tl.range(0, rounds):
        target += tl.num_programs(0)
        arrive(counter)
        wait(counter, target, INTERPRETED)


@triton.jit(do_not_specialize=["rounds"])
def exchanges(
    h, counter, rounds, SHARE: tl.constexpr, ALL: tl.constexpr, INTERPRETED: tl.constexpr
):
    """As `barriers`, with each program's part of h stored before and all of h loaded after.

    h: (2, ALL) float32, zero, of which SHARE belong to each program. A part is one more than the
    least of all that was there before, so that ``rounds`` everywhere says that no load was too
    early. The half that a round stores was read in the round before the last one, and whoever read
    it has arrived since.
    """
    own = tl.program_id(0) * SHARE + tl.arange(0, SHARE)
    everyone = tl.arange(0, ALL)
    inside = everyone < tl.num_programs(0) * SHARE
    target = 0
    least = 0.0
    for index in tl.range(0, rounds):
        half = h + (index % 2) * ALL
        target += tl.num_programs(0)
        tl.store(half + own, tl.zeros((SHARE,), tl.float32) + (least + 1.0))
        arrive(counter)
        wait(counter, target, INTERPRETED)
        seen = tl.load(half + everyone, mask=inside, other=float("inf"), cache_modifier=".cg")
        least = tl.min(seen, axis=0)


@triton.jit(do_not_specialize=["rounds"])
def chase(chain, out, rounds, INTERPRETED: tl.constexpr):
    """Loads that wait for one another, from L2; out: (where it ended, cycles it took)."""
    begin = cycles(INTERPRETED)
    position = tl.load(out)
    for _ in tl.range(0, rounds):
        position = tl.load(chain + position, cache_modifier=".cg")
    tl.store(out, position)
    tl.store(out + 1, cycles(INTERPRETED) - begin)


@triton.jit(do_not_specialize=["rounds", "stride"])
def stream(data, out, rounds, stride, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads CHUNKS x BLOCK float32, from L2, ``rounds`` times.

    ``stride`` blocks lie between the parts of two programs; 0: all read the same. Addresses
    change from round to round, or the compiler would load once and add up ``rounds`` times.
    """
    offsets = tl.arange(0, BLOCK)
    begin = data + tl.program_id(0) * stride * BLOCK
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for index in tl.range(0, rounds):
        for chunk in tl.static_range(CHUNKS):
            place = (index + chunk) % CHUNKS * BLOCK
            total += tl.load(begin + place + offsets, cache_modifier=".cg")
    tl.store(out + tl.program_id(0) * BLOCK + offsets, total)


@triton.jit(do_not_specialize=["rounds"])
def products(
    a,  # (ROWS, DEPTH)
    b,  # (COLS, DEPTH)
    out,  # (programs, ROWS, COLS) float32
    rounds,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The product a b^T of each program added up ``rounds`` times, each after the one before."""
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, COLS)
    k = tl.arange(0, DEPTH)
    left = tl.load(a + rows * DEPTH + k[None, :])
    right = tl.load(b + cols[None, :] * DEPTH + k[:, None])
    acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for _ in tl.range(0, rounds):
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=tl.float32)
    tl.store(out + tl.program_id(0) * (ROWS * COLS) + rows * COLS + cols[None, :], acc)


@triton.jit
def node(out):
    """As good as nothing: what is left is the launch."""
    tl.store(out + tl.program_id(0), 1)


@triton.jit
def cycles(INTERPRETED: tl.constexpr):
    """The multiprocessor's count of cycles; the interpreter has none."""
    if INTERPRETED:
        return tl.full((), 0, tl.int64)
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )
