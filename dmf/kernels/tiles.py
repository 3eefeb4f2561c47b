"""Dense kernels on NumPy blocks, tile by tile, with loops compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.kernels.dense import cuts
from dmf.kernels.registers import (
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    VECTORS_BESIDE,
    pack,
    residual,
)
from dmf.kernels.vectors import compiled, frozen, in_lines, layout_of, shortest_row

Array = NDArray[Any]

# A tile of 0.7 MB: it shares a core's level-2 cache with its rows of H and with what is
# fetched ahead. From some rank on, BLAS needs more rows, because it copies those of H
# for each tile. All are multiples of what the registers hold.
TILE_ROWS = (96, 240)
MORE_ROWS_FROM_RANK = 64
TILE_ROW_BYTES = 7680
# Where both products are done patch by patch, no tile has to stay in a cache; but of so
# many rows float32 may sum the columns.
LONG_TILE = 480
# So many terms float32 may sum.
SUM_TERMS = 512


def suits(block: Any, moving: Array, fixed: Array) -> bool:
    """Return whether `gradient` does it, faster than with BLAS."""
    shortest = shortest_row(moving.dtype)
    alike: bool = moving.dtype == fixed.dtype == block.values.dtype
    return alike and shortest <= moving.shape[2] <= VECTORS_BESIDE * shortest


def gradient(
    block: Any, moving: Array, fixed: Array, axis: int, result: Array, loss: Array
) -> None:
    """Write what `dmf.kernels.dense.gradient` returns into zeros.

    Both products are done here.
    """
    W, H = (fixed, moving) if axis else (moving, fixed)
    _, candidates, rank = moving.shape
    layout = layout_of(rank, moving.dtype)
    factors = [frozen(fixed[:, k]) for k in range(candidates)]
    patch = np.empty((ROWS, _group(moving.dtype)), moving.dtype)
    shape = LONG_TILE, TILE_ROW_BYTES // moving.itemsize
    for rows, columns, k, form in _formed(block, W, H, shape):
        own, across = (columns, rows) if axis else (rows, columns)
        sums = in_lines(np.zeros, (own.stop - own.start, rank), moving.dtype)
        loss[k] += 0.5 * form(patch, factors[k][across], sums, axis, layout)
        result[own, k] += sums


def residuals(
    block: Any, W: Array, H: Array
) -> Iterator[tuple[slice, slice, int, Array, float]]:
    """Go through the tiles of a block: what `dmf.kernels.dense` yields of them.

    The weighted residual is good until the next tile is asked for.
    """
    group = _group(H.dtype)
    out = None
    for rows, columns, k, form in _formed(block, W, H, _shape(W)):
        p, q = rows.stop - rows.start, columns.stop - columns.start
        if out is None:  # the first tile is the largest
            out = np.empty((_up(p, ROWS), _up(q, group)), H.dtype)
        squares = form(out, None, None, 0, None)
        yield rows, columns, k, out[:p, :q], squares


def _formed(
    block: Any, W: Array, H: Array, shape: tuple[int, int]
) -> Iterator[tuple[slice, slice, int, Callable[..., float]]]:
    """Go through the tiles of a block, and through the candidates on each of them.

    Yields rows, columns, k, and `residual` with all that it has to know of them.
    """
    group = _group(block.values.dtype)
    W, H = frozen(W), frozen(H)
    loops: Any = residual
    # Where rows or columns are too few, they are copied, with zeros beside them.
    corner = tuple(
        None if part is None else np.zeros((ROWS, group), part.dtype)
        for part in _parts(block)
    )
    for rows, columns, data, place in _tiles(block, shape):
        size = rows.stop - rows.start, columns.stop - columns.start
        if rows.start == 0:
            right = _packed(H, columns, group)
        for k in range(W.shape[1]):
            tile = (W, right, k, rows.start, *data, *place, *size, corner)
            yield rows, columns, k, partial(loops, *tile)


def sum_of_sizes(tile: Array) -> float:
    """Return Σ |T| of a tile."""
    return float(_sizes(tile))


def curvature(
    block: Any, moves: tuple[Array, ...], fixed: Array, axis: int, result: Array
) -> None:
    """Write what `dmf.kernels.dense.curvature` returns into zeros."""
    # A product of two moves and their sums would need more registers than there are:
    # BLAS multiplies, and one loop takes all sums of what it left in the cache.
    loops: Any = _row_curvature if axis == 0 else _column_curvature
    sums = np.zeros(result.shape[::-1])  # along vectors, not across
    scratch = [np.empty(0, fixed.dtype) for _ in moves]
    for rows, columns, (_, weights), place in _tiles(block, _shape(fixed)):
        own, across = (rows, columns) if axis == 0 else (columns, rows)
        shape = rows.stop - rows.start, columns.stop - columns.start
        size = shape[0] * shape[1]
        if scratch[0].size < size:
            scratch = [np.empty(size, fixed.dtype) for _ in moves]
        for k in range(fixed.shape[1]):
            products = []
            for move, buffer in zip(moves, scratch, strict=True):
                pair = move[own, k], fixed[across, k]
                left, right = pair if axis == 0 else pair[::-1]
                out = buffer[:size].reshape(shape)
                products.append(np.matmul(left, right.T, out=out))
            second = products[1] if len(products) > 1 else None
            loops(products[0], second, weights, *place, sums[:, k, own])
    result[...] = sums.T


def _tiles(
    block: Any, shape: tuple[int, int]
) -> Iterator[tuple[slice, slice, Any, tuple[int, int]]]:
    """Cut a block in both directions: yield rows, columns, an array of the values and
    one of the weights, and where in them the tile lies.

    One part of the columns is done before the next begins: its rows of H stay in the
    cache, and what is fetched ahead is the tile below.
    """
    parts = _parts(block)
    # What isn't contiguous is copied, a tile at a time.
    whole = all(part is None or part.flags.c_contiguous for part in parts)
    data = _frozen(parts) if whole else ()
    p, q = block.shape
    for columns in cuts(q, shape[1]):
        for rows in cuts(p, shape[0]):
            if whole:
                yield rows, columns, data, (rows.start, columns.start)
                continue
            tile = [None if part is None else part[rows, columns] for part in parts]
            yield rows, columns, _frozen(tile), (0, 0)


def _parts(block: Any) -> tuple[Array, Array | None]:
    """Return the values and the weights; bools as bytes."""
    weights = block.weights
    if weights is not None and weights.dtype == bool:
        weights = weights.view(np.uint8)
    return block.values, weights


def _frozen(parts: Iterable[Array | None]) -> tuple[Array | None, ...]:
    return tuple(None if part is None else frozen(part) for part in parts)


def _packed(factor: Array, rows: slice, width: int) -> Array:
    """Return rows of a factor (length, K, r) as (K, groups, r, width): in each group
    `width` of them lie side by side, those that the last one lacks being zeros."""
    groups = -(-(rows.stop - rows.start) // width)
    result = np.empty((factor.shape[1], groups, factor.shape[2], width), factor.dtype)
    pack(factor, rows.start, rows.stop, result)
    return frozen(result)


def _shape(factor: Array) -> tuple[int, int]:
    """Return the rows and columns of a tile that BLAS multiplies."""
    height = TILE_ROWS[factor.shape[2] >= MORE_ROWS_FROM_RANK]
    return height, TILE_ROW_BYTES // factor.itemsize


def _group(dtype: Any) -> int:
    """Return the columns of a patch."""
    return VECTORS * VECTOR_BYTES // int(np.dtype(dtype).itemsize)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


@compiled
def _sizes(tile):
    total = 0.0
    for i in range(tile.shape[0]):
        for start in range(0, tile.shape[1], SUM_TERMS):
            total += _sizes_of(tile[i, start : start + SUM_TERMS])
    return total


@compiled
def _sizes_of(terms):
    total = terms.dtype.type(0)
    for j in range(terms.size):
        total += abs(terms[j])
    return total


@compiled
def _row_curvature(first, second, weights, i0, j0, result):
    n = first.shape[1]
    for i in range(first.shape[0]):
        for start in range(0, n, SUM_TERMS):
            stop = min(start + SUM_TERMS, n)
            a = first[i, start:stop]
            b = a if second is None else second[i, start:stop]
            m = weights[i0 + i, j0 + start : j0 + stop]
            if second is None:
                result[0, i] += _weighted_square(a, m)
                continue
            aa, ab, bb = _weighted_products(a, b, m)
            result[0, i] += aa
            result[1, i] += ab
            result[2, i] += bb


@compiled
def _weighted_square(a, m):
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j] * a[j] * a.dtype.type(m[j])
    return total


@compiled
def _weighted_products(a, b, m):
    zero = a.dtype.type(0)
    aa, ab, bb = zero, zero, zero
    for j in range(a.size):
        weighted_a = a[j] * a.dtype.type(m[j])
        weighted_b = b[j] * a.dtype.type(m[j])
        aa += weighted_a * a[j]
        ab += weighted_a * b[j]
        bb += weighted_b * b[j]
    return aa, ab, bb


@compiled
def _column_curvature(first, second, weights, i0, j0, result):
    n = first.shape[1]
    sums = np.empty((result.shape[0], SUM_TERMS), first.dtype)
    for start in range(0, n, SUM_TERMS):
        stop = min(start + SUM_TERMS, n)
        sums[...] = 0
        for i in range(first.shape[0]):
            a = first[i, start:stop]
            m = weights[i0 + i, j0 + start : j0 + stop]
            _add_weighted(a, a, m, sums[0])
            if second is not None:
                b = second[i, start:stop]
                _add_weighted(a, b, m, sums[1])
                _add_weighted(b, b, m, sums[2])
        for pair in range(result.shape[0]):
            for j in range(stop - start):
                result[pair, start + j] += sums[pair, j]


# All three at once are too many arrays for LLVM to tell apart, and aren't vectorised.
@compiled
def _add_weighted(a, b, m, total):
    for j in range(a.size):
        total[j] += a[j] * b[j] * a.dtype.type(m[j])
