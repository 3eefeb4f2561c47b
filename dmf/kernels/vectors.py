"""Rows of a factor in the processor's vectors, for compiled loops.

A row of r numbers is a tuple of vectors that stays in registers while a loop works with
it. Left to itself, LLVM doesn't know the rank: it loads and stores sums again and again
and takes the last few numbers of a row one by one. Here the number of vectors is part
of a row's type, so that a loop is compiled once for each such number, and runs about
twice as fast. Where the last vector begins isn't part of it: if r isn't a multiple of
their length, it begins earlier and overlaps the one before it, and `own` blanks what it
has twice.

Loops may add rows, scale them and take dot products. Whatever they do, numbers that
overlap must stay equal, or be blanked: `store` writes the last vector first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _untyped_intrinsic
from numba.extending import models, register_model
from numpy.typing import NDArray

# What a vector register of most processors holds.
REGISTER_BYTES = 32
# More vectors than this don't stay in registers anyway: they get longer instead.
MOST_VECTORS = 8
CACHE_LINE = 64

# No lock on the interpreter while they run, and cached on disk. Sums may be reordered
# so that they vectorise; NaN and inf keep their meaning. Numba says so of each
# instruction, also of those that are written here.
compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})

intrinsic: Any = _untyped_intrinsic  # for mypy: it keeps the first argument to itself


class Layout(NamedTuple):
    """How rows of some length are cut into vectors.

    Parameters
    ----------
    starts : tuple of int
        Where each vector begins: all but the last at multiples of their length.
    kept : tuple of float, as long as a vector
        1 where a number of the last vector is its own, 0 where it is another's too.
    """

    starts: tuple[int, ...]
    kept: tuple[float, ...]


def shortest_row(dtype: Any) -> int:
    """Return the fewest numbers that a row may have: those of one vector."""
    return REGISTER_BYTES // int(np.dtype(dtype).itemsize)


@lru_cache
def layout_of(width: int, dtype: Any) -> Layout:
    """Return the layout of rows of `width` numbers, at least `shortest_row(dtype)`."""
    length = shortest_row(dtype)
    while -(-width // length) > MOST_VECTORS:
        length *= 2
    starts = [*range(0, width - length, length), width - length]
    shared = -width % length
    return Layout(tuple(starts), (0.0,) * shared + (1.0,) * (length - shared))


def unchanging(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: Numba compiles once instead of once for each mixture of
    writable inputs and of the read-only ones that a worker receives."""
    view = array.view()
    view.flags.writeable = False
    return view


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous read-only view."""
    return unchanging(np.ascontiguousarray(array))


def in_lines(
    make: Callable[..., NDArray[Any]], shape: tuple[int, ...], dtype: Any
) -> NDArray[Any]:
    """Return what np.zeros or np.empty makes, but beginning on a cache line.

    So do many of its rows then. Rows that are asked for in any order take fewer lines,
    and passes 0.9 of the time. NumPy's own arrays begin at multiples of 16.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = make(size + CACHE_LINE, dtype=np.uint8)
    begin = -_beyond_line(room) % CACHE_LINE
    result: NDArray[Any] = room[begin : begin + size].view(dtype).reshape(shape)
    return result


def moved_to_lines(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that is contiguous and `in_lines`: itself, or a copy."""
    if array.flags.c_contiguous and not _beyond_line(array):
        return array
    result = in_lines(np.empty, array.shape, array.dtype)
    result[...] = array
    return result


def _beyond_line(array: NDArray[Any]) -> int:
    """Return how many bytes beyond the begin of a cache line an array begins."""
    address: int = array.__array_interface__["data"][0]
    return address % CACHE_LINE


class Vector(types.Type):
    """The Numba type of a few numbers of a dtype: an LLVM vector."""

    def __init__(self, dtype: types.Type, length: int) -> None:
        self.dtype = dtype
        self.length = length
        super().__init__(name=f"Vector({dtype}, {length})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        number = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, vector.length))


# What loops may do with rows. Each function tells Numba its types, and how to write it
# in LLVM's language; `row` is a Numba tuple of equal `Vector`s.


@intrinsic
def load(typing, array, i, layout):
    """Return the row array[i, :]."""
    starts, kept = layout.types
    row = types.UniTuple(Vector(array.dtype, kept.count), starts.count)

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(row.dtype).as_pointer()
        parts = [
            builder.load(builder.bitcast(address, vector), align=_ALIGNED)
            for address in _addresses(context, builder, signature, arguments)
        ]
        return context.make_tuple(builder, row, parts)

    return row(array, types.intp, layout), generate


@intrinsic
def store(typing, array, i, layout, row):
    """Do array[i, :] = row."""

    def generate(context, builder, signature, arguments):
        addresses = _addresses(context, builder, signature, arguments)
        parts = cgutils.unpack_tuple(builder, arguments[3])
        # The last vector first: what it shares may be blank.
        for address, part in reversed(list(zip(addresses, parts, strict=True))):
            place = builder.bitcast(address, part.type.as_pointer())
            builder.store(part, place, align=_ALIGNED)
        return context.get_dummy_value()

    return types.void(array, types.intp, layout, row), generate


@intrinsic
def prefetch(typing, array, i, layout):
    """Ask memory for the row array[i, :] without waiting for it."""

    def generate(context, builder, signature, arguments):
        vector_bytes = layout.types[1].count * array.dtype.bitwidth // 8
        step = max(1, CACHE_LINE // vector_bytes)
        for address in _addresses(context, builder, signature, arguments)[::step]:
            prefetch_address(builder, address)
        return context.get_dummy_value()

    return types.void(array, types.intp, layout), generate


@intrinsic
def own(typing, row, layout):
    """Return a row whose last vector is blank where it overlaps: to sum over."""

    def generate(context, builder, signature, arguments):
        parts = cgutils.unpack_tuple(builder, arguments[0])
        _, kept = cgutils.unpack_tuple(builder, arguments[1])
        mask = ir.Constant(parts[-1].type, ir.Undefined)
        for place, share in enumerate(cgutils.unpack_tuple(builder, kept)):
            number = context.cast(builder, share, types.float64, row.dtype.dtype)
            mask = builder.insert_element(mask, number, ir.IntType(32)(place))
        parts[-1] = builder.fmul(parts[-1], mask)
        return context.make_tuple(builder, row, parts)

    return row(row, layout), generate


@intrinsic
def blank(typing, row):
    """Return a row of zeros like another one."""

    def generate(context, builder, signature, arguments):
        zeros = ir.Constant(context.get_value_type(row.dtype), None)
        return context.make_tuple(builder, row, [zeros] * row.count)

    return row(row), generate


def _operator(operate: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator on a row and another one, or a number.

    `operate` writes what it does to a vector of each, with a builder.
    """

    @intrinsic
    def apply(typing, row, other):
        number = not isinstance(other, types.BaseTuple)

        def generate(context, builder, signature, arguments):
            parts = cgutils.unpack_tuple(builder, arguments[0])
            if number:
                others = [spread(builder, arguments[1], part.type) for part in parts]
            else:
                others = cgutils.unpack_tuple(builder, arguments[1])
            pairs = zip(parts, others, strict=True)
            results = [operate(builder, a, b) for a, b in pairs]
            return context.make_tuple(builder, row, results)

        return row(row, row.dtype.dtype if number else other), generate

    result: Callable[..., Any] = apply
    return result


def _higher(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_unordered(">", a, b), a, b)


def _unless_zero(builder: Any, a: Any, b: Any) -> Any:
    nothing = ir.Constant(a.type, None)
    return builder.select(builder.fcmp_ordered("==", b, nothing), nothing, a)


plus, minus = _operator(ir.IRBuilder.fadd), _operator(ir.IRBuilder.fsub)
times, divided = _operator(ir.IRBuilder.fmul), _operator(ir.IRBuilder.fdiv)
# A row with the number where it is lower; with 0 where another row is exactly 0.
at_least, blank_where = _operator(_higher), _operator(_unless_zero)


@intrinsic
def plus_scaled(typing, row, scale, other):
    """Return row + scale * other."""

    def generate(context, builder, signature, arguments):
        parts, others = (
            cgutils.unpack_tuple(builder, arguments[place]) for place in (0, 2)
        )
        factor = spread(builder, arguments[1], parts[0].type)
        sums = [
            builder.fadd(part, builder.fmul(factor, b))
            for part, b in zip(parts, others, strict=True)
        ]
        return context.make_tuple(builder, row, sums)

    return row(row, row.dtype.dtype, other), generate


@intrinsic
def dot(typing, a, b):
    """Return the sum of a * b; one of them must be `own`."""

    def generate(context, builder, signature, arguments):
        return _one_of(builder, _sums(builder, _parts_of(builder, arguments)), 0)

    return a.dtype.dtype(a, b), generate


@intrinsic
def dots(typing, a, b, c, d):
    """Return the sums of a * b and of c * d; of each pair, one must be `own`."""
    pair = types.UniTuple(a.dtype.dtype, 2)

    def generate(context, builder, signature, arguments):
        sums = _sums(builder, _parts_of(builder, arguments))
        return context.make_tuple(
            builder, pair, [_one_of(builder, sums, k) for k in range(2)]
        )

    return pair(a, b, c, d), generate


@intrinsic
def wide_dot(typing, a, b):
    """Return the sum of a * b in float64, of any size; one of them must be `own`."""

    def generate(context, builder, signature, arguments):
        wide = [
            [half for part in parts for half in _widened(builder, part)]
            for parts in _parts_of(builder, arguments)
        ]
        return _one_of(builder, _sums(builder, wide), 0)

    return types.float64(a, b), generate


@intrinsic
def zeros_in(typing, row):
    """Return a row with 1 where a number is exactly 0, and 0 elsewhere."""

    def generate(context, builder, signature, arguments):
        found = []
        for part in cgutils.unpack_tuple(builder, arguments[0]):
            nothing = ir.Constant(part.type, None)
            one = spread(builder, part.type.element(1), part.type)
            is_zero = builder.fcmp_ordered("==", part, nothing)
            found.append(builder.select(is_zero, one, nothing))
        return context.make_tuple(builder, row, found)

    return row(row), generate


_ALIGNED = 4  # bytes: rows begin anywhere
_DOUBLE = ir.DoubleType()


def _addresses(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Return where the vectors of the row array[i, :] are.

    All but the last begin at multiples of their length, which stand in the instructions
    themselves: registers for so many addresses would be too many.
    """
    kind, _, layout = signature.args[:3]
    assert kind.layout == "C"
    array = context.make_array(kind)(context, builder, arguments[0])
    zero = context.get_constant(types.intp, 0)
    row = cgutils.get_item_pointer(
        context, builder, kind, array, (arguments[1], zero), wraparound=False
    )
    starts, _ = cgutils.unpack_tuple(builder, arguments[2])
    *others, last = cgutils.unpack_tuple(builder, starts)
    length = layout.types[1].count
    begins = [zero.type(length * k) for k in range(len(others))]
    return [builder.gep(row, [begin]) for begin in (*begins, last)]


def _parts_of(builder: Any, rows: Any) -> list[list[Any]]:
    return [cgutils.unpack_tuple(builder, row) for row in rows]


def prefetch_address(builder: Any, address: Any) -> None:
    """Ask memory for a cache line, for reading."""
    number = ir.IntType(32)
    place = builder.bitcast(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, number(0), number(3), number(1)])


def spread(builder: Any, number: Any, vector: ir.VectorType) -> Any:
    """Return a vector that holds the number everywhere."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    positions = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(first, nothing, positions)


def _widened(builder: Any, part: Any) -> list[Any]:
    """Return a vector in float64, as two: in registers as long as its own.

    In one it may be 512 bits beside others of 256, and for some time after the former a
    processor does less of anything else.
    """
    if part.type.element == _DOUBLE:
        return [part]
    half = part.type.count // 2
    wide = ir.VectorType(_DOUBLE, half)
    return [
        builder.fpext(builder.shuffle_vector(part, part, _positions(places)), wide)
        for places in (range(half), range(half, 2 * half))
    ]


def _sums(builder: Any, parts: list[list[Any]]) -> Any:
    """Return the sums of the products of one or two pairs of rows, in a vector.

    Vectors are added up, then halved to the end; those of two pairs together, which
    takes hardly more than one of them: aaaa and bbbb become aabb, and then ab.
    """
    one, *more = (
        reduce(builder.fadd, map(builder.fmul, *pair))
        for pair in zip(parts[::2], parts[1::2], strict=True)
    )
    other = more[0] if more else one
    size = one.type.count  # of what is left of each sum: they lie side by side
    while size > 1:
        size //= 2
        low = [2 * size * s + k for s in range(1 + len(more)) for k in range(size)]
        halves = [
            builder.shuffle_vector(one, other, _positions([k + shift for k in low]))
            for shift in (0, size)
        ]
        one = other = builder.fadd(*halves)
    return one


def _one_of(builder: Any, vector: Any, place: int) -> Any:
    return builder.extract_element(vector, ir.IntType(32)(place))


def _positions(places: Sequence[int]) -> Any:
    number = ir.IntType(32)
    return ir.Constant(ir.VectorType(number, len(places)), list(map(number, places)))
