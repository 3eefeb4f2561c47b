"""The residual of a tile, and its products with either factor, as one compiled loop.

Patch after patch, the residual is formed in registers. The product with rows of W is
taken of it there: its lanes are columns. For that with rows of H, it is written into
memory that stays in the innermost cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from dmf.kernels.registers import (
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    Operand,
    Values,
    add_at,
    add_product,
    begin_of,
    check_dtypes,
    copy,
    lanes_of,
    operands,
    patch_of,
    products,
    put,
    shape_of,
    store_at,
    transpose,
    vector_at,
    weigher,
)
from dmf.kernels.vectors import compiled, intrinsic, spread


@intrinsic
def _residual_patch(
    typing, left, right, h, values, weights, place, stride, out, onto, to, totals
):
    """Form ROWS rows and a group of columns of M (W H − X); add to Σ M (W H − X)².

    They are written into `out`, or, if that is None, their product with the rows of W
    is added `onto` those of a packed factor; both at `to`, counted from the beginning.
    So is the place in `values` and `weights`; `stride` is the distance between two of
    their rows. The sum goes to `totals`, one float64 for each lane of a vector.
    """
    dtype = right.dtype
    check_dtypes(dtype, weights)
    kind = getattr(weights, "dtype", None)
    lanes = lanes_of(dtype)
    group = VECTORS * lanes
    written = isinstance(out, types.Array)

    def generate(context, builder, signature, arguments):
        index = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(dtype), lanes)
        given = operands(context, builder, signature, arguments)
        left, right, h, X, M, place, stride, out, onto, to, totals = given
        shape = ROWS, group
        X = begin_of(builder, X, dtype, place, stride, shape)
        M = kind and begin_of(builder, M, kind, place, stride, shape)
        rank, patch = patch_of(builder, [left], [right], h, vector)
        total = ir.Constant(vector, None)
        for m, row in enumerate(patch):
            for v, product in enumerate(row):
                at = builder.add(builder.mul(stride, index(m)), index(v * lanes))
                difference = builder.fsub(product, vector_at(builder, X, at, vector))
                row[v], difference = weigher(builder, M, at, kind, vector)(difference)
                total = add_product(builder, total, row[v], difference)
        wide = ir.VectorType(ir.DoubleType(), lanes)
        if total.type != wide:
            total = builder.fpext(total, wide)
        add_at(builder, totals.data, index(0), total)
        if written:
            start = builder.gep(out.data, [to])
            put(builder, store_at, patch, start, shape_of(builder, out)[1])
        else:
            start = builder.gep(onto.data, [to])
            _add_to_columns(builder, rank, left.data, patch, start)
        return context.get_dummy_value()

    names = left, right, h, values, weights, place, stride, out, onto, to, totals
    return types.void(*names), generate


def _add_to_columns(
    builder: Any, rank: Any, left: Any, patch: Values, onto: Any
) -> None:
    """Write the loop over the rank that adds a patch times the rows of W, as they lie
    in `left`, to packed rows of the other factor."""
    index = ir.IntType(64)
    vector = patch[0][0].type
    with cgutils.for_range(builder, rank) as loop:
        row_of_left = builder.gep(left, [builder.mul(loop.index, index(ROWS))])
        group = VECTORS * vector.count
        start = builder.gep(onto, [builder.mul(loop.index, index(group))])
        places = [index(v * vector.count) for v in range(VECTORS)]
        totals = [vector_at(builder, start, place, vector) for place in places]
        for m, row in enumerate(patch):
            factor = builder.load(builder.gep(row_of_left, [index(m)]))
            factor = spread(builder, factor, vector)
            pairs = zip(totals, row, strict=True)
            totals = [add_product(builder, t, factor, part) for t, part in pairs]
        put(builder, store_at, [totals], start, index(group))


def _adder_to_rows(vectors: int) -> Any:
    """Return what adds a patch times rows of H to so many vectors of rows of W."""

    @intrinsic
    def add(typing, patch, beside, j, onto, i, s):
        dtype = patch.dtype
        lanes = lanes_of(dtype)

        def generate(context, builder, signature, arguments):
            index = ir.IntType(64)
            vector = ir.VectorType(context.get_value_type(dtype), lanes)
            given = operands(context, builder, signature, arguments)
            patch, H, j, onto, i, s = given
            width = shape_of(builder, H)[1]

            def start(array, row):
                at = builder.add(builder.mul(row, width), s)
                return builder.gep(array.data, [at])

            group = index(VECTORS * lanes)
            rows = Operand(patch.data, ROWS, index(1), group)
            columns = Operand(start(H, j), vectors, width, index(lanes))
            found = products(builder, group, [rows], [columns], vector)
            put(builder, add_at, found, start(onto, i), width)
            return context.get_dummy_value()

        return types.void(patch, beside, j, onto, i, s), generate

    return add


_add_two_vectors, _add_one_vector = _adder_to_rows(2), _adder_to_rows(1)


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
):
    """Form M (W H − X) of a tile; return Σ M (W H − X)².

    `first` is the tile's first row of W; (i0, j0) is where it lies in the values and
    weights (bools as bytes). `right` holds its rows of H, packed; `corner` is memory
    for ROWS rows of a group of values and of weights.

    The residual is written into `out`, as large as the patches of the tile. Or, if that
    is None, its product with the rows of W is added `onto` packed rows, which lie as
    those of one candidate in `right`. Or, if `out` is memory for a patch, its product
    with the rows of H `beside` it is added `onto` rows of W. These have as many rows as
    patches have, and as many numbers as vectors have: zeros where there is nothing.
    """
    _, groups, rank, group = right.shape
    stride = values.shape[1]
    left = np.empty((rank, ROWS), right.dtype)
    totals = np.zeros(VECTOR_BYTES // right.itemsize)
    some_values, some_weights = corner
    for i in range(0, rows, ROWS):
        transpose(W, k, first + i, first + rows, left)
        for h in range(groups):
            j = h * group
            g = k * groups + h
            if out is None:
                to = h * rank * group
            elif beside is None:
                to = i * out.shape[1] + j
            else:
                to = 0
            if i + ROWS <= rows and j + group <= columns:
                place = (i0 + i) * stride + j0 + j
                # Written out: Numba counts references to what a tuple holds.
                _residual_patch(
                    left,
                    right,
                    g,
                    values,
                    weights,
                    place,
                    stride,
                    out,
                    onto,
                    to,
                    totals,
                )
            else:
                there = i0 + i, j0 + j, rows - i, columns - j
                copy(values, *there, some_values)
                copy(weights, *there, some_weights)
                _residual_patch(
                    left,
                    right,
                    g,
                    some_values,
                    some_weights,
                    0,
                    group,
                    out,
                    onto,
                    to,
                    totals,
                )
            if beside is not None:
                lanes = group // VECTORS
                for s in range(0, beside.shape[1] - lanes, group):
                    _add_two_vectors(out, beside, j, onto, i, s)
                if beside.shape[1] % group:
                    _add_one_vector(out, beside, j, onto, i, beside.shape[1] - lanes)
    return totals.sum()
