"""Formulas over the units of a row, compiled to vectors of them: written once, as formulas.

A function of rows is called while its caller is compiled. What it does with numbers is not done
then: each operation becomes one of vectors, in LLVM's own language. LLVM would make vectors of a
loop, too, but a step has so many arrays that it does not see that they lie apart.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES = 64
"""Of a vector: one register of AVX-512, or two of AVX2, four of NEON."""
_FLAGS = ("contract",)
"""A product and a sum may be one instruction; nothing else of IEEE 754 is given up."""
_index, _lane = ir.IntType(64), ir.IntType(32)


class Lanes:
    """What the numbers of a loop are.

    Attributes:
        builder: LLVM's, which operations are added to.
        number: how many a vector has.
        bits: of one.
        vector: LLVM's type.
        integers: of as many bits.
    """

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        kind = context.get_value_type(dtype)
        self.builder, self.bits = builder, 8 * context.get_abi_sizeof(kind)
        self.number = 8 * BYTES // self.bits
        self.vector = ir.VectorType(kind, self.number)
        self.integers = ir.VectorType(ir.IntType(self.bits), self.number)

    def constant(self, value: float) -> Any:
        """The same number everywhere, rounded to one of these."""
        if self.bits == 32:  # which LLVM wants to be exact
            (value,) = struct.unpack("f", struct.pack("f", value))
        return ir.Constant(self.vector, [value] * self.number)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """One of LLVM's own functions of vectors."""
        function = ir.FunctionType(result, [each.type for each in arguments])
        name = f"llvm.{name}.v{self.number}f{self.bits}"
        known = cgutils.get_or_insert_function(self.builder.module, function, name)
        return self.builder.call(known, arguments)


class Numbers:
    """A vector, with the arithmetic of a number."""

    def __init__(self, lanes: Lanes, value: Any) -> None:
        self.lanes, self.value = lanes, value

    def _with(self, operation: str, other: Numbers | float) -> Numbers:
        form = getattr(self.lanes.builder, operation)
        return Numbers(self.lanes, form(self.value, self.same(other).value, flags=_FLAGS))

    def same(self, value: Numbers | float) -> Numbers:
        """That number in every lane; vectors are as they are."""
        if isinstance(value, Numbers):
            return value
        return Numbers(self.lanes, self.lanes.constant(value))

    def __add__(self, other: Numbers | float) -> Numbers:
        return self._with("fadd", other)

    def __sub__(self, other: Numbers | float) -> Numbers:
        return self._with("fsub", other)

    def __rsub__(self, other: float) -> Numbers:
        return self.same(other) - self

    def __mul__(self, other: Numbers | float) -> Numbers:
        return self._with("fmul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Numbers | float) -> Numbers:
        return self._with("fdiv", other)

    def __abs__(self) -> Numbers:
        return Numbers(self.lanes, self.lanes.call("fabs", self.lanes.vector, self.value))

    def is_at_most(self, other: Numbers | float) -> Any:
        """Where it is no more: not where either is NaN."""
        return self.lanes.builder.fcmp_ordered("<=", self.value, self.same(other).value)

    def where(self, condition: Any, other: Numbers | float) -> Numbers:
        """Itself there, elsewhere the other."""
        chosen = self.lanes.builder.select(condition, self.value, self.same(other).value)
        return Numbers(self.lanes, chosen)

    def with_sign_of(self, other: Numbers) -> Numbers:
        """Its magnitude with another's sign."""
        made = self.lanes.call("copysign", self.lanes.vector, self.value, other.value)
        return Numbers(self.lanes, made)

    def low_bits_as_exponent(self, mantissa: int) -> Numbers:
        """2^k, where the low bits are k: a float has so many bits of a mantissa."""
        builder, of = self.lanes.builder, self.lanes.integers
        shift = ir.Constant(of, [mantissa] * self.lanes.number)
        one = builder.bitcast(self.lanes.constant(1), of)
        moved = builder.add(builder.shl(builder.bitcast(self.value, of), shift), one)
        return Numbers(self.lanes, builder.bitcast(moved, self.lanes.vector))


class Row:
    """One row of an array, (_, K*H), at some units: row[k] is those of the block k."""

    def __init__(self, lanes: Lanes, begin: Any, unit: Any, units: Any, mask: Any) -> None:
        self.lanes, self.begin, self.unit, self.units, self.mask = lanes, begin, unit, units, mask

    def _pointer(self, block: int) -> Any:
        builder = self.lanes.builder
        first = builder.add(self.unit, builder.mul(self.units, _index(block)))
        pointer = builder.gep(self.begin, [first])
        return builder.bitcast(pointer, self.lanes.vector.as_pointer())

    def __getitem__(self, block: int) -> Numbers:
        lanes, size = self.lanes, self.lanes.bits // 8
        pointer = self._pointer(block)
        if self.mask is None:
            return Numbers(lanes, lanes.builder.load(pointer, align=size))
        none = ir.Constant(lanes.vector, None)
        made = lanes.call("masked.load", lanes.vector, pointer, _lane(size), self.mask, none)
        return Numbers(lanes, made)

    def __setitem__(self, block: int, made: Numbers) -> None:
        lanes, size = self.lanes, self.lanes.bits // 8
        pointer = self._pointer(block)
        if self.mask is None:
            lanes.builder.store(made.value, pointer, align=size)
        else:
            arguments = made.value, pointer, _lane(size), self.mask
            lanes.call("masked.store", ir.VoidType(), *arguments)


def over_units(formula: Callable[..., object]) -> Any:
    """For compiled code: a function of H and of pairs, an array and which row of it.

    Args:
        formula: takes as many `Row`s, and is called for as many units as a vector has, and for
            those that are left over; nobody takes what it returns.
    """

    @intrinsic  # type: ignore[untyped-decorator] # Numba has no types
    def along(_: Any, units: Any, *rows: Any) -> Any:
        packed = types.StarArgTuple.from_types(rows) if isinstance(rows, tuple) else rows
        return types.void(units, packed), generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        units = context.cast(builder, arguments[0], signature.args[0], types.int64)
        kinds, values = signature.args[1].types, cgutils.unpack_tuple(builder, arguments[1])
        lanes = Lanes(context, builder, kinds[0].dtype)

        def begin(k: int) -> Any:
            array = context.make_array(kinds[k])(context, builder, values[k])
            _, stride = cgutils.unpack_tuple(builder, array.shape)
            row = context.cast(builder, values[k + 1], kinds[k + 1], types.int64)
            return builder.gep(array.data, [builder.mul(row, stride)])

        begins = [begin(k) for k in range(0, len(values), 2)]

        def form(unit: Any, mask: Any = None) -> None:
            formula(*(Row(lanes, each, unit, units, mask) for each in begins))

        number = _index(lanes.number)
        left = builder.and_(units, _index(lanes.number - 1))
        done = builder.sub(units, left)
        with cgutils.for_range(builder, builder.udiv(units, number)) as loop:
            form(builder.mul(loop.index, number))
        with builder.if_then(builder.icmp_unsigned("!=", left, _index(0))):
            lane_numbers = ir.VectorType(_lane, lanes.number)
            undefined = ir.Constant(lane_numbers, ir.Undefined)
            one = builder.insert_element(undefined, builder.trunc(left, _lane), _lane(0))
            limit = builder.shuffle_vector(one, undefined, ir.Constant(lane_numbers, None))
            which = ir.Constant(lane_numbers, list(range(lanes.number)))
            form(done, builder.icmp_unsigned("<", which, limit))
        return context.get_dummy_value()

    return along
