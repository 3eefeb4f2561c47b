"""Rows and columns with nothing observed are legal: their factors are 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from tests.problems import (
    FORMS,
    SOLVERS,
    Problem,
    form_of,
    low_rank,
    mask_for,
)

PENALTIES = [None, dmf.Ridge(0.1), dmf.Ridge(0.1, by_count=True), "auto"]
ROWS, COLUMNS = [0, 7, *range(10, 20)], [3, *range(10, 20)]


def with_holes(dtype: Any = np.float64) -> Problem:
    """Return a problem where single rows and whole chunks have nothing observed."""
    problem = low_rank(observed=0.9, dtype=dtype)
    for M in (problem.mask, problem.weights):
        M[ROWS] = 0
        M[:, COLUMNS] = 0
    return problem


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_empty_rows_and_columns(solver: Any, penalty: Any, weighted: bool) -> None:
    problem = with_holes(np.float32)
    for form in FORMS:
        X = form_of(problem, form)
        mask = mask_for(problem.weights, problem.mask, form) if weighted else None
        fit = dmf.factorize(
            X, 3, mask=mask, solver=solver, penalty=penalty, max_rounds=4, tol=0
        )
        W, H = np.asarray(fit.W), np.asarray(fit.H)
        assert np.isfinite(fit.history.objective).all()
        assert np.flatnonzero(~W.any(axis=1)).tolist() == ROWS
        assert np.flatnonzero(~H.any(axis=0)).tolist() == COLUMNS
        assert np.isfinite(W).all()
        assert np.isfinite(H).all()
        filled = np.asarray(dmf.impute(X, fit))
        assert not filled[ROWS].any()
        assert np.isfinite(filled).all()


@pytest.mark.parametrize("by_count", [False, True])
def test_a_matrix_of_zeros(by_count: bool) -> None:
    for X in (np.zeros((4, 3)), sp.csr_array(np.ones((4, 3))) * 0):
        for penalty in (dmf.Ridge(0.1, by_count), None, "auto"):
            for solver in SOLVERS:
                fit = dmf.factorize(X, 2, penalty=penalty, solver=solver, max_rounds=3)
                assert fit.objective == 0
                assert not dmf.impute(X, fit).any()
