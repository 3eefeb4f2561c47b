"""Kernels on sparse blocks: loops over the stored entries, compiled with Numba.

A stored entry is an observed one, an explicit zero too; what is not stored is missing,
not zero. One copy of the data, in compressed rows, serves both halves: moving W, an
entry adds to the row of W that is at hand; moving H, it adds to the row of H that its
column names. The loops hold no lock on the interpreter and are cached on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

# Sums over the rank may be reordered so that they vectorise; NaN and inf keep meaning.
_compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


@dataclass(frozen=True)
class SparseBlock:
    """A sparse block of X in compressed rows: what is stored is observed.

    Parameters
    ----------
    starts : array of int64, shape (p + 1,)
        Row i owns the entries ``starts[i]`` to ``starts[i + 1]``.
    columns : array of int32, shape (stored,)
    values : array, shape (stored,)
    weights : array of the dtype of `values`, shape (stored,), or None
        The mask's weights of the stored entries. None: all are 1.
    shape : (p, q)
    """

    starts: Array
    columns: Array
    values: Array
    weights: Array | None
    shape: tuple[int, int]


def gradient(
    block: SparseBlock, moving: Array, fixed: Array, axis: int
) -> tuple[Array, float]:
    """Return the gradient of ½ Σ M (W H − X)² for the moving factor, and that loss.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    moving : array, shape (p, r) if ``axis=0`` else (q, r)
    fixed : array, shape (q, r) if ``axis=0`` else (p, r)
    axis : {0, 1}
        0 if the rows of `moving` belong to the rows of the block, 1 if to its columns.

    Returns
    -------
    gradient : array, shape of `moving`
    loss : float
    """
    result = np.zeros_like(moving)
    entries = _entries(block)
    loss = _gradient(*entries, _frozen(moving), _frozen(fixed), axis, result)
    return result, float(loss)


def curvature(
    block: SparseBlock, moves: tuple[Array, ...], fixed: Array, axis: int
) -> Array:
    """Return the second derivatives of the loss along one or two moves, row by row.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
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
    starts, columns, _, weights = _entries(block)
    result = np.zeros((block.shape[axis], 1 if len(moves) == 1 else 3))
    function: Any = _curvature_line if len(moves) == 1 else _curvature_plane
    directions = (_frozen(move) for move in moves)
    function(starts, columns, weights, *directions, _frozen(fixed), axis, result)
    return result


def gram(block: SparseBlock, fixed: Array, axis: int) -> Array:
    """Return Σ_j M_ij f_j f_jᵀ for each moving row i, f_j the rows of the fixed factor.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    fixed : array, shape (q, r) if ``axis=0`` else (p, r)
    axis : {0, 1}

    Returns
    -------
    array of the dtype of `fixed`, shape (rows of the moving factor, r, r)
    """
    starts, columns, _, weights = _entries(block)
    rank = fixed.shape[1]
    result = np.zeros((block.shape[axis], rank, rank), dtype=fixed.dtype)
    _gram(starts, columns, weights, _frozen(fixed), axis, result)
    return result


def predict(block: SparseBlock, W: Array, H: Array) -> Array:
    """Return W H at the stored entries of the block, in their order.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    W : array, shape (p, r)
    H : array, shape (q, r)
        Kept transposed, as everywhere inside dmf.

    Returns
    -------
    array, shape (stored,)
    """
    result = np.empty(block.columns.shape, dtype=W.dtype)
    _predict(
        _frozen(block.starts), _frozen(block.columns), _frozen(W), _frozen(H), result
    )
    return result


def _entries(block: SparseBlock) -> tuple[Array, Array, Array, Array | None]:
    weights = None if block.weights is None else _frozen(block.weights)
    return _frozen(block.starts), _frozen(block.columns), _frozen(block.values), weights


def _frozen(array: Array) -> Array:
    """Return a contiguous read-only view: Numba compiles once instead of once for
    each mixture of writable inputs and of the read-only ones that a worker receives."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@_compiled
def _gradient(starts, columns, values, weights, moving, fixed, axis, result):
    loss = 0.0
    rank = moving.shape[1]
    zero = moving.dtype.type(0)
    for i in range(starts.size - 1):
        for k in range(starts[i], starts[i + 1]):
            m, f = (i, columns[k]) if axis == 0 else (columns[k], i)
            product = zero
            for s in range(rank):
                product += moving[m, s] * fixed[f, s]
            residual = product - values[k]
            weighted = residual
            if weights is not None:
                weighted = residual * weights[k]
            loss += np.float64(residual) * np.float64(weighted)
            for s in range(rank):
                result[m, s] += weighted * fixed[f, s]
    return 0.5 * loss


@_compiled
def _curvature_line(starts, columns, weights, first, fixed, axis, result):
    rank = first.shape[1]
    zero = first.dtype.type(0)
    for i in range(starts.size - 1):
        for k in range(starts[i], starts[i + 1]):
            m, f = (i, columns[k]) if axis == 0 else (columns[k], i)
            a = zero
            for s in range(rank):
                a += first[m, s] * fixed[f, s]
            weighted = np.float64(a)
            if weights is not None:
                weighted = weighted * weights[k]
            result[m, 0] += weighted * a


@_compiled
def _curvature_plane(starts, columns, weights, first, second, fixed, axis, result):
    rank = first.shape[1]
    zero = first.dtype.type(0)
    for i in range(starts.size - 1):
        for k in range(starts[i], starts[i + 1]):
            m, f = (i, columns[k]) if axis == 0 else (columns[k], i)
            a = zero
            b = zero
            for s in range(rank):
                a += first[m, s] * fixed[f, s]
                b += second[m, s] * fixed[f, s]
            weighted_a = np.float64(a)
            weighted_b = np.float64(b)
            if weights is not None:
                weighted_a = weighted_a * weights[k]
                weighted_b = weighted_b * weights[k]
            result[m, 0] += weighted_a * a
            result[m, 1] += weighted_a * b
            result[m, 2] += weighted_b * b


@_compiled
def _gram(starts, columns, weights, fixed, axis, result):
    rank = fixed.shape[1]
    for i in range(starts.size - 1):
        for k in range(starts[i], starts[i + 1]):
            m, f = (i, columns[k]) if axis == 0 else (columns[k], i)
            for s in range(rank):
                scaled = fixed[f, s]
                if weights is not None:
                    scaled = scaled * weights[k]
                for t in range(rank):
                    result[m, s, t] += scaled * fixed[f, t]


@_compiled
def _predict(starts, columns, W, H, result):
    zero = W.dtype.type(0)
    for i in range(starts.size - 1):
        for k in range(starts[i], starts[i + 1]):
            product = zero
            for s in range(W.shape[1]):
                product += W[i, s] * H[columns[k], s]
            result[k] = product
