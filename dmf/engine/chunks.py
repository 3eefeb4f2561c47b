"""Matrices as Dask arrays in given chunks."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np

from dmf.engine.kinds import is_dask
from dmf.engine.runner import Leaf, Runner
from dmf.entries import canonical_csr, is_sparse

Array = Any
Chunks = tuple[tuple[int, ...], tuple[int, ...]]


def in_chunks(X: Array, chunks: Chunks, runner: Runner) -> Array:
    """Return a matrix as a Dask array with the given chunks.

    The parts of an array in memory go to the workers directly, not inside a graph.
    """
    import dask.array as da

    if is_dask(X):
        return X if X.chunks == chunks else X.rechunk(chunks)
    X = canonical_csr(X) if is_sparse(X) else X
    rows, columns = (pairwise(np.cumsum([0, *lengths])) for lengths in chunks)
    cuts = [(slice(*r), slice(*c)) for r, c in product(rows, list(columns))]
    leaves = iter(runner.put([X[cut] for cut in cuts]))
    meta = np.empty((0, 0), dtype=X.dtype)
    stacked = [
        [lazy_chunk(_whole, next(leaves), shape=(p, q), meta=meta) for q in chunks[1]]
        for p in chunks[0]
    ]
    return da.block(stacked)


def lazy_chunk(take: Any, *leaves: Leaf, shape: tuple[int, ...], meta: Array) -> Array:
    """Return a Dask array of one chunk from what stands for its value."""
    import dask.array as da
    from dask.delayed import delayed

    return da.from_delayed(delayed(take, pure=False)(*leaves), shape, meta=meta)


def _whole(strip: Array) -> Array:
    return strip
