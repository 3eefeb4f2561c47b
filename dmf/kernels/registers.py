"""Products of a few rows and a few columns, held in registers, for compiled loops.

BLAS writes a product that is then read again, and X and M are read beside it: at low
ranks most of the time goes there. So the product of rows of two factors isn't left to
BLAS. A patch of it, as large as the processor has registers for, is summed over the
rank and stays there until what depends on it is formed; the next rows of X and M are
fetched meanwhile. (From some hundred columns of the factors on, BLAS is as fast.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from dmf.kernels.vectors import CACHE_LINE, compiled, prefetch_address, spread


def _registers() -> tuple[int, int]:
    """Return the bytes of a vector, and the rows of a patch, of two vectors each: 24
    registers of 32, or 12 of 16."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 12
    return (32, 6) if features.get("avx2") else (16, 6)


VECTOR_BYTES, ROWS = _registers()
VECTORS = 2

Values = list[list[Any]]  # LLVM's: for each row of a patch one vector after the other


@compiled
def pack(factor, start, stop, result):
    """Write rows of a factor (length, K, r) as (K, groups, r, width)."""
    for k in range(result.shape[0]):
        for g in range(result.shape[1]):
            transpose(factor, k, start + g * result.shape[3], stop, result[k, g])


@compiled
def add_packed(packed, result):
    """Add rows that are packed, (groups, r, width), to an array (length, r)."""
    groups, rank, width = packed.shape
    for g in range(groups):
        start = g * width
        for c in range(min(width, result.shape[0] - start)):
            for s in range(rank):
                result[start + c, s] += packed[g, s, c]


@compiled
def transpose(factor, k, start, stop, result):
    """Transpose as many rows as `result` holds; beyond `stop` they are zeros."""
    rank, width = result.shape
    there = min(width, stop - start)
    for c in range(there):
        for s in range(rank):
            result[s, c] = factor[start + c, k, s]
    for c in range(there, width):
        for s in range(rank):
            result[s, c] = 0


@compiled
def copy(source, i0, j0, rows, columns, target):
    """Copy as much as is there, and zeros beside it."""
    if source is None:
        return
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            there = i < rows and j < columns
            target[i, j] = source[i0 + i, j0 + j] if there else 0


# What follows writes LLVM's language, for intrinsics.


class Operand(NamedTuple):
    """One factor of a product, whose terms are summed.

    Of each term it has `width` rows (the left one) or vectors (the right one), which
    are `apart` from each other; from term to term it is `step` numbers.
    """

    start: Any
    width: int
    step: Any
    apart: Any


def lanes_of(dtype: Any) -> int:
    """Return how many numbers a vector holds."""
    return 8 * VECTOR_BYTES // int(dtype.bitwidth)


def operands(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Return what LLVM is to know of an intrinsic's arrays, and all else as it is."""

    def operand(kind: Any, value: Any) -> Any:
        if isinstance(kind, types.UniTuple):
            parts = cgutils.unpack_tuple(builder, value)
            return [operand(*pair) for pair in zip(kind.types, parts, strict=True)]
        if isinstance(kind, types.Array):
            return context.make_array(kind)(context, builder, value)
        return value

    return [operand(*pair) for pair in zip(signature.args, arguments, strict=True)]


def check_dtypes(dtype: Any, weights: Any) -> None:
    """Refuse blocks that aren't what `dmf.kernels.dense.DenseBlock` says."""
    if not isinstance(dtype, types.Float):
        msg = f"X is {dtype}; it must be float32 or float64"
        raise TypingError(msg)
    if isinstance(weights, types.Array) and weights.dtype not in (types.uint8, dtype):
        msg = f"M is {weights.dtype}, but X is {dtype}; M must be so too, or bool"
        raise TypingError(msg)


def shape_of(builder: Any, array: Any) -> list[Any]:
    """Return the lengths of an array."""
    return list(cgutils.unpack_tuple(builder, array.shape))


def patch_of(
    builder: Any, lefts: Sequence[Any], rights: Sequence[Any], h: Any, vector: Any
) -> tuple[Any, Values]:
    """Write the products of what `transpose` and `pack` wrote; return the rank, too.

    The rows of a patch are those of all left arrays, its columns those of group `h` of
    all right ones.
    """
    index = ir.IntType(64)
    height, width = ROWS // len(lefts), VECTORS // len(rights)
    rank = shape_of(builder, lefts[0])[0]
    step, apart = index(width * vector.count), index(vector.count)
    begin = builder.mul(h, builder.mul(rank, step))
    rows = [Operand(left.data, height, index(height), index(1)) for left in lefts]
    columns = [
        Operand(builder.gep(right.data, [begin]), width, step, apart)
        for right in rights
    ]
    return rank, products(builder, rank, rows, columns, vector)


def products(
    builder: Any,
    terms: Any,
    lefts: Sequence[Operand],
    rights: Sequence[Operand],
    vector: Any,
) -> Values:
    """Write the loop that sums a patch of products of all rows and all vectors."""
    index = ir.IntType(64)
    before = builder.block
    loop = builder.append_basic_block("products")
    after = builder.append_basic_block("patch")
    builder.branch(loop)
    builder.position_at_end(loop)
    term = builder.phi(index)
    term.add_incoming(index(0), before)
    height, width = (sum(part.width for part in side) for side in (lefts, rights))
    sums = [[builder.phi(vector) for _ in range(width)] for _ in range(height)]

    def places(operand: Operand) -> list[Any]:
        start = builder.gep(operand.start, [builder.mul(term, operand.step)])
        apart = [builder.mul(operand.apart, index(n)) for n in range(operand.width)]
        return [builder.gep(start, [offset]) for offset in apart]

    rows = [place for left in lefts for place in places(left)]
    columns = [
        vector_at(builder, place, index(0), vector)
        for right in rights
        for place in places(right)
    ]
    result = []
    for row, place in zip(sums, rows, strict=True):
        factor = spread(builder, builder.load(place), vector)
        pairs = zip(row, columns, strict=True)
        result.append([add_product(builder, t, factor, c) for t, c in pairs])
    for old, new in zip(sums, result, strict=True):
        for total, product in zip(old, new, strict=True):
            total.add_incoming(ir.Constant(vector, None), before)
            total.add_incoming(product, loop)
    following = builder.add(term, index(1))
    term.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, terms), loop, after)
    builder.position_at_end(after)
    return result


def weigher(
    builder: Any, start: Any, at: Any, dtype: Any, vector: Any
) -> Callable[[Any], tuple[Any, Any]]:
    """Return what writes M v and v for a vector v: for bools, as bytes, v is 0 where
    nothing is observed, whatever was there. `start` is None if all is observed."""
    if start is None:
        return lambda v: (v, v)
    if dtype != types.uint8:
        weights = vector_at(builder, start, at, vector)
        return lambda v: (builder.fmul(v, weights), v)
    mask = vector_at(builder, start, at, ir.VectorType(ir.IntType(8), vector.count))
    observed = builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, None))
    zero = ir.Constant(vector, None)

    def weigh(v: Any) -> tuple[Any, Any]:
        kept = builder.select(observed, v, zero)
        return kept, kept

    return weigh


def vector_at(builder: Any, start: Any, offset: Any, vector: Any) -> Any:
    """Load a vector from `start[offset]` on."""
    address = builder.bitcast(builder.gep(start, [offset]), vector.as_pointer())
    return builder.load(address, align=1)


def add_product(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """Return total + a b."""
    return builder.fadd(total, builder.fmul(a, b))


def store_at(builder: Any, start: Any, offset: Any, vector: Any) -> None:
    """Write a vector to `start[offset]`."""
    address = builder.bitcast(builder.gep(start, [offset]), vector.type.as_pointer())
    builder.store(vector, address, align=1)


def add_at(builder: Any, start: Any, offset: Any, vector: Any) -> None:
    """Add a vector to what is at `start[offset]`."""
    old = vector_at(builder, start, offset, vector.type)
    # A flag of its own, so that Numba gives it no others: the terms of the vector
    # aren't to be added to the old sum one after the other.
    store_at(builder, start, offset, builder.fadd(old, vector, flags=("nsz",)))


def put(
    builder: Any, put_at: Callable[..., None], patch: Values, start: Any, stride: Any
) -> None:
    """Store or add a patch, by `store_at` or `add_at`; its rows are `stride` apart."""
    index = ir.IntType(64)
    for m, row in enumerate(patch):
        begin = builder.gep(start, [builder.mul(stride, index(m))])
        for v, part in enumerate(row):
            put_at(builder, begin, index(v * part.type.count), part)


def begin_of(
    builder: Any,
    array: Any,
    dtype: Any,
    place: Any,
    stride: Any,
    shape: tuple[int, int],
) -> Any:
    """Return where a patch of an array begins, and ask memory for the one below it."""
    height, width = shape
    begin = builder.gep(array.data, [place])
    for m in range(height, 2 * height):
        row = builder.gep(begin, [builder.mul(stride, ir.IntType(64)(m))])
        first = builder.bitcast(row, ir.IntType(8).as_pointer())
        for line in range(0, width * dtype.bitwidth // 8, CACHE_LINE):
            prefetch_address(builder, builder.gep(first, [ir.IntType(64)(line)]))
    return begin
