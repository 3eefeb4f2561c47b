"""Sweeps: which candidates are dropped, the table of all, and what is refused."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from dmf._sweep import DROP_AFTER, Sweep, Trial
from tests.problems import interrupt_in, low_rank, same_factors

PROBLEM = low_rank(observed=0.7, noise=0.3)
OPTIONS: dict[str, Any] = {"max_rounds": 6, "tol": 0, "patience": 100}


@settings(max_examples=8)
@given(
    starts=st.integers(1, 4),
    every=st.sampled_from([1, 5, 7]),
    seed=st.integers(0, 100),
)
def test_which_trials_are_dropped_and_when(starts: int, every: int, seed: int) -> None:
    """The worse half, at the first check after 8, 16 and 32 rounds."""
    told: list[dmf.Record] = []
    options: dict[str, Any] = {
        "penalties": [dmf.Ridge(0.1), dmf.Ridge(3.0)],
        "restarts": starts,
        "max_rounds": 45,
        "check_every": every,
        "patience": 1000,
        "tol": 0,
        "seed": seed,
    }
    ranks = [1, 3]
    found = dmf.sweep(PROBLEM.nan, ranks, **options, callbacks=[told.append])
    errors = {
        (r.candidate, r.round): r.validation_rmse
        for r in told
        if not np.isnan(r.validation_rmse)
    }
    left = list(range(4 * starts))
    rounds = {}
    checks = [r for r in range(1, 46) if r % every == 0 or r == 45]
    due = [DROP_AFTER * 2**k for k in range(9)]
    for check in checks:
        assert {k for k in left if (k, check) in errors} == set(left)
        if check >= due[0]:
            due = [d for d in due if d > check]
            ranking = sorted(left, key=lambda k: errors[k, check])
            for k in ranking[(len(left) + 1) // 2 :]:
                rounds[k] = check
                left.remove(k)
    order = list(product(ranks, options["penalties"], range(starts)))
    for trial in found:
        k = order.index((trial.rank, trial.penalty[0], trial.start))
        assert trial.rounds == rounds.get(k, 45)
        assert trial.status == ("dropped" if k in rounds else "max_rounds")
        # What is listed is the best that it had reached.
        mine = {r: e for (c, r), e in errors.items() if c == k}
        assert trial.validation_rmse == min(mine.values())
    kept = [t for t in found if t.status != "dropped"]
    assert list(found[: len(kept)]) == kept
    assert found[0].validation_rmse == min(t.validation_rmse for t in kept)
    for part in (kept, found[len(kept) :]):
        listed = [trial.validation_rmse for trial in part]
        assert listed == sorted(listed)
    assert found.best.objective == found[0].objective


def test_restarts_are_those_of_factorize() -> None:
    options = OPTIONS | {"seed": 7}
    found = dmf.sweep(PROBLEM.nan, [3], restarts=4, drop=False, **options)
    fit = dmf.factorize(
        PROBLEM.nan, 3, restarts=4, drop=False, validation=0.1, **options
    )
    assert sorted(trial.start for trial in found) == [0, 1, 2, 3]
    objectives = [0.0] * 4
    for trial in found:
        objectives[trial.start] = trial.objective
    assert objectives == pytest.approx(fit.objectives, rel=1e-9)
    assert same_factors(found.best, fit)


def small(**options: Any) -> Sweep:
    given = {"penalties": [dmf.Ridge(0.1), (None, dmf.Ridge(5.0))]} | OPTIONS
    return dmf.sweep(PROBLEM.nan, [1, 3], **(given | options))


def test_the_table() -> None:
    found = small(max_rounds=12)
    lines = str(found).splitlines()
    assert lines[0].split() == [
        *("rank", "start", "validation", "objective", "rounds", "status", "penalty")
    ]
    assert len(lines) == 5
    for line, trial in zip(lines[1:], found, strict=True):
        rank, start, error, objective, rounds, status, penalty = line.split(None, 6)
        assert (int(rank), int(start), int(rounds)) == (
            *(trial.rank, trial.start, trial.rounds),
        )
        assert float(error) == pytest.approx(trial.validation_rmse, rel=1e-4)
        assert float(objective) == pytest.approx(trial.objective, rel=1e-3)
        assert status == trial.status
        W, H = trial.penalty
        assert penalty == (str(W) if W is H else f"{W} | {H}")
    assert repr(found) == f"Sweep(4 trials, best={found.best!r})"


def test_columns_and_sequence() -> None:
    found = small(max_rounds=12)
    columns = found.to_dict()
    assert list(columns) == [
        *("rank", "penalty", "start", "objective", "validation_rmse"),
        *("validation_mae", "rounds", "seconds", "status"),
    ]
    rows = [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    assert [Trial(**row) for row in rows] == list(found)
    assert found[-1] is list(found)[-1]
    assert found[1:3] == tuple(found)[1:3]
    assert list(reversed(found)) == list(found)[::-1]
    assert found[2] in found
    times = columns["seconds"]
    assert all(seconds > 0 for seconds in times)


def test_an_interrupted_sweep_keeps_what_it_has() -> None:
    found = small(callbacks=[interrupt_in(3)])
    assert {trial.status for trial in found} == {"interrupted"}
    assert {trial.rounds for trial in found} == {3}
    expected = small(max_rounds=3)
    assert same_factors(found.best, expected.best)


def test_trials_that_explode_are_listed() -> None:
    for rate in (0.5, 1e300):  # after some rounds, and at once
        found = small(solver=dmf.GradientDescent(rate), max_rounds=40)
        assert {trial.status for trial in found} == {"diverged"}
        assert found.best.status.code == "diverged"


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ranks": []}, ValueError, "ranks is empty; give at least one"),
    ({"penalties": []}, ValueError, "penalties is empty; give at least one"),
    ({"ranks": [2, 21]}, ValueError, "rank must be at most min(m, n) = 20 for X"),
    ({"ranks": [0]}, ValueError, "rank must be at least 1, got 0"),
    ({"restarts": 0}, ValueError, "restarts must be at least 1, got 0"),
    ({"drop": 1}, TypeError, "drop must be True or False, got 1"),
    ({"penalties": [0.1]}, TypeError, "penalty must be a penalty such as"),
    (
        {"validation": None},
        ValueError,
        "validation is None, but the candidates of a sweep are compared by their error "
        "on held-out entries; hold some out, for example validation=0.1",
    ),
    ({"validation": 1.5}, ValueError, "validation must be below 1, got 1.5"),
    (
        {"start": None},
        TypeError,
        "sweep has no option 'start'; besides its own, it takes",
    ),
    (
        {"penalties": [(None, dmf.Smooth(1.0)), (None, dmf.Lasso(1.0))]},
        ValueError,
        "Smooth and Lasso or NonNegative can't be on one factor, got ",
    ),
    (
        {
            "penalties": [dmf.Ridge(1.0), (None, dmf.Smooth(1.0))],
            "solver": dmf.AlternatingLeastSquares(),
        },
        ValueError,
        "AlternatingLeastSquares solves for each row on its own, but Smooth ties",
    ),
    (
        {"penalties": [None, (None, dmf.Smooth(1.0, step=(1.0, 2.0)))]},
        ValueError,
        "Smooth has 2 steps, but H has 20 columns; give one step for each of the 19",
    ),
]


@pytest.mark.usefixtures("no_tasks")
@pytest.mark.parametrize(("change", "error", "text"), REFUSED)
def test_refused(change: dict[str, Any], error: Any, text: str) -> None:
    given = {"ranks": [2], "penalties": [None]} | change
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        dmf.sweep(PROBLEM.nan, given.pop("ranks"), **given)


def test_candidates_need_something_to_be_compared_by() -> None:
    """Not the objective: that of a stronger penalty or a lower rank is no worse fit."""
    with pytest.raises(ValueError, match="validation"):
        small(validation=np.zeros(PROBLEM.truth.shape, dtype=bool))
