"""The innermost part of a product: a tile of it that stays in registers, in LLVM's own language.

A loop over columns that LLVM makes vectors of goes through memory for every sum; here sums are
vectors by name, which is what it takes to be as fast as a BLAS.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrnn_numba.vectors import Lanes

ROWS = 4
"""Of a tile that has several."""
PANELS = 4
"""Of a tile of one row that has several: as many sums."""
WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
VECTORS = 2 if WIDE else 1
"""Of a row of a tile: with `ROWS`, as many registers as hide how long a multiply-add takes, and no
more than there are."""
MANY = 2 * ROWS if WIDE else ROWS
"""Rows of a tile where there are as many: what is read of W then serves twice as many sums."""

_index, _lane = ir.IntType(64), ir.IntType(32)


def _tile_of(rows: int, side_by_side: int) -> Any:
    """A tile of so many rows and so many panels."""

    @intrinsic  # type: ignore[untyped-decorator] # Numba has no types
    def tile(
        context: Any, into: Any, row: Any, of: Any, begin: Any, order: Any, k_begin: Any,
        panels: Any, panel: Any,
    ) -> Any:  # fmt: skip
        """into(row + r, n) = sum over k of of(begin + order(row + r), k_begin + k) panels(k, n).

        Args:
            context: Numba's.
            into: (_, P * width), written.
            row: the first in the tile.
            of: (_, _)
            begin: row of `of`.
            order: (_,)
            k_begin: column of `of`.
            panels: (P, K, width)
            panel: the first of those in the tile.
        """
        signature = types.void(into, row, of, begin, order, k_begin, panels, panel)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            into, row, of, begin, order, k_begin, panels, panel = arguments
            kind = Lanes(context, builder, signature.args[0].dtype)
            lanes, size, vector = kind.number, kind.bits // 8, kind.vector
            width = lanes * VECTORS

            def matrix(position: int, value: Any) -> tuple[Any, list[Any]]:
                array = context.make_array(signature.args[position])(context, builder, value)
                return array.data, cgutils.unpack_tuple(builder, array.shape)

            def at(base: Any, *offsets: Any) -> Any:
                for offset in offsets:
                    base = builder.gep(base, [offset])
                return base

            def vector_at(pointer: Any, number: int) -> Any:
                place = at(pointer, _index(number * lanes))
                return builder.bitcast(place, vector.as_pointer())

            sums_data, (_, sums_stride) = matrix(0, into)
            of_data, (_, of_stride) = matrix(2, of)
            order_data, _ = matrix(4, order)
            panels_data, (_, length, _) = matrix(6, panels)
            whole = builder.mul(length, _index(width))
            weights = [
                at(panels_data, builder.mul(builder.add(panel, _index(p)), whole))
                for p in range(side_by_side)
            ]
            numbers = [builder.load(at(order_data, row, _index(r))) for r in range(rows)]
            factors = [
                at(of_data, builder.mul(builder.add(begin, number), of_stride), k_begin)
                for number in numbers
            ]
            column = builder.mul(panel, _index(width))
            zero = ir.Constant(vector, None)
            sums = [
                [cgutils.alloca_once_value(builder, zero) for _ in range(VECTORS * side_by_side)]
                for _ in range(rows)
            ]
            everywhere = ir.Constant(ir.VectorType(_lane, lanes), None)
            undefined = ir.Constant(vector, ir.Undefined)
            with cgutils.for_range(builder, length) as loop:
                lines = [at(each, builder.mul(loop.index, _index(width))) for each in weights]
                loaded = [
                    builder.load(vector_at(line, v), align=size)
                    for line in lines
                    for v in range(VECTORS)
                ]
                for own, factor in zip(sums, factors, strict=True):
                    one = builder.load(at(factor, loop.index))
                    one = builder.insert_element(undefined, one, _lane(0))
                    all_lanes = builder.shuffle_vector(one, undefined, everywhere)
                    for total, weight in zip(own, loaded, strict=True):
                        product = kind.call("fma", vector, all_lanes, weight, builder.load(total))
                        builder.store(product, total)
            for r, own in enumerate(sums):
                line = at(sums_data, builder.mul(builder.add(row, _index(r)), sums_stride), column)
                for v, total in enumerate(own):
                    builder.store(builder.load(total), vector_at(line, v), align=size)
            return context.get_dummy_value()

        return signature, generate

    return tile


many_rows = _tile_of(MANY, 1)
four_rows = _tile_of(ROWS, 1)
three_rows = _tile_of(3, 1)
two_rows = _tile_of(2, 1)
two_long_rows = _tile_of(2, 2)
one_row = _tile_of(1, 1)
one_long_row = _tile_of(1, PANELS)
