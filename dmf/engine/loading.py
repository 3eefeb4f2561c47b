"""X, as it was given, brought to the grid as blocks."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dmf.device import is_on_device, to_device, to_device_ahead, to_host
from dmf.engine.chunks import in_chunks
from dmf.engine.cost import Machine, goes_together
from dmf.engine.data import Data, block_key, counts_key
from dmf.engine.grid import Grid
from dmf.engine.kinds import block_kind, check_kinds, in_memory, is_dask, is_there
from dmf.engine.layout import Layout, check_fits, in_units, layout_for, work_of
from dmf.engine.lower import Key, Lowering, Place
from dmf.engine.runner import Leaf, Runner, on_threads
from dmf.engine.stream import Recipe, Streamed
from dmf.engine.trace import Trace, follow
from dmf.entries import canonical_csr, check_weights, is_sparse
from dmf.holdout import Share
from dmf.observed import Observed, observe
from dmf.totals import Totals
from dmf.validation import refuse_empty, working_dtype

# Returns what makes a block of these rows and columns of X.
Look = Callable[[range, range], Callable[..., Observed]]


def load(
    X: Any,
    mask: Any | None,
    rank: int,
    runner: Runner,
    *,
    unobserved: float = 0.0,
    validation: Any | Share | None = None,
    machine: Machine | None = None,
    candidates: int = 1,
    stream: bool | None = None,
    may_be_empty: bool = False,
    once: bool = False,
) -> Data:
    """Cut X and its mask into blocks, and count what is observed.

    Parameters
    ----------
    X : NumPy, scipy.sparse or Dask array, shape (m, n)
    mask : array, shape (m, n), or None
    rank : int
    runner : Runner
    unobserved : float
        The weight with which what isn't observed counts as 0.
    validation : Share, array of shape (m, n), or None
        What is held out, as `dmf.observed.observe` takes it.
    machine : Machine, optional
        What the plan is for. Default: what there is now. Whoever loads data again gives
        what there was at first: strips of factors must fit the same grid.
    candidates : int
        How many pairs of factors there will be.
    stream : bool, optional
        Whether blocks are read anew in each pass. Default: if they wouldn't fit.
    may_be_empty : bool
        Whether X may do without a single observed entry.
    once : bool
        Whether a pass or two is all that there will be.

    Raises
    ------
    ValueError
        Values or weights that `dmf.observed.observe` refuses; nothing is observed.
        It won't fit into the memory.
    """
    token = uuid.uuid4().hex[:8]
    dtype = working_dtype(X.dtype)
    kind = block_kind(X)
    given = {"mask": mask, "validation": validation}
    beside = {name: Y for name, Y in given.items() if hasattr(Y, "shape")}
    for name, Y in beside.items():
        check_kinds(X, Y, name)

    def look(rows: range, columns: range) -> Callable[..., Observed]:
        """Return what makes a block of a part of X, and of what is beside it."""
        options: dict[str, Any] = {"dtype": dtype, "unobserved": unobserved}
        if not (once or layout.work.streamed or runner.gpu is not None):
            options["row_bytes"] = layout.work.row_bytes
        if isinstance(validation, Share):
            options["validation"] = validation.cut(rows, columns)
        origin = (rows.start, columns.start)
        return partial(_observe, kind, tuple(beside), origin=origin, **options)

    def look_in_task(rows: range, columns: range) -> Callable[..., Observed]:
        here = look(rows, columns)
        if runner.gpu is None:
            return here
        place = to_device_ahead if layout.work.streamed else to_device
        return partial(_placed, here, place)

    work = work_of(
        X,
        rank,
        mask=mask,
        unobserved=unobserved,
        held_out=validation is not None,
        candidates=candidates,
    )
    machine = runner.machine() if machine is None else machine
    laid_out = partial(layout_for, work=work, machine=machine, stream=stream)
    if is_dask(X):
        layout = laid_out(X, beside=tuple(beside.values()))
        check_fits(layout, runner.used())
        if layout.work.streamed and stream is None:
            _tell_of_passes(layout)
        leaves = _load_dask(X, beside, layout, look_in_task, token, runner)
    else:
        matrices = [X, *(in_memory(Y) for Y in beside.values())]
        if kind == "sparse":
            matrices = [canonical_csr(to_host(Y)) for Y in matrices]
        layout = laid_out(matrices[0])
        check_fits(layout, runner.used())
        if layout.work.streamed and stream is None:
            _tell_of_passes(layout)
        blocks = _cut_arrays(matrices, layout, look, token)
        seen = sum((block.totals for block in blocks.values()), Totals())
        if not may_be_empty and seen.weight <= 0:
            _refuse_empty(X.shape, seen)
        ready = Streamed.held if layout.work.streamed else runner.place
        values = runner.put(list(blocks.values()), in_order=True, ready=ready)
        leaves = dict(zip(blocks, values, strict=True))
    grid = layout.grid
    summary, total = _count(grid, leaves, token, runner)
    if not may_be_empty and total.weight <= 0:
        _refuse_empty(X.shape, total)
    if validation is not None and total.held_out <= 0:
        msg = (
            f"validation={_told(validation)} holds out none of the {total.entries} "
            "observed entries of X; hold out more, or give validation=None"
        )
        raise ValueError(msg)

    def together(strips: int) -> bool:
        # By the machine that is there, not the one that the grid was planned for.
        work = layout.work
        return not runner.remote and goes_together(work, strips, runner.machine())

    return Data(
        shape=tuple(X.shape),
        dtype=dtype,
        kind=kind,
        grid=grid,
        totals=total,
        token=token,
        recomputable=is_dask(X) and all(is_dask(Y) for Y in beside.values()),
        unobserved=unobserved,
        remote=runner.remote,
        gpu=runner.gpu is not None,
        together=(together(grid.shape[0]), together(grid.shape[1])),
        there=is_there(X),
        leaves=leaves | summary,
    )


def _refuse_empty(shape: tuple[int, int], total: Totals) -> None:
    if total.held_out > 0:
        msg = (
            "validation holds out all observed entries of X; leave some to fit, for "
            "example with validation=0.1"
        )
        raise ValueError(msg)
    refuse_empty(shape)


def _told(validation: Any) -> str:
    if isinstance(validation, Share):
        return f"{validation.fraction:g}"
    return f"<{type(validation).__name__} of shape {tuple(validation.shape)}>"


def _cut_arrays(
    matrices: list[Any], layout: Layout, look: Look, token: str
) -> dict[Key, Any]:
    """Cut arrays in memory, on threads of this process.

    Bad values are refused before any task reaches a cluster.
    """

    def block(i: int, j: int) -> Observed:
        rows, columns = grid.strip(0, i), grid.strip(1, j)
        parts = (_part(Y, rows, columns) for Y in matrices)
        return look(rows, columns)(*parts)

    grid = layout.grid
    places = {block_key(token, 0, i, j): (i, j) for i, j in grid.places()}
    tasks = {key: (block, *place) for key, place in places.items()}
    return on_threads(tasks, list(tasks))


def _load_dask(
    X: Any,
    beside: dict[str, Any],
    layout: Layout,
    look: Look,
    token: str,
    runner: Runner,
) -> dict[Key, Leaf]:
    """Make blocks of whole chunks, inside tasks."""
    from dask.base import optimize

    mask = beside.get("mask")
    if mask is not None and not is_dask(mask):
        check_weights(mask)
    grid = layout.grid
    arrays = [
        _aligned(Y, name, grid, runner, layout.work.streamed)
        for name, Y in {"X": X, **beside}.items()
    ]
    arrays = optimize(*arrays)
    graph: dict[Key, Any] = {}
    for array in arrays:
        graph.update(array.__dask_graph__())
    parts = [array.__dask_keys__() for array in arrays]
    tasks: dict[Key, Any] = {}
    for i, j in grid.places():
        here = look(grid.strip(0, i), grid.strip(1, j))
        sources = tuple(part[i][j] for part in parts)
        tasks[block_key(token, 0, i, j)] = (
            (Streamed.first, Recipe.of(here, graph, sources))
            if layout.work.streamed
            else (here, *sources)
        )
    return runner.run(tasks if layout.work.streamed else graph | tasks, list(tasks))


def _tell_of_passes(layout: Layout) -> None:
    from dask.array import PerformanceWarning

    work, machine = layout.work, layout.machine
    msg = (
        f"the blocks of X would take {in_units(work.stored * work.entry_bytes)}, too "
        f"much for {in_units(max(1, machine.workers) * machine.memory)} of memory: "
        "each pass reads them anew, which takes longer. stream=True says the same "
        "without a warning"
    )
    warnings.warn(msg, PerformanceWarning, stacklevel=2)


def _aligned(X: Any, name: str, grid: Grid, runner: Runner, apart: bool) -> Any:
    """Return X as a Dask array whose chunks are the blocks of the grid.

    Each of them may be computed `apart` from the others.
    """
    chunks = (_lengths(grid.row_bounds), _lengths(grid.column_bounds))
    if is_dask(X) and block_kind(X) == "sparse" and X.chunks != chunks:
        msg = (
            f"the chunks of {name}, {X.chunks}, must be those of X, {chunks}: sparse "
            "chunks can't be cut anew"
        )
        raise ValueError(msg)
    if apart and is_dask(X):  # Dask might have workers pass parts around
        return X.rechunk(chunks, method="tasks")
    return in_chunks(X, chunks, runner)


def _observe(
    kind: str, names: tuple[str, ...], X: Any, *beside: Any, **options: Any
) -> Observed:
    """Observe a block of X, with the blocks of what is given beside it."""
    if block_kind(X) != kind:
        msg = (
            f"a block of X is {block_kind(X)} ({type(X).__name__}), but its Dask array "
            f"says {kind}; give map_blocks the right meta="
        )
        raise ValueError(msg)
    # What is sparse is looked at on the host: there is no namespace for it.
    same = to_device if is_on_device(X) and kind == "dense" else to_host
    given = {"mask": None, **dict(zip(names, same(list(beside)), strict=True))}
    return observe(same(X), **given, **options)


def _placed(
    look: Callable[..., Observed],
    place: Callable[[Any], Any],
    *parts: Any,
    **options: Any,
) -> Observed:
    """Make a block, and bring it to the memory of the GPU."""
    placed: Observed = place(look(*parts, **options))
    return placed


def _count(
    grid: Grid, leaves: dict[Key, Leaf], token: str, runner: Runner
) -> tuple[dict[Key, Leaf], Totals]:
    """Add up the observed entries of rows and columns, and of all of them."""
    graph: dict[Key, Any] = dict(leaves)
    summary: list[Key] = []
    for axis in (0, 1):
        trace = Trace()
        counts, totals = trace.input("block"), trace.input("block")
        place = partial(block_key, token, axis)
        outputs = [trace.sum_over_strip(counts)]
        if axis == 1:  # once is enough
            outputs.append(trace.sum_over_all(trace.sum_over_strip(totals)))
        lowering = Lowering(
            trace,
            {counts: Place(place, ("counts", axis)), totals: Place(place, ("totals",))},
            tuple(outputs),
            (grid.shape[axis], grid.shape[1 - axis]),
            f"{'WH'[axis]}-{token}",
            (),
            apart=runner.remote,  # no block shall travel to be counted
        )
        graph.update(lowering.graph)
        found = lowering.find(outputs[0])
        for i in range(grid.shape[axis]):
            summary.append(counts_key(token, axis, i, 0))
            graph[summary[-1]] = (follow, found.key(i, 0), found.path)
    total = lowering.find(outputs[1]).key(0, 0)
    done = runner.run(graph, [*summary, total])
    (totals_of_all,) = runner.fetch([done.pop(total)])
    return done, totals_of_all


def _part(Y: Any, rows: range, columns: range) -> Any:
    """Return a part of a matrix in memory; whole rows are no more than a view."""
    if is_sparse(Y) and len(columns) == Y.shape[1]:
        starts = Y.indptr[rows.start : rows.stop + 1]
        own = slice(starts[0], starts[-1])
        part = type(Y)((len(rows), len(columns)), dtype=Y.dtype)
        # SciPy's constructor would copy what is less than half of an array.
        part.data, part.indices = Y.data[own], Y.indices[own]
        part.indptr = starts - starts[0]
        part.has_canonical_format = Y.has_canonical_format
        return part
    return Y[rows.start : rows.stop, columns.start : columns.stop]


def _lengths(bounds: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(length) for length in np.diff(bounds))
