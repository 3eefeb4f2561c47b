"""Arrays in and out: factors as the user's kind of array, and the lazy fill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dmf.engine.chunks import in_chunks, lazy_chunk
from dmf.engine.data import Data
from dmf.engine.kinds import in_memory, is_dask
from dmf.engine.rounds import State
from dmf.engine.runner import Leaf, Runner, choose_runner
from dmf.entries import count_observed, fill_block, filled_dtype, is_sparse
from dmf.holdout import Share, blank, part_of
from dmf.objective import Side
from dmf.solvers.base import Moved

Array = Any


def factor_of(
    data: Data, state: State, axis: int, rank: int, lazy: bool, runner: Runner
) -> Array:
    """Return a factor, shape (length, rank), of a state with one candidate.

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
    take = partial(_columns, rank=rank)
    if not lazy:
        return np.concatenate(
            [take(strip) for strip in _fetched(strips, state, runner)]
        )
    leaves = runner.put(strips) if state.home else strips
    lengths = [len(data.grid.strip(axis, i)) for i in range(len(strips))]
    meta = np.empty((0, 0), dtype=data.dtype)
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
    take = partial(_offsets, column=side.offset, unit=side.unit, level=level)
    if not lazy:
        fetched = _fetched(strips, state, runner), runner.fetch(counts)
        return np.concatenate([take(*pair) for pair in zip(*fetched, strict=True)])
    leaves = runner.put(strips) if state.home else strips
    pairs = [[strip, count] for strip, count in zip(leaves, counts, strict=True)]
    lengths = [len(data.grid.strip(axis, i)) for i in range(len(strips))]
    return _stacked(take, pairs, lengths, (), np.empty((0,), dtype=data.dtype))


def level_of(state: State, axis: int, side: Side, runner: Runner) -> float:
    """Return what the offsets of a factor are measured from."""
    (level,) = _fetched([state.leaves[state.centres[axis]]], state, runner)
    return side.unit * float(level[0])


def _fetched(leaves: list[Leaf], state: State, runner: Runner) -> list[Any]:
    return leaves if state.home else runner.fetch(leaves)


def concatenated(parts: list[Array], axis: int) -> Array:
    """Join arrays, lazily if one of them is Dask's."""
    if not any(is_dask(part) for part in parts):
        return np.concatenate(parts, axis=axis)
    import dask.array as da

    lazy = [part if is_dask(part) else da.from_array(part) for part in parts]
    return da.concatenate(lazy, axis=axis)


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
    width = W.shape[1]
    W = in_chunks(W, (X.chunks[0], (width,)), runner)
    Ht = in_chunks(H.T, (X.chunks[1], (width,)), runner)
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


def number_observed(X: Array, mask: Array | None) -> int:
    """Return how many entries of a matrix are observed; chunks are read in tasks."""
    if not is_dask(X):
        return count_observed(X, in_memory(mask))
    import dask.array as da

    runner = choose_runner(None)
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
    with runner.session():
        return int(counts.sum().compute())


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
    X: Array, mask: Array | None, W: list[Array], H: list[Array], *, dtype: Any
) -> Array:
    # The rank is one chunk: the lists that blockwise hands over have one item.
    return fill_block(X, mask, W[0], H[0], dtype)


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


def _columns(strip: Moved, *, rank: int) -> Array:
    return strip.factor[:, 0, :rank]


def _offsets(
    strip: Moved, counts: Array, *, column: int, unit: float, level: float
) -> Array:
    offsets = strip.factor[:, 0, column].astype(np.float64) * unit - level
    offsets = offsets.astype(strip.factor.dtype)
    offsets[counts == 0] = 0
    return offsets
