"""Kernels on sparse blocks in the memory of a GPU.

They do what those of `dmf.kernels.sparse` do. A block is kept twice, in compressed rows
and in compressed columns, so that both halves of a round gather: whoever works on a row
of the moving factor reads the rows of the fixed one that its entries name, and nobody
else writes to it. A *segment* of a row is the work of a warp; only where a row is so
long that it has several do their warps meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from scipy.sparse import csr_array

from dmf.kernels import warps
from dmf.kernels.coordinates import descend_coordinates as descend_coordinates
from dmf.kernels.lanes import launch, layout_for
from dmf.kernels.strips import PAIRS
from dmf.kernels.strips import advance as advance
from dmf.kernels.strips import directions as directions
from dmf.sizes import Sized

if TYPE_CHECKING:
    from dmf.kernels.sparse import SparseBlock

Array = Any

# Entries of a segment at most: rows with more are shared by several warps.
SEGMENT = 512


class Half(NamedTuple):
    """A block as one half of a round reads it: by the rows of the moving factor.

    Parameters
    ----------
    owners : array of int32, shape (segments,)
        The row that each segment belongs to; those of a row follow each other.
    starts : array of int64, shape (segments + 1,)
        Segment s has the entries ``starts[s]`` to ``starts[s + 1]``.
    others : array of int32, shape (stored,)
        The row of the fixed factor that each entry names.
    values : array, shape (stored,)
    weights : array of the dtype of `values`, shape (stored,), or None
    """

    owners: Array
    starts: Array
    others: Array
    values: Array
    weights: Array | None


@dataclass(frozen=True)
class CudaBlock(Sized):
    """A sparse block of X for a GPU: what is stored is observed.

    Parameters
    ----------
    halves : (Half, Half)
        For moving W, and for moving H.
    shape : (p, q)
    unobserved : float
        The weight α of what isn't stored: see `dmf.kernels.sparse.SparseBlock`.
    """

    halves: tuple[Half, Half]
    shape: tuple[int, int]
    unobserved: float = 0.0

    @classmethod
    def of(cls, block: SparseBlock) -> CudaBlock:
        """Return a block in this form; its arrays are NumPy's, as those given."""
        weights = block.weights
        # The rows of each column, and where its entries are among those of the rows.
        places = np.arange(len(block.values))
        across = csr_array((places, block.columns, block.starts), block.shape).tocsc()
        order = across.data
        moving_W = Half(
            *segments_of(np.diff(block.starts)), block.columns, block.values, weights
        )
        moving_H = Half(
            *segments_of(np.diff(across.indptr)),
            across.indices.astype(np.int32, copy=False),
            block.values[order],
            None if weights is None else weights[order],
        )
        return cls((moving_W, moving_H), block.shape, block.unobserved)


def segments_of(counts: Array) -> tuple[Array, Array]:
    """Return the owners of segments and where they start, from the entries of rows."""
    pieces = -(-counts // SEGMENT)
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), pieces)
    # Which segment of its row each is: rows are cut at multiples of the longest.
    number = np.arange(len(owners)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = np.repeat(np.cumsum(counts) - counts, pieces)
    starts = np.append(first + number * SEGMENT, counts.sum())
    return owners, starts.astype(np.int64)


def gradient(
    block: CudaBlock, moving: Array, fixed: Array, axis: int
) -> tuple[Array, Array]:
    """Return what `dmf.kernels.sparse.gradient` does."""
    xp = array_namespace(moving)
    half = block.halves[axis]
    result = xp.zeros(moving.shape, dtype=moving.dtype)  # in C order, whatever it has
    losses = xp.zeros((*half.owners.shape, moving.shape[1]), dtype=xp.float64)
    alpha = _alpha(block, moving.dtype)
    _launch("gradient", half, fixed, alpha, moving, result, losses)
    return result, xp.sum(losses, axis=0)


def curvature(
    block: CudaBlock, moves: tuple[Array, ...], fixed: Array, axis: int
) -> Array:
    """Return what `dmf.kernels.sparse.curvature` does."""
    xp = array_namespace(fixed)
    shape = (block.shape[axis], fixed.shape[1], PAIRS[len(moves)])
    result = xp.zeros(shape, dtype=xp.float64)
    alpha = _alpha(block, np.dtype(np.float64))
    first, second = moves[0], moves[1] if len(moves) > 1 else None
    _launch("curvature", block.halves[axis], fixed, alpha, first, second, result)
    return result


def product(block: CudaBlock, fixed: Array, axis: int) -> Array:
    """Return what `dmf.kernels.sparse.product` does."""
    xp = array_namespace(fixed)
    result = xp.zeros((block.shape[axis], *fixed.shape[1:]), dtype=fixed.dtype)
    _launch("product", block.halves[axis], fixed, None, result)
    return result


def gram(block: CudaBlock, fixed: Array, axis: int) -> Array:
    """Return what `dmf.kernels.sparse.gram` does."""
    xp = array_namespace(fixed)
    rank = fixed.shape[2]
    shape = (block.shape[axis], fixed.shape[1], rank, rank)
    result = xp.zeros(shape, dtype=fixed.dtype)
    alpha = _alpha(block, fixed.dtype)
    _launch("gram", block.halves[axis], fixed, alpha, result)
    return result


def errors(block: CudaBlock, W: Array, H: Array) -> Array:
    """Return what `dmf.kernels.sparse.errors` does."""
    xp = array_namespace(W)
    half = block.halves[0]
    sums = xp.zeros((*half.owners.shape, W.shape[1], 2), dtype=xp.float64)
    _launch("errors", half, H, None, W, sums)
    return xp.sum(sums, axis=0)


def _alpha(block: CudaBlock, dtype: Any) -> Any:
    """Return α, or None for 0: kernels are then compiled that know nothing of it."""
    return np.dtype(dtype).type(block.unobserved) if block.unobserved else None


def _launch(name: str, half: Half, fixed: Array, *arguments: Any) -> None:
    """Run a kernel with a warp for each segment and candidate."""
    _, candidates, rank = fixed.shape
    kernels = warps.kernels_of(layout_for(rank), np.dtype(fixed.dtype))
    # Rows of the fixed factor are looked up in what is one long row.
    flat = fixed.reshape(-1)
    segments = half.owners.shape[0]
    launch(getattr(kernels, name), segments, candidates, *half, flat, *arguments)
