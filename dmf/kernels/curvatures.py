"""The second derivatives of a tile's rows or columns along moves, as a compiled loop.

A patch of the products of one or two moves stays in registers until its squares are
summed: neither the products nor anything else as large as a tile is ever written.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

from llvmlite import ir
from numba import types

from dmf.kernels.registers import (
    ROWS,
    VECTORS,
    add_product,
    begin_of,
    check_dtypes,
    copy,
    lanes_of,
    operands,
    patch_of,
    shape_of,
    store_at,
    transpose,
    vector_at,
    weigher,
)
from dmf.kernels.vectors import compiled, intrinsic


@intrinsic
def _curvature_patch(typing, lefts, rights, h, weights, place, stride, sums, i, j):
    """Add the weighted squares of a patch, and products of two moves, to their sums.

    The rows at (i, j) of the tile begin at `place` in the weights, whose rows are
    `stride` apart. What `lefts`, `rights` and `sums` are: see `curvature`.
    """
    dtype = sums.dtype
    check_dtypes(dtype, weights)
    kind = weights.dtype
    lanes = lanes_of(dtype)
    by_row = sums.ndim == 3

    def generate(context, builder, signature, arguments):
        index = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(dtype), lanes)
        given = operands(context, builder, signature, arguments)
        left, right, h, M, place, stride, out, i, j = given
        height, width = ROWS // len(left), VECTORS // len(right)
        M = begin_of(builder, M, kind, place, stride, (height, width * lanes))
        _, patch = patch_of(builder, left, right, h, vector)
        # From the sums of one pair to those of the next.
        apart, to = shape_of(builder, out)[1], j
        if by_row:
            apart, to = builder.mul(apart, index(lanes)), builder.mul(i, index(lanes))
        start = builder.gep(out.data, [to])
        totals: dict[tuple[int, int], Any] = {}

        def place_of(pair, along):
            return builder.add(builder.mul(apart, index(pair)), index(along * lanes))

        for m in range(height):
            for v in range(width):
                at = builder.add(builder.mul(stride, index(m)), index(v * lanes))
                weigh = weigher(builder, M, at, kind, vector)
                # Of two moves, either the rows or the columns of the patch are shared.
                of_moves = [
                    weigh(row[u])
                    for row in patch[m::height]
                    for u in range(v, VECTORS, width)
                ]
                pairs = combinations_with_replacement(of_moves, 2)
                for pair, ((weighted, _), (_, product)) in enumerate(pairs):
                    key = pair, m if by_row else v
                    if key not in totals:
                        totals[key] = vector_at(builder, start, place_of(*key), vector)
                    old = totals[key]
                    totals[key] = add_product(builder, old, weighted, product)
        for key, total in totals.items():
            store_at(builder, start, place_of(*key), total)
        return context.get_dummy_value()

    names = lefts, rights, h, weights, place, stride, sums, i, j
    return types.void(*names), generate


@compiled
def curvature(
    lefts, rights, k, first, weights, i0, j0, rows, columns, corner, room, sums
):
    """Add the weighted squares of the products of a tile, and products of two moves.

    Parameters
    ----------
    lefts : tuple of arrays, shape (p, K, r)
        Those with rows for the tile's rows, from `first` on: the two moves or the fixed
        factor.
    rights : tuple of arrays, packed
        Those with rows for its columns: the fixed factor or the two moves. For one
        move, there is one of either.
    k, first : int
    weights : array
        Bools as bytes. The tile begins at (i0, j0).
    rows, columns : int
        Of the tile.
    corner : array
        Memory for the weights of a patch.
    room : tuple of arrays, shape (r, rows of a patch)
        Memory for the rows of `lefts`.
    sums : array, shape (pairs, rows, lanes) or (pairs, columns)
        For the rows of the tile, still to be summed over the last axis, or for its
        columns; as many as its patches have.
    """
    stride = weights.shape[1]
    _, groups, _, wide = rights[0].shape
    high = ROWS // len(lefts)
    for i in range(0, rows, high):
        for a in range(len(lefts)):
            transpose(lefts[a], k, first + i, first + rows, room[a])
        for h in range(groups):
            j = h * wide
            g = k * groups + h
            if i + high <= rows and j + wide <= columns:
                place = (i0 + i) * stride + j0 + j
                _curvature_patch(room, rights, g, weights, place, stride, sums, i, j)
            else:
                copy(weights, i0 + i, j0 + j, rows - i, columns - j, corner)
                _curvature_patch(room, rights, g, corner, 0, wide, sums, i, j)
