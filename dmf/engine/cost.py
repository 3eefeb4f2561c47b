"""What a round costs: a model of its seconds, from which the plan follows.

    seconds a round = arithmetic + memory + messages + tasks

A half-step is a stage of tasks after the other, and each stage ends with its last task.
*Arithmetic* is the passes over the blocks; *memory* the passes over strips, and the
partial sums of those that several blocks share; *messages* what moves between worker
processes; *tasks* what the scheduler needs for each task and for each stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from dmf.engine.lower import FAN_IN_LARGE
from dmf.kernels.panels import panels_for

# Numbers that a pass sums for each row: the second derivatives of a plane, in float64.
CURVATURE_BYTES = 24


@dataclass(frozen=True)
class Speed:
    """What work costs a thread, in seconds; fitted to measured rounds.

    Parameters
    ----------
    entry : float
        For each entry that a half-step visits.
    product : float
        For each of those entries and column of the factors.
    row : float
        For each row that an entry names and that isn't in the cache.
    line : float
        For each cache line of such a row.
    number : float
        For each number of a strip that a half-step moves.
    added : float
        For each number of a partial sum.
    byte : float
        For each byte from one worker to another.
    task : float
        For each task, on the one scheduler.
    stage : float
        For each stage, waiting for its last task and for the first of the next.
    read : float
        For each byte of X that is read anew, and made into a block.
    cache : int
        Bytes of rows that stay close to a core, beside the entries that pass by.
    """

    entry: float
    product: float
    row: float
    line: float
    number: float
    added: float
    byte: float
    task: float
    stage: float
    read: float
    cache: int = 5 * 2**18


SPARSE = Speed(
    entry=5e-9,
    product=1.5e-10,
    row=0.0,
    line=7e-10,
    number=4e-9,
    added=3e-9,
    byte=0.0,
    task=2e-4,
    stage=3e-4,
    read=3e-9,
)
# Dense blocks are read in order, and a product is formed in registers.
DENSE = replace(SPARSE, entry=5e-10, product=4.7e-11, row=0.0, line=0.0)


def on_cluster(speed: Speed) -> Speed:
    """Return the speed where tasks and messages go through sockets."""
    return replace(speed, byte=2e-9, task=1e-3, stage=4e-3)


@dataclass(frozen=True)
class Machine:
    """Where tasks run.

    Parameters
    ----------
    threads : int
        Of all workers together.
    workers : int
        Processes of a cluster; 0: the threads of this one.
    memory : float
        Bytes of the smallest worker.
    gpu : bool
        Whether workers are GPUs: each has one thread, and memory of its own.
    """

    threads: int
    workers: int = 0
    memory: float = math.inf
    gpu: bool = False

    def speed(self, kind: str) -> Speed:
        """Return what work costs here, for "sparse" or "dense" blocks."""
        speed = SPARSE if kind == "sparse" else DENSE
        return on_cluster(speed) if self.workers else speed


@dataclass(frozen=True)
class Work:
    """What is factorized.

    Parameters
    ----------
    shape : (m, n)
    stored : int
        Entries that a pass visits: those that are stored or, in dense blocks, all.
    width : int
        Columns of the factors, those of offsets too.
    kind : {"sparse", "dense"}
    itemsize : int
        Bytes of a number.
    weighted : bool
        Whether entries have weights.
    held_out : bool
        Whether some of them are held out.
    chunk : int
        Entries of the largest chunk, where X is read inside tasks; else 0.
    streamed : bool
        Whether blocks are read anew in each pass.
    candidates : int
        How many pairs of factors are fitted together.
    copies : int
        How often an entry is in a block: twice where it is kept by rows and by columns.
    """

    shape: tuple[int, int]
    stored: int
    width: int
    kind: str
    itemsize: int = 4
    weighted: bool = False
    held_out: bool = False
    chunk: int = 0
    streamed: bool = False
    candidates: int = 1
    copies: int = 1

    @property
    def row_bytes(self) -> int:
        """What a row of a factor takes, of one candidate."""
        return self.width * self.itemsize

    @property
    def entry_bytes(self) -> int:
        """What an entry takes in a block: value, weight, and column or masks."""
        numbers = self.itemsize * (2 if self.weighted else 1)
        beside = 4 if self.kind == "sparse" else 1 + self.held_out
        return self.copies * (numbers + beside)


class Cost(NamedTuple):
    """Seconds a round."""

    arithmetic: float
    memory: float
    messages: float
    tasks: float

    @property
    def seconds(self) -> float:
        return sum(self)


# From so many strips on, some threads may have one more than others.
STRIPS_A_THREAD = 4


def goes_together(work: Work, strips: int, machine: Machine) -> bool:
    """Return whether a task that moves a strip shall work on all of its blocks.

    Then there are as many tasks as strips, and nothing waits in between. But what is
    read anew is read for each block, and blocks on a cluster stay where they are.
    """
    if work.streamed or machine.workers:
        return False
    threads = machine.threads
    return strips % threads == 0 or strips >= STRIPS_A_THREAD * threads


def tasks_of(work: Work, grid: tuple[int, int], machine: Machine) -> int:
    """Return how many tasks a round has, but for trees of sums."""
    P, Q = grid
    total = 0
    for strips, blocks in ((P, Q), (Q, P)):
        alone = blocks == 1 or goes_together(work, strips, machine)
        total += strips if alone else 2 * P * Q + 2 * strips
        total += 1  # the report; on a cluster also what it needs of each strip
        total += strips if machine.workers and strips > 1 else 0
    return total


def cost_of(
    work: Work,
    grid: tuple[int, int],
    machine: Machine,
    *,
    speed: Speed | None = None,
    imbalance: float = 1.0,
    candidates: int = 1,
) -> Cost:
    """Return what a round of the default solver costs.

    Parameters
    ----------
    work : Work
    grid : (P, Q)
    machine : Machine
    speed : Speed, optional
        Default: that of the machine for this kind of blocks.
    imbalance : float
        The entries of the fullest block over their mean.
    candidates : int
        How many go over a block, one after the other, each time that it is at hand.
    """
    speed = machine.speed(work.kind) if speed is None else speed
    arithmetic = memory = messages = 0.0
    stages = 0
    blocks = math.prod(grid)
    for axis, (strips, across) in enumerate((grid, grid[::-1])):
        length = work.shape[axis] / strips
        entries = imbalance * work.stored / blocks
        each = speed.entry + speed.product * work.width
        each += _misses(work, grid, axis, machine, speed)
        waves = math.ceil(blocks / machine.threads)
        arithmetic += candidates * waves * entries * each
        if work.streamed:  # a pass for the gradient, and one for the curvature
            passes = 1 if across == 1 else 2
            memory += passes * waves * entries * work.entry_bytes * speed.read
        numbers = length * work.width
        strip = numbers * speed.number
        if across > 1:
            strip += across * (numbers + 3 * length) * speed.added
        memory += candidates * math.ceil(strips / machine.threads) * strip
        alone = across == 1 or goes_together(work, strips, machine)
        stages += 2 if alone else 5
        homes = _homes(work.shape, grid, axis, machine.workers)
        sent = _sent(across, homes, work.row_bytes) * length * strips
        # Each strip is put together in one place: those work side by side.
        beside = max(1, min(strips, machine.workers))
        messages += candidates * speed.byte * sent / beside
    tasks = tasks_of(work, grid, machine) * speed.task + stages * speed.stage
    return Cost(arithmetic, memory, messages, tasks)


def panels_of(work: Work, grid: tuple[int, int], machine: Machine) -> int:
    """Return how many panels a block keeps its entries in."""
    if work.kind == "dense" or work.streamed or machine.gpu:
        return 1
    p, q = (length / parts for length, parts in zip(work.shape, grid, strict=True))
    return panels_for((p, q), work.stored / math.prod(grid), work.row_bytes)


# Rows that an entry names by its column, in the passes for gradient and curvature: to
# move W those of H; to move H also the sums, and a second direction.
NAMED = ((1, 1), (2, 3))
# Rows that the passes ask for where they come back to a row of W: it, and its sums.
COME_BACK = (4, 2)


def _misses(
    work: Work, grid: tuple[int, int], axis: int, machine: Machine, speed: Speed
) -> float:
    """Return the seconds an entry of a half-step waits for rows that aren't close."""
    panels = panels_of(work, grid, machine)
    panel_bytes = work.row_bytes * work.shape[1] / grid[1] / panels
    missed = sum(max(0.0, rows - speed.cache / panel_bytes) for rows in NAMED[axis])
    if panels > 1:
        lines = (panels - 1) * work.shape[0] * grid[1]
        missed += COME_BACK[axis] * lines / work.stored
    return missed * (speed.row + math.ceil(work.row_bytes / 64) * speed.line)


def longer_axis(shape: tuple[int, int]) -> int:
    """Return the axis of the longer factor, whose strips stay where they are."""
    return 0 if shape[0] >= shape[1] else 1


def _homes(
    shape: tuple[int, int], grid: tuple[int, int], axis: int, workers: int
) -> float:
    """Return on how many workers the blocks of a strip are (`Grid.places`)."""
    longer = longer_axis(shape)
    if axis == longer:
        return min(grid[1 - axis], max(1.0, grid[1 - axis] * workers / math.prod(grid)))
    return min(grid[longer], max(1, workers))


def _sent(across: int, homes: float, row_bytes: int) -> float:
    """Return the bytes that a half-step sends for each row of a strip.

    Up: partial sums of the gradient and of the curvature, one a worker where trees add
    up what is on it first. Down: the moves of a plane and the row itself, to every
    other worker that has a block of the strip.
    """
    partial_sums = across if across <= FAN_IN_LARGE else homes
    up = partial_sums * (1 - 1 / homes) * (row_bytes + CURVATURE_BYTES)
    down = (homes - 1) * 3 * row_bytes
    return up + down
