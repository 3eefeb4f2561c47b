"""The loop: rounds until it's time to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dmf.engine.data import Data
from dmf.engine.rounds import Penalties, State, build_rounds
from dmf.engine.runner import ClusterError, Runner, WorkersLost
from dmf.result import Code, Record, Status
from dmf.solvers.base import Report, Solver

# Rounds after which the factors of a fit on a cluster are kept on this side too: what
# dead workers took along is then computed again from there.
SNAPSHOT_EVERY = 10
# How often in a row the same rounds may fail on a cluster that loses workers.
MAX_LOSSES = 5


@dataclass(frozen=True)
class Outcome:
    """What the loop leaves behind.

    The state's leaves are values, unless X is a Dask array: then they stay where the
    tasks ran.
    """

    state: State
    records: tuple[Record, ...]
    initial_objective: float
    status: Status

    @property
    def objective(self) -> float:
        return self.records[-1].objective if self.records else self.initial_objective


@dataclass
class Loop:
    """Runs rounds until the fit has converged, or something else ends it.

    Parameters
    ----------
    data : Data
    reload : callable
        Loads the data anew, after workers have taken them along.
    start : callable
        Makes the state to begin with, from the data and the runner.
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

    data: Data
    reload: Callable[[], Data]
    start: Callable[[Data, Runner], State]
    solver: Solver
    penalties: Penalties
    runner: Runner
    max_rounds: int
    tol: float
    check_every: int
    watch: Callable[[Record], bool]

    def __post_init__(self) -> None:
        self._state: State | None = None
        self._snapshot: State | None = None
        self._records: list[Record] = []
        self._initial = math.nan
        self._losses = 0

    def run(self) -> Outcome:
        """Run, and go on after workers were lost."""
        self._began = time.perf_counter()
        self._target = self.max_rounds
        self._status = Status("max_rounds", self.max_rounds)
        while True:
            try:
                state = self._state or self._begin()
                if state.round >= self._target:
                    return self._outcome(state)
                self._run_batch(state)
            except WorkersLost as error:
                self._state = None
                self._losses += 1
                if self._losses > MAX_LOSSES:
                    msg = (
                        f"workers were lost {self._losses} times in one round; look at "
                        "their logs (too little memory is the usual reason), or give "
                        "the cluster more workers"
                    )
                    raise ClusterError(msg) from error
            except KeyboardInterrupt:
                self._state = self._state or self._snapshot
                if self._state is None or self._status.code == "interrupted":
                    raise
                self._end("interrupted", self._state)

    def _begin(self) -> State:
        """Return the state to begin with: the start or, after a loss, the snapshot."""
        if self._losses:
            self.data = self.reload()
        if self._snapshot is None:
            self._state = self.start(self.data, self.runner)
        else:
            leaves = self.runner.put(list(self._snapshot.leaves.values()))
            self._state = self._snapshot.restored(leaves, self.data.token)
        return self._state

    def _run_batch(self, state: State) -> None:
        """Run the rounds up to the next check, and look at what they say."""
        number = min(self.check_every, self._target - state.round)
        after, reports = self._advance(state, number)
        self._losses = 0
        seconds = time.perf_counter() - self._began
        records = [
            Record.of_round(state.round + k + 1, W, H, self.data.totals.weight, seconds)
            for k, (W, H) in enumerate(reports)
        ]
        if state.round == 0:
            W, H = reports[0]
            self._initial = W.loss_before + W.penalty_before + H.penalty_before
        finite = [math.isfinite(record.objective) for record in records]
        if not all(finite):
            # Run the batch again, up to the round before the one that exploded.
            self._target = state.round + finite.index(False)
            self._status = Status("diverged", self._target)
            return
        # Rounds that run again after a loss give the same records again.
        records = [record for record in records if record.round > len(self._records)]
        before = self._records[-1].objective if self._records else self._initial
        # In this order: an interrupt in between leaves records too many, none too few.
        self._records.extend(records)
        self._state = after
        if any([self.watch(record) for record in records]):
            self._end("stopped", after)
        elif self._status.code == "max_rounds" and self._converged(records, before):
            self._end("converged", after)
        elif after.round // SNAPSHOT_EVERY > state.round // SNAPSHOT_EVERY:
            home = self._bring_home(after)
            self._snapshot = home if home is not after else None

    def _advance(
        self, state: State, number: int
    ) -> tuple[State, list[tuple[Report, Report]]]:
        graph, after, reports = build_rounds(
            self.data, state, self.solver, self.penalties, number
        )
        kept = {key for keys in (*after.current, *after.previous) for key in keys}
        wanted = [key for pair in reports for key in pair]
        leaves = self.runner.run(graph, [*kept, *wanted])
        told = self.runner.fetch([leaves.pop(key) for key in wanted])
        pairs = list(zip(told[::2], told[1::2], strict=True))
        return replace(after, leaves=leaves), pairs

    def _converged(self, records: list[Record], before: float) -> bool:
        # Below a few times the rounding of X there is nothing to gain any more.
        epsilon = float(np.finfo(self.data.dtype).eps)
        floor = 10 * epsilon * math.sqrt(self.data.totals.mean_square)
        for record in records:
            change = abs(before - record.objective)
            small = change < self.tol * record.objective or record.rmse <= floor
            if small and self.tol > 0:
                return True
            before = record.objective
        return False

    def _end(self, code: Code, state: State) -> None:
        """Let the loop end with the rounds that are done."""
        self._target = state.round
        self._status = Status(code, state.round, self.tol)

    def _outcome(self, state: State) -> Outcome:
        return Outcome(
            self._bring_home(state),
            tuple(self._records[: state.round]),
            self._initial,
            self._status,
        )

    def _bring_home(self, state: State) -> State:
        """Return a state that no worker can take along; the same one if it's safe.

        Dask can compute again whatever stems from a Dask array, so that such a state
        may stay on the cluster, however large it is. X from this process can't be
        computed again, but then its factors have their room here too.
        """
        if not self.runner.remote or self.data.recomputable:
            return state
        values: list[Any] = self.runner.fetch(list(state.leaves.values()))
        return replace(state, leaves=dict(zip(state.leaves, values, strict=True)))
