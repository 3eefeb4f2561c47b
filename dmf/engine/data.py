"""X as blocks on the grid, with what a fit needs to know of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from dmf.engine.chunks import in_chunks
from dmf.engine.grid import (
    KEEP_CHUNKS,
    SPLIT_CHUNKS,
    Grid,
    balanced_bounds,
    blocks_for,
    even_bounds,
    merged_bounds,
)
from dmf.engine.kinds import block_kind, check_kinds, in_memory, is_dask
from dmf.engine.lower import Key, Lowering, Place
from dmf.engine.runner import Leaf, Runner
from dmf.engine.trace import Trace, follow
from dmf.kernels import kernels_for
from dmf.observed import (
    Totals,
    canonical_csr,
    check_weights,
    counts,
    is_empty,
    observe,
    totals,
)
from dmf.validation import refuse_empty, working_dtype


@dataclass(frozen=True)
class Data:
    """The blocks of X where the tasks run.

    Attributes
    ----------
    shape : (m, n)
    dtype : the dtype that is computed in
    kernels : module
    grid : Grid
    totals : Totals
        Over all observed entries.
    token : str
        Makes the names of all tasks on these data unique.
    recomputable : bool
        Whether Dask can make blocks anew that a dead worker took along.
    leaves : dict
        The blocks and the counts of each strip, by their keys.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    kernels: ModuleType
    grid: Grid
    totals: Totals
    token: str
    recomputable: bool
    leaves: dict[Key, Leaf] = field(repr=False)

    def block(self, axis: int) -> Place:
        """Return where the block (strip, block of the strip) of an axis is."""
        return Place(partial(_block_key, self.token, axis))

    def counts(self, axis: int) -> Place:
        """Return where the numbers of observed entries of a strip's rows are."""
        return Place(partial(_counts_key, self.token, axis))


def _block_key(token: str, axis: int, strip: int, other: int) -> Key:
    i, j = (other, strip) if axis else (strip, other)
    return (f"block-{token}", i, j)


def _counts_key(token: str, axis: int, strip: int, other: int) -> Key:
    return (f"counts-{'WH'[axis]}-{token}", strip)


def load(
    X: Any, mask: Any | None, rank: int, runner: Runner, *, may_be_empty: bool = False
) -> Data:
    """Cut X and its mask into blocks, and count what is observed.

    Parameters
    ----------
    X : NumPy, scipy.sparse or Dask array, shape (m, n)
    mask : array, shape (m, n), or None
    rank : int
    runner : Runner
    may_be_empty : bool
        Whether X may do without a single observed entry.

    Raises
    ------
    ValueError
        Values or weights that `dmf.observed.observe` refuses; nothing is observed.
    """
    token = uuid.uuid4().hex[:8]
    dtype = working_dtype(X.dtype)
    kind = block_kind(X)
    check_kinds(X, mask)
    if is_dask(X):
        grid, leaves = _load_dask(X, mask, rank, kind, dtype, token, runner)
    else:
        grid, blocks = _cut_array(X, mask, rank, kind, dtype, token)
        if not may_be_empty and all(is_empty(block) for block in blocks.values()):
            refuse_empty(X.shape)
        values = runner.put(list(blocks.values()))
        leaves = dict(zip(blocks, values, strict=True))
    summary, total = _count(grid, leaves, token, runner)
    if not may_be_empty and total.weight <= 0:
        refuse_empty(X.shape)
    return Data(
        shape=tuple(X.shape),
        dtype=dtype,
        kernels=kernels_for(kind),
        grid=grid,
        totals=total,
        token=token,
        recomputable=is_dask(X) and (mask is None or is_dask(mask)),
        leaves=leaves | summary,
    )


def _cut_array(
    X: Any,
    mask: Any | None,
    rank: int,
    kind: str,
    dtype: np.dtype[Any],
    token: str,
) -> tuple[Grid, dict[Key, Any]]:
    """Cut an array in memory; bad values are refused before any task exists."""
    m, n = X.shape
    mask = in_memory(mask)
    if kind == "sparse":
        X = canonical_csr(X)
        mask = None if mask is None else canonical_csr(mask)
        P, Q = blocks_for((m, n), X.nnz, rank, kind)
        grid = Grid(
            balanced_bounds(np.diff(X.indptr), P),
            balanced_bounds(np.bincount(X.indices, minlength=n), Q),
        )
    else:
        P, Q = blocks_for((m, n), m * n, rank, kind)
        grid = Grid(even_bounds(m, P), even_bounds(n, Q))
    blocks = {}
    for i in range(P):
        rows = _slice(grid.strip(0, i))
        for j in range(Q):
            columns = _slice(grid.strip(1, j))
            blocks[_block_key(token, 0, i, j)] = observe(
                X[rows, columns],
                None if mask is None else mask[rows, columns],
                dtype,
                (rows.start, columns.start),
            )
    return grid, blocks


def _load_dask(
    X: Any,
    mask: Any | None,
    rank: int,
    kind: str,
    dtype: np.dtype[Any],
    token: str,
    runner: Runner,
) -> tuple[Grid, dict[Key, Leaf]]:
    """Make blocks of whole chunks, inside tasks."""
    from dask.base import optimize

    if mask is not None and not is_dask(mask):
        check_weights(mask)
    grid = _grid_of_chunks(X, rank, kind)
    arrays = [_aligned(X, "X", grid, runner)]
    if mask is not None:
        arrays.append(_aligned(mask, "mask", grid, runner))
    arrays = optimize(*arrays)
    graph: dict[Key, Any] = {}
    for array in arrays:
        graph.update(array.__dask_graph__())
    P, Q = grid.shape
    parts = [array.__dask_keys__() for array in arrays]
    if mask is None:
        parts.append([[None] * Q] * P)
    x_keys, mask_keys = parts
    keys = []
    for i in range(P):
        for j in range(Q):
            key = _block_key(token, 0, i, j)
            origin = (grid.strip(0, i).start, grid.strip(1, j).start)
            graph[key] = (
                _observe_at,
                x_keys[i][j],
                mask_keys[i][j],
                dtype,
                kind,
                *origin,
            )
            keys.append(key)
    return grid, runner.run(graph, keys)


def _aligned(X: Any, name: str, grid: Grid, runner: Runner) -> Any:
    """Return X as a Dask array whose chunks are the blocks of the grid."""
    chunks = (_lengths(grid.row_bounds), _lengths(grid.column_bounds))
    if is_dask(X) and block_kind(X) == "sparse" and X.chunks != chunks:
        msg = (
            f"the chunks of {name}, {X.chunks}, must be those of X, {chunks}: sparse "
            "chunks can't be cut anew"
        )
        raise ValueError(msg)
    return in_chunks(X, chunks, runner)


def _observe_at(
    X: Any, mask: Any | None, dtype: np.dtype[Any], kind: str, row: int, column: int
) -> Any:
    if block_kind(X) != kind:
        msg = (
            f"a block of X is {block_kind(X)} ({type(X).__name__}), but its Dask array "
            f"says {kind}; give map_blocks the right meta="
        )
        raise ValueError(msg)
    return observe(X, mask, dtype, (row, column))


def _grid_of_chunks(X: Any, rank: int, kind: str) -> Grid:
    """Keep the user's chunks, unless there are far too many or too few of them.

    Sparse chunks are kept: what they store isn't known before they are read.
    """
    row_chunks, column_chunks = X.chunks
    P, Q = blocks_for(X.shape, X.shape[0] * X.shape[1], rank, kind)
    chunks = len(row_chunks) * len(column_chunks)
    if kind == "dense" and SPLIT_CHUNKS * chunks <= P * Q:
        return Grid(even_bounds(X.shape[0], P), even_bounds(X.shape[1], Q))
    if kind == "sparse" or chunks <= KEEP_CHUNKS * P * Q:
        P, Q = len(row_chunks), len(column_chunks)
    return Grid(merged_bounds(row_chunks, P), merged_bounds(column_chunks, Q))


def _count(
    grid: Grid, leaves: dict[Key, Leaf], token: str, runner: Runner
) -> tuple[dict[Key, Leaf], Totals]:
    """Count the observed entries of rows and columns, and sum over all of them."""
    graph: dict[Key, Any] = dict(leaves)
    summary: list[Key] = []
    for axis in (0, 1):
        trace = Trace()
        block = trace.input("block")
        each = trace.per_block("count", partial(counts, axis=axis), block)
        outputs = [trace.sum_over_strip(each)]
        if axis == 1:  # once is enough
            each = trace.per_block("total", totals, block)
            outputs.append(trace.sum_over_all(trace.sum_over_strip(each)))
        lowering = Lowering(
            trace,
            {block: Place(partial(_block_key, token, axis))},
            tuple(outputs),
            (grid.shape[axis], grid.shape[1 - axis]),
            f"{'WH'[axis]}-{token}",
            (),
        )
        graph.update(lowering.graph)
        place = lowering.find(outputs[0])
        for i in range(grid.shape[axis]):
            summary.append(_counts_key(token, axis, i, 0))
            graph[summary[-1]] = (follow, place.key(i, 0), place.path)
    total = lowering.find(outputs[1]).key(0, 0)
    done = runner.run(graph, [*summary, total])
    (totals_of_all,) = runner.fetch([done.pop(total)])
    return done, totals_of_all


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def _lengths(bounds: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(length) for length in np.diff(bounds))
