"""The plan: how X is cut into P × Q blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmf.engine.cost import Machine, Work, cost_of, longer_axis
from dmf.engine.memory import PROCESS, making_bytes, threads_of

# The number of threads counts as the next power of this: grids, and with them the order
# in which sums are added up, are then the same on 1 to 4 threads, on 5 to 16, …; and a
# stage has at most so many tasks a thread.
CLASS = 4
# No block takes more than this share of a worker's memory.
SHARE_OF_MEMORY = 1 / 4
# The fullest block stores at most so many times the mean, unless that is slower.
MOST_IMBALANCE = 1.15
# What the model can't tell apart: costs count in steps of this share.
ALIKE = 0.05
# A user's chunks are kept if a round then takes at most so many times the best plan's.
KEEP_CHUNKS = 2.0
# If they aren't, so many seconds a round are worth a message.
WORTH_A_MESSAGE = 0.1


@dataclass(frozen=True)
class Grid:
    """P × Q blocks by their bounds: strip i of W holds the rows bounds[i]:bounds[i+1].

    Parameters
    ----------
    row_bounds : tuple of P + 1 integers
    column_bounds : tuple of Q + 1 integers
    """

    row_bounds: tuple[int, ...]
    column_bounds: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, Q)."""
        return len(self.row_bounds) - 1, len(self.column_bounds) - 1

    def places(self) -> list[tuple[int, int]]:
        """Return all (i, j) in the order in which blocks are dealt out to workers.

        The blocks of a strip of the longer factor follow each other: they meet on one
        worker, and only strips of the shorter factor travel.
        """
        P, Q = self.shape
        if longer_axis((self.row_bounds[-1], self.column_bounds[-1])) == 0:
            return [(i, j) for i in range(P) for j in range(Q)]
        return [(i, j) for j in range(Q) for i in range(P)]

    def strip(self, axis: int, i: int) -> range:
        """Return the rows (axis 0) or columns (axis 1) of strip i."""
        bounds = self.column_bounds if axis else self.row_bounds
        return range(bounds[i], bounds[i + 1])


def ranked_grids(work: Work, machine: Machine) -> list[tuple[int, int]]:
    """Return the grids to choose from, the least predicted seconds a round first.

    The same work on the same class of machines has the same ranking, and so bitwise the
    same factors.
    """
    machine = _class_of(machine)
    seconds = {
        grid: _seconds(work, grid, machine) for grid in _candidates(work, machine)
    }
    least = min(seconds.values())

    def rank(grid: tuple[int, int]) -> tuple[int, int, int, tuple[int, int]]:
        # Of grids that the model can't tell apart, more blocks give more workers
        # something to do, and square ones send the least on clusters of any size.
        steps = round(math.log(seconds[grid] / least) / ALIKE)
        return steps, -math.prod(grid), max(grid), grid

    return sorted(seconds, key=rank)


class Flaw(NamedTuple):
    """What speaks against a grid, in words, and whether a user should hear of it."""

    why: str
    matters: bool


def flaw_of(work: Work, grid: Grid, machine: Machine) -> Flaw | None:
    """Return why the chunks of a user shouldn't be the blocks; None: they may be."""
    blocks = math.prod(grid.shape)
    lengths = [np.diff(bounds) for bounds in (grid.row_bounds, grid.column_bounds)]
    area = math.prod(work.shape)
    # The largest block over their mean, as far as that can be told from outside.
    imbalance = math.prod(int(length.max()) for length in lengths) * blocks / area
    if blocks / imbalance < _fewest(work, machine):
        return Flaw("which are too large for the memory of a worker", True)
    machine = _class_of(machine)
    best = _seconds(work, ranked_grids(work, machine)[0], machine)
    seconds = _seconds(work, grid.shape, machine, imbalance)
    if seconds <= KEEP_CHUNKS * best:
        return None
    why = f"with which a round would take about {seconds / best:.1f} times as long"
    return Flaw(why, seconds - best > WORTH_A_MESSAGE)


def _class_of(machine: Machine) -> Machine:
    """Return the machine that stands for all machines of about this size."""
    if machine.gpu:  # a block fills it
        return machine
    threads = CLASS
    while threads < machine.threads:
        threads *= CLASS
    if not machine.workers:
        return Machine(threads, memory=machine.memory)
    return Machine(threads, threads, machine.memory / threads_of(machine))


def _seconds(
    work: Work, grid: tuple[int, int], machine: Machine, imbalance: float = 1.0
) -> float:
    """Return what a round takes on machines of a class: the mean of the largest one
    and of one with half of its threads."""
    machines = [machine]
    if not machine.gpu:
        workers = math.ceil(machine.workers / 2)
        machines.append(replace(machine, threads=machine.threads // 2, workers=workers))
    costs = [cost_of(work, grid, each, imbalance=imbalance) for each in machines]
    return math.fsum(cost.seconds for cost in costs) / len(costs)


def _candidates(work: Work, machine: Machine) -> list[tuple[int, int]]:
    """Return the grids to choose from: P and Q are powers of two, with as many blocks
    as threads at most, unless it takes more of them to keep each one small. GPUs are
    threads here: a block fills one."""
    least = _fewest(work, machine)
    most = max(machine.threads, 1 << max(0, least - 1).bit_length())
    sides = [
        [2**k for k in range(min(length, most).bit_length())] for length in work.shape
    ]
    grids = [(P, Q) for P in sides[0] for Q in sides[1] if most >= P * Q]
    small = [(P, Q) for P, Q in grids if least <= P * Q]
    return small or [max(grids, key=math.prod)]


def _fewest(work: Work, machine: Machine) -> int:
    """Return how many blocks it takes to keep each one small beside the memory."""
    if work.streamed:
        return _fewest_streamed(work, machine)
    data = work.stored * work.entry_bytes
    return math.ceil(data / (SHARE_OF_MEMORY * machine.memory))


def _fewest_streamed(work: Work, machine: Machine) -> int:
    """Return how many blocks it takes where each thread makes one at a time.

    Half of what the process leaves is for factors and their sums.
    """
    room = max(machine.memory - PROCESS, SHARE_OF_MEMORY * machine.memory) / 2
    blocks = 1
    while True:
        entries = work.stored / blocks
        taken = entries * work.entry_bytes + making_bytes(work, entries)
        # Chunks are read as a whole: cut into many, they take no less.
        if taken * threads_of(machine) <= room or entries < work.chunk / 4:
            return blocks
        blocks *= 2


def balanced_grid(X: Any, work: Work, machine: Machine) -> Grid:
    """Return the best grid whose blocks store about as many entries each.

    Parameters
    ----------
    X : scipy.sparse array in compressed rows, shape (m, n)
    work : Work
    machine : Machine
    """
    rows = np.diff(X.indptr)
    # Counting them passes over all of X: only if they are cut.
    columns = cache(lambda: np.bincount(X.indices, minlength=X.shape[1]))
    alike = _class_of(machine)
    best: tuple[float, Grid] | None = None
    for P, Q in ranked_grids(work, machine):
        if best is not None and _seconds(work, (P, Q), alike) >= best[0]:
            break  # even in perfect balance
        across = balanced_bounds(columns(), Q) if Q > 1 else (0, X.shape[1])
        grid = Grid(balanced_bounds(rows, P), across)
        stored = stored_in(X, grid)
        imbalance = max(1.0, float(stored.max() / max(stored.mean(), 1e-9)))
        if imbalance <= MOST_IMBALANCE:
            return grid
        seconds = _seconds(work, (P, Q), alike, imbalance)
        if best is None or seconds < best[0]:
            best = seconds, grid
    assert best is not None
    return best[1]


def stored_in(X: Any, grid: Grid) -> NDArray[np.int64]:
    """Return how many entries of compressed rows each block stores, shape (P, Q)."""
    P, Q = grid.shape
    counts = np.empty((P, Q), dtype=np.int64)
    for i, (start, stop) in enumerate(pairwise(grid.row_bounds)):
        columns = X.indices[X.indptr[start] : X.indptr[stop]]
        if Q > 1:
            parts = np.searchsorted(grid.column_bounds, columns, side="right") - 1
            counts[i] = np.bincount(parts, minlength=Q)
        else:
            counts[i] = len(columns)
    return counts


def even_bounds(length: int, parts: int) -> tuple[int, ...]:
    """Return the bounds of equally long strips."""
    return tuple(length * k // parts for k in range(parts + 1))


def balanced_bounds(counts: NDArray[np.int64], parts: int) -> tuple[int, ...]:
    """Return the bounds of strips with about the same number of entries.

    Parameters
    ----------
    counts : array of int, shape (length,)
        The number of entries of each row (or column).
    parts : int
        At most `length`; no strip is empty.
    """
    length = len(counts)
    ends = np.cumsum(counts)
    goals = ends[-1] * np.arange(1, parts) / parts
    cuts = np.searchsorted(ends, goals) + 1
    # Every strip keeps a row, however unbalanced the counts are.
    for k in range(parts - 1):
        least = (cuts[k - 1] if k else 0) + 1
        cuts[k] = min(max(cuts[k], least), length - (parts - 1 - k))
    return (0, *(int(cut) for cut in cuts), length)


def merged_bounds(chunks: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Return the bounds of at most `parts` strips that are made of whole chunks."""
    ends = np.cumsum(chunks)
    if len(chunks) <= parts:
        return (0, *(int(end) for end in ends))
    goals = ends[-1] * np.arange(1, parts + 1) / parts
    picked = sorted(set(np.searchsorted(ends, goals - 0.5).tolist()))
    return (0, *(int(ends[k]) for k in picked))
