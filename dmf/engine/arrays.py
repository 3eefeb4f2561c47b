"""Arrays in and out: factors as the user's kind of array, and the lazy fill."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from dmf.engine.data import Data, is_dask
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
    return _stack(leaves, lengths, rank, data.dtype, item=True)


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

    W = _in_strips(W, X.chunks[0])
    Ht = _in_strips(H.T, X.chunks[1])
    dtype = filled_dtype(X.dtype)
    arguments: list[Any] = [X, "ij"]
    if mask is not None:
        if not is_dask(mask):
            mask = canonical_csr(mask) if is_sparse(mask) else mask
            mask = da.from_array(mask, chunks=X.chunks)
        arguments += [mask if mask.chunks == X.chunks else mask.rechunk(X.chunks), "ij"]
    else:
        arguments += [None, None]
    arguments += [W, "ik", Ht, "jk"]
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


def _in_strips(factor: Array, lengths: tuple[int, ...]) -> Array:
    """Return a factor (length, r) as a Dask array with the given strips."""
    if is_dask(factor):
        return factor.rechunk((lengths, -1))
    bounds = np.cumsum([0, *lengths])
    strips = [factor[a:b] for a, b in pairwise(bounds)]
    leaves = choose_runner(None).put(strips)
    return _stack(leaves, list(lengths), factor.shape[1], factor.dtype)


def _stack(
    leaves: list[Leaf], lengths: list[int], rank: int, dtype: Any, item: bool = False
) -> Array:
    """Return strips as one Dask array, shape (sum of lengths, rank)."""
    import dask.array as da
    from dask.delayed import delayed

    take = delayed(_first if item else _whole, pure=False)
    return da.concatenate(
        [
            da.from_delayed(
                take(leaf),
                (length, rank),
                meta=np.empty((0, 0), dtype=dtype),
            )
            for leaf, length in zip(leaves, lengths, strict=True)
        ]
    )


def _first(strip: tuple[Array, Any]) -> Array:
    return strip[0]


def _whole(strip: Array) -> Array:
    return strip
