"""A run in a few numbers: reports begin with them, runs are compared by them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dmf.jobs.record import RunRecord


class Summary(NamedTuple):
    """A run in a few numbers; None is what the run has none of.

    Parameters
    ----------
    id, name, started, outcome : str
    code : int
    seconds : float
    rows, columns, observed : int or None
        Of X; the observed entries.
    missing : float or None
        Share.
    rounds : int
        Of the longest of the restarts.
    rmse : float or None
        On the observed entries: of the factors that were kept, if they were looked at,
        else in the last round.
    validation_rmse, last_rmse : float or None
        On held-out entries: of this run, and of the one before.
    """

    id: str
    name: str
    started: str
    outcome: str
    code: int
    seconds: float
    rows: int | None
    columns: int | None
    observed: int | None
    missing: float | None
    rounds: int
    rmse: float | None
    validation_rmse: float | None
    last_rmse: float | None


def summary(record: RunRecord) -> Summary:
    """Return the summary of a run, whatever it has come to."""
    found, last = record.findings, record.rounds[-1] if record.rounds else {}
    rows, columns = record.input.get("shape") or found.get("shape") or (None, None)
    residuals = found.get("residuals") or last
    return Summary(
        id=record.id,
        name=record.name,
        started=record.started,
        outcome=record.outcome or ("done" if record.code == 0 else "failed"),
        code=record.code,
        seconds=record.seconds,
        rows=rows,
        columns=columns,
        observed=record.input.get("observed", found.get("observed")),
        missing=known(record.input.get("missing", found.get("missing"))),
        rounds=max((int(one["round"]) for one in record.rounds), default=0),
        rmse=known(residuals.get("rmse")),
        validation_rmse=known(record.validation.get("rmse")),
        last_rmse=known(record.validation.get("last_rmse")),
    )


def began(run: Summary | RunRecord) -> datetime:
    """Return when a run began; it's in UTC, also where it doesn't say so."""
    given = datetime.fromisoformat(run.started)
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def known(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
