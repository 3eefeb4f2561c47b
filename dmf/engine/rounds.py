"""Rounds: a half-step on W, then one on H, until it's time to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dmf.engine.data import Data
from dmf.engine.lower import Graph, Lowering, Place
from dmf.engine.runner import Leaf, Runner, WorkersLost
from dmf.engine.trace import HalfTrace
from dmf.init import random_strip
from dmf.penalties import Ridge
from dmf.result import Record, Status
from dmf.solvers.base import Report, Solver

Key = Hashable
Penalties = tuple[Ridge, Ridge]

# Rounds after which the factors of a fit on a cluster are kept on this side too: what
# dead workers took along is then computed again from there.
SNAPSHOT_EVERY = 10
# How often in a row a round may be tried on a cluster that keeps losing workers.
MAX_RECOVERIES = 5


@dataclass(frozen=True)
class State:
    """The factors after a round, strip by strip, where the tasks run.

    A strip is stored as the solver's last task returned it: a tuple whose first item
    is the strip of the factor. `current` and `previous` hold the strips' keys for W
    and for H; the previous factor is what the last move is measured from.
    """

    round: int
    current: tuple[tuple[Key, ...], tuple[Key, ...]]
    previous: tuple[tuple[Key, ...], tuple[Key, ...]]
    leaves: dict[Key, Leaf] = field(repr=False)

    def strips(self, axis: int) -> list[Leaf]:
        return [self.leaves[key] for key in self.current[axis]]


@dataclass(frozen=True)
class Outcome:
    """What the loop leaves behind."""

    state: State
    records: tuple[Record, ...]
    initial_objective: float
    status: Status


def start_state(
    data: Data, rank: int, seed: int, start: int, scale: float, runner: Runner
) -> State:
    """Return random factors; rows and columns without observed entries are 0."""
    graph: Graph = dict(data.leaves)
    keys: list[tuple[Key, ...]] = []
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
    return State(0, current, current, leaves)


def _start_strip(draw: Callable[[], Any], counts: Any) -> tuple[Any, None]:
    strip = draw()
    # The least that any penalty allows, and what no gradient will ever move.
    strip[counts == 0] = 0
    return strip, None


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
            half = HalfTrace(axis, data.kernels, penalties[axis], round)
            updated = solver.half_step(half)
            total = half.sum_over_all(updated[1])
            inputs = {
                half.block: data.block(axis),
                half.counts: data.counts(axis),
                half.moving: Place(partial(_own, current[axis]), (0,)),
                half.previous: Place(partial(_own, previous[axis]), (0,)),
                half.fixed: Place(partial(_other, current[1 - axis]), (0,)),
            }
            lowering = Lowering(
                half,
                inputs,
                (updated, total),
                (data.grid.shape[axis], data.grid.shape[1 - axis]),
                f"{'WH'[axis]}-{data.token}",
                round,
            )
            graph.update(lowering.graph)
            moved = lowering.find(updated)
            previous[axis] = current[axis]
            current[axis] = tuple(moved.key(i, 0) for i in range(data.grid.shape[axis]))
            totals.append(lowering.find(total).key(0, 0))
        reports.append((totals[0], totals[1]))
    after = State(
        state.round + number,
        (current[0], current[1]),
        (previous[0], previous[1]),
        {},
    )
    return graph, after, reports


def _own(keys: tuple[Key, ...], strip: int, other: int) -> Key:
    return keys[strip]


def _other(keys: tuple[Key, ...], strip: int, other: int) -> Key:
    return keys[other]


def run_rounds(
    data: Data,
    reload: Callable[[], Data],
    state: State,
    solver: Solver,
    penalties: Penalties,
    runner: Runner,
    *,
    max_rounds: int,
    tol: float,
    check_every: int,
    watch: Callable[[Record], bool],
) -> Outcome:
    """Run rounds until the fit has converged, or something else ends it.

    Parameters
    ----------
    data : Data
    reload : callable
        Brings the data anew to workers that have lost them.
    state : State
    solver : Solver
    penalties : (for W, for H)
    runner : Runner
    max_rounds : int
    tol : float
        Converged: a round changes the objective by less than this share of it.
    check_every : int
        Rounds in one graph.
    watch : callable
        Sees each record; True stops the fit.
    """
    records: list[Record] = []
    initial = math.nan
    began = time.perf_counter()
    safe = Snapshot(state, runner)
    recoveries = 0
    status = Status("max_rounds", max_rounds)
    try:
        while state.round < max_rounds:
            number = min(check_every, max_rounds - state.round)
            try:
                after, reports = _advance(
                    data, state, solver, penalties, runner, number
                )
            except WorkersLost:
                recoveries += 1
                if recoveries > MAX_RECOVERIES:
                    raise
                data = reload()
                state = safe.restore(data, runner)
                continue
            recoveries = 0
            seconds = time.perf_counter() - began
            fresh = [
                _record(data, W, H, state.round + k + 1, seconds)
                for k, (W, H) in enumerate(reports)
            ]
            if not records:
                W, H = reports[0]
                initial = W.loss_before + W.penalty_before + H.penalty_before
            if not all(math.isfinite(record.objective) for record in fresh):
                status = Status("diverged", state.round + 1)
                break
            state = after
            # Rounds that are run again after a loss give the same records again.
            fresh = [record for record in fresh if record.round > len(records)]
            last = records[-1].objective if records else initial
            records.extend(fresh)
            stop = [watch(record) for record in fresh]
            if any(stop):
                status = Status("stopped", state.round)
                break
            if _converged(fresh, last, tol, data):
                status = Status("converged", state.round, tol)
                break
            safe.update(state, runner)
    except KeyboardInterrupt:
        status = Status("interrupted", state.round)
    return Outcome(state, tuple(records[: state.round]), initial, status)


def _advance(
    data: Data,
    state: State,
    solver: Solver,
    penalties: Penalties,
    runner: Runner,
    number: int,
) -> tuple[State, list[tuple[Report, Report]]]:
    graph, after, reports = build_rounds(data, state, solver, penalties, number)
    kept = {key for keys in (*after.current, *after.previous) for key in keys}
    wanted = [key for pair in reports for key in pair]
    leaves = runner.run(graph, [*kept, *wanted])
    told = runner.fetch([leaves.pop(key) for key in wanted])
    pairs = list(zip(told[::2], told[1::2], strict=True))
    return replace(after, leaves=leaves), pairs


def _record(data: Data, W: Report, H: Report, round: int, seconds: float) -> Record:
    loss = max(H.loss, 0.0)  # rounding may take a loss of nothing below 0
    return Record(
        round=round,
        objective=loss + W.penalty + H.penalty,
        rmse=math.sqrt(2 * loss / data.totals.weight),
        gradient_norm_W=math.sqrt(W.gradient),
        gradient_norm_H=math.sqrt(H.gradient),
        step_W=_share(W.move, W.factor),
        step_H=_share(H.move, H.factor),
        plane_W=W.in_plane / W.rows,
        plane_H=H.in_plane / H.rows,
        seconds=seconds,
    )


def _share(move: float, factor: float) -> float:
    return math.sqrt(move / factor) if factor > 0 else 0.0


def _converged(records: list[Record], before: float, tol: float, data: Data) -> bool:
    # Below a few times the rounding of X there is nothing to gain any more.
    floor = 10 * _epsilon(data) * math.sqrt(data.totals.mean_square)
    for record in records:
        change = abs(before - record.objective)
        if change < tol * record.objective or record.rmse <= floor:
            return True
        before = record.objective
    return False


def _epsilon(data: Data) -> float:
    import numpy as np

    return float(np.finfo(data.dtype).eps)


class Snapshot:
    """The factors of an earlier round, on this side of the network.

    On threads there is nothing to lose, and nothing is kept.
    """

    def __init__(self, start: State, runner: Runner) -> None:
        self._state = start
        self._values: dict[Key, Any] = {}
        self._keep(start, runner)

    def update(self, state: State, runner: Runner) -> None:
        """Keep the factors, if enough rounds have gone by."""
        if state.round - self._state.round >= SNAPSHOT_EVERY:
            self._keep(state, runner)

    def restore(self, data: Data, runner: Runner) -> State:
        """Bring the factors back to the workers."""
        leaves = runner.put(list(self._values.values()))
        return replace(self._state, leaves=dict(zip(self._values, leaves, strict=True)))

    def _keep(self, state: State, runner: Runner) -> None:
        if runner.remote:
            values = runner.fetch(list(state.leaves.values()))
            self._values = dict(zip(state.leaves, values, strict=True))
            self._state = state
