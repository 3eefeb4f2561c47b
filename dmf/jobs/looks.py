"""What is seen of a block of X and its predictions: sums, for findings to add up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from dmf.kernels import kernels_for
from dmf.kernels.dense import DenseBlock
from dmf.observed import observe
from dmf.totals import Totals
from dmf.validation import working_dtype

Array = Any

PICTURE = 64  # rows and columns of the picture, at most
# Missing cells: how many are looked at closely, and are drawn from all cells.
SAMPLE = 2000
DRAWN = 2**18


@dataclass(frozen=True)
class Seen:
    """What the first look sees of a part of X.

    Parameters
    ----------
    rows, columns : dict of int to array
        The observed entries of each row (column), by where the strip begins.
    picture : array of int, shape (at most 64, at most 64)
        The observed entries of each of its cells.
    residuals : Totals
    drawn : array of int
        Which of the cells that were drawn are missing here.
    """

    rows: dict[int, Array]
    columns: dict[int, Array]
    picture: Array
    residuals: Totals
    drawn: Array

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            _joined(self.rows, other.rows),
            _joined(self.columns, other.columns),
            self.picture + other.picture,
            self.residuals + other.residuals,
            # The first ones suffice, and are the same for any blocks.
            np.sort(np.concatenate([self.drawn, other.drawn]))[: 2 * SAMPLE],
        )

    def counts(self, axis: int) -> Array:
        """Return the observed entries of all rows (columns)."""
        strips = (self.rows, self.columns)[axis]
        return np.concatenate([strips[start] for start in sorted(strips)])


@dataclass(frozen=True)
class SeenCloser:
    """What the second look sees of a part of X.

    Parameters
    ----------
    edges : array, shape (bins + 1,)
    sizes : array of int, shape (bins,)
        The residuals between them.
    curvatures : (dict of int to array, dict of int to array)
        Σ_j M_ij h_j h_jᵀ for rows i that are asked for, and the same for columns.
    """

    edges: Array
    sizes: Array
    curvatures: tuple[dict[int, Array], dict[int, Array]]

    def __add__(self, other: SeenCloser) -> SeenCloser:
        of_W, of_H = map(_joined, self.curvatures, other.curvatures)
        return SeenCloser(self.edges, self.sizes + other.sizes, (of_W, of_H))


def _joined(one: dict[int, Array], other: dict[int, Array]) -> dict[int, Array]:
    both = {key: one[key] + other[key] for key in one.keys() & other.keys()}
    return one | other | both


def look(
    X: Array,
    mask: Array | None,
    W: Array,
    H: Array,
    origin: tuple[int, int],
    *,
    shape: tuple[int, int],
    seed: int,
) -> Seen:
    seen = observe(X, mask, working_dtype(X.dtype), origin)
    totals = Totals()
    for residuals, weights in _kernels(seen.block).residuals(seen.block, W, H):
        totals = totals + Totals.of(residuals, weights)
    rows, columns = seen.counts
    return Seen(
        {origin[0]: rows},
        {origin[1]: columns},
        _picture(seen.block, origin, shape),
        totals,
        _missing_of(seen.block, origin, *drawn(shape, seed)),
    )


def look_closer(
    X: Array,
    mask: Array | None,
    W: Array,
    H: Array,
    origin: tuple[int, int],
    *,
    edges: Array,
    cells: tuple[Array, Array],
    unobserved: float,
) -> SeenCloser:
    block = observe(X, mask, working_dtype(X.dtype), origin, again=True).block
    sizes = np.zeros(len(edges) - 1, dtype=np.int64)
    for residuals, _ in _kernels(block).residuals(block, W, H):
        sizes += np.histogram(residuals, edges)[0]
    curvatures = []
    for axis, other in ((0, H), (1, W)):
        start, stop = origin[axis], origin[axis] + block.shape[axis]
        own = cells[axis][(cells[axis] >= start) & (cells[axis] < stop)]
        M = _weights(block, axis, own - start)
        stack = _curvatures(M, other.astype(np.float64), unobserved)
        curvatures.append(dict(zip(own.tolist(), stack, strict=True)))
    return SeenCloser(edges, sizes, (curvatures[0], curvatures[1]))


def _kernels(block: Any) -> Any:
    return kernels_for("dense" if isinstance(block, DenseBlock) else "sparse")


def _weights(block: Any, axis: int, own: Array) -> Any:
    """Return M of some rows (columns) of a block, as compressed rows."""
    if isinstance(block, DenseBlock):
        full = np.broadcast_to(True, block.shape)
        M = np.take(full if block.weights is None else block.weights, own, axis)
        return sp.csr_array(M.T if axis else M)
    M = _mask_of(block)
    return M[:, own].T.tocsr() if axis else M[own]


def _mask_of(block: Any) -> Any:
    """Return M of a sparse block, as compressed rows."""
    weights = block.weights
    if weights is None:
        weights = np.ones(len(block.values), dtype=bool)
    return sp.csr_array((weights, block.columns, block.starts), shape=block.shape)


def _curvatures(M: Any, H: Array, unobserved: float) -> Array:
    """Return Σ_j M_ij h_j h_jᵀ for each row i of M; what is 0 in it weighs α."""
    width = H.shape[1]
    result = np.zeros((M.shape[0], width, width))
    everything = unobserved * (H.T @ H) if unobserved else 0.0
    for i in range(M.shape[0]):
        own = slice(M.indptr[i], M.indptr[i + 1])
        seen = H[M.indices[own]]
        weights = M.data[own].astype(np.float64) - unobserved
        # Without weights it is symmetric, and BLAS computes half of it.
        left = seen.T if np.all(weights == 1) else seen.T * weights
        result[i] = everything + left @ seen
    return result


def _picture(block: Any, origin: tuple[int, int], shape: tuple[int, int]) -> Array:
    """Return the observed entries of a block by the cells of the picture."""
    sides = [min(PICTURE, length) for length in shape]
    rows, columns = (
        (start + np.arange(own)) * side // length
        for start, own, side, length in zip(
            origin, block.shape, sides, shape, strict=True
        )
    )
    own_rows, row_starts = np.unique(rows, return_index=True)
    own_columns, column_starts = np.unique(columns, return_index=True)
    if isinstance(block, DenseBlock):
        observed = np.broadcast_to(True, block.shape)
        if block.weights is not None:
            observed = block.weights > 0
        summed = np.add.reduceat(observed, row_starts, axis=0, dtype=np.int64)
    else:
        ends = block.starts[[*row_starts, -1]]
        parts = (block.columns[slice(*pair)] for pair in pairwise(ends))
        counted = [np.bincount(part, minlength=block.shape[1]) for part in parts]
        summed = np.array(counted).reshape(-1, block.shape[1])
    picture = np.zeros(sides, dtype=np.int64)
    summed = np.add.reduceat(summed, column_starts, axis=1)
    picture[np.ix_(own_rows, own_columns)] = summed
    return picture


def drawn(shape: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Return cells of X in random order: all of them, or many where X is large."""
    entries = math.prod(shape)
    rng = np.random.default_rng(seed)
    if entries <= DRAWN:
        places = rng.permutation(entries)
    else:
        places = rng.integers(entries, size=DRAWN)
    rows, columns = np.divmod(places, shape[1])
    return rows, columns


def _missing_of(
    block: Any, origin: tuple[int, int], rows: Array, columns: Array
) -> Array:
    """Return which of some cells are in a block, and missing."""
    p, q = block.shape
    i, j = rows - origin[0], columns - origin[1]
    inside = np.flatnonzero((i >= 0) & (i < p) & (j >= 0) & (j < q))
    complete = isinstance(block, DenseBlock) and block.weights is None
    if complete or not len(inside):
        return inside[:0]
    M: Any = block.weights if isinstance(block, DenseBlock) else _mask_of(block)
    return inside[M[i[inside], j[inside]] == 0]
