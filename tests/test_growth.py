"""Warm starts: a fit goes on where another ended, also when X has grown at its ends."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from dmf.offsets import COLUMNS
from tests.problems import FORMS, Problem, fitted, form_of, low_rank, sparse_chunks
from tests.test_combinations import plain_objective
from tests.test_fold_in import rows_of

Array = Any

GROWN = low_rank(m=40, n=26, observed=0.7, noise=0.3, seed=5)
OLD_SHAPES = {"rows": (30, 26), "columns": (40, 20), "both": (30, 20), "none": (40, 26)}
OPTIONS: dict[str, Any] = {
    "penalty": (dmf.Ridge(0.3), dmf.Ridge(0.05, by_count=True)),
    "offset_penalty": dmf.Ridge(0.7),
}


def part_of(problem: Problem, rows: slice, columns: slice) -> Problem:
    parts = (problem.truth, problem.mask, problem.weights)
    return Problem(*(part[rows, columns] for part in parts), (0, 0))


def corner(shape: tuple[int, int]) -> Problem:
    return part_of(GROWN, slice(shape[0]), slice(shape[1]))


def in_form(problem: Problem, form: str, weighted: bool = False) -> tuple[Any, Any]:
    X = form_of(problem, form)
    if not weighted:
        return X, None
    if form == "sparse":
        return X, problem.sparse(problem.weights)
    if form == "dask-sparse":
        return X, sparse_chunks(problem.weights)
    return X, problem.weights


def extended(
    fit: dmf.Factorization, weights: Array, truth: Array = GROWN.truth
) -> dmf.Factorization:
    """Return a fit with exact minimisers for what X has grown by, by least squares.

    New columns first, against the rows that are known; then new rows, against all.
    """
    m, n = fit.shape
    zeros = [
        None if g is None else np.asarray(g)
        for g in (fit.row_offsets, fit.column_offsets)
    ]
    fit = replace(
        fit,
        W=np.asarray(fit.W),
        H=np.asarray(fit.H),
        row_offsets=zeros[0],
        column_offsets=zeros[1],
    )
    for axis, cut in ((1, np.s_[:m, n:]), (0, np.s_[m:, :])):
        x, M = truth[cut], weights[cut]
        new = Problem(x.T if axis else x, None, None, (0, 0))
        rows = rows_of(fit, axis, new, M.T if axis else M)
        if not rows:
            continue
        found = np.stack(
            [
                row.solution() if row.count else np.zeros(row.design.shape[1])
                for row in rows
            ]
        )
        name, beside = (("W", "row_offsets"), ("H", "column_offsets"))[axis]
        factor = found[:, : fit.rank]
        joined = np.concatenate(
            [getattr(fit, name), factor.T if axis else factor], axis=axis
        )
        parts = {name: joined}
        if getattr(fit, beside) is not None:
            parts[beside] = np.append(getattr(fit, beside), found[:, -1])
        fit = replace(fit, **parts)
    return fit


def check_start(
    X: Any, mask: Any, old: Any, weights: Array, alpha: float, **options: Any
) -> dmf.Factorization:
    """Assert where a warm start begins, and that it only falls from there."""
    fit = fitted(X, mask=mask, start=old, **options)
    expected = plain_objective(GROWN.truth, weights, alpha, extended(old, weights))
    assert fit.history.initial_objective == pytest.approx(expected, rel=1e-7)
    path = np.append(fit.history.initial_objective, fit.history.objective)
    assert np.all(np.diff(path) <= 1e-9 * path[:-1])
    assert path[-1] < path[0]
    assert fit.shape == tuple(X.shape)
    assert isinstance(fit.W, da.Array) == isinstance(X, da.Array)
    return fit


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grown", OLD_SHAPES)
@pytest.mark.parametrize("offsets", list(COLUMNS))
def test_it_begins_with_the_old_model_and_exact_new_factors(
    form: str, grown: str, offsets: str, keep_chunks: None
) -> None:
    options = OPTIONS | {"offsets": offsets}
    for weighted in (False, True):
        X, mask = in_form(corner(OLD_SHAPES[grown]), form, weighted)
        old = fitted(X, mask=mask, **options)
        X, mask = in_form(GROWN, form, weighted)
        M = GROWN.weights if weighted else GROWN.mask.astype(float)
        check_start(X, mask, old, M, 0.0, **options)


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(5, 40), st.integers(5, 26)),
    offsets=st.sampled_from(list(COLUMNS)),
    forms=st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
    alpha=st.sampled_from([0.0, 0.4, 1.0]),
    rank=st.integers(1, 4),
)
def test_any_growth(
    shape: tuple[int, int], offsets: str, forms: Any, alpha: float, rank: int
) -> None:
    """Also from a model of one kind of array to X of another."""
    options = OPTIONS | {"offsets": offsets, "unobserved_weight": alpha, "rank": rank}
    old = fitted(form_of(corner(shape), forms[0]), **options)
    X = form_of(GROWN, forms[1])
    check_start(X, None, old, GROWN.mask.astype(float), alpha, **options)


@pytest.mark.parametrize("offsets", list(COLUMNS))
@pytest.mark.parametrize("form", FORMS)
def test_the_same_matrix_goes_on(form: str, offsets: str) -> None:
    X = form_of(GROWN, form)
    options = OPTIONS | {"offsets": offsets}
    old = fitted(X, **options)
    assert old.certificate is not None
    fit = fitted(X, start=old, **options)
    begin = fit.history.initial_objective
    assert begin == pytest.approx(old.certificate.objective, rel=1e-9)
    assert fit.history.objective[0] <= begin
    # It pays: a round from there is better than one from the random start.
    cold = fitted(X, max_rounds=1, **options)
    assert fit.history.objective[0] < cold.objective


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("grown", OLD_SHAPES)
@pytest.mark.parametrize("form", ["numpy", "dask", "sparse"])
def test_smooth_factors_grow(form: str, grown: str, order: int) -> None:
    """What is new begins without its neighbours; the objective knows of them."""
    ridge = dmf.Ridge(0.2)
    penalty = (dmf.Ridge(0.3), dmf.Smooth(2.0, order=order) + ridge)
    options = OPTIONS | {"penalty": penalty, "offsets": "rows"}
    old = fitted(form_of(corner(OLD_SHAPES[grown]), form), **options)
    fit = fitted(form_of(GROWN, form), start=old, **options)
    M = GROWN.mask.astype(float)
    begun = extended(replace(old, penalty=(penalty[0], ridge)), M)
    begun = replace(begun, penalty=penalty)
    expected = plain_objective(GROWN.truth, M, 0.0, begun)
    path = np.append(fit.history.initial_objective, fit.history.objective)
    assert path[0] == pytest.approx(expected, rel=1e-7)
    assert np.all(np.diff(path) <= 1e-9 * path[:-1])


@pytest.mark.parametrize(
    "penalty", [dmf.NonNegative() + dmf.Ridge(0.1), dmf.Lasso(0.2) + dmf.Ridge(0.1)]
)
@pytest.mark.parametrize("grown", OLD_SHAPES)
def test_lassos_and_bounds_grow(grown: str, penalty: Any) -> None:
    old = fitted(corner(OLD_SHAPES[grown]).nan, penalty=penalty, max_rounds=40)
    fit = fitted(GROWN.nan, start=old, penalty=penalty, max_rounds=40)
    path = np.append(fit.history.initial_objective, fit.history.objective)
    assert np.all(np.diff(path) <= 1e-9 * path[:-1])
    if penalty.nonnegative:
        assert min(fit.W.min(), fit.H.min()) >= 0
    # No worse than without any factors for what is new.
    m, n = old.shape
    W, H = np.zeros((40, 3)), np.zeros((3, 26))
    W[:m], H[:, :n] = old.W, old.H
    bare = replace(old, W=W, H=H)
    M = GROWN.mask.astype(float)
    assert path[0] <= plain_objective(GROWN.truth, M, 0.0, bare) * (1 + 1e-9)


def test_from_any_sign_to_a_bound() -> None:
    """Entries below the bound begin on it."""
    old = fitted(GROWN.nan, penalty=dmf.Ridge(0.1))
    penalty = dmf.NonNegative() + dmf.Ridge(0.1)
    fit = fitted(GROWN.nan, start=old, penalty=penalty)
    begun = replace(
        old, W=np.maximum(old.W, 0), H=np.maximum(old.H, 0), penalty=(penalty, penalty)
    )
    expected = plain_objective(GROWN.truth, GROWN.mask.astype(float), 0.0, begun)
    assert fit.history.initial_objective == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("before", list(COLUMNS))
@pytest.mark.parametrize("after", list(COLUMNS))
def test_from_some_offsets_to_others(before: str, after: str) -> None:
    """What both have is kept."""
    old = fitted(GROWN.nan + 3, offsets=before, **OPTIONS)
    fit = fitted(GROWN.nan + 3, start=old, offsets=after, **OPTIONS)
    rows, columns = COLUMNS[after]
    kept: dict[str, Any] = {
        "row_offsets": old.row_offsets if "offset" in rows else None,
        "column_offsets": old.column_offsets if "offset" in columns else None,
        "offset": 0.0 if after == "none" else old.offset,
        "offset_penalty": fit.offset_penalty,
    }
    M = GROWN.mask.astype(float)
    expected = plain_objective(GROWN.truth + 3, M, 0.0, replace(old, **kept))
    assert fit.history.initial_objective == pytest.approx(expected, rel=1e-9)
    # And the model that comes back is the one that was fitted.
    assert fit.certificate is not None
    found = plain_objective(GROWN.truth + 3, M, 0.0, fit)
    assert fit.certificate.objective == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("form", ["numpy", "sparse", "dask"])
@pytest.mark.parametrize("grown", ["rows", "columns", "both"])
def test_what_is_held_out_stays_unseen(form: str, grown: str) -> None:
    """Also by the factors that the new rows and columns begin with."""
    train, held_out = dmf.split_observed(form_of(GROWN, form), 0.3)
    m, n = OLD_SHAPES[grown]
    old = fitted(dmf.split_observed(corner((m, n)).nan, 0.3)[0], **OPTIONS)
    expected = fitted(train, start=old, validation=held_out, **OPTIONS)
    found = fitted(form_of(GROWN, form), start=old, validation=0.3, **OPTIONS)
    np.testing.assert_allclose(
        found.history.validation_rmse, expected.history.validation_rmse, rtol=1e-6
    )


def test_rows_without_entries_begin_at_0() -> None:
    X = GROWN.nan.copy()
    X[35] = np.nan
    old = fitted(X[:30], offsets="both", **OPTIONS)
    fit = fitted(X, start=old, offsets="both", **OPTIONS)
    assert not fit.W[35].any()
    assert fit.row_offsets is not None
    assert fit.row_offsets[35] == 0


@pytest.mark.cluster
@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_on_a_cluster(client: Any, form: str) -> None:
    old = fitted(form_of(corner((30, 20)), form), offsets="both", **OPTIONS)
    options = OPTIONS | {"offsets": "both"}
    X = form_of(GROWN, form)
    check_start(X, None, old, GROWN.mask.astype(float), 0.0, **options)


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (GROWN.nan, {"start": (1, 2)}, TypeError, "start must be a dmf.Factorization, got"),
    (
        GROWN.nan,
        {"rank": 2},
        ValueError,
        "start has rank 3, but rank is 2; give rank=3, or no start",
    ),
    (
        GROWN.nan[:29],
        {},
        ValueError,
        "start is of a matrix of shape (30, 20), but X has shape (29, 26); X may only "
        "have grown by rows and columns at its ends",
    ),
    (
        GROWN.nan[:, :19],
        {},
        ValueError,
        "start is of a matrix of shape (30, 20), but X has shape (40, 19); X may only",
    ),
    (
        GROWN.nan,
        {"restarts": 2},
        ValueError,
        "restarts=2 start at random, but start= names one start; give one of them",
    ),
    (
        GROWN.nan,
        {"penalty": dmf.Smooth(1.0), "solver": dmf.AlternatingLeastSquares()},
        ValueError,
        "AlternatingLeastSquares solves for each row on its own",
    ),
]


@pytest.mark.parametrize(("X", "change", "error", "text"), REFUSED)
def test_refused(X: Any, change: dict[str, Any], error: Any, text: str) -> None:
    old = fitted(corner((30, 20)).nan)
    for given_X in (X, da.from_array(X), sp.csr_array(np.nan_to_num(X))):
        with pytest.raises(error, match=f"^{re.escape(text)}"):
            fitted(given_X, **({"start": old} | change))
