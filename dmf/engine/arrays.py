"""Arrays in and out: factors as the user's kind of array, and the lazy fill."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dmf.engine.chunks import in_chunks, lazy_chunk
from dmf.engine.data import Data
from dmf.engine.runner import Leaf, Runner, choose_runner
from dmf.observed import fill_block, filled_dtype

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

    runner = choose_runner(None)
    rank = W.shape[1]
    W = in_chunks(W, (X.chunks[0], (rank,)), runner)
    Ht = in_chunks(H.T, (X.chunks[1], (rank,)), runner)
    dtype = filled_dtype(X.dtype)
    arguments: list[Any] = [X, "ij", None, None, W, "ik", Ht, "jk"]
    if mask is not None:
        arguments[2:4] = [in_chunks(mask, X.chunks, runner), "ij"]
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


def _stack(leaves: list[Leaf], lengths: list[int], rank: int, dtype: Any) -> Array:
    """Return a factor's strips as one Dask array, shape (sum of lengths, rank)."""
    import dask.array as da

    meta = np.empty((0, 0), dtype=dtype)
    pairs = zip(leaves, lengths, strict=True)
    return da.concatenate(
        [lazy_chunk(_first, leaf, (p, rank), meta) for leaf, p in pairs]
    )


def _first(strip: tuple[Array, Any]) -> Array:
    return strip[0]
