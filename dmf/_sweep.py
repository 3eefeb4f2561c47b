"""sweep: many ranks, penalties and starts in one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from dmf._candidates import Candidate, Fitted, best_of, fit_candidates
from dmf._settings import (
    check_compatible,
    check_options,
    check_penalty,
    check_settings,
)
from dmf.containers import unwrap_like, unwrap_pair
from dmf.penalties import Penalty
from dmf.result import Factorization
from dmf.status import Code
from dmf.validation import check_bool, check_integer, check_matrix, check_rank

Array = Any


# Rounds after which different settings begin to tell which will be best.
DROP_AFTER = 16


@dataclass(frozen=True)
class Trial:
    """One line of a sweep: a setting, a start, and how far it got.

    Parameters
    ----------
    rank : int
    penalty : (for W, for H)
        As given.
    start : int
        The number of the random start.
    objective : float
        Of the factors that were kept, or when it was dropped.
    validation_rmse, validation_mae : float
        On the held-out entries, likewise; in units of X.
    rounds : int
        How many were run.
    seconds : float
        From the first round of the sweep to its last one.
    status : str
        Why it ended: "converged", "early_stopped", "dropped" …
    """

    rank: int
    penalty: tuple[Penalty | str | None, Penalty | str | None]
    start: int
    objective: float
    validation_rmse: float
    validation_mae: float
    rounds: int
    seconds: float
    status: Code


class Sweep(Sequence[Trial]):
    """The trials of a sweep, best first, and the best model.

    Parameters
    ----------
    trials : sequence of Trial
    best : Factorization
        The model with the lowest RMSE on the held-out entries.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> rng = np.random.default_rng(0)
    >>> X = rng.random((30, 2)) @ rng.random((2, 20))
    >>> trials = dmf.sweep(X, ranks=[1, 2], max_rounds=30)
    >>> trials.best.rank, trials[0].rank
    (2, 2)
    """

    def __init__(self, trials: Sequence[Trial], best: Factorization) -> None:
        self._trials = tuple(sorted(trials, key=_place))
        self.best = best

    def __getitem__(self, index: Any) -> Any:
        return self._trials[index]

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns as lists, for a data frame."""
        rows = [asdict(trial) for trial in self._trials]
        for row, trial in zip(rows, self._trials, strict=True):
            row["penalty"] = trial.penalty
        return {name: [row[name] for row in rows] for name in Trial.__annotations__}

    def __str__(self) -> str:
        lines = ["rank  start  validation  objective  rounds  status         penalty"]
        for t in self._trials:
            W, H = t.penalty
            penalty = f"{W}" if W is H else f"{W} | {H}"
            lines.append(
                f"{t.rank:4d}  {t.start:5d}  {t.validation_rmse:10.5g}  "
                f"{t.objective:9.4g}  {t.rounds:6d}  {t.status:13s}  {penalty}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Sweep({len(self)} trials, best={self.best!r})"


def _place(trial: Trial) -> tuple[bool, float]:
    """Return what a trial's place in the table goes by: kept ones first."""
    rmse = trial.validation_rmse
    return trial.status == "dropped", math.inf if math.isnan(rmse) else rmse


def sweep(
    X: Array,
    ranks: Sequence[int],
    *,
    penalties: Sequence[Any] = ("auto",),
    restarts: int = 1,
    validation: float | Array = 0.1,
    drop: bool = True,
    **options: Any,
) -> Sweep:
    """Fit every rank with every penalty from several starts, in one pass for all.

    The factors of all candidates are stacked: each block of X is read once a pass, by
    the same tasks, however many candidates there are. The worse half of them is dropped
    after 16 rounds, and again after 32, 64, …, by their error on the held-out entries.

    Parameters
    ----------
    X : array, shape (m, n)
        As in `factorize`.
    ranks : sequence of int
        Each from 1 to min(m, n). Candidates of a lower rank are filled up to the
        largest one with columns of zeros, and cost as much as it.
    penalties : sequence
        Each as `factorize` takes it: a penalty, None, "auto", or a pair of them. Beside
        a `Smooth`, others move as it does: another way to their minimum.
    restarts : int, default 1
        Random starts of each setting.
    validation : float or array, default 0.1
        What is held out, as in `factorize`; the same for all candidates.
    drop : bool, default True
        False keeps all candidates to their end: settings that differ much, in how far
        they smooth for example, may need more rounds than that to show what they are.
    **options
        Those of `factorize`: mask, offsets, offset_penalty, unobserved_weight,
        patience, solver, max_rounds, tol, check_every, seed, client, callbacks,
        progress.

    Returns
    -------
    Sweep
        A sequence of `Trial`, best first; ``print`` shows it as a table. ``best`` is
        the best model; it hasn't seen what was held out: factorize X once more with its
        ``rank`` and ``penalty`` to use all of the entries.

    Raises
    ------
    ValueError, TypeError
        Bad input, as in `factorize`; no rank or no penalty is given.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30))
    >>> found = dmf.sweep(
    ...     X, ranks=[2, 3], penalties=[dmf.Ridge(0.1), dmf.Ridge(100.0)], max_rounds=40
    ... )
    >>> len(found), found.best.rank, found.best.penalty[0]
    (4, 3, Ridge(strength=0.1, by_count=False))
    """
    X, mask, labels = unwrap_pair(X, options.pop("mask", None))
    validation = unwrap_like(validation, labels, "validation")
    shape = check_matrix("X", X)
    check_options(options, "sweep")
    for name, given in (("ranks", ranks), ("penalties", penalties)):
        if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
            msg = f"{name} must be a list, got {given!r}; give [{given!r}]"
            raise TypeError(msg)
        if not len(given):
            msg = f"{name} is empty; give at least one"
            raise ValueError(msg)
    if validation is None:
        msg = (
            "validation is None, but the candidates of a sweep are compared by their "
            "error on held-out entries; hold some out, for example validation=0.1"
        )
        raise ValueError(msg)
    restarts = check_integer("restarts", restarts, at_least=1)
    ranks = [check_rank(rank, shape) for rank in ranks]
    pairs = [check_penalty(penalty) for penalty in penalties]
    candidates = [
        Candidate(rank, pair, number)
        for rank, pair, number in product(ranks, pairs, range(restarts))
    ]
    drop_after = DROP_AFTER if check_bool("drop", drop) else None
    settings = check_settings(
        X,
        labels=labels,
        mask=mask,
        validation=validation,
        drop_after=drop_after,
        **options,
    )
    check_compatible(shape, pairs, settings.solver)
    fits = fit_candidates(X, candidates, settings)
    best = replace(best_of(fits), labels=labels)
    return Sweep([_trial(fit) for fit in fits], best)


def _trial(fit: Fitted) -> Trial:
    outcome = fit.outcome
    last = outcome.last or next(reversed(outcome.records), None)
    return Trial(
        rank=fit.candidate.rank,
        penalty=fit.candidate.penalty,
        start=fit.candidate.number,
        objective=last.objective if last else outcome.initial_objective,
        validation_rmse=last.validation_rmse if last else math.nan,
        validation_mae=last.validation_mae if last else math.nan,
        rounds=len(outcome.records),
        seconds=outcome.records[-1].seconds if outcome.records else 0.0,
        status=outcome.status.code,
    )
