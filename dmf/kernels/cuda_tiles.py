"""Dense kernels on blocks in the memory of a GPU, tile by tile.

CuPy multiplies; what is done to a product, which is a tile, are kernels that read it
once. A warp goes along a part of a row or, for sums of columns, down parts of some.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from array_api_compat import array_namespace
from numba import cuda

from dmf.kernels import lanes
from dmf.kernels.dense import tiles
from dmf.kernels.strips import PAIRS

Array = Any

# Columns, or rows, that a warp goes through.
PART = 512


class Kernels(NamedTuple):
    """The compiled kernels for tiles of one dtype."""

    residual: Any
    row_curvature: Any
    column_curvature: Any


def residuals(
    block: Any, W: Array, H: Array
) -> Iterator[tuple[slice, slice, int, Array, Array]]:
    """Go through the tiles of a block: what `dmf.kernels.dense` yields of them.

    The weighted residual is good until the next tile is asked for.
    """
    xp = array_namespace(block.values)
    everywhere = slice(0, block.shape[1])
    buffer = None
    for rows, values, weights in _tiles(block):
        for k in range(W.shape[1]):
            tile = buffer = _product(xp, W[rows, k, :], H[:, k, :], buffer)
            sums = xp.empty(
                (tile.shape[0], -(-tile.shape[1] // PART)), dtype=xp.float64
            )
            _launch("residual", sums.size, tile, values, weights, sums)
            yield rows, everywhere, k, tile, xp.sum(sums)


def curvature(
    block: Any, moves: tuple[Array, ...], fixed: Array, axis: int, result: Array
) -> None:
    """Add what `dmf.kernels.dense.curvature` returns to zeros."""
    xp = array_namespace(block.values)
    buffers: list[Any] = [None] * len(moves)
    pairs = PAIRS[len(moves)]
    for rows, values, weights in _tiles(block):
        p, q = values.shape
        for k in range(fixed.shape[1]):
            # The block's rows are tiled: they belong to the moving factor or to the
            # fixed one.
            for number, move in enumerate(moves):
                left, right = (move, fixed) if axis == 0 else (fixed, move)
                buffers[number] = _product(
                    xp, left[rows, k, :], right[:, k, :], buffers[number]
                )
            second = buffers[1] if len(moves) == 2 else None
            if axis == 0:
                name, own, shape = "row_curvature", rows, (p, -(-q // PART))
                warps = p * shape[1]
            else:
                name, own, shape = "column_curvature", slice(None), (q, -(-p // PART))
                warps = -(-q // lanes.WARP) * shape[1]
            sums = xp.empty((pairs, *shape), dtype=xp.float64)
            _launch(name, warps, buffers[0], second, weights, sums)
            result[own, k, :] += xp.sum(sums, axis=-1).T


def _tiles(block: Any) -> Iterator[tuple[slice, Array, Array | None]]:
    """Go through the tiles, with their values and weights, bools as bytes."""
    weights = block.weights
    if weights is not None and weights.dtype == bool:
        weights = weights.view(np.uint8)
    for rows in tiles(block):
        yield rows, block.values[rows], None if weights is None else weights[rows]


def _product(xp: Any, left: Array, right: Array, buffer: Array | None) -> Array:
    """Return left @ right.T, in a buffer that has room for it."""
    shape = left.shape[0], right.shape[0]
    if buffer is None or buffer.shape[0] < shape[0]:
        buffer = xp.empty(shape, dtype=left.dtype)
    return xp.matmul(left, right.T, out=buffer[: shape[0]])


def _launch(name: str, warps: int, tile: Array, *arguments: Any) -> None:
    kernels = kernels_of(np.dtype(tile.dtype), lanes.WARP)
    lanes.launch(getattr(kernels, name), warps, 1, tile, *arguments)


@lru_cache
def kernels_of(dtype: np.dtype[Any], warp: int) -> Kernels:
    """Return the kernels for tiles of one dtype, and warps of so many lanes."""
    number = numba.from_dtype(dtype)
    gather = lanes.tools_of(lanes.Layout(warp, warp, 1, True), dtype).gather
    jit, inlined, this_warp = lanes.jit, lanes.inlined, lanes.this_warp

    @inlined
    def weigh(weights, i, j, value):
        if weights is None:
            return value
        return value * number(weights[i, j])

    @inlined
    def add_products(first, second, weights, i, j, total):
        """Add M a², M a b and M b² of an entry."""
        a = first[i, j]
        weighted = numba.float64(weigh(weights, i, j, a))
        total[0] += weighted * numba.float64(a)
        if second is not None:
            b = numba.float64(second[i, j])
            total[1] += weighted * b
            total[2] += numba.float64(weigh(weights, i, j, second[i, j])) * b

    @jit
    def residual(tile, values, weights, sums):
        s, lane = this_warp(), cuda.threadIdx.x
        if s >= sums.size:
            return
        i, part = s // sums.shape[1], s % sums.shape[1]
        stop = min((part + 1) * PART, tile.shape[1])
        total = cuda.local.array(1, numba.float64)
        total[0] = 0.0
        for j in range(part * PART + lane, stop, warp):
            found = tile[i, j] - values[i, j]
            weighted = weigh(weights, i, j, found)
            tile[i, j] = weighted
            total[0] += numba.float64(found) * numba.float64(weighted)
        gather(total, 1)
        if lane == 0:
            sums[i, part] = total[0]

    @jit
    def row_curvature(first, second, weights, sums):
        s, lane = this_warp(), cuda.threadIdx.x
        _, rows, parts = sums.shape
        count = 1 if second is None else 3
        if s >= rows * parts:
            return
        i, part = s // parts, s % parts
        stop = min((part + 1) * PART, first.shape[1])
        total = cuda.local.array(3, numba.float64)
        for c in range(3):
            total[c] = 0.0
        for j in range(part * PART + lane, stop, warp):
            add_products(first, second, weights, i, j, total)
        gather(total, count)
        if lane == 0:
            for c in range(count):
                sums[c, i, part] = total[c]

    @jit
    def column_curvature(first, second, weights, sums):
        s, lane = this_warp(), cuda.threadIdx.x
        _, columns, parts = sums.shape
        count = 1 if second is None else 3
        j, part = s // parts * warp + lane, s % parts
        if j >= columns:
            return
        stop = min((part + 1) * PART, first.shape[0])
        total = cuda.local.array(3, numba.float64)
        for c in range(3):
            total[c] = 0.0
        for i in range(part * PART, stop):
            add_products(first, second, weights, i, j, total)
        for c in range(count):
            sums[c, j, part] = total[c]

    return Kernels(residual, row_curvature, column_curvature)
