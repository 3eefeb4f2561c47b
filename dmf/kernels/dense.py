"""Kernels on dense blocks, for any array-API namespace.

A block is worked through in tiles of rows, so that the residual of a whole block never
exists: a tile is a product of a few hundred rows that stays in the processor's cache
between the operations on it. On NumPy the tiles share one scratch buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, is_cupy_namespace, is_numpy_namespace

Array = Any  # an array of any array-API namespace

# A tile that stays in a core's level-2 cache, but has enough rows to keep BLAS busy.
TILE_BYTES = 2 * 2**20
TILE_ROWS = (64, 1024)
# Columns whose products float32 may sum.
SUM_COLUMNS = 4096


@dataclass(frozen=True)
class DenseBlock:
    """A dense block of X and what is observed of it.

    Parameters
    ----------
    values : array, shape (p, q)
        The observed values; 0 where nothing is observed.
    weights : array of bool or of the dtype of `values`, shape (p, q), or None
        The block's part of the mask M. None: everything is observed.
    """

    values: Array
    weights: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        p, q = self.values.shape
        return p, q


def gradient(
    block: DenseBlock, moving: Array, fixed: Array, axis: int
) -> tuple[Array, float]:
    """Return the gradient of ½ Σ M (W H − X)² for the moving factor, and that loss.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    moving : array, shape (p, r) if ``axis=0`` else (q, r)
    fixed : array, shape (q, r) if ``axis=0`` else (p, r)
    axis : {0, 1}
        0 if the rows of `moving` belong to the rows of the block, 1 if to its columns.

    Returns
    -------
    gradient : array, shape of `moving`
    loss : float
    """
    xp = array_namespace(block.values)
    W, H = (moving, fixed) if axis == 0 else (fixed, moving)
    scratch = _Scratch(xp)
    result = xp.zeros_like(moving)
    loss = xp.zeros((), dtype=xp.float64)
    for rows in tiles(block):
        residual = scratch.product(0, W[rows, :], H)
        residual -= block.values[rows, :]
        weighted = scratch.weigh(1, residual, block.weights, rows)
        loss += xp.sum(_row_sums(xp, weighted, residual))
        if axis == 0:
            result[rows, :] = weighted @ H
        else:
            result += weighted.T @ W[rows, :]
    return result, 0.5 * float(loss)


def curvature(
    block: DenseBlock, moves: tuple[Array, ...], fixed: Array, axis: int
) -> Array:
    """Return the second derivatives of the loss along one or two moves, row by row.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    moves : tuple of one or two arrays, each of the shape of the moving factor
        The directions D (and S) in which the moving factor may go.
    fixed : array, shape (q, r) if ``axis=0`` else (p, r)
    axis : {0, 1}

    Returns
    -------
    array of float64, shape (rows of the moving factor, 1 or 3)
        Σ M (D F)² for each moving row, where F is the fixed factor; for two moves the
        columns are Σ M (D F)², Σ M (D F)(S F) and Σ M (S F)².
    """
    xp = array_namespace(block.values)
    scratch = _Scratch(xp)
    result = xp.zeros((block.shape[axis], PAIRS[len(moves)]), dtype=xp.float64)
    for rows in tiles(block):
        # The block's rows are tiled: they belong to the moving factor or to the fixed.
        products = [
            scratch.product(k, move[rows, :], fixed)
            if axis == 0
            else scratch.product(k, fixed[rows, :], move)
            for k, move in enumerate(moves)
        ]
        column = 0
        for a, first in enumerate(products):
            weighted = scratch.weigh(2, first, block.weights, rows)
            for second in products[a:]:
                if axis == 0:
                    result[rows, column] = _row_sums(xp, weighted, second)
                else:
                    sums = xp.sum(scratch.multiply(3, weighted, second), axis=0)
                    result[:, column] += xp.astype(sums, xp.float64)
                column += 1
    return result


def gram(block: DenseBlock, fixed: Array, axis: int) -> Array:
    """Return Σ_j M_ij f_j f_jᵀ for each moving row i, f_j the rows of the fixed factor.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    fixed : array, shape (q, r) if ``axis=0`` else (p, r)
    axis : {0, 1}

    Returns
    -------
    array of the dtype of `fixed`, shape (rows of the moving factor, r, r)
    """
    xp = array_namespace(block.values)
    length, rank = block.shape[axis], fixed.shape[1]
    if block.weights is None:
        return xp.broadcast_to(fixed.T @ fixed, (length, rank, rank))
    weights = block.weights if axis == 0 else block.weights.T
    result = xp.zeros((length, rank * rank), dtype=fixed.dtype)
    step = max(1, TILE_BYTES // (rank * rank * 8))
    for start in range(0, fixed.shape[0], step):
        rows = slice(start, min(start + step, fixed.shape[0]))
        part = fixed[rows, :]
        outer = xp.reshape(part[:, :, None] * part[:, None, :], (-1, rank * rank))
        result += xp.astype(weights[:, rows], fixed.dtype) @ outer
    return xp.reshape(result, (length, rank, rank))


def predict(block: DenseBlock, W: Array, H: Array) -> Array:
    """Return W H for every entry of the block, observed or not.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    W : array, shape (p, r)
    H : array, shape (q, r)
        Kept transposed, as everywhere inside dmf.

    Returns
    -------
    array, shape (p, q)
    """
    return W @ H.T


# Moves -> how many second derivatives a plane of so many moves has.
PAIRS = {1: 1, 2: 3}


def _row_sums(xp: Any, left: Array, right: Array) -> Array:
    """Return the sums of left * right over each row, in float64.

    BLAS sums float32 in float32: it gets a few thousand columns at a time.
    """
    p, q = left.shape
    sums = xp.zeros(p, dtype=xp.float64)
    for start in range(0, q, SUM_COLUMNS):
        columns = slice(start, min(start + SUM_COLUMNS, q))
        part = xp.vecdot(left[:, columns], right[:, columns])
        sums += xp.astype(part, xp.float64)
    return sums


def tiles(block: DenseBlock) -> Iterator[slice]:
    """Cut the rows of a block into slices, each a tile."""
    p, q = block.shape
    smallest, largest = TILE_ROWS
    xp = array_namespace(block.values)
    row_bytes = max(1, q * xp.finfo(block.values.dtype).bits // 8)
    step = min(max(TILE_BYTES // row_bytes, smallest), largest)
    for start in range(0, p, step):
        yield slice(start, min(start + step, p))


class _Scratch:
    """Buffers that the tiles of one kernel call share.

    A fresh 2 MB array for every tile costs more in page faults than the arithmetic on
    it. NumPy and CuPy write into given memory (`out=`), which the array API standard
    leaves out; other namespaces allocate.
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._reuse = is_numpy_namespace(xp) or is_cupy_namespace(xp)
        self._buffers: dict[int, Array] = {}

    def product(self, slot: int, left: Array, right: Array) -> Array:
        """Return left @ right.T."""
        if not self._reuse:
            return left @ right.T
        out = self._buffer(slot, (left.shape[0], right.shape[0]), left)
        return self._xp.matmul(left, right.T, out=out)

    def multiply(self, slot: int, left: Array, right: Array) -> Array:
        """Return left * right."""
        if not self._reuse:
            return left * right
        out = self._buffer(slot, left.shape, left)
        return self._xp.multiply(left, right, out=out)

    def weigh(
        self, slot: int, tile: Array, weights: Array | None, rows: slice
    ) -> Array:
        """Return M * tile; the tile itself if everything is observed."""
        if weights is None:
            return tile
        weights = weights[rows, :]
        if self._reuse or weights.dtype == tile.dtype:
            return self.multiply(slot, tile, weights)
        return self._xp.where(weights, tile, self._xp.zeros_like(tile))

    def _buffer(self, slot: int, shape: tuple[int, ...], like: Array) -> Array:
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.shape[0] < shape[0]:
            buffer = self._xp.empty_like(like, shape=shape)
            self._buffers[slot] = buffer
        return buffer[: shape[0]]
