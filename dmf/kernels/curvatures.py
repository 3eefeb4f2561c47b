"""The second derivatives of a tile's rows or columns along moves, as a compiled loop.

A patch of the products of one or two moves stays in registers until its squares are
summed: neither the products nor anything else as large as a tile is ever written.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from dmf.kernels.registers import (
    ROWS,
    VECTORS,
    Operand,
    add_at,
    add_product,
    array_of,
    copy,
    lanes_of,
    prefetch_rows,
    products,
    shape_of,
    transpose,
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
    if weights.dtype not in (types.uint8, dtype):
        msg = f"M is {weights.dtype}, but the factors are {dtype}"
        raise TypingError(msg)
    lanes = lanes_of(dtype)
    by_row = sums.ndim == 3

    def generate(context, builder, signature, arguments):
        index = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(dtype), lanes)

        def array(position):
            kind = signature.args[position]
            return array_of(context, builder, kind, arguments[position])

        def arrays(position):
            kind = signature.args[position].dtype
            parts = cgutils.unpack_tuple(builder, arguments[position])
            return [array_of(context, builder, kind, part) for part in parts]

        left, right = arrays(0), arrays(1)
        height, width = ROWS // len(left), VECTORS // len(right)
        rank = shape_of(builder, left[0])[0]
        begin = builder.mul(arguments[2], builder.mul(rank, index(width * lanes)))
        M = builder.gep(array(3).data, [arguments[4]])
        size = width * lanes * weights.dtype.bitwidth // 8
        prefetch_rows(builder, M, arguments[5], range(height, 2 * height), size)
        rows = [Operand(part.data, height, index(height), index(1)) for part in left]
        starts = [builder.gep(part.data, [begin]) for part in right]
        step, apart = index(width * lanes), index(lanes)
        columns = [Operand(start, width, step, apart) for start in starts]
        patch = products(builder, rank, rows, columns, vector)
        out = array(6)
        # From the sums of one pair to those of the next.
        apart, to = shape_of(builder, out)[1], arguments[8]
        if by_row:
            apart = builder.mul(apart, index(lanes))
            to = builder.mul(arguments[7], index(lanes))
        totals: dict[tuple[int, int], Any] = {}
        for m in range(height):
            for v in range(width):
                at = builder.mul(arguments[5], index(m))
                at = builder.add(at, index(v * lanes))
                weigh = weigher(builder, M, at, weights.dtype, vector)
                # Of two moves, either the rows or the columns of the patch are shared.
                of_moves = [
                    weigh(row[u])
                    for row in patch[m::height]
                    for u in range(v, VECTORS, width)
                ]
                pair = 0
                for a, (weighted, _) in enumerate(of_moves):
                    for _, product in of_moves[a:]:
                        key = pair, m if by_row else v
                        old = totals.get(key, ir.Constant(vector, None))
                        totals[key] = add_product(builder, old, weighted, product)
                        pair += 1
        for (pair, along), total in totals.items():
            at = builder.add(builder.mul(apart, index(pair)), index(along * lanes))
            add_at(builder, out.data, builder.add(to, at), total)
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
                _curvature_patch(
                    room, rights, g, corner, 0, corner.shape[1], sums, i, j
                )
