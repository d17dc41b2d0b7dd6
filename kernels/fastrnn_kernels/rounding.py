# mypy: ignore-errors
"""W_hh as a TF32 tensor core is given it.

The tensor core takes the bits of a float32 and leaves out the last 13, which cuts off rather than
rounds: every product is then too small by up to 2^-10, and in the same direction at every step.
What stays on chip for the whole sequence is rounded once. h, which is new at every step, is cut
off: rounding it would stand between its load and the product, where a step waits.
"""

import triton
import triton.language as tl


@triton.jit
def as_multiplied(tiles, N: tl.constexpr, PRECISION: tl.constexpr):
    """N tiles of W_hh, to the nearest TF32 if that is what they are multiplied as."""
    if PRECISION != "tf32":
        return tiles
    else:
        rounded = ()
        for n in tl.static_range(N):
            bits = tiles[n].to(tl.int32, bitcast=True)
            # Half a unit away from zero, then whole units; a carry makes the next power of two.
            nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
            finite = (bits & 0x7F800000) != 0x7F800000  # a NaN's bits would run over
            rounded = rounded + (tl.where(finite, nearest, tiles[n]),)
        return rounded
