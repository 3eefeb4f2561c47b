"""The layout of a fit: the grid, whether its blocks stay, and what that takes."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dmf.engine.cost import Machine, Work, cost_of
from dmf.engine.grid import (
    Grid,
    balanced_grid,
    even_bounds,
    flaw_of,
    merged_bounds,
    ranked_grids,
)
from dmf.engine.kinds import block_kind, is_dask
from dmf.engine.memory import PROCESS, Bytes, bytes_of
from dmf.validation import working_dtype

# Blocks stay in memory while a fit is predicted to take at most this share of it: more,
# and the workers of a cluster begin to spill what they hold to their disks.
KEEP_SHARE = 0.6
# And no fit is begun that is predicted to take more than this: Dask ends such workers.
MOST = 0.9


@dataclass(frozen=True)
class Layout:
    """How a fit will run.

    Parameters
    ----------
    work : Work
    machine : Machine
    grid : Grid
    """

    work: Work
    machine: Machine
    grid: Grid

    def bytes(self, used: float = PROCESS) -> Bytes:
        """Return what it takes of the fullest worker, which now uses so much."""
        return bytes_of(self.work, self.grid.shape, self.machine, used)


def work_of(
    X: Any,
    width: int,
    *,
    mask: Any | None = None,
    unobserved: float = 0.0,
    held_out: bool = False,
    candidates: int = 1,
) -> Work:
    """Return the work that factorizing X is.

    What a Dask array of sparse blocks stores isn't known before it is read: it counts
    as nothing.
    """
    kind = block_kind(X)
    dense = kind == "dense"
    stored = math.prod(X.shape) if dense else 0 if is_dask(X) else X.nnz
    weighted = mask is not None and mask.dtype != bool
    return Work(
        tuple(X.shape),
        stored,
        width,
        kind,
        working_dtype(X.dtype).itemsize,
        weighted or (dense and unobserved > 0),
        held_out=held_out,
        chunk=math.prod(map(max, X.chunks)) if is_dask(X) else 0,
        candidates=candidates,
    )


def layout_for(
    X: Any,
    work: Work,
    machine: Machine,
    *,
    beside: Sequence[Any] = (),
    stream: bool | None = None,
) -> Layout:
    """Return how X is cut, and whether its blocks stay in memory.

    Parameters
    ----------
    X : array, shape (m, n)
        A sparse one in memory in compressed rows.
    work : Work
    machine : Machine
    beside : sequence of arrays
        That are read with X.
    stream : bool, optional
        Whether blocks are read anew in each pass. Default: if they wouldn't fit. On a
        GPU, what is in memory then stays on the host.

    Raises
    ------
    ValueError
        `stream` is True, but X can't be read again.
    """
    if machine.gpu and work.kind == "sparse":
        work = replace(work, copies=2)
    if not is_dask(X):
        if stream and not machine.gpu:
            msg = (
                f"stream=True needs a Dask array, whose blocks can be read again; X is "
                f"a {type(X).__name__} in memory, leave stream=True out"
            )
            raise ValueError(msg)
        kept = _cut(X, work, machine)
        fits = kept.bytes().total <= KEEP_SHARE * machine.memory
        if stream or (stream is None and machine.gpu and not fits):
            # It stays on the host.
            return _cut(X, replace(work, streamed=True), machine)
        return kept
    if not stream:
        kept = Layout(work, machine, grid_of_chunks(X, work, machine))
        fits = kept.bytes().total <= KEEP_SHARE * machine.memory
        may = stream is None and work.kind == "dense" and not fits
        if not (may and _readable(machine, X, *beside)):
            _tell_of_chunks(X, kept)
            return kept
    elif not _readable(machine, X, *beside):
        msg = (
            "stream=True needs blocks that can be read again, but X, its mask or its "
            "validation is on the workers already; leave stream=True out"
        )
        raise ValueError(msg)
    work = replace(work, streamed=True)
    streamed = Layout(work, machine, grid_of_chunks(X, work, machine))
    _tell_of_chunks(X, streamed)
    return streamed


def _readable(machine: Machine, *arrays: Any) -> bool:
    """Return whether arrays can be made again from where they come from."""
    if not machine.workers:
        return True
    from distributed import futures_of

    # What is in memory here goes to the workers once.
    return all(map(is_dask, arrays)) and not futures_of(arrays)


def check_fits(layout: Layout, used: float) -> None:
    """Refuse a layout that takes more memory than there is.

    Parameters
    ----------
    layout : Layout
    used : float
        Bytes that the fullest worker uses now.

    Raises
    ------
    ValueError
        With what there is too little of, and what would do.
    """
    why = refusal(layout, used)
    if why is not None:
        raise ValueError(why)


def refusal(layout: Layout, used: float) -> str | None:
    """Return why a layout can't work, and what would; None: it can."""
    machine = layout.machine
    needed = layout.bytes(used)
    if needed.total <= MOST * machine.memory:
        return None
    # The largest rank, and the fewest workers, for which this would fit.
    rank = bisect_left(
        range(1, layout.work.width),
        True,
        key=lambda rank: not _fits(layout, used, rank),
    )
    ways = [f"a rank of at most {rank}"] if rank else []
    if machine.workers:
        counts = (machine.workers * 2**k for k in range(1, 11))
        count = next((n for n in counts if _fits(layout, used, workers=n)), None)
        ways += [f"{count} such workers"] if count else []
    elif not layout.work.streamed:
        ways.append("X as a Dask array, a .npy file or a Zarr array, read in parts")
    ways.append(f"{in_units(needed.total / MOST)} of memory")
    one = "GPU" if machine.gpu else "worker" if machine.workers else "machine"
    where = f"{'each' if machine.workers else 'this'} {one} has"
    return (
        f"the fit would take {in_units(needed.total)} of memory "
        f"({in_units(needed.data)} for data, {in_units(needed.factors)} for factors, "
        f"{in_units(needed.temporaries)} for a while), but {where} "
        f"{in_units(machine.memory)}, of which it may use {MOST:.0%}; what would fit: "
        f"{', or '.join(ways)}"
    )


def _fits(
    layout: Layout, used: float, rank: int | None = None, workers: int = 0
) -> bool:
    """Return whether it would fit with another rank, or with other workers."""
    work, machine = layout.work, layout.machine
    if rank is not None:
        work = replace(work, width=rank)
    if workers:
        threads = machine.threads * workers // machine.workers
        machine = replace(machine, threads=threads, workers=workers)
    taken = bytes_of(work, layout.grid.shape, machine, used)
    return taken.total <= MOST * machine.memory


def in_units(number: float) -> str:
    """Return a number of bytes with a unit."""
    unit, size = next(
        ((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if number >= s / 10), ("kB", 1e3)
    )
    return f"{number / size:.3g} {unit}"


def _cut(X: Any, work: Work, machine: Machine) -> Layout:
    """Return the layout of an array in memory."""
    if work.kind == "sparse":
        return Layout(work, machine, balanced_grid(X, work, machine))
    return Layout(work, machine, _even(work.shape, ranked_grids(work, machine)[0]))


def _even(shape: tuple[int, int], grid: tuple[int, int]) -> Grid:
    rows, columns = map(even_bounds, shape, grid)
    return Grid(rows, columns)


def grid_of_chunks(X: Any, work: Work, machine: Machine) -> Grid:
    """Keep the user's chunks, unless rounds would be far slower, or they are too large.

    Sparse chunks are kept: what they store isn't known before they are read.
    """
    own = _of_whole_chunks(X, X.numblocks)
    if work.kind == "sparse" or flaw_of(work, own, machine) is None:
        return own
    ranked = ranked_grids(work, machine)
    merged = (_of_whole_chunks(X, shape) for shape in ranked)
    good = (grid for grid in merged if flaw_of(work, grid, machine) is None)
    best = next(good, None)
    # Where whole chunks won't do, they are cut.
    return _cut_grid(X, work, machine) if best is None else best


def _tell_of_chunks(X: Any, layout: Layout) -> None:
    """Warn of chunks that weren't kept, where that matters."""
    from dask.array import PerformanceWarning

    own = _of_whole_chunks(X, X.numblocks)
    if layout.work.kind == "sparse" or layout.grid == own:
        return
    flaw = flaw_of(layout.work, own, layout.machine)
    if flaw is None or not flaw.matters:
        return
    (P, Q), (p, q) = own.shape, layout.grid.shape
    msg = (
        f"X has {P} × {Q} chunks, {flaw.why}; the fit uses {p} × {q} blocks. Rechunk X "
        "to save the work of doing it in every fit"
    )
    warnings.warn(msg, PerformanceWarning, stacklevel=3)


def _cut_grid(X: Any, work: Work, machine: Machine) -> Grid:
    """Return the best grid that cuts chunks; a chunk is read for each piece of it."""

    def seconds(grid: Grid) -> float:
        cost = cost_of(work, grid.shape, machine)
        bounds = (grid.row_bounds, grid.column_bounds)
        pairs = zip(X.chunks, bounds, strict=True)
        times = math.prod(_times_read(lengths, own) for lengths, own in pairs)
        return cost.seconds + (times - 1) * cost.memory

    grids = [_even(work.shape, shape) for shape in ranked_grids(work, machine)]
    return min(grids, key=seconds) if work.streamed else grids[0]


def _times_read(lengths: tuple[int, ...], bounds: tuple[int, ...]) -> float:
    """Return how often chunks of an axis are read for strips with these bounds."""
    ends = np.cumsum([0, *lengths])
    first = np.searchsorted(ends, bounds[:-1], side="right") - 1
    last = np.searchsorted(ends, bounds[1:], side="left")
    return float((ends[last] - ends[first]).sum() / ends[-1])


def _of_whole_chunks(X: Any, shape: tuple[int, int]) -> Grid:
    pairs = zip(X.chunks, shape, strict=True)
    return Grid(*(merged_bounds(lengths, parts) for lengths, parts in pairs))
