"""Kernels on dense blocks, for any array-API namespace.

A block is worked through in tiles, so that the residual of a whole block never exists:
a tile is a product that stays in the processor's cache between the operations on it.
All candidates work on a tile before the next one is read. On NumPy and CuPy the tiles
are those of `dmf.kernels.tiles` and `dmf.kernels.cuda_tiles`, compiled (on NumPy they
are hardly ever written at all); this module has them for all other namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, is_cupy_namespace, is_numpy_namespace

from dmf.kernels.coordinates import descend_coordinates as descend_coordinates
from dmf.kernels.strips import PAIRS, row_dots
from dmf.kernels.strips import advance as advance
from dmf.kernels.strips import directions as directions
from dmf.sizes import Sized

Array = Any  # an array of any array-API namespace

# A tile that stays in a core's level-2 cache, but has enough rows to keep BLAS busy.
TILE_BYTES = 2 * 2**20
TILE_ROWS = (64, 1024)
# On a GPU, one that keeps all of it busy, and is little of its memory.
DEVICE_TILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class DenseBlock(Sized):
    """A dense block of X and what is observed of it.

    Parameters
    ----------
    values : array, shape (p, q)
        Finite everywhere; what stands where the weight is 0 doesn't matter. Factors are
        taken in its dtype.
    weights : array of bool or of the dtype of `values`, shape (p, q), or None
        The block's part of the mask M. None: everything is observed.
    """

    values: Array
    weights: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        p, q = self.values.shape
        return p, q

    @cached_property
    def empty(self) -> bool:
        """Whether nothing is observed, if that is known without waiting for a GPU."""
        if self.weights is None:
            return False
        xp = array_namespace(self.weights)
        return is_numpy_namespace(xp) and not xp.any(self.weights)


def gradient(
    block: DenseBlock, moving: Array, fixed: Array, axis: int
) -> tuple[Array, Array]:
    """Return the gradient of ½ Σ M (W H − X)² for the moving factor, and that loss.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    moving : array, shape (p, K, r) if ``axis=0`` else (q, K, r)
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}
        0 if the rows of `moving` belong to the rows of the block, 1 if to its columns.

    Returns
    -------
    gradient : array, shape of `moving`
    loss : array of float64, shape (K,)
    """
    xp = array_namespace(block.values)
    W, H = (moving, fixed) if axis == 0 else (fixed, moving)
    result = xp.zeros_like(moving)
    loss = xp.zeros(moving.shape[1], dtype=xp.float64)
    if block.empty:
        return result, loss
    if is_numpy_namespace(xp):
        from dmf.kernels import tiles

        tiles.gradient(block, moving, fixed, axis, result, loss)
        return result, loss
    for rows, columns, k, weighted, squares in _residuals(block, W, H):
        loss[k] += 0.5 * squares
        if axis == 0:
            result[rows, k, :] += weighted @ H[columns, k, :]
        else:
            result[columns, k, :] += weighted.T @ W[rows, k, :]
    return result, loss


def curvature(
    block: DenseBlock, moves: tuple[Array, ...], fixed: Array, axis: int
) -> Array:
    """Return the second derivatives of the loss along one or two moves, row by row.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    moves : tuple of one or two arrays, each of the shape of the moving factor
        The directions D (and S) in which the moving factor may go.
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}

    Returns
    -------
    array of float64, shape (rows of the moving factor, K, 1 or 3)
        Σ M (D F)² for each moving row, where F is the fixed factor; for two moves the
        last axis holds Σ M (D F)², Σ M (D F)(S F) and Σ M (S F)².
    """
    xp = array_namespace(block.values)
    shape = (block.shape[axis], fixed.shape[1], PAIRS[len(moves)])
    result = xp.zeros(shape, dtype=xp.float64)
    if block.empty:
        return result
    if block.weights is None:
        _add_complete_curvature(moves, fixed, result)
    else:
        compiled = _compiled_for(xp)
        add = _add_curvature if compiled is None else compiled.curvature
        add(block, moves, fixed, axis, result)
    return result


def product(block: DenseBlock, fixed: Array, axis: int) -> Array:
    """Return X F (for ``axis=1``: Xᵀ F), F the fixed factor.

    Where everything is observed, this and the fixed factor's Gram matrix are all that
    is needed of the data.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
        Everything is observed.
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}

    Returns
    -------
    array, shape (rows of the moving factor, K, r)
    """
    xp = array_namespace(block.values)
    values = block.values if axis == 0 else block.values.T
    # One product for all candidates: the block is read once.
    flat = xp.reshape(fixed, (fixed.shape[0], -1))
    return xp.reshape(values @ flat, (values.shape[0], *fixed.shape[1:]))


def gram(block: DenseBlock, fixed: Array, axis: int) -> Array:
    """Return Σ_j M_ij f_j f_jᵀ for each moving row i, f_j the rows of the fixed factor.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}

    Returns
    -------
    array of the dtype of `fixed`, shape (rows of the moving factor, K, r, r)
    """
    xp = array_namespace(block.values)
    length = block.shape[axis]
    others, candidates, rank = fixed.shape
    shape = (length, candidates, rank, rank)
    if block.weights is None:
        same = xp.permute_dims(fixed, (1, 2, 0)) @ xp.permute_dims(fixed, (1, 0, 2))
        return xp.asarray(xp.broadcast_to(same, shape), copy=True)
    weights = block.weights if axis == 0 else block.weights.T
    result = xp.zeros((length, candidates * rank * rank), dtype=fixed.dtype)
    step = max(1, TILE_BYTES // (candidates * rank * rank * 8))
    for rows in cuts(others, step):
        part = fixed[rows, :, :]
        outer = part[:, :, :, None] * part[:, :, None, :]
        outer = xp.reshape(outer, (outer.shape[0], -1))
        result += xp.astype(weights[:, rows], fixed.dtype) @ outer
    return xp.reshape(result, shape)


def errors(block: DenseBlock, W: Array, H: Array) -> Array:
    """Return Σ M (X − W H)² and Σ M |X − W H| for each candidate.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    W : array, shape (p, K, r)
    H : array, shape (q, K, r)
        Kept transposed, as everywhere inside dmf.

    Returns
    -------
    array of float64, shape (K, 2)
    """
    xp = array_namespace(block.values)
    result = xp.zeros((W.shape[1], 2), dtype=xp.float64)
    if block.empty:
        return result
    for _, _, k, weighted, squares in _residuals(block, W, H):
        result[k, 0] += squares
        result[k, 1] += _sum_of_sizes(xp, weighted)
    return result


def residuals(
    block: DenseBlock, W: Array, H: Array
) -> Iterator[tuple[Array, Array | None]]:
    """Go through the residuals X − W H of the observed entries, by tiles.

    Parameters
    ----------
    block : DenseBlock, shape (p, q)
    W : array, shape (p, r)
    H : array, shape (q, r)

    Yields
    ------
    residuals, weights : arrays, shape (k,)
        None: all weights are 1.
    """
    for rows in tiles(block):
        found = block.values[rows, :] - W[rows, :] @ H.T
        if block.weights is None:
            yield found.ravel(), None
            continue
        weights = block.weights[rows, :]
        observed = weights > 0
        yield found[observed], weights[observed]


def _residuals(
    block: DenseBlock, W: Array, H: Array
) -> Iterator[tuple[slice, slice, int, Array, Any]]:
    """Go through the tiles of a block, and through the candidates on each of them.

    Yields
    ------
    rows, columns : slices
    k : int
    weighted : array
        M (W H − X) on the tile, until the next one is asked for.
    squares : float64
        Σ M (W H − X)²
    """
    xp = array_namespace(block.values)
    compiled = _compiled_for(xp)
    if compiled is not None:
        yield from compiled.residuals(block, W, H)
        return
    for rows, k in _tiles_of_candidates(block, W):
        residual = W[rows, k, :] @ H[:, k, :].T - block.values[rows, :]
        weighted = _weigh(xp, residual, block.weights, rows)
        squares = xp.sum(weighted * residual, dtype=xp.float64)
        yield rows, slice(0, block.shape[1]), k, weighted, squares


def _compiled_for(xp: Any) -> Any:
    """Return the module with the compiled tiles of a namespace; None: it has none."""
    if is_numpy_namespace(xp):
        from dmf.kernels import tiles  # Numba takes longer to import than the rest

        return tiles
    if is_cupy_namespace(xp):
        from dmf.kernels import cuda_tiles

        return cuda_tiles
    return None


def _sum_of_sizes(xp: Any, tile: Array) -> Any:
    """Return Σ |T|, in float64."""
    if is_numpy_namespace(xp):
        from dmf.kernels import tiles

        return tiles.sum_of_sizes(tile)
    return xp.sum(xp.abs(tile), dtype=xp.float64)


def _add_curvature(
    block: DenseBlock, moves: tuple[Array, ...], fixed: Array, axis: int, result: Array
) -> None:
    xp = array_namespace(block.values)
    for rows, k in _tiles_of_candidates(block, fixed):
        # The block's rows are tiled: they belong to the moving factor or to the fixed.
        products = [
            move[rows, k, :] @ fixed[:, k, :].T
            if axis == 0
            else fixed[rows, k, :] @ move[:, k, :].T
            for move in moves
        ]
        own = rows if axis == 0 else slice(None)
        pair = 0
        for a, first in enumerate(products):
            weighted = _weigh(xp, first, block.weights, rows)
            for second in products[a:]:
                curved = xp.sum(weighted * second, axis=1 - axis, dtype=xp.float64)
                result[own, k, pair] += curved
                pair += 1


def _weigh(xp: Any, tile: Array, weights: Array | None, rows: slice) -> Array:
    """Return M * tile; the tile itself if everything is observed."""
    if weights is None:
        return tile
    weights = weights[rows, :]
    if weights.dtype == tile.dtype:
        return tile * weights
    return xp.where(weights, tile, xp.zeros_like(tile))


def _add_complete_curvature(
    moves: tuple[Array, ...], fixed: Array, result: Array
) -> None:
    """Where everything is observed, Σ (D F)² is D FᵀF D, and no tile is needed."""
    xp = array_namespace(fixed)

    def wide(factor: Array, rows: slice, k: int) -> Array:
        return xp.astype(factor[rows, k, :], xp.float64)

    rank = fixed.shape[2]
    for k in range(fixed.shape[1]):
        gram = xp.zeros((rank, rank), dtype=xp.float64)
        for rows in cuts(fixed.shape[0], TILE_ROWS[1]):
            part = wide(fixed, rows, k)
            gram += part.T @ part
        for rows in cuts(moves[0].shape[0], TILE_ROWS[1]):
            parts = [wide(move, rows, k) for move in moves]
            pair = 0
            for a, first in enumerate(parts):
                curved = first @ gram
                for second in parts[a:]:
                    result[rows, k, pair] = row_dots(xp, curved, second)
                    pair += 1


def tiles(block: DenseBlock) -> Iterator[slice]:
    """Cut the rows of a block into slices, each a tile."""
    p, q = block.shape
    smallest, largest = TILE_ROWS
    xp = array_namespace(block.values)
    row_bytes = max(1, q * xp.finfo(block.values.dtype).bits // 8)
    step = min(max(TILE_BYTES // row_bytes, smallest), largest)
    if is_cupy_namespace(xp):
        step = max(1, DEVICE_TILE_BYTES // row_bytes)
    yield from cuts(p, step)


def cuts(length: int, step: int) -> Iterator[slice]:
    """Cut a length into slices of a step, the last one shorter if need be."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _tiles_of_candidates(
    block: DenseBlock, factor: Array
) -> Iterator[tuple[slice, int]]:
    """Go through the tiles, and through the candidates on each of them."""
    for rows in tiles(block):
        for k in range(factor.shape[1]):
            yield rows, k
