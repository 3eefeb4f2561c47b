"""The loop: rounds of all candidates until the last of them has come to its end."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import InitVar, dataclass, replace
from typing import Any

from dmf.engine.checkpoint import Checkpoints, Reached
from dmf.engine.data import Data
from dmf.engine.endings import (
    Best,
    Outcome,
    Rules,
    converges,
    first_explosion,
    score,
    worse_half,
)
from dmf.engine.interrupts import Interrupts
from dmf.engine.losses import MAX_LOSSES, ClusterError, WorkersLost, given_up
from dmf.engine.records import certificate_of, first_objectives, records_of
from dmf.engine.rounds import build_errors, build_rounds, build_stationarity
from dmf.engine.runner import Runner
from dmf.engine.state import Batch, State
from dmf.engine.store import UnreadableError
from dmf.history import Record
from dmf.objective import Objective
from dmf.solvers.base import Report, Solver
from dmf.status import Certificate, Code, Status

# Rounds after which factors on a cluster are kept on this side too.
SNAPSHOT_EVERY = 10
NOT_SAVED = "no checkpoint could be saved ({}); the fit goes on, the last one is kept"


@dataclass
class Loop:
    """Runs rounds until every candidate has converged, or something else ends it.

    Parameters
    ----------
    data : Data
    reload : callable
        Loads the data anew, after workers have taken them along.
    start : callable
        Makes the state to begin with, from the data and the runner.
    solver : Solver
    objective : Objective
    runner : Runner
    rules : Rules
    watch : callable
        Sees each record; True stops the fit.
    checkpoints : Checkpoints, optional
        Where to save how far the fit has come.
    reached : Reached, optional
        Where it goes on, instead of at a start.
    """

    data: Data
    reload: Callable[[], Data]
    start: Callable[[Data, Runner], State]
    solver: Solver
    objective: Objective
    runner: Runner
    rules: Rules
    watch: Callable[[Record], bool]
    checkpoints: Checkpoints | None = None
    reached: InitVar[Reached | None] = None

    def __post_init__(self, reached: Reached | None) -> None:
        count = len(self.objective.sides[0].penalties)
        if reached is None:
            reached = Reached.at_start(count, self.rules.drop_after)
        self._go_on_from(reached)
        self._alive = set(range(count)) - set(self._outcomes)
        self._settle()
        self._unsaved = False
        self._ahead: Batch | None = None
        self._snapshot: tuple[State, dict[int, Best]] | None = None
        self._interrupts = Interrupts()
        self._losses = self._furthest = 0  # losses since the furthest round
        self._data_lost = self._stopped = False
        # The round in which a callback said stop; rounds that run again don't ask it.
        self._halt: int | None = None

    def run(self) -> list[Outcome]:
        """Run, and go on after workers were lost. Return an outcome a candidate."""
        before = max((r[-1].seconds for r in self._records if r), default=0.0)
        self._began = time.perf_counter() - before
        # What came from a checkpoint, no task of this fit can compute again.
        self._take_snapshot()
        try:
            with self._interrupts.noticed():
                while self._alive:
                    self._go_on()
        finally:
            # What was sent ahead shall not outlive the fit on a cluster.
            self._ahead = None
        try:
            self._save()
        except ClusterError as error:
            warnings.warn(NOT_SAVED.format(error), UserWarning, stacklevel=2)
        return [
            replace(found, state=found.state and self._bring_home(found.state))
            for _, found in sorted(self._outcomes.items())
        ]

    def _settle(self) -> None:
        """Note where the fit is: after a batch, with all that follows from it."""
        self._settled = Reached(
            self._state if self._alive else None,
            dict(self._best),
            self._records,
            self._initial,
            dict(self._outcomes),
            self._drop_next,
        )
        self._unsaved = True

    def _save(self) -> bool:
        """Save where the fit was when it was settled last; return whether it could."""
        if self.checkpoints is None or not self._unsaved:
            return False
        try:
            self.checkpoints.save(self._settled)
        except OSError as error:
            warnings.warn(NOT_SAVED.format(error), UserWarning, stacklevel=2)
            return False
        self._unsaved = False
        return True

    def _go_on_from(self, reached: Reached) -> None:
        self._state = reached.state
        self._best = dict(reached.best)
        self._records, self._initial = reached.records, reached.initial
        self._outcomes = dict(reached.outcomes)
        self._drop_next = reached.drop_next

    def _go_on(self) -> None:
        """Run a batch, or end the fit; what is lost is begun anew the next time."""
        try:
            self._interrupts.raise_lost()
            state = self._state or self._begin()
            if state.round >= self.rules.max_rounds:
                self._retire(state, dict.fromkeys(state.candidates, "max_rounds"))
                self._settle()
            else:
                self._run_batch(state)
        except (WorkersLost, UnreadableError) as error:
            self._state = self._ahead = None
            self._losses += 1
            self._data_lost = isinstance(error, WorkersLost)
            if self._losses > MAX_LOSSES:
                if self._data_lost:
                    ending = given_up("in one round")
                    raise ending from error
                raise
        except KeyboardInterrupt:
            self._interrupts.seen()
            kept = self._snapshot[0] if self._snapshot else None
            if self._stopped or not (
                self._interrupted_at(self._state) or self._interrupted_at(kept)
            ):
                raise

    def _interrupted_at(self, reached: State | None) -> bool:
        """End the fit with a state; return whether that could be had."""
        if reached is None:
            return False
        self._stopped, self._state = True, reached
        try:
            self._retire(reached, dict.fromkeys(self._alive, "interrupted"))
        except (WorkersLost, UnreadableError):  # workers may be stopped with the fit
            return False
        return True

    def _begin(self) -> State:
        """Return the state to begin with: the start or, after a loss, what was kept."""
        if self._data_lost:
            self.data, self._data_lost = self.reload(), False
        saved = self.checkpoints.last() if self.checkpoints else None
        kept, best = self._snapshot or (None, {})
        if saved and saved.state and (kept is None or saved.round > kept.round):
            state, self._best = saved.state, dict(saved.best)
        elif kept is not None:
            state = kept.put_back(self.runner)
            self._best = dict(best)
        else:
            state, self._best = self.start(self.data, self.runner), {}
        self._state = self._only(state, self._alive)
        return self._state

    def _run_batch(self, state: State) -> None:
        """Run the rounds up to the next check, and look at what they say."""
        self.data = self.data.shared(self.runner)
        batch, self._ahead = self._ahead, None
        if batch is None or batch.before is not state:
            batch = self._submit(state)
        after = batch.after
        drops = self._drop_next is not None and after.round >= self._drop_next
        due = self.checkpoints is not None and self.checkpoints.due(after.round)
        changes = drops or due or after.round >= self.rules.max_rounds
        if self.runner.remote and not changes:
            # A cluster goes on while the scalars of these rounds are on their way.
            self._ahead = self._submit(after)
        reports, errors = self._collect(batch)
        if after.round > self._furthest:
            self._furthest, self._losses = after.round, 0
        told = self._tell(state, reports, errors)
        exploded = {
            k: round
            for k, records in told.items()
            if (round := first_explosion(records)) is not None
        }
        for k, round in exploded.items():
            # Run the batch again, up to the round before the one that exploded.
            whole = round - state.round - 1
            good = state if whole == 0 else self._submit(state, whole).after
            self._keep_records(k, told[k][:whole])
            self._retire(good, {k: "diverged"})
        if not self._alive:
            return
        after = self._only(after, self._alive)
        endings: dict[int, Code] = {}
        news: list[Record] = []
        best = dict(self._best)
        for k in self._alive:
            news += self._keep_records(k, told[k])
            if not self._improves(best, k, after, told[k][-1]):
                endings[k] = "early_stopped"
            if self._converged(k, told[k]):
                endings[k] = "converged"
        # In this order: an interrupt in between leaves records too many, none too few.
        self._state, self._best = after, best
        news.sort(key=lambda record: (record.round, record.candidate))
        if any([self.watch(record) for record in news]):
            self._halt = after.round
        if self._halt is not None and self._halt <= after.round:
            self._stopped = True
            endings = dict.fromkeys(self._alive, "stopped")
        self._retire(after, endings)
        self._drop_losers(after.round)
        if not self._stopped:
            self._settle()
        if due and self._alive and self._save():
            assert self.checkpoints is not None
            self._settled = self.checkpoints.rooted(self._settled)
            self._go_on_from(self._settled)
        if after.round // SNAPSHOT_EVERY > state.round // SNAPSHOT_EVERY:
            self._take_snapshot()

    def _tell(
        self,
        state: State,
        reports: list[tuple[Report, Report]],
        errors: Any | None,
    ) -> dict[int, list[Record]]:
        """Return the records of a batch, for each candidate."""
        if state.round == 0:
            for candidate, objective in first_objectives(self.data, state, reports[0]):
                self._initial[candidate] = objective
        seconds = time.perf_counter() - self._began
        return records_of(self.data, self.objective, state, reports, errors, seconds)

    def _keep_records(self, candidate: int, records: list[Record]) -> list[Record]:
        """Append the records that are new, and return them.

        Rounds that run again after a loss give the same records again.
        """
        kept = self._records[candidate]
        fresh = [record for record in records if record.round > len(kept)]
        kept.extend(fresh)
        return fresh

    def _submit(self, state: State, number: int | None = None) -> Batch:
        """Let the rounds up to the next check run, or so many of them."""
        if number is None:
            left = self.rules.max_rounds - state.round
            number = min(self.rules.check_every, left)
        positions = list(state.candidates)
        objective = self.objective.select(positions)
        graph, after, reports = build_rounds(
            self.data, state, self.solver, objective, number
        )
        wanted, held_out = [key for pair in reports for key in pair], []
        if self.data.totals.held_out > 0:
            place = self.data.held_out()
            tasks, key = build_errors(self.data, after, place, objective)
            graph.update(tasks)
            held_out.append(key)
        new = [key for key in after.keys if key not in state.leaves]
        leaves = self.runner.run(graph, [*new, *wanted, *held_out])
        told, errors = (
            [leaves.pop(key) for key in keys] for keys in (wanted, held_out)
        )
        found = {k: leaves[k] if k in leaves else state.leaves[k] for k in after.keys}
        return Batch(state, replace(after, leaves=found), told, errors)

    def _collect(self, batch: Batch) -> tuple[list[tuple[Report, Report]], Any | None]:
        """Return the reports of a batch's rounds, and the held-out errors."""
        told = self.runner.fetch([*batch.reports, *batch.errors])
        reports, errors = told[: len(batch.reports)], told[len(batch.reports) :]
        pairs = list(zip(reports[::2], reports[1::2], strict=True))
        return pairs, errors[0] if errors else None

    def _improves(
        self, found: dict[int, Best], candidate: int, state: State, record: Record
    ) -> bool:
        """Note the best factors so far; return False when patience is at its end."""
        if math.isnan(record.validation_rmse):
            return True
        best = found.get(candidate)
        if best is None or record.validation_rmse < best.rmse:
            found[candidate] = Best(record.validation_rmse, state)
            return True
        # The best factors are no longer those of the stack: keep them alone.
        alone = self._only(best.state, {candidate})
        found[candidate] = Best(best.rmse, alone, best.checks + 1)
        return best.checks + 1 < self.rules.patience

    def _converged(self, candidate: int, records: list[Record]) -> bool:
        """Return whether one of the rounds of a batch has hardly changed anything."""
        kept, earlier = self._records[candidate], records[0].round - 2
        before = kept[earlier].objective if earlier >= 0 else self._initial[candidate]
        return converges(records, before, self.rules.tol, self.data.noise)

    def _drop_losers(self, round: int) -> None:
        """Drop the worse half, and again whenever the rounds have doubled."""
        if self._drop_next is None or round < self._drop_next:
            return
        # Rounds that run again after a loss come too late for what is done.
        while self._drop_next <= round:
            self._drop_next *= 2
        assert self._state is not None
        # Those that have come to their end stay in the contest.
        kept = [k for k, o in self._outcomes.items() if o.status.code != "dropped"]
        scores = {
            k: score(self._records[k][-1], self.data.totals.held_out > 0)
            for k in (*kept, *self._alive)
        }
        losers = [k for k in worse_half(scores) if k in self._alive]
        self._retire(self._state, dict.fromkeys(losers, "dropped"))

    def _retire(self, state: State, endings: dict[int, Code]) -> None:
        """Let candidates end with the factors of a state, or with their best ones."""
        if endings:
            self._ahead = None  # it runs with candidates that have come to their end
        for k, code in endings.items():
            kept = state
            best = self._best.get(k)
            if best is not None and best.round <= kept.round:
                kept = best.state
            status = Status(
                code,
                state.round,
                tol=self.rules.tol,
                patience=self.rules.patience,
                factors_of=kept.round,
            )
            home, certificate = None, None
            if code != "dropped":
                alone = self._only(kept, {k})
                if code not in ("diverged", "interrupted"):
                    certificate = self._certify(alone, k)
                home = self._bring_home(alone)
            self._outcomes[k] = Outcome(
                k,
                home,
                tuple(self._records[k][: state.round]),
                self._initial[k],
                status,
                certificate,
                self.data.totals.held_out > 0,
            )
            self._alive.discard(k)
            self._best.pop(k, None)
        if endings and self._alive and self._state is not None:
            self._state = self._only(self._state, self._alive)

    def _certify(self, state: State, candidate: int) -> Certificate:
        """Measure how stationary the factors of a candidate are."""
        objective = self.objective.select([candidate])
        if state.home:
            state = state.put_back(self.runner)
        graph, keys = build_stationarity(self.data, objective, state.renamed())
        leaves = self.runner.run(graph, keys)
        W, H = self.runner.fetch([leaves[key] for key in keys])
        return certificate_of(W, H, self._records[candidate], self.data.constant)

    def _only(self, state: State, candidates: set[int]) -> State:
        positions = [k for k, c in enumerate(state.candidates) if c in candidates]
        return state.select(positions, self.runner)

    def _take_snapshot(self) -> None:
        """Keep what no worker can take along, if there is need."""
        if self._state is None or not self._alive or not self._at_risk:
            return
        best = {
            k: replace(b, state=self._bring_home(self._only(b.state, {k})))
            for k, b in self._best.items()
        }
        self._snapshot = (self._bring_home(self._state), best)

    @property
    def _at_risk(self) -> bool:
        """Whether factors on a cluster could be lost for good.

        Dask can compute again whatever stems from a Dask array, so that such a state
        may stay on the cluster, however large it is. X from this process can't be
        computed again, but then its factors have their room here too.
        """
        return self.runner.remote and not self.data.recomputable

    def _bring_home(self, state: State) -> State:
        """Return a state that no worker can take along; the same one if it's safe."""
        return state.fetched(self.runner) if self._at_risk else state
