"""The residual of a tile, and its product at low ranks, as one compiled loop.

At low ranks a dense kernel waits for memory, not for arithmetic: beside the products of
a rank-16 gradient, a pass over X and M costs half as much again. So the first product
is not left to BLAS: a few rows times a few vectors of columns stay in registers until
their residuals are formed, and the next rows of X and M are fetched meanwhile. What is
written is the weighted residual, once: into a tile that BLAS finds in the cache, or,
patch after patch, where the second product finds it at once. That keeps memory busy
all the time, but only as long as rows of the gradient stay in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from dmf.kernels.vectors import (
    CACHE_LINE,
    blank,
    compiled,
    intrinsic,
    load,
    plus,
    plus_scaled,
    prefetch_address,
    spread,
    store,
)


def _registers() -> tuple[int, int, int]:
    """Return the bytes of a vector, and how many rows times vectors of a product are
    summed in registers: 24 of 32, or 12 of 16."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 8, 3
    return (32, 6, 2) if features.get("avx2") else (16, 6, 2)


VECTOR_BYTES, ROWS, VECTORS = _registers()
# Of a second product so many rows are summed side by side, in so many vectors each (of
# `dmf.kernels.vectors`, the shortest). Longer rows don't stay in registers; where there
# are only 16 of those, BLAS is as fast. (Loops name each row: a, b, c and d.)
BESIDE = 4
VECTORS_BESIDE = 5 if VECTOR_BYTES == 64 else 0


@compiled
def pack(factor, start, stop, result):
    """Write rows of a factor (length, K, r) as (K, groups, r, width)."""
    for k in range(result.shape[0]):
        for g in range(result.shape[1]):
            _transpose(factor, k, start + g * result.shape[3], stop, result[k, g])


@compiled
def _transpose(factor, k, start, stop, result):
    """Transpose as many rows as `result` holds; beyond `stop` they are zeros."""
    rank, width = result.shape
    there = min(width, stop - start)
    for c in range(there):
        for s in range(rank):
            result[s, c] = factor[start + c, k, s]
    for c in range(there, width):
        for s in range(rank):
            result[s, c] = 0


@intrinsic
def _residual_patch(
    typing, left, right, h, values, weights, place, stride, out, to, totals
):
    """Write ROWS rows and a group of columns of M (W H − X); add to Σ M (W H − X)².

    The place in `values` and `weights`, and that in `out`, are counted from their
    beginnings; `stride` is the distance between two rows of the former. The sum goes to
    `totals`, one float64 for each lane of a vector.
    """
    dtype = right.dtype
    if values.dtype != dtype or out.dtype != dtype:
        msg = f"X is {values.dtype}, but the factors are {dtype}"
        raise TypingError(msg)
    lanes = VECTOR_BYTES // (dtype.bitwidth // 8)
    group = VECTORS * lanes

    def generate(context, builder, signature, arguments):
        index = ir.IntType(64)
        number = context.get_value_type(dtype)
        vector = ir.VectorType(number, lanes)
        zero = ir.Constant(vector, None)

        def array(position):
            kind = signature.args[position]
            return context.make_array(kind)(context, builder, arguments[position])

        def vector_at(start, offset, kind=vector):
            address = builder.gep(start, [offset])
            return builder.load(builder.bitcast(address, kind.as_pointer()), align=1)

        def add_product(total, a, b):
            return builder.fadd(total, builder.fmul(a, b))

        rank = cgutils.unpack_tuple(builder, array(0).shape)[0]
        left_start = array(0).data
        size = builder.mul(rank, index(group))
        right_start = builder.gep(array(1).data, [builder.mul(arguments[2], size)])
        place, stride, to = arguments[5], arguments[6], arguments[8]
        X = builder.gep(array(3).data, [place])
        M = None
        if not isinstance(weights, types.NoneType):
            M = builder.gep(array(4).data, [place])
        for m in range(ROWS, 2 * ROWS):
            ahead = builder.mul(stride, index(m))
            _prefetch(builder, X, ahead, group * dtype.bitwidth // 8)
            if M is not None:
                _prefetch(builder, M, ahead, group * weights.dtype.bitwidth // 8)

        before = builder.block
        loop = builder.append_basic_block("rank")
        after = builder.append_basic_block("residual")
        builder.branch(loop)
        builder.position_at_end(loop)
        s = builder.phi(index)
        s.add_incoming(index(0), before)
        sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
        offset = builder.mul(s, index(group))
        columns = [
            vector_at(right_start, builder.add(offset, index(v * lanes)))
            for v in range(VECTORS)
        ]
        offset = builder.mul(s, index(ROWS))
        products = []
        for m, row in enumerate(sums):
            at = builder.add(offset, index(m))
            factor = builder.load(builder.gep(left_start, [at]))
            factor = spread(builder, factor, vector)
            products.append(
                [add_product(t, factor, c) for t, c in zip(row, columns, strict=True)]
            )
        for old, new in zip(sums, products, strict=True):
            for total, product in zip(old, new, strict=True):
                total.add_incoming(zero, before)
                total.add_incoming(product, loop)
        following = builder.add(s, index(1))
        s.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, rank), loop, after)

        builder.position_at_end(after)
        T = builder.gep(array(7).data, [to])
        out_stride = cgutils.unpack_tuple(builder, array(7).shape)[1]
        total = zero
        for m, row in enumerate(products):
            for v, product in enumerate(row):
                at = builder.add(builder.mul(stride, index(m)), index(v * lanes))
                difference = builder.fsub(product, vector_at(X, at))
                weighted = difference
                if M is not None and weights.dtype == types.uint8:
                    mask = vector_at(M, at, ir.VectorType(ir.IntType(8), lanes))
                    observed = builder.icmp_unsigned(
                        "!=", mask, ir.Constant(mask.type, None)
                    )
                    difference = builder.select(observed, difference, zero)
                    weighted = difference
                elif M is not None:
                    weighted = builder.fmul(difference, vector_at(M, at))
                total = add_product(total, weighted, difference)
                at = builder.add(builder.mul(out_stride, index(m)), index(v * lanes))
                address = builder.gep(T, [at])
                address = builder.bitcast(address, vector.as_pointer())
                builder.store(weighted, address, align=1)
        wide = ir.VectorType(ir.DoubleType(), lanes)
        address = builder.bitcast(array(9).data, wide.as_pointer())
        if total.type != wide:
            total = builder.fpext(total, wide)
        old = builder.load(address, align=8)
        builder.store(builder.fadd(old, total), address, align=8)
        return context.get_dummy_value()

    names = left, right, h, values, weights, place, stride, out, to, totals
    return types.void(*names), generate


def _prefetch(builder: Any, start: Any, offset: Any, size: int) -> None:
    """Ask for `size` bytes from `start[offset]` on, without waiting for them."""
    first = builder.bitcast(builder.gep(start, [offset]), ir.IntType(8).as_pointer())
    for line in range(0, size, CACHE_LINE):
        prefetch_address(builder, builder.gep(first, [ir.IntType(64)(line)]))


@compiled
def residual(
    W,
    right,
    k,
    first,
    values,
    weights,
    i0,
    j0,
    rows,
    columns,
    corner,
    out,
    beside,
    onto,
    axis,
    layout,
):
    """Form M (W H − X) of a tile; return Σ M (W H − X)².

    `first` is the tile's first row of W; (i0, j0) is where it lies in the values and
    weights (bools as bytes). `right` holds its rows of H, packed; `corner` is memory
    for ROWS rows of a group of values and of weights.

    The residual is written into `out`, as large as the tile; or `out` is as large as a
    patch, and its product with the rows `beside` it, the tile's of the fixed factor, is
    added `onto` those of the moving one.
    """
    _, groups, rank, group = right.shape
    stride = values.shape[1]
    left = np.empty((rank, ROWS), out.dtype)
    totals = np.zeros(VECTOR_BYTES // out.itemsize)
    some_values, some_weights = corner
    for i in range(0, rows, ROWS):
        _transpose(W, k, first + i, first + rows, left)
        for h in range(groups):
            j = h * group
            group_of_k = k * groups + h
            to = 0
            if onto is None:
                to = i * out.shape[1] + j
            if i + ROWS <= rows and j + group <= columns:
                place = (i0 + i) * stride + j0 + j
                _residual_patch(
                    left,
                    right,
                    group_of_k,
                    values,
                    weights,
                    place,
                    stride,
                    out,
                    to,
                    totals,
                )
            else:
                there = i0 + i, j0 + j, rows - i, columns - j
                _copy(values, *there, some_values)
                _copy(weights, *there, some_weights)
                _residual_patch(
                    left,
                    right,
                    group_of_k,
                    some_values,
                    some_weights,
                    0,
                    group,
                    out,
                    to,
                    totals,
                )
            if onto is not None:
                size = min(ROWS, rows - i), min(group, columns - j)
                if axis == 0:
                    _add_to_rows(out, size, beside, j, onto, i, layout)
                else:
                    _add_to_columns(out, size, beside, i, onto, j, layout)
    return totals.sum()


@compiled
def _add_to_rows(patch, size, far, j0, onto, i0, layout):
    """Add a patch times rows of H to the gradient of rows of W.

    A patch alone is summed first: float32 sums no row on and on.
    """
    rows, columns = size
    alone = rows % BESIDE
    nothing = blank(load(far, j0, layout))
    for m in range(0, rows - alone, BESIDE):
        i = i0 + m
        a, b, c, d = nothing, nothing, nothing, nothing
        for n in range(columns):
            there = load(far, j0 + n, layout)
            a = plus_scaled(a, patch[m, n], there)
            b = plus_scaled(b, patch[m + 1, n], there)
            c = plus_scaled(c, patch[m + 2, n], there)
            d = plus_scaled(d, patch[m + 3, n], there)
        store(onto, i, layout, plus(load(onto, i, layout), a))
        store(onto, i + 1, layout, plus(load(onto, i + 1, layout), b))
        store(onto, i + 2, layout, plus(load(onto, i + 2, layout), c))
        store(onto, i + 3, layout, plus(load(onto, i + 3, layout), d))
    for m in range(rows - alone, rows):
        a = nothing
        for n in range(columns):
            a = plus_scaled(a, patch[m, n], load(far, j0 + n, layout))
        store(onto, i0 + m, layout, plus(load(onto, i0 + m, layout), a))


@compiled
def _add_to_columns(patch, size, near, i0, onto, j0, layout):
    """Add a patch, transposed, times rows of W to the gradient of rows of H."""
    rows, columns = size
    alone = rows % BESIDE
    for m in range(0, rows - alone, BESIDE):
        i = i0 + m
        a, b = load(near, i, layout), load(near, i + 1, layout)
        c, d = load(near, i + 2, layout), load(near, i + 3, layout)
        for n in range(columns):
            total = load(onto, j0 + n, layout)
            total = plus_scaled(total, patch[m, n], a)
            total = plus_scaled(total, patch[m + 1, n], b)
            total = plus_scaled(total, patch[m + 2, n], c)
            total = plus_scaled(total, patch[m + 3, n], d)
            store(onto, j0 + n, layout, total)
    for m in range(rows - alone, rows):
        a = load(near, i0 + m, layout)
        for n in range(columns):
            total = load(onto, j0 + n, layout)
            store(onto, j0 + n, layout, plus_scaled(total, patch[m, n], a))


@compiled
def _copy(source, i0, j0, rows, columns, target):
    """Copy as much as is there, and zeros beside it."""
    if source is None:
        return
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            there = i < rows and j < columns
            target[i, j] = source[i0 + i, j0 + j] if there else 0
