"""A round as tasks: a half-step on W, then one on H."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dmf.engine.data import Data
from dmf.engine.lower import Graph, Key, Lowering, Place
from dmf.engine.runner import Leaf, Runner
from dmf.engine.trace import HalfTrace
from dmf.init import random_strip
from dmf.penalties import Penalty
from dmf.solvers.base import Solver

Penalties = tuple[Penalty, Penalty]
Strips = tuple[Key, ...]  # the keys of a factor's strips


@dataclass(frozen=True)
class State:
    """The factors of a start after a round, strip by strip, where the tasks run.

    A strip is stored as the solver's last task returned it: a tuple whose first item
    is the strip of the factor. `current` and `previous` hold the strips' keys for W
    and for H; the previous factor is what the last move is measured from.
    """

    start: int
    round: int
    current: tuple[Strips, Strips]
    previous: tuple[Strips, Strips]
    leaves: dict[Key, Leaf] = field(repr=False)

    def restored(self, leaves: list[Leaf], token: str) -> State:
        """Return the same state under new keys: the scheduler may remember the old."""
        names = {
            key: (f"restored-{token}", self.start, k)
            for k, key in enumerate(self.leaves)
        }

        def renamed(factors: tuple[Strips, Strips]) -> tuple[Strips, Strips]:
            W, H = (tuple(names[key] for key in strips) for strips in factors)
            return W, H

        return State(
            self.start,
            self.round,
            renamed(self.current),
            renamed(self.previous),
            dict(zip(names.values(), leaves, strict=True)),
        )

    def strips(self, axis: int) -> list[Leaf]:
        return [self.leaves[key] for key in self.current[axis]]


def start_state(
    data: Data, runner: Runner, *, rank: int, seed: int, start: int, scale: float
) -> State:
    """Return random factors; rows and columns without observed entries are 0."""
    graph: Graph = dict(data.leaves)
    keys: list[Strips] = []
    for axis in (0, 1):
        counts = data.counts(axis)
        name = f"start-{'WH'[axis]}-{data.token}"
        strips = []
        for i in range(data.grid.shape[axis]):
            key = (name, start, i)
            rows = data.grid.strip(axis, i)
            draw = partial(
                random_strip, seed, start, axis, rows, rank, scale, data.dtype
            )
            graph[key] = (_start_strip, draw, counts.key(i, 0))
            strips.append(key)
        keys.append(tuple(strips))
    current = (keys[0], keys[1])
    leaves = runner.run(graph, [*keys[0], *keys[1]])
    return State(start, 0, current, current, leaves)


def _start_strip(draw: Callable[[], Any], counts: Any) -> tuple[Any, None]:
    strip = draw()
    # The least that any penalty allows, and what no gradient will ever move.
    strip[counts == 0] = 0
    return strip, None


def zero_strip(length: int, rank: int, dtype: Any) -> tuple[Any, None]:
    """Return a strip of zeros, as a half-step expects it."""
    return np.zeros((length, rank), dtype=dtype), None


def build_rounds(
    data: Data, state: State, solver: Solver, penalties: Penalties, number: int
) -> tuple[Graph, State, list[tuple[Key, Key]]]:
    """Return the tasks of the next rounds; nothing is computed.

    Parameters
    ----------
    data : Data
    state : State
        Where the rounds begin.
    solver : Solver
    penalties : (for W, for H)
    number : int
        How many rounds.

    Returns
    -------
    graph : dict
        With what the tasks start from.
    state : State
        Where the rounds end, still without leaves.
    reports : list of (key for W, key for H)
        The sums of the half-steps' reports, for each round.
    """
    graph: Graph = {**data.leaves, **state.leaves}
    current, previous = list(state.current), list(state.previous)
    reports = []
    for round in range(state.round + 1, state.round + number + 1):
        totals = []
        for axis in (0, 1):
            tasks, moved, total = build_half(
                data,
                solver,
                penalties[axis],
                axis=axis,
                moving=current[axis],
                previous=previous[axis],
                fixed=current[1 - axis],
                round=round,
                start=state.start,
            )
            graph.update(tasks)
            previous[axis], current[axis] = current[axis], moved
            totals.append(total)
        reports.append((totals[0], totals[1]))
    after = State(
        state.start,
        state.round + number,
        (current[0], current[1]),
        (previous[0], previous[1]),
        {},
    )
    return graph, after, reports


def build_half(
    data: Data,
    solver: Solver,
    penalty: Penalty,
    *,
    axis: int,
    moving: Strips,
    previous: Strips,
    fixed: Strips,
    round: int,
    start: int,
) -> tuple[Graph, Strips, Key]:
    """Return the tasks of a half-step, the keys of the moved strips, and the report's.

    Parameters
    ----------
    data : Data
    solver : Solver
    penalty : Penalty
        On the moving factor.
    axis : {0, 1}
        0 when W moves, 1 when H moves.
    moving, previous, fixed : tuple of keys
        The strips of the moving factor, now and before its last move, and of the other.
    round, start : int
        Make the tasks' keys different from those of other rounds and restarts.
    """
    half = HalfTrace(axis, data.kernels, penalty, round)
    updated = solver.half_step(half)
    total = half.sum_over_all(updated[1])
    strips, blocks = data.grid.shape[axis], data.grid.shape[1 - axis]
    lowering = Lowering(
        half,
        inputs={
            half.block: data.block(axis),
            half.counts: data.counts(axis),
            half.moving: Place(partial(_own, moving), (0,)),
            half.previous: Place(partial(_own, previous), (0,)),
            half.fixed: Place(partial(_other, fixed), (0,)),
        },
        outputs=(updated, total),
        shape=(strips, blocks),
        label=f"{'WH'[axis]}-{data.token}",
        prefix=(start, round),
    )
    place = lowering.find(updated)
    moved = tuple(place.key(i, 0) for i in range(strips))
    return lowering.graph, moved, lowering.find(total).key(0, 0)


def _own(keys: Strips, strip: int, other: int) -> Key:
    return keys[strip]


def _other(keys: Strips, strip: int, other: int) -> Key:
    return keys[other]
