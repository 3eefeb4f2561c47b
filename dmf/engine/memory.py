"""What a fit takes of a worker's memory: a model of its bytes.

bytes = the process itself + data + factors + temporaries
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from dask.utils import parse_bytes

from dmf.engine.cost import CURVATURE_BYTES, Machine, Work, panels_of
from dmf.engine.lower import FAN_IN_LARGE

# A process that has imported and loaded all that a worker needs.
PROCESS = 290e6
# Copies of a factor: before and after a round, each with the last moves; the gradient.
COPIES = 5
# More of them where the best ones so far are kept, or those of each candidate alone.
KEPT_COPIES = 2
# Copies of the shorter factor that visit a worker, with what is sent around with it.
VISITORS = 2


class Bytes(NamedTuple):
    """Bytes of the fullest worker, at its peak."""

    process: float
    data: float
    factors: float
    temporaries: float

    @property
    def total(self) -> float:
        return sum(self)


def bytes_of(
    work: Work, grid: tuple[int, int], machine: Machine, used: float = PROCESS
) -> Bytes:
    """Return what a fit takes of the fullest worker.

    Parameters
    ----------
    work : Work
    grid : (P, Q)
    machine : Machine
    used : float
        Bytes of its process before.
    """
    blocks = math.prod(grid)
    workers = max(1, machine.workers)
    own = math.ceil(blocks / workers)
    busy = min(own, threads_of(machine))
    entries = work.stored / blocks

    # Of rows and columns; and where rows begin, in each panel.
    counts = own * sum(8 * n / parts for n, parts in zip(work.shape, grid, strict=True))
    if work.kind == "sparse" and not work.streamed:
        counts += own * 8 * panels_of(work, grid, machine) * work.shape[0] / grid[0]

    row_bytes = work.candidates * work.row_bytes
    longer, shorter = (f(work.shape) * row_bytes for f in (max, min))
    copies = COPIES + KEPT_COPIES * (work.held_out or work.candidates > 1)
    factors = copies * (longer + shorter) / workers
    if workers > 1:
        factors += VISITORS * shorter

    reading = busy * making_bytes(work, entries)
    sums = 0.0
    for axis, across in enumerate(grid[::-1]):
        if across > 1:
            strip = work.shape[axis] / grid[axis]
            waiting = min(own, busy + FAN_IN_LARGE) if work.streamed else own
            each = row_bytes + work.candidates * CURVATURE_BYTES
            sums = max(sums, waiting * strip * each)
    # What is kept is made before there are factors; what is streamed, beside them.
    if work.streamed:
        data = counts
        temporaries = reading + busy * entries * work.entry_bytes + sums
    else:
        data = counts + own * entries * work.entry_bytes
        temporaries = max(reading - factors, sums)
    return Bytes(max(used, PROCESS), data, factors, temporaries)


def making_bytes(work: Work, entries: float) -> float:
    """Return what is taken for a while as a block is made from the source."""
    if work.kind == "sparse":
        # As it is stored, what is observed; and what is held out, by its places.
        return (24.0 + 16.0 * work.held_out) * entries
    # Of a lazy array: as it is stored, as it is unpacked, and where it belongs. Chunks
    # are read as a whole.
    source = 3 * work.itemsize * max(entries, work.chunk) if work.chunk else 0
    # Without what is missing; which entries those are, and which are held out.
    own = work.itemsize + 3 + 2 * work.held_out
    return source + own * entries


def threads_of(machine: Machine) -> int:
    """Return the threads of a worker: how many blocks it works on at once."""
    if machine.gpu:
        return 2  # one arrives while it works on the other
    return math.ceil(machine.threads / max(1, machine.workers))


def limited(machine: Machine, memory: float | str | None) -> Machine:
    """Return a machine whose workers have so many bytes, or as in "8 GiB".

    Raises
    ------
    ValueError
        It isn't a number of bytes above 0.
    """
    if memory is None:
        return machine
    try:
        given = float(parse_bytes(memory)) if memory else 0.0
    except (ValueError, TypeError, AttributeError):
        given = 0.0
    if not given > 0:
        msg = (
            f"memory_limit must be a number of bytes above 0, or as in '8 GiB'; got "
            f"{memory!r}"
        )
        raise ValueError(msg)
    return replace(machine, memory=given)
