"""When the fit of a candidate ends, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dmf.engine.state import State
from dmf.history import Record
from dmf.status import Certificate, Status


@dataclass(frozen=True)
class Rules:
    """When a candidate's fit ends.

    Parameters
    ----------
    max_rounds : int
    tol : float
        Converged: a round changes the objective by less than this share of it.
    check_every : int
        Rounds in one graph.
    patience : int
        Checks without a lower error on the held-out entries.
    drop_after : int or None
        After this many rounds the worse half of the candidates is dropped, and again
        whenever the rounds have doubled. None: all are kept.
    """

    max_rounds: int
    tol: float
    check_every: int = 1
    patience: int = 10
    drop_after: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What the loop leaves behind of a candidate.

    `state` holds the candidate alone; None if it was dropped. In the end its leaves are
    values, unless X is a Dask array: then they stay where the tasks ran.
    """

    candidate: int
    state: State | None
    records: tuple[Record, ...]
    initial_objective: float
    status: Status
    certificate: Certificate | None
    validated: bool

    @property
    def last(self) -> Record | None:
        """The record of the round whose factors were kept."""
        kept = self.status.factors_of
        return self.records[kept - 1] if kept else None

    @property
    def objective(self) -> float:
        return self.last.objective if self.last else self.initial_objective

    @property
    def rank_by(self) -> float:
        """What tells the better candidate: the held-out error or the objective."""
        return math.inf if self.last is None else score(self.last, self.validated)


@dataclass(frozen=True)
class Best:
    """Where a candidate had its lowest error on the held-out entries."""

    rmse: float
    state: State
    checks: int = 0  # since then

    @property
    def round(self) -> int:
        return self.state.round


def score(record: Record, validated: bool) -> float:
    """Return what tells the better of two candidates: less is better."""
    told = record.validation_rmse if validated else record.objective
    return math.inf if math.isnan(told) else told


def worse_half(scores: dict[int, float]) -> list[int]:
    """Return the worse half of the candidates; of an odd number, the smaller half."""
    ranking = sorted(scores, key=lambda k: (scores[k], k))
    return ranking[(len(ranking) + 1) // 2 :]


def converges(
    records: Sequence[Record], before: float, tol: float, noise: float
) -> bool:
    """Return whether one of some rounds has hardly changed anything.

    Parameters
    ----------
    records : sequence of Record
    before : float
        The objective before the first of them.
    tol : float
        The share of the objective that is hardly anything; 0: nothing is.
    noise : float
        Root mean squares up to this are rounding.
    """
    for record in records:
        change = abs(before - record.objective)
        if tol > 0 and (change < tol * record.objective or record.rmse <= noise):
            return True
        before = record.objective
    return False


def first_explosion(records: Sequence[Record]) -> int | None:
    """Return the first round whose objective isn't finite."""
    for record in records:
        if not math.isfinite(record.objective):
            return record.round
    return None
