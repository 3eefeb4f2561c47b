"""Dense kernels on NumPy blocks, tile by tile, with loops compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.kernels.curvatures import curvature as add_curvature
from dmf.kernels.dense import cuts
from dmf.kernels.registers import ROWS, VECTOR_BYTES, VECTORS, add_packed, pack
from dmf.kernels.residuals import residual
from dmf.kernels.vectors import compiled, frozen, in_lines, unchanging

Array = NDArray[Any]

# A tile has few enough rows that float32 may sum its columns. It has as many columns as
# leave their rows of H in a core's level-2 cache while all its rows pass by.
TILE_ROWS = 480
TILE_COLUMNS = 1920
TILE_BYTES_OF_H = 2**20
# Where the residual is written, it stays there too.
WRITTEN_ROWS = 96
# So many terms float32 may sum.
SUM_TERMS = 512


def gradient(
    block: Any, moving: Array, fixed: Array, axis: int, result: Array, loss: Array
) -> None:
    """Write what `dmf.kernels.dense.gradient` returns into zeros."""
    dtype, rank = block.values.dtype, moving.shape[2]
    group, lanes = _group(dtype), _lanes(dtype)
    W, H = (fixed, moving) if axis else (moving, fixed)
    patch = np.empty((ROWS, group), dtype)
    beside: dict[int, Array] = {}  # for each candidate
    for rows, columns, k, form in _formed(block, W, H, TILE_ROWS):
        p, q = rows.stop - rows.start, _up(columns.stop - columns.start, group)
        if axis:
            sums = in_lines(np.zeros, (q // group, rank, group), dtype)
            loss[k] += 0.5 * form(None, None, sums)
            add_packed(sums, result[columns, k])
            continue
        if rows.start == 0:
            beside[k] = _padded(H[columns, k], (q, _up(rank, lanes)), dtype)
        sums = in_lines(np.zeros, (_up(p, ROWS), _up(rank, lanes)), dtype)
        loss[k] += 0.5 * form(patch, beside[k], sums)
        result[rows, k] += sums[:p, :rank]


def residuals(
    block: Any, W: Array, H: Array
) -> Iterator[tuple[slice, slice, int, Array, float]]:
    """Go through the tiles of a block: what `dmf.kernels.dense` yields of them.

    The weighted residual is good until the next tile is asked for.
    """
    group = _group(block.values.dtype)
    out = None
    for rows, columns, k, form in _formed(block, W, H, WRITTEN_ROWS):
        p, q = rows.stop - rows.start, columns.stop - columns.start
        if out is None:  # the first tile is the largest
            out = np.empty((_up(p, ROWS), _up(q, group)), block.values.dtype)
        squares = form(out, None, None)
        yield rows, columns, k, out[:p, :q], squares


def _formed(
    block: Any, W: Array, H: Array, height: int
) -> Iterator[tuple[slice, slice, int, Callable[..., float]]]:
    """Go through the tiles of a block, and through the candidates on each of them.

    Yields rows, columns, k, and `residual` with all that it has to know of them.
    """
    dtype = block.values.dtype
    group = _group(dtype)
    W = frozen(W)
    loops: Any = residual
    parts = _parts(block)
    # Where rows or columns are too few, they are copied, with zeros beside them.
    corner = tuple(
        None if part is None else np.zeros((ROWS, group), part.dtype) for part in parts
    )
    shape = height, _columns(H.shape[2], dtype)
    for rows, columns, data, place in _tiles(block.shape, parts, shape):
        size = rows.stop - rows.start, columns.stop - columns.start
        if rows.start == 0:
            right = _packed(H, columns, group, dtype)
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
    lefts, rights = (moves, (fixed,)) if axis == 0 else ((fixed,), moves)
    lefts = tuple(frozen(left) for left in lefts)
    dtype, rank = block.values.dtype, fixed.shape[2]
    lanes = _lanes(dtype)
    height, width = ROWS // len(lefts), _group(dtype) // len(rights)
    room = tuple(np.empty((rank, height), dtype) for _ in lefts)
    ones = np.ones(lanes, dtype)
    totals = np.zeros(result.shape[::-1])  # along vectors, not across
    loops: Any = add_curvature
    _, mask = _parts(block)
    shape = TILE_ROWS, _columns(rank, dtype)
    for rows, columns, (weights,), place in _tiles(block.shape, (mask,), shape):
        p, q = rows.stop - rows.start, columns.stop - columns.start
        if rows.start == 0:
            packed = tuple(_packed(right, columns, width, dtype) for right in rights)
            corner = np.empty((height, width), weights.dtype)
        for k in range(fixed.shape[1]):
            tile = lefts, packed, k, rows.start, weights, *place, p, q, corner, room
            if axis == 0:
                sums = np.zeros((len(totals), _up(p, height), lanes), dtype)
                loops(*tile, sums)
                totals[:, k, rows] += (sums @ ones)[:, :p]  # sum(axis=2) is slow
            else:
                sums = np.zeros((len(totals), _up(q, width)), dtype)
                loops(*tile, sums)
                totals[:, k, columns] += sums[:, :q]
    result[...] = totals.T


def _tiles(
    whole_shape: tuple[int, int],
    parts: tuple[Array | None, ...],
    shape: tuple[int, int],
) -> Iterator[tuple[slice, slice, Any, tuple[int, int]]]:
    """Cut parts of a block in both directions: yield rows, columns, the parts, and
    where in them the tile lies.

    One part of the columns is done before the next begins: its rows of H stay in the
    cache, and what is fetched ahead is the tile below.
    """
    # What isn't contiguous is copied, a tile at a time.
    whole = all(part is None or part.flags.c_contiguous for part in parts)
    data = _frozen(parts) if whole else ()
    p, q = whole_shape
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


def _packed(factor: Array, rows: slice, width: int, dtype: Any) -> Array:
    """Return rows of a factor (length, K, r) as (K, groups, r, width): in each group
    `width` of them lie side by side, those that the last one lacks being zeros."""
    groups = -(-(rows.stop - rows.start) // width)
    result = np.empty((factor.shape[1], groups, factor.shape[2], width), dtype)
    pack(unchanging(factor), rows.start, rows.stop, result)
    return frozen(result)


def _padded(rows: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """Return an array with zeros beside and below what is there."""
    result = in_lines(np.zeros, shape, dtype)
    result[: rows.shape[0], : rows.shape[1]] = rows
    return frozen(result)


def _columns(rank: int, dtype: Any) -> int:
    """Return the columns of a tile."""
    # For a gradient their rows of H are there twice: packed, and as they are.
    fit = TILE_BYTES_OF_H // (2 * rank * int(np.dtype(dtype).itemsize))
    group = _group(dtype)
    return min(TILE_COLUMNS, max(fit // group, 1) * group)


def _group(dtype: Any) -> int:
    """Return the columns of a patch."""
    return VECTORS * _lanes(dtype)


def _lanes(dtype: Any) -> int:
    """Return how many numbers a vector holds."""
    return VECTOR_BYTES // int(np.dtype(dtype).itemsize)


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
