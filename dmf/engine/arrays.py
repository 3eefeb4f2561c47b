"""Arrays in and out: factors as the user's kind of array, and the lazy fill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from dmf.device import is_on_device, to_device, to_host
from dmf.engine.chunks import in_chunks, lazy_chunk
from dmf.engine.data import Data
from dmf.engine.kinds import in_memory, is_dask, is_there
from dmf.engine.losses import insisting
from dmf.engine.runner import Leaf, Runner, choose_runner
from dmf.engine.state import State
from dmf.entries import (
    count_observed,
    fill_block,
    filled_dtype,
    is_sparse,
    place_observed,
)
from dmf.holdout import Share, blank, part_of
from dmf.objective import Side
from dmf.solvers.base import Moved

Array = Any


def factor_of(
    data: Data, state: State, axis: int, rank: int, lazy: bool, runner: Runner
) -> Array:
    """Return a factor, shape (length, rank), of a state with one candidate.

    It is on a GPU if X was.

    Parameters
    ----------
    data : Data
    state : State
    axis : {0, 1}
        0 for W, 1 for H.
    rank : int
        The columns wanted.
    lazy : bool
        Whether to return a Dask array.
    runner : Runner
    """
    strips = [state.leaves[key] for key in state.strips[axis]]
    take = partial(_columns, rank=rank, there=data.there)
    if not lazy:
        return _whole([take(strip) for strip in _fetched(strips, state, runner)])
    leaves = runner.put(strips) if state.home else strips
    lengths = [len(data.grid.strip(axis, i)) for i in range(len(strips))]
    meta = _empty(data, 2)
    return _stacked(take, [[leaf] for leaf in leaves], lengths, (rank,), meta)


def offsets_of(
    data: Data, state: State, axis: int, side: Side, lazy: bool, runner: Runner
) -> Array:
    """Return the offsets of a factor, shape (length,): what stands above its level.

    Rows without observed entries have none: 0.
    """
    strips = [state.leaves[key] for key in state.strips[axis]]
    counts = [data.leaves[data.counts(axis).key(i, 0)] for i in range(len(strips))]
    assert side.offset is not None
    level = level_of(state, axis, side, runner)
    take = partial(
        _offsets, column=side.offset, unit=side.unit, level=level, there=data.there
    )
    if not lazy:
        fetched = _fetched(strips, state, runner), runner.fetch(counts)
        return _whole([take(*pair) for pair in zip(*fetched, strict=True)])
    leaves = runner.put(strips) if state.home else strips
    pairs = [[strip, count] for strip, count in zip(leaves, counts, strict=True)]
    lengths = [len(data.grid.strip(axis, i)) for i in range(len(strips))]
    return _stacked(take, pairs, lengths, (), _empty(data, 1))


def level_of(state: State, axis: int, side: Side, runner: Runner) -> float:
    """Return what the offsets of a factor are measured from."""
    (level,) = _fetched([state.leaves[state.centres[axis]]], state, runner)
    return side.unit * float(level[0])


def _fetched(leaves: list[Leaf], state: State, runner: Runner) -> list[Any]:
    return leaves if state.home else runner.fetch(leaves)


def concatenated(parts: list[Array], axis: int) -> Array:
    """Join arrays, lazily if one of them is Dask's, where the first one is."""
    if not any(is_dask(part) for part in parts):
        place = to_device if is_on_device(parts[0]) else to_host
        return np.concatenate(place(parts), axis=axis)
    import dask.array as da

    lazy = [part if is_dask(part) else da.from_array(part) for part in parts]
    return da.concatenate(lazy, axis=axis)


# What of X is in the memory of a GPU at once while it is filled, in bytes.
FILLED_BYTES = 2**28


def fill_lazily(
    X: Array, mask: Array | None, W: Array, H: Array, gpu: bool = False
) -> Array:
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
    width = W.shape[1]
    W = in_chunks(W, (X.chunks[0], (width,)), runner)
    Ht = in_chunks(H.T, (X.chunks[1], (width,)), runner)
    dtype = filled_dtype(X.dtype)
    meta = np.empty((0, 0), dtype=dtype)
    arguments: list[Any] = [X, "ij", None, None, W, "ik", Ht, "jk"]
    if mask is not None:
        arguments[2:4] = [in_chunks(mask, X.chunks, runner), "ij"]
    return da.blockwise(
        partial(_fill, dtype=dtype, gpu=gpu),
        "ij",
        *arguments,
        dtype=dtype,
        meta=to_device(meta) if is_there(X) else meta,
        concatenate=False,
        name=None,
        token="impute",
    )


def number_observed(X: Array, mask: Array | None) -> int:
    """Return how many entries of a matrix are observed; chunks are read in tasks."""
    if not is_dask(X):
        return count_observed(X, in_memory(mask))
    import dask.array as da

    runner = choose_runner(None)

    def counted() -> int:
        arguments: list[Any] = [X, "ij", None, None]
        if mask is not None:
            arguments[2:] = [in_chunks(mask, X.chunks, runner), "ij"]
        counts = da.blockwise(
            _count,
            "ij",
            *arguments,
            dtype=np.int64,
            meta=np.empty((0, 0), dtype=np.int64),
            adjust_chunks={"i": 1, "j": 1},
            name=None,
            token="count",
        )
        return int(counts.sum().compute())

    return insisting(runner.session, counted, "while X was counted")


def split_lazily(
    X: Array, share: Share, held_out: bool, same_pattern: bool = False
) -> Array:
    """Return a Dask array with the entries that are held out, or with the others."""
    from dask.array.utils import meta_from_array

    meta = meta_from_array(X)
    kept = is_sparse(meta) and not same_pattern
    dtype = X.dtype if kept else filled_dtype(X.dtype)
    options = {"share": share, "held_out": held_out, "same_pattern": same_pattern}
    return X.map_blocks(_split, **options, dtype=dtype, meta=meta.astype(dtype))


def blank_lazily(X: Array, held_out: Array) -> Array:
    """Return a Dask array without the entries that an array of bools holds out."""
    import dask.array as da
    from dask.array.utils import meta_from_array

    meta = meta_from_array(X)
    dtype = filled_dtype(X.dtype)
    held_out = in_chunks(held_out, X.chunks, choose_runner(None))
    return da.map_blocks(blank, X, held_out, dtype=dtype, meta=meta.astype(dtype))


def _split(X: Array, *, share: Share, block_info: Any = None, **options: Any) -> Array:
    rows, columns = (range(*ends) for ends in block_info[0]["array-location"])
    origin = (rows.start, columns.start)
    return part_of(X, share.cut(rows, columns), origin, **options)


def _count(X: Array, mask: Array | None) -> Array:
    return np.array([[count_observed(X, mask)]])


def _fill(
    X: Array,
    mask: Array | None,
    W: list[Array],
    H: list[Array],
    *,
    dtype: Any,
    gpu: bool,
) -> Array:
    # The rank is one chunk: the lists that blockwise hands over have one item.
    fill = fill_on_gpu if gpu else fill_block
    return fill(X, mask, W[0], H[0], dtype)


def fill_on_gpu(X: Array, mask: Array | None, W: Array, H: Array, dtype: Any) -> Array:
    """Return what `fill_block` does, filled on a GPU; it is there if X is.

    From the host, a part after the other is brought to its memory and back.
    """
    if is_on_device(X) and not is_sparse(X):
        X, mask, W, H = to_device((X, mask, W, H))
        return fill_block(X, mask, W, H, dtype)
    there = is_on_device(X)
    X, mask = to_host((X, mask))
    if is_sparse(X):  # what it stores is put in its places on the host
        X, mask = X.tocsr(), None if mask is None else mask.tocsr()
    W, H = to_device((W, H))
    result = np.empty(X.shape, dtype=dtype)
    step = max(1, FILLED_BYTES // max(1, X.shape[1] * result.itemsize))
    for start in range(0, X.shape[0], step):
        rows = slice(start, min(start + step, X.shape[0]))
        own = None if mask is None else mask[rows]
        if is_sparse(X):
            product = to_host(W[rows, :] @ H.T)
            result[rows] = place_observed(X[rows], own, product, dtype)
            continue
        part, own = to_device((X[rows].astype(dtype, copy=False), own))
        result[rows] = to_host(fill_block(part, own, W[rows, :], H, part.dtype))
    return to_device(result) if there else result


def _stacked(
    take: Callable[..., Array],
    leaves: list[list[Leaf]],
    lengths: list[int],
    tail: tuple[int, ...],
    meta: Array,
) -> Array:
    """Return what is taken of each strip as one Dask array."""
    import dask.array as da

    pairs = zip(leaves, lengths, strict=True)
    return da.concatenate(
        [lazy_chunk(take, *own, shape=(p, *tail), meta=meta) for own, p in pairs]
    )


def _whole(parts: list[Array]) -> Array:
    """Return the rows of all parts, where those are."""
    whole = array_namespace(parts[0]).concat(parts)
    return to_device(whole) if is_on_device(parts[0]) else whole


def _empty(data: Data, dimensions: int) -> Array:
    """Return an empty array of the kind of results."""
    empty = np.empty((0,) * dimensions, dtype=data.dtype)
    return to_device(empty) if data.there else empty


def _columns(strip: Moved, *, rank: int, there: bool) -> Array:
    factor = (to_device if there else to_host)(strip.factor)
    return factor[:, 0, :rank]


def _offsets(
    strip: Moved,
    counts: Array,
    *,
    column: int,
    unit: float,
    level: float,
    there: bool,
) -> Array:
    factor, counts = to_host((strip.factor, counts))
    offsets = factor[:, 0, column].astype(np.float64) * unit - level
    offsets = offsets.astype(factor.dtype)
    offsets[counts == 0] = 0
    return to_device(offsets) if there else offsets
