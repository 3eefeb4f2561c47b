"""Arrays in and out: factors as the user's kind of array, and the lazy fill."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

from dmf.engine.data import Data
from dmf.engine.kinds import is_dask
from dmf.engine.runner import Leaf, Runner, choose_runner
from dmf.observed import canonical_csr, fill_block, filled_dtype, is_sparse

Array = Any


def strips_to_array(
    data: Data, strips: list[Leaf], axis: int, rank: int, lazy: bool, runner: Runner
) -> Array:
    """Return a factor, shape (length, rank), from what its last half-step returned.

    Parameters
    ----------
    data : Data
    strips : list of leaves
        Each a tuple whose first item is the strip.
    axis : {0, 1}
        0 for W, 1 for H.
    rank : int
    lazy : bool
        Whether to return a Dask array. Else the leaves must be values.
    runner : Runner
    """
    if not lazy:
        return np.concatenate([strip for strip, _ in strips])
    leaves = strips if data.recomputable else runner.put(strips)
    lengths = [len(data.grid.strip(axis, i)) for i in range(len(strips))]
    return _stack(leaves, lengths, rank, data.dtype)


def fill_lazily(X: Array, mask: Array | None, W: Array, H: Array) -> Array:
    """Return a Dask array that is X where it is observed and W H elsewhere.

    Parameters
    ----------
    X : Dask array, shape (m, n)
    mask : array or None
    W : array, shape (m, r)
    H : array, shape (r, n)
    """
    import dask.array as da

    rank = W.shape[1]
    W = _in_chunks(W, (X.chunks[0], (rank,)))
    Ht = _in_chunks(H.T, (X.chunks[1], (rank,)))
    dtype = filled_dtype(X.dtype)
    arguments: list[Any] = [X, "ij", None, None, W, "ik", Ht, "jk"]
    if mask is not None:
        arguments[2:4] = [_in_chunks(mask, X.chunks), "ij"]
    return da.blockwise(
        partial(_fill, dtype=dtype),
        "ij",
        *arguments,
        dtype=dtype,
        meta=np.empty((0, 0), dtype=dtype),
        concatenate=False,
        name=None,
        token="impute",
    )


def _fill(
    X: Array, mask: Array | None, W: list[Array], H: list[Array], *, dtype: Any
) -> Array:
    # The rank is one chunk: the lists that blockwise hands over have one item.
    return fill_block(X, mask, W[0], H[0], dtype)


def _in_chunks(X: Array, chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """Return a matrix as a Dask array with the given chunks.

    The parts of an array in memory go to the workers directly, not inside a graph.
    """
    import dask.array as da

    if is_dask(X):
        return X if X.chunks == chunks else X.rechunk(chunks)
    X = canonical_csr(X) if is_sparse(X) else X
    rows, columns = (pairwise(np.cumsum([0, *lengths])) for lengths in chunks)
    cuts = [(slice(*r), slice(*c)) for r, c in product(rows, list(columns))]
    leaves = iter(choose_runner(None).put([X[cut] for cut in cuts]))
    meta = np.empty((0, 0), dtype=X.dtype)
    stacked = [
        [_lazy(_whole, next(leaves), (p, q), meta) for q in chunks[1]]
        for p in chunks[0]
    ]
    return da.block(stacked)


def _stack(leaves: list[Leaf], lengths: list[int], rank: int, dtype: Any) -> Array:
    """Return a factor's strips as one Dask array, shape (sum of lengths, rank)."""
    import dask.array as da

    meta = np.empty((0, 0), dtype=dtype)
    pairs = zip(leaves, lengths, strict=True)
    return da.concatenate([_lazy(_first, leaf, (p, rank), meta) for leaf, p in pairs])


def _lazy(take: Any, leaf: Leaf, shape: tuple[int, int], meta: Array) -> Array:
    """Return a Dask array of one chunk from what stands for its value."""
    import dask.array as da
    from dask.delayed import delayed

    return da.from_delayed(delayed(take, pure=False)(leaf), shape, meta=meta)


def _first(strip: tuple[Array, Any]) -> Array:
    return strip[0]


def _whole(strip: Array) -> Array:
    return strip
