"""Kernels on sparse blocks: passes over the stored entries.

A stored entry is an observed one, an explicit zero too; what is not stored is missing,
or a zero with the weight α that the block carries. One copy of the data, in compressed
rows, serves both halves: moving W, an entry adds to the row of W that is at hand, in
registers; moving H, it adds to the row of H that its column names.

Candidates pass over the entries one after the other: the rows of one of them stay in
the cache, those of all of them would not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.kernels import passes
from dmf.kernels.coordinates import descend_coordinates as descend_coordinates
from dmf.kernels.dense import cuts
from dmf.kernels.selection import picked
from dmf.kernels.strips import PAIRS
from dmf.kernels.strips import advance as advance
from dmf.kernels.strips import directions as directions
from dmf.kernels.vectors import (
    frozen,
    in_lines,
    layout_of,
    moved_to_lines,
    shortest_row,
)
from dmf.sizes import Sized

Array = NDArray[Any]

# Residuals that are handed over at once.
PART = 2**16


@dataclass(frozen=True)
class SparseBlock(Sized):
    """A sparse block of X in compressed rows: what is stored is observed.

    Its entries are kept panel after panel of columns: see `dmf.kernels.panels`.

    Parameters
    ----------
    starts : array of int64, shape (panels * p + 1,)
        In panel k, row i owns the entries from ``starts[k * p + i]`` to the next start.
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

    def part(self, chosen: Array | None, panels: int = 1) -> SparseBlock:
        """Return the chosen entries (None: all) of a block in plain rows, in panels."""
        assert len(self.starts) == self.shape[0] + 1
        if chosen is not None and np.all(chosen):
            chosen = None
        if chosen is None and panels == 1:
            return self
        ends = self.shape[1] * np.arange(1, panels + 1) // panels
        found = picked(
            self.starts, self.columns, self.values, self.weights, chosen, ends
        )
        return SparseBlock(*found, self.shape, self.unobserved)

    def for_device(self) -> Any:  # what kernels on a GPU work with: see `dmf.device`
        from dmf.kernels.cuda import CudaBlock

        return CudaBlock.of(self)


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
    width = moving.shape[2]
    result = _results(moving.shape, moving.dtype)
    loss = np.zeros(moving.shape[1])
    movings, fixeds = _each(moving, far=axis == 1), _each(fixed, far=axis == 0)
    pairs = zip(movings, fixeds, result, strict=True)
    for k, (D, F, G) in enumerate(pairs):
        layout = layout_of(G.shape[1], G.dtype)
        if axis == 0:
            loss[k] = passes.gradient(*entries, alpha, D, F, G, None, layout)
        else:
            loss[k] = passes.gradient(*entries, alpha, F, D, None, G, layout)
    return _stacked(result, width), loss


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
    rows, starts, columns, _, weights = _entries(block)
    entries = rows, starts, columns, weights, _alpha(block, np.dtype(np.float64))
    pairs = PAIRS[len(moves)]
    result = np.zeros((fixed.shape[1], block.shape[axis], pairs))
    first, *more = (_each(move, far=axis == 1) for move in moves)
    second = more[0] if more else [None] * len(first)
    fixeds = _each(fixed, far=axis == 0)
    for D, S, F, C in zip(first, second, fixeds, result, strict=True):
        layout = layout_of(F.shape[1], F.dtype)
        if axis == 0:
            passes.curvature(*entries, D, S, F, None, C, None, layout)
        else:
            passes.curvature(*entries, F, None, D, S, None, C, layout)
    return _stacked(result, pairs)


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
    rows, starts, columns, values, _ = _entries(block)
    width = fixed.shape[2]
    result = _results((block.shape[axis], *fixed.shape[1:]), fixed.dtype)
    for F, P in zip(_each(fixed, far=axis == 0), result, strict=True):
        layout = layout_of(P.shape[1], P.dtype)
        if axis == 0:
            passes.product(rows, starts, columns, values, F, P, None, layout)
        else:
            passes.product(rows, starts, columns, values, F, None, P, layout)
    return _stacked(result, width)


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
    rows, starts, columns, _, weights = _entries(block)
    rank = fixed.shape[2]
    shape = fixed.shape[1], block.shape[axis], rank, rank
    result = np.zeros(shape, dtype=fixed.dtype)
    alpha = _alpha(block, fixed.dtype)
    for k, G in enumerate(result):
        passes.gram(rows, starts, columns, weights, alpha, frozen(fixed[:, k]), axis, G)
    return _stacked(result, rank)


def errors(block: SparseBlock, W: Array, H: Array) -> Array:
    """Return Σ M (X − W H)² and Σ M |X − W H| for each candidate.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    W, H : arrays, shapes (p, K, r) and (q, K, r)

    Returns
    -------
    array of float64, shape (K, 2)
    """
    sums = np.zeros((W.shape[1], 2))
    for k, total in enumerate(sums):
        for residual, weights in residuals(block, W[:, k], H[:, k]):
            residual = residual.astype(np.float64)
            weighted = residual if weights is None else weights * residual
            total += weighted @ residual, np.abs(weighted).sum()
    return sums


def residuals(
    block: SparseBlock, W: Array, H: Array
) -> Iterator[tuple[Array, Array | None]]:
    """Go through the residuals X − W H of the stored entries, a few at a time.

    Parameters
    ----------
    block : SparseBlock, shape (p, q)
    W : array, shape (p, r)
    H : array, shape (q, r)

    Yields
    ------
    residuals, weights : arrays, shape (k,)
        None: all weights are 1.
    """
    (near,) = _each(W[:, None], far=False)
    (far,) = _each(H[:, None], far=True)
    rows, starts, columns, values, weights = _entries(block)
    found = np.empty(len(values), np.result_type(values, near))
    layout = layout_of(near.shape[1], near.dtype)
    passes.residuals(rows, starts, columns, values, near, far, found, layout)
    for part in cuts(len(found), PART):
        yield found[part], None if weights is None else weights[part]


def _entries(block: SparseBlock) -> tuple[int, Array, Array, Array, Array | None]:
    """Return what loops go through: the number of rows, and their entries."""
    weights = None if block.weights is None else frozen(block.weights)
    # As unsigned numbers, without a copy: `dmf.kernels.passes` says why.
    starts, columns = frozen(block.starts.view(np.uint64)), frozen(block.columns)
    return block.shape[0], starts, columns, frozen(block.values), weights


def _alpha(block: SparseBlock, dtype: Any) -> Any:
    """Return α, or None for 0: Numba then compiles loops that know nothing of it."""
    return dtype.type(block.unobserved) if block.unobserved else None


def _each(factor: Array, *, far: bool) -> list[Array]:
    """Return the candidates of a factor, each contiguous, with rows of one vector at
    least; those whose rows are asked for in any order, `far`, begin on a cache line.

    One candidate alone is copied if its rows are too short; and if it is far and wasn't
    made here, or came through a socket.
    """
    missing = shortest_row(factor.dtype) - factor.shape[2]
    if missing > 0:
        factor = np.pad(factor, ((0, 0), (0, 0), (0, missing)))
    each = (factor[:, k] for k in range(factor.shape[1]))
    return [frozen(moved_to_lines(one) if far else one) for one in each]


def _results(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros for a factor of this shape, the candidates (axis 1) first."""
    length, candidates, width = shape
    whole = candidates, length, max(width, shortest_row(dtype))
    return in_lines(np.zeros, whole, dtype)


def _stacked(result: Array, width: int) -> Array:
    """Return results with the candidates back in axis 1, without what padded rows."""
    return np.ascontiguousarray(np.swapaxes(result, 0, 1)[..., :width])
