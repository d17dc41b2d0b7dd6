"""A square of a matrix turned over in registers, where it would be numbers one by one in a loop."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrnn_numba.vectors import Lanes

_index, _lane = ir.IntType(64), ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator] # Numba has no types
def turned_square(context: Any, into: Any, p: Any, k: Any, column: Any, of: Any, row: Any) -> Any:
    """into(p, k + n, column + m) = of(row + m, k + n), of as many m and n as a vector has numbers.

    Args:
        context: Numba's.
        into: (P, K, width), written.
        p: of `into`.
        k: likewise; and the column of `of`.
        column: likewise.
        of: (N, K)
        row: of `of`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        into, p, k, column, of, row = arguments
        lanes = Lanes(context, builder, signature.args[0].dtype)
        side, size = lanes.number, lanes.bits // 8

        def place(position: int, value: Any, *where: Any) -> tuple[Any, Any]:
            """Where an element is, and how far the next row is."""
            array = context.make_array(signature.args[position])(context, builder, value)
            lengths = cgutils.unpack_tuple(builder, array.shape)
            first = where[0]
            for own, length in zip(where[1:], lengths[1:], strict=True):
                first = builder.add(builder.mul(first, length), own)
            return builder.gep(array.data, [first]), lengths[-1]

        def pointers(begin: Any, stride: Any) -> list[Any]:
            each = (builder.gep(begin, [builder.mul(stride, _index(r))]) for r in range(side))
            return [builder.bitcast(one, lanes.vector.as_pointer()) for one in each]

        lines = [builder.load(each, align=size) for each in pointers(*place(4, of, row, k))]
        halves = [
            ir.Constant(ir.VectorType(_lane, side), [j // 2 + side * (j % 2) for j in range(b, e)])
            for b, e in ((0, side), (side, 2 * side))
        ]
        # like cards: number j of row i lies at i * side + j; after log2(side) times at j * side + i
        for _ in range(side.bit_length() - 1):
            pairs = zip(lines[: side // 2], lines[side // 2 :], strict=True)
            lines = [builder.shuffle_vector(*pair, half) for pair in pairs for half in halves]
        for line, each in zip(lines, pointers(*place(0, into, p, k, column)), strict=True):
            builder.store(line, each, align=size)
        return context.get_dummy_value()

    return types.void(into, p, k, column, of, row), generate
