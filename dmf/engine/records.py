"""From what half-steps report of themselves to the records of a history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dmf.engine.data import Data
from dmf.engine.state import State
from dmf.history import Record
from dmf.objective import Objective
from dmf.solvers.base import Report
from dmf.solvers.certificate import Stationarity
from dmf.status import Certificate

Reports = tuple[Report, Report]  # of the half-steps of W and of H


def first_objectives(
    data: Data, state: State, reports: Reports
) -> list[tuple[int, float]]:
    """Return the candidates and their objectives before the first round."""
    found = []
    for position, candidate in enumerate(state.candidates):
        W, H = (_of_candidate(report, position) for report in reports)
        objective = W.loss_before + W.penalty_before + H.penalty_before
        found.append((candidate, float(objective) + data.constant))
    return found


def records_of(
    data: Data,
    objective: Objective,
    state: State,
    reports: list[Reports],
    errors: Any | None,
    seconds: float,
) -> dict[int, list[Record]]:
    """Return the records of rounds, for each candidate.

    Parameters
    ----------
    data : Data
    objective : Objective
        Of all candidates of the fit.
    state : State
        Before the first of the rounds.
    reports : list of (Report, Report)
    errors : array, shape (K, 2), or None
        The sums of squares and of absolute values on what is held out, after the last.
    seconds : float
        Since the fit began.
    """
    told: dict[int, list[Record]] = {}
    for position, candidate in enumerate(state.candidates):
        told[candidate] = [
            Record.of_round(
                state.round + k,
                _of_candidate(W, position),
                _of_candidate(H, position),
                weight=data.totals.weight,
                constant=data.constant,
                rank=objective.sides[0].ranks[candidate],
                seconds=seconds,
                candidate=candidate,
            )
            for k, (W, H) in enumerate(reports, start=1)
        ]
        if errors is not None:
            squares, absolutes = errors[position] / data.totals.held_out
            told[candidate][-1] = replace(
                told[candidate][-1],
                validation_rmse=math.sqrt(squares),
                validation_mae=float(absolutes),
            )
    return told


def certificate_of(
    W: Stationarity, H: Stationarity, records: Sequence[Record], constant: float
) -> Certificate:
    """Return how stationary the factors of one candidate are.

    Parameters
    ----------
    W, H : Stationarity
        Of that candidate alone.
    records : sequence of Record
        Of its rounds.
    constant : float
        What the loss of the kernels lacks.
    """
    return Certificate(
        objective=float(W.loss[0] + W.penalty[0] + H.penalty[0]) + constant,
        gradient_norm_W=math.sqrt(W.gradient[0]),
        gradient_norm_H=math.sqrt(H.gradient[0]),
        start_W=records[0].gradient_norm_W if records else math.nan,
        start_H=records[0].gradient_norm_H if records else math.nan,
    )


def _of_candidate(report: Report, position: int) -> Report:
    return Report(*(float(part[position]) for part in report))
