"""Kernels on sparse blocks: loops over the stored entries, compiled with Numba.

A stored entry is an observed one, an explicit zero too; what is not stored is missing,
or a zero with the weight α that the block carries. One copy of the data, in compressed
rows, serves both halves: moving W, an entry adds to the row of W that is at hand;
moving H, it adds to the row of H that its column names. The loops hold no lock on the
interpreter and are cached on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dmf.kernels.coordinates import descend_coordinates as descend_coordinates

Array = NDArray[Any]

# Candidates that go through the entries together, and the fewest that are worth it for
# each 64 bytes of a row: empty lanes cost as much as full ones, and long rows, eight at
# a time, leave the cache where those of one candidate stay in it.
TOGETHER = 8
FEWEST = 4

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
    unobserved : float
        The weight α of what isn't stored. The kernels leave the term α/2 Σ (W H)² over
        *all* entries to Gram matrices, and take its share of the stored ones back.
    """

    starts: Array
    columns: Array
    values: Array
    weights: Array | None
    shape: tuple[int, int]
    unobserved: float = 0.0


def gradient(
    block: SparseBlock, moving: Array, fixed: Array, axis: int
) -> tuple[Array, Array]:
    """Return the gradient of ½ Σ M (W H − X)² − α/2 Σ (W H)², and that loss.

    Both sums go over the stored entries; α is the block's `unobserved`.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    moving : array, shape (p, K, r) if ``axis=0`` else (q, K, r)
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}
        0 if the rows of `moving` belong to the rows of the block, 1 if to its columns.

    Returns
    -------
    gradient : array, shape of `moving`
    loss : array of float64, shape (K,)
    """
    entries, alpha = _entries(block), _alpha(block, moving.dtype)
    parts = []
    for group in _groups(moving):
        factors = moving[:, group], fixed[:, group]
        if factors[0].shape[1] > 1:
            from dmf.kernels import lanes

            parts.append(lanes.gradient(entries, alpha, *factors, axis))
            continue
        result = np.zeros_like(factors[0])
        D, F = (_frozen(factor[:, 0]) for factor in factors)
        loss = _gradient(*entries, alpha, D, F, axis, result[:, 0])
        parts.append((result, np.array([loss])))
    gradients, losses = zip(*parts, strict=True)
    return _joined(gradients), np.concatenate(losses)


def curvature(
    block: SparseBlock, moves: tuple[Array, ...], fixed: Array, axis: int
) -> Array:
    """Return the second derivatives of `gradient`'s loss along one or two moves.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    moves : tuple of one or two arrays, each of the shape of the moving factor
        The directions D (and S) in which the moving factor may go.
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}

    Returns
    -------
    array of float64, shape (rows of the moving factor, K, 1 or 3)
        Σ (M − α)(D F)² for each moving row, where F is the fixed factor; for two moves
        the last axis holds the sums of (D F)², (D F)(S F) and (S F)².
    """
    entries, alpha = _entries(block), _alpha(block, np.dtype(np.float64))
    starts, columns, _, weights = entries
    function: Any = _curvature_line if len(moves) == 1 else _curvature_plane
    parts = []
    for group in _groups(fixed):
        *own, F = (factor[:, group] for factor in (*moves, fixed))
        length, candidates = block.shape[axis], F.shape[1]
        if candidates > 1:
            from dmf.kernels import lanes

            directions = tuple(own)
            parts.append(lanes.curvature(entries, alpha, directions, F, axis, length))
            continue
        result = np.zeros((length, 1, 1 if len(moves) == 1 else 3))
        factors = [_frozen(factor[:, 0]) for factor in (*own, F)]
        function(starts, columns, weights, alpha, *factors, axis, result[:, 0])
        parts.append(result)
    return _joined(parts)


def product(block: SparseBlock, fixed: Array, axis: int) -> Array:
    """Return X F (for ``axis=1``: Xᵀ F), F the fixed factor.

    Where what isn't stored is an observed zero, this and the fixed factor's Gram matrix
    are all that is needed of the data.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
        Without weights.
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}

    Returns
    -------
    array, shape (rows of the moving factor, K, r)
    """
    starts, columns, values, _ = _entries(block)
    result = _stack((block.shape[axis], *fixed.shape[1:]), fixed.dtype)
    for F, P in zip(_each(fixed), result, strict=True):
        _product(starts, columns, values, F, axis, P)
    return _unstacked(result)


def gram(block: SparseBlock, fixed: Array, axis: int) -> Array:
    """Return Σ_j (M_ij − α) f_j f_jᵀ for each moving row i, over its stored entries j.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    fixed : array, shape (q, K, r) if ``axis=0`` else (p, K, r)
    axis : {0, 1}

    Returns
    -------
    array of the dtype of `fixed`, shape (rows of the moving factor, K, r, r)
    """
    starts, columns, _, weights = _entries(block)
    rank = fixed.shape[2]
    shape = (block.shape[axis], fixed.shape[1], rank, rank)
    result = _stack(shape, fixed.dtype)
    alpha = _alpha(block, fixed.dtype)
    for F, G in zip(_each(fixed), result, strict=True):
        _gram(starts, columns, weights, alpha, F, axis, G)
    return _unstacked(result)


def errors(block: SparseBlock, W: Array, H: Array) -> Array:
    """Return Σ M (X − W H)² and Σ M |X − W H| for each candidate.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    W : array, shape (p, K, r)
    H : array, shape (q, K, r)
        Kept transposed, as everywhere inside dmf.

    Returns
    -------
    array of float64, shape (K, 2)
    """
    entries = _entries(block)
    pairs = zip(_each(W), _each(H), strict=True)
    return np.array([_errors(*entries, *pair) for pair in pairs])


def _entries(block: SparseBlock) -> tuple[Array, Array, Array, Array | None]:
    weights = None if block.weights is None else _frozen(block.weights)
    return _frozen(block.starts), _frozen(block.columns), _frozen(block.values), weights


def _alpha(block: SparseBlock, dtype: Any) -> Any:
    """Return α, or None for 0: Numba then compiles loops that know nothing of it."""
    return dtype.type(block.unobserved) if block.unobserved else None


def _each(factor: Array) -> list[Array]:
    """Return the candidates of a factor, each contiguous: the loops run one by one.

    The copies are small beside the entries, and each candidate's rows lie close enough
    to stay in the cache. One candidate alone is not copied.
    """
    return [_frozen(factor[:, k]) for k in range(factor.shape[1])]


def _groups(factor: Array) -> list[slice]:
    """Return which candidates go through the entries together, and which alone."""
    _, candidates, rank = factor.shape
    fewest = max(FEWEST, math.ceil(FEWEST * rank * factor.dtype.itemsize / 64))
    groups = []
    for start in range(0, candidates, TOGETHER):
        stop = min(start + TOGETHER, candidates)
        step = stop - start if stop - start >= fewest else 1
        groups += [slice(k, k + step) for k in range(start, stop, step)]
    return groups


def _joined(parts: Sequence[Array]) -> Array:
    """Return the results of the groups as one array; a single one isn't copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _stack(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros for a result of this shape, the candidates (axis 1) first."""
    return np.zeros((shape[1], shape[0], *shape[2:]), dtype=dtype)


def _unstacked(result: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(result, 0, 1))


def _frozen(array: Array) -> Array:
    """Return a contiguous read-only view: Numba compiles once instead of once for
    each mixture of writable inputs and of the read-only ones that a worker receives."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@_compiled
def _gradient(starts, columns, values, weights, alpha, moving, fixed, axis, result):
    rank = moving.shape[1]
    zero = moving.dtype.type(0)
    squares = 0.0
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            predicted = zero
            for s in range(rank):
                predicted += moving[m, s] * fixed[f, s]
            residual = predicted - values[e]
            weighted = residual
            if weights is not None:
                weighted = residual * weights[e]
            squares += np.float64(residual) * np.float64(weighted)
            if alpha is not None:
                shrunk = alpha * predicted
                squares -= np.float64(shrunk) * np.float64(predicted)
                weighted -= shrunk
            for s in range(rank):
                result[m, s] += weighted * fixed[f, s]
    return 0.5 * squares


@_compiled
def _curvature_line(starts, columns, weights, alpha, first, fixed, axis, result):
    rank = first.shape[1]
    zero = first.dtype.type(0)
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            a = zero
            for s in range(rank):
                a += first[m, s] * fixed[f, s]
            weighted = np.float64(a)
            if weights is not None:
                weighted = weighted * weights[e]
            if alpha is not None:
                weighted -= alpha * a
            result[m, 0] += weighted * a


@_compiled
def _curvature_plane(
    starts, columns, weights, alpha, first, second, fixed, axis, result
):
    rank = first.shape[1]
    zero = first.dtype.type(0)
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            a = zero
            b = zero
            for s in range(rank):
                a += first[m, s] * fixed[f, s]
                b += second[m, s] * fixed[f, s]
            weighted_a = np.float64(a)
            weighted_b = np.float64(b)
            if weights is not None:
                weighted_a = weighted_a * weights[e]
                weighted_b = weighted_b * weights[e]
            if alpha is not None:
                weighted_a -= alpha * a
                weighted_b -= alpha * b
            result[m, 0] += weighted_a * a
            result[m, 1] += weighted_a * b
            result[m, 2] += weighted_b * b


@_compiled
def _product(starts, columns, values, fixed, axis, result):
    rank = fixed.shape[1]
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            for s in range(rank):
                result[m, s] += values[e] * fixed[f, s]


@_compiled
def _gram(starts, columns, weights, alpha, fixed, axis, result):
    rank = fixed.shape[1]
    one = fixed.dtype.type(1)
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            weight = one
            if weights is not None:
                weight = weights[e]
            if alpha is not None:
                weight = weight - alpha
            for s in range(rank):
                scaled = weight * fixed[f, s]
                for t in range(rank):
                    result[m, s, t] += scaled * fixed[f, t]


@_compiled
def _errors(starts, columns, values, weights, W, H):
    rank = W.shape[1]
    zero = W.dtype.type(0)
    squares = 0.0
    sizes = 0.0
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            predicted = zero
            for s in range(rank):
                predicted += W[i, s] * H[columns[e], s]
            residual = np.float64(predicted - values[e])
            weighted = residual
            if weights is not None:
                weighted = residual * weights[e]
            squares += weighted * residual
            sizes += abs(weighted)
    return squares, sizes
