"""The history, why a fit ended, restarts, callbacks, interrupts, the progress line."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import asdict, fields
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from dmf.history import COLUMNS
from tests.problems import (
    MONOTONE,
    SOLVERS,
    Problem,
    fitted,
    low_rank,
    plain_objective,
)

Array = Any


# History and Record.


def assert_same_records(found: dmf.History, expected: dmf.History) -> None:
    """Assert that all fields are the same, bitwise; NaN is NaN."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_equal(asdict(one), asdict(other))


def test_history_is_a_sequence_of_records() -> None:
    history = fitted().history
    assert len(history) == 6
    assert [record.round for record in history] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(record, dmf.Record) for record in history)
    assert history[-1] is history[5]
    assert list(history[1:3]) == [history[1], history[2]]
    assert history[2] in history
    assert next(reversed(history)) == history[-1]
    with pytest.raises(IndexError):
        history[6]


def test_history_has_columns() -> None:
    history = fitted().history
    assert {f.name for f in fields(dmf.Record)} == set(COLUMNS)
    for name in COLUMNS:
        column = getattr(history, name)
        assert isinstance(column, np.ndarray)
        expected = [getattr(record, name) for record in history]
        np.testing.assert_array_equal(column, expected)  # NaN too, where none is needed
        whole = name in ("round", "candidate")
        assert column.dtype == (np.int64 if whole else np.float64)
    assert np.all(np.diff(history.seconds) >= 0)
    assert history.seconds[0] > 0


def test_an_unknown_column() -> None:
    history = fitted().history
    text = r"History has no column 'error'; it has round, objective, rmse, gradient_nor"
    with pytest.raises(AttributeError, match=text):
        _ = history.error
    assert not hasattr(history, "loss")


@pytest.mark.parametrize("validation", [None, 0.2])
def test_history_to_json_and_back(validation: float | None) -> None:
    """Without anything held out, what is said of it is NaN."""
    history = fitted(validation=validation).history
    assert np.isnan(history.validation_rmse).all() == (validation is None)
    columns = history.to_dict()
    assert tuple(columns) == COLUMNS
    back = dmf.History.from_dict(
        json.loads(json.dumps(columns)), history.initial_objective
    )
    assert_same_records(back, history)
    assert back.initial_objective == history.initial_objective
    assert isinstance(back[0].round, int)


def test_columns_of_different_lengths_make_no_history() -> None:
    columns = fitted().history.to_dict()
    columns["rmse"].pop()
    with pytest.raises(ValueError, match="zip"):
        dmf.History.from_dict(columns, 1.0)


def test_a_history_survives_copies_and_pickles() -> None:
    history = fitted().history
    for other in (
        copy.copy(history),
        copy.deepcopy(history),
        pickle.loads(pickle.dumps(history)),
    ):
        assert_same_records(other, history)
        assert other.initial_objective == history.initial_objective


def test_an_empty_history() -> None:
    history = dmf.History([], 3.5)
    assert len(history) == 0
    assert history.rmse.shape == (0,)
    assert repr(history) == "History(0 rounds)"
    assert list(dmf.History.from_dict(history.to_dict(), 3.5)) == []


def test_reprs() -> None:
    fit = fitted()
    first, last = fit.history.initial_objective, fit.history[-1]
    assert repr(fit.history) == (
        f"History(6 rounds, objective {first:.6g} -> {last.objective:.6g}, "
        f"rmse {last.rmse:.6g})"
    )
    assert repr(fit) == (
        f"Factorization(30 × 20, rank 3, {fit.history!r}, status='max_rounds')"
    )


def test_what_a_factorization_holds() -> None:
    solver, ridge = dmf.NormalizedGradient(), dmf.Ridge(0.2)
    fit = fitted(solver=solver, penalty=(None, ridge), seed=7)
    assert (fit.shape, fit.rank, fit.seed) == ((30, 20), 3, 7)
    assert fit.solver is solver
    assert fit.penalty == (dmf.Ridge(0.0), ridge)
    assert fit.objective == fit.history[-1].objective
    assert fit.objectives == (fit.objective,)
    assert isinstance(fit.W, np.ndarray)
    deviation = np.nanstd(low_rank().nan)
    counts = np.array([0.0, 1, 100])
    for auto in fitted().penalty:
        missing = np.isnan(low_rank().nan).mean()
        strengths = 0.02 * deviation * (counts + 200 * missing**4)
        assert auto.ridge(counts) == pytest.approx(strengths)


# What the history says is true: compare with the formulas, written plainly.

RIDGES = {
    "none": (None, None),
    "ridge": (dmf.Ridge(0.3), dmf.Ridge(0.7)),
    "by count": (dmf.Ridge(0.1, by_count=True), None),
}


def plain_rmse(problem: Problem, M: Array, fit: dmf.Factorization) -> float:
    residual = problem.truth - np.asarray(fit.W) @ np.asarray(fit.H)
    return math.sqrt(np.average(residual[M > 0] ** 2, weights=M[M > 0]))


@pytest.mark.parametrize("weighted", [False, True], ids=["bool", "weighted"])
@pytest.mark.parametrize("ridges", RIDGES)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_objective_and_rmse(solver: Any, ridges: str, weighted: bool) -> None:
    problem = low_rank()
    M = problem.weights if weighted else problem.mask
    penalty = RIDGES[ridges]
    mask = M if weighted else None
    for rounds in (1, 4):
        fit = fitted(
            problem.nan, mask=mask, solver=solver, penalty=penalty, max_rounds=rounds
        )
        expected = plain_objective(problem, M, fit, penalty)
        assert fit.history[-1].objective == pytest.approx(expected, rel=1e-9)
        rmse = plain_rmse(problem, M, fit)
        assert fit.history[-1].rmse == pytest.approx(rmse, rel=1e-9)


@pytest.mark.parametrize("form", ["sparse", "dask", "dask-sparse", "float32"])
@pytest.mark.parametrize("solver", MONOTONE[-2:], ids=str)
def test_objective_and_rmse_of_other_arrays(
    solver: Any, form: str, keep_chunks: None
) -> None:
    problem = low_rank(dtype=np.float32 if form == "float32" else np.float64)
    lazy = da.from_array(problem.nan, chunks=(8, 6))
    X = {
        "sparse": problem.sparse(),
        "dask": lazy,
        "dask-sparse": da.from_array(
            np.where(problem.mask, problem.truth, 0), chunks=(8, 6)
        ).map_blocks(sp.csr_array, meta=sp.csr_array((0, 0))),
        "float32": problem.nan,
    }[form]
    fit = fitted(X, solver=solver, penalty=RIDGES["by count"])
    expected = plain_objective(problem, problem.mask, fit, RIDGES["by count"])
    tolerance = 1e-4 if form == "float32" else 1e-9
    assert fit.objective == pytest.approx(expected, rel=tolerance)
    rmse = plain_rmse(problem, problem.mask, fit)
    assert fit.history[-1].rmse == pytest.approx(rmse, rel=tolerance)


def test_the_objective_stays_true_when_almost_nothing_is_left() -> None:
    """It is the loss before a move plus a change: differences cancel."""
    problem = low_rank(noise=0.0)
    fit = fitted(
        problem.nan,
        solver=dmf.AlternatingLeastSquares(),
        penalty=None,
        max_rounds=25,
    )
    expected = plain_objective(problem, problem.mask, fit, (None, None))
    first = fit.history.initial_objective
    assert expected < 1e-9 * first
    assert fit.objective == pytest.approx(expected, rel=1e-2, abs=1e-14 * first)


def test_initial_objective_is_that_of_the_start() -> None:
    """A step of next to no length stays at the start."""
    problem = low_rank()
    ridges = RIDGES["ridge"]
    solver = dmf.GradientDescent(1e-13)
    fit = fitted(problem.nan, solver=solver, penalty=ridges, max_rounds=1)
    expected = plain_objective(problem, problem.mask, fit, ridges)
    assert fit.history.initial_objective == pytest.approx(expected, rel=1e-9)


def test_gradient_norms_and_steps() -> None:
    """From three fits that end after 0 (almost), 1 and 2 rounds."""
    problem = low_rank()
    M, X = problem.mask, np.where(problem.mask, problem.truth, 0)
    ridges = RIDGES["ridge"]
    options = {"penalty": ridges, "solver": dmf.NormalizedGradient()}
    before = fitted(problem.nan, max_rounds=1, **options)
    after = fitted(problem.nan, max_rounds=2, **options)
    W, H = before.W, before.H
    for_W = (M * (W @ H - X)) @ H.T + ridges[0].strength * W
    for_H = after.W.T @ (M * (after.W @ H - X)) + ridges[1].strength * H
    record = after.history[1]
    assert record.gradient_norm_W == pytest.approx(np.linalg.norm(for_W))
    assert record.gradient_norm_H == pytest.approx(np.linalg.norm(for_H))
    norm = np.linalg.norm
    assert record.step_W == pytest.approx(norm(after.W - W) / norm(after.W))
    assert record.step_H == pytest.approx(norm(after.H - H) / norm(after.H))
    # The first round has no previous move; then every row has one.
    assert (after.history[0].plane_W, after.history[0].plane_H) == (0, 0)
    assert (record.plane_W, record.plane_H) == (1, 1)
    line = fitted(problem.nan, solver=dmf.NormalizedGradient(step=dmf.Exact()))
    assert not line.history.plane_W.any()


def test_factorizations_are_compared_by_identity() -> None:
    fit = fitted(max_rounds=1)
    assert fit == fit
    assert fit != fitted(max_rounds=1)
    assert len({fit, fit}) == 1
