"""New rows and columns: each the minimiser of its own plain objective.

By least squares where that is quadratic, by the optimality conditions where it is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from dmf.offsets import COLUMNS
from tests.problems import FORMS, Problem, fitted, form_of, low_rank, sparse_chunks

Array = Any

OFFSETS = list(COLUMNS)
QUADRATIC = [None, dmf.Ridge(0.3), dmf.Ridge(0.05, by_count=True)]
OTHERS = [
    dmf.Lasso(0.4) + dmf.Ridge(0.1),
    dmf.Lasso(0.05, by_count=True),
    dmf.NonNegative(),
    dmf.NonNegative() + dmf.Lasso(0.3) + dmf.Ridge(0.2),
]
OLD = low_rank(m=30, n=20, observed=0.8, seed=3)


def new_rows(count: int = 12, seed: int = 4, n: int = 20) -> Problem:
    """Return new rows: one without any entry, one with a single one."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((count, n)) * 2 + 1
    mask = rng.random((count, n)) < 0.6
    mask[3] = False
    mask[5] = np.arange(n) == 7
    weights = np.where(mask, rng.uniform(0.2, 3.0, (count, n)), 0.0)
    return Problem(truth, mask, weights, (0, 0))


@dataclass(frozen=True)
class Row:
    """The objective of one new row: ½ Σ v (t − b − Hᵀw)² + Ω(w) + ½ ρ b²."""

    target: Array  # what b + w H should be, of all columns
    weights: Array
    H: Array
    penalty: dmf.Penalty
    count: float
    rho: float | None  # None: the row has no offset

    @property
    def design(self) -> Array:
        one = np.ones((self.H.shape[1], 1))
        return self.H.T if self.rho is None else np.hstack([self.H.T, one])

    def ridge(self) -> Array:
        own = self.penalty.ridge(np.array([self.count]))[0]
        beside = [] if self.rho is None else [self.rho]
        return np.array([own] * len(self.H) + beside)

    def lasso(self) -> float:
        strength = self.penalty.lasso(np.array([self.count]))
        return 0.0 if strength is None else float(strength[0])

    def gradient(self, v: Array) -> Array:
        """Return the gradient of the squares."""
        A = self.design
        return A.T @ (self.weights * (A @ v - self.target)) + self.ridge() * v

    def value(self, v: Array) -> float:
        residual = self.design @ v - self.target
        squares = np.sum(self.weights * residual**2) + np.sum(self.ridge() * v**2)
        rank = len(self.H)
        return 0.5 * float(squares) + self.lasso() * float(np.abs(v[:rank]).sum())

    def solution(self) -> Array:
        """Return the shortest minimiser, by least squares."""
        root = np.sqrt(self.weights)
        system = np.vstack(
            [root[:, None] * self.design, np.diag(np.sqrt(self.ridge()))]
        )
        right = np.concatenate([root * self.target, np.zeros(self.design.shape[1])])
        return np.linalg.lstsq(system, right, rcond=None)[0]

    def check(self, v: Array, scale: float) -> None:
        """Assert the optimality conditions of Karush, Kuhn and Tucker."""
        g, lasso, rank = self.gradient(v), self.lasso(), len(self.H)
        small = 1e-6 * scale
        assert np.all(np.abs(g[rank:]) <= small)
        g, w = g[:rank], v[:rank]
        if self.penalty.nonnegative:
            assert np.all(w >= 0)
            assert np.all(g + lasso >= -small)
            assert np.all(np.abs((g + lasso)[w > 0]) <= small)
            return
        assert np.all(np.abs(g) <= lasso + small)
        assert np.all(np.abs(g + lasso * np.sign(w))[w != 0] <= small)


def rows_of(fit: dmf.Factorization, axis: int, new: Problem, M: Array) -> list[Row]:
    """Return the objectives of new rows, or of new columns (then all is transposed)."""
    fixed = np.asarray(fit.H if axis == 0 else fit.W.T)
    beside = fit.column_offsets if axis == 0 else fit.row_offsets
    beside = np.zeros(fixed.shape[1]) if beside is None else np.asarray(beside)
    has_offset = "offset" in COLUMNS[fit.offsets][axis]
    alpha = fit.unobserved_weight
    rows = []
    for x, weights in zip(new.truth, M, strict=True):
        observed = weights > 0
        count = observed.sum() + alpha * (~observed).sum()
        rho = None
        if has_offset:
            assert fit.offset_penalty is not None
            rho = float(fit.offset_penalty.ridge(np.array([count]))[0])
        rows.append(
            Row(
                np.where(observed, x, 0.0) - fit.offset - beside,
                np.where(observed, weights, alpha),
                fixed,
                fit.penalty[axis],
                float(count),
                rho,
            )
        )
    return rows


def in_form(new: Problem, form: str, axis: int, weighted: bool) -> tuple[Any, Any]:
    """Return new rows (or columns) in a form, and their mask."""
    truth, mask, weights = (
        part.T if axis else part for part in (new.truth, new.mask, new.weights)
    )
    turned = Problem(truth, mask, weights, (0, 0))
    X = form_of(turned, form)
    if not weighted:
        return X, None
    if form == "sparse":
        return X, turned.sparse(weights)
    if form == "dask":
        return X, da.from_array(weights, chunks=(10, 10))
    return X, sparse_chunks(weights) if form == "dask-sparse" else weights


def folded(fit: dmf.Factorization, axis: int, X: Any, mask: Any = None) -> Any:
    return fit.fold_in(**{("rows", "columns")[axis]: X}, mask=mask)


def factor_of(new: dmf.Factorization, axis: int) -> Array:
    """Return the new factor's rows, their offsets beside them."""
    factor = np.asarray(new.W if axis == 0 else new.H.T)
    beside = new.row_offsets if axis == 0 else new.column_offsets
    if "offset" not in COLUMNS[new.offsets][axis]:
        return factor
    return np.hstack([factor, np.asarray(beside)[:, None]])


def check(fit: dmf.Factorization, axis: int, form: str, weighted: bool) -> None:
    new = new_rows(n=fit.shape[1 - axis])
    X, mask = in_form(new, form, axis, weighted)
    model = folded(fit, axis, X, mask)
    M = new.weights if weighted else new.mask.astype(float)
    found = factor_of(model, axis)
    assert model.shape == X.shape
    assert isinstance(model.W if axis == 0 else model.H, da.Array) == ("dask" in form)
    rows = rows_of(fit, axis, new, M)
    for row, v in zip(rows, found, strict=True):
        if row.count == 0:
            assert not v.any()
            continue
        size = np.abs(row.gradient(np.zeros_like(v))).max() + 1
        if fit.penalty[axis].quadratic:
            np.testing.assert_allclose(v, row.solution(), rtol=1e-5, atol=1e-6)
        row.check(v, size)
        # What else is fitted stays as it was.
    other = ("H", "column_offsets") if axis == 0 else ("W", "row_offsets")
    for name in other:
        assert getattr(model, name) is getattr(fit, name)
    assert model.offset == fit.offset
    assert (model.status.code, len(model.history)) == ("folded_in", 0)
    assert str(model.status).startswith("folded in: the minimiser against the factors")


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_rows_and_columns_are_minimisers(
    form: str, axis: int, offsets: str, alpha: float, keep_chunks: None
) -> None:
    fit = fitted(
        OLD.nan + 2,
        penalty=dmf.Ridge(0.3),
        offsets=offsets,
        offset_penalty=dmf.Ridge(0.7),
        unobserved_weight=alpha,
    )
    for weighted in (False, True):
        check(fit, axis, form, weighted)


@settings(max_examples=30)
@given(
    own=st.sampled_from([*QUADRATIC, *OTHERS]),
    other=st.sampled_from(QUADRATIC),
    axis=st.sampled_from([0, 1]),
    offsets=st.sampled_from(OFFSETS),
    rho=st.sampled_from([dmf.Ridge(0.7), dmf.Ridge(0.1, by_count=True), None]),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    form=st.sampled_from(FORMS),
    weighted=st.booleans(),
    rank=st.integers(1, 5),
)
def test_every_penalty(
    own: Any,
    other: Any,
    axis: int,
    offsets: str,
    rho: Any,
    alpha: float,
    form: str,
    weighted: bool,
    rank: int,
) -> None:
    fit = fitted(
        OLD.nan + 2,
        rank=rank,
        penalty=(own, other) if axis == 0 else (other, own),
        offsets=offsets,
        offset_penalty=rho,
        unobserved_weight=alpha,
    )
    check(fit, axis, form, weighted)


@pytest.mark.parametrize("penalty", OTHERS, ids=str)
def test_the_minimum_is_that_of_a_general_optimiser(penalty: Any) -> None:
    """L-BFGS-B on the positive and negative parts, which knows nothing of ours."""
    fit = fitted(penalty=(penalty, dmf.Ridge(0.3)), offsets="both")
    new = new_rows()
    found = factor_of(fit.fold_in(rows=new.nan), 0)
    rows = rows_of(fit, 0, new, new.mask.astype(float))
    positive = penalty.nonnegative
    for row, v in zip(rows, found, strict=True):
        if row.count == 0:
            continue

        def joined(parts: Array) -> Array:
            return np.append(parts[:3] - parts[3:6], parts[6])

        def value(parts: Array, row: Row = row) -> tuple[float, Array]:
            w = joined(parts)
            slope = row.gradient(w)
            smooth = row.value(w) - row.lasso() * float(np.abs(w[:3]).sum())
            total = smooth + row.lasso() * float(parts[:6].sum())
            return total, np.concatenate(
                [slope[:3] + row.lasso(), row.lasso() - slope[:3], slope[3:]]
            )

        upper = 0.0 if positive else None
        bounds = [(0, None)] * 3 + [(0, upper)] * 3 + [(None, None)]
        least = scipy.optimize.minimize(
            value,
            np.zeros(7),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10},
        )
        assert row.value(v) == pytest.approx(least.fun, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("penalty", [dmf.Ridge(1.0), OTHERS[0], OTHERS[3]], ids=str)
def test_what_was_fitted_comes_back(offsets: str, penalty: Any) -> None:
    """At a stationary point the fitted rows are the minimisers already."""
    X = OLD.nan
    options = {"penalty": penalty, "offset_penalty": dmf.Ridge(0.7), "rank": 2}
    fit = fitted(X, offsets=offsets, max_rounds=1000, tol=1e-12, **options)
    for axis, name in enumerate(("rows", "columns")):
        new = fit.fold_in(**{name: X})
        before, after = factor_of(fit, axis), factor_of(new, axis)
        error = np.abs(after - before).max() / np.abs(before).max()
        assert error < 1e-4, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offsets", OFFSETS)
def test_folded_in_models_predict(form: str, offsets: str) -> None:
    fit = fitted(OLD.nan + 2, offsets=offsets)
    new = new_rows()
    X, _ = in_form(new, form, 0, False)
    model = fit.fold_in(rows=X)
    b = 0 if model.row_offsets is None else np.asarray(model.row_offsets)[:, None]
    c = 0 if fit.column_offsets is None else np.asarray(fit.column_offsets)
    product = np.asarray(model.W) @ np.asarray(fit.H) + fit.offset + b + c
    filled = np.asarray(dmf.impute(X, model))
    expected = np.where(new.mask, new.truth, product)
    np.testing.assert_allclose(filled, expected, rtol=1e-9)
    np.testing.assert_allclose(
        model.predict([0, 3, 11], [0, 5, 19]), product[[0, 3, 11], [0, 5, 19]]
    )
    # A row that nobody has seen: what is known of the columns.
    np.testing.assert_allclose(
        model.reconstruct()[3].compute(), np.broadcast_to(fit.offset + c, 20)
    )


def test_hidden_entries_are_predicted() -> None:
    problem = low_rank(m=60, noise=0.05)
    fit = fitted(problem.nan[:30], max_rounds=100)
    new = fit.fold_in(rows=problem.nan[30:])
    hidden = ~problem.mask[30:]
    error = (new.W @ new.H - problem.truth[30:])[hidden]
    assert np.sqrt(np.mean(error**2)) < 0.2 * np.std(problem.truth)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_observed_at_all(form: str) -> None:
    fit = fitted(OLD.nan + 2, offsets="both")
    empty = Problem(
        np.ones((4, 20)), np.zeros((4, 20), dtype=bool), np.zeros((4, 20)), (0, 0)
    )
    model = fit.fold_in(rows=form_of(empty, form))
    assert not np.asarray(model.W).any()
    assert not np.asarray(model.row_offsets).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_smooth_on_the_other_side_is_no_matter(axis: int) -> None:
    smooth = dmf.Smooth(1.0) + dmf.Ridge(0.2)
    pair = (dmf.Ridge(0.4), smooth) if axis == 0 else (smooth, dmf.Ridge(0.4))
    fit = fitted(penalty=pair, offsets="both")
    check(fit, axis, "numpy", True)
    text = (
        f"new {('columns', 'rows')[axis]} can't be folded in one by one, because "
        "Smooth ties them to their neighbours; fit the grown matrix with start=this "
        "model"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        folded(fit, 1 - axis, fit.W if axis == 0 else fit.H)


def infinite() -> Array:
    rows = np.zeros((3, 20))
    rows[2, 4] = np.inf
    return rows


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, TypeError, "give either rows= or columns=, the new part of X"),
    (
        {"rows": np.ones((2, 20)), "columns": np.ones((30, 2))},
        TypeError,
        "give either rows= or columns=, the new part of X",
    ),
    (
        {"rows": np.ones((2, 19))},
        ValueError,
        "rows has shape (2, 19), but the model has 20 columns; new rows need the "
        "columns that were fitted",
    ),
    (
        {"columns": np.ones((20, 2))},
        ValueError,
        "columns has shape (20, 2), but the model has 30 rows; new columns need the "
        "rows that were fitted",
    ),
    ({"rows": np.ones(20)}, ValueError, "rows must have two dimensions, got shape"),
    (
        {"columns": np.ones((30, 2)), "mask": np.ones((30, 1))},
        ValueError,
        "mask has shape (30, 1), but X has shape (30, 2)",
    ),
    (
        {"rows": np.ones((2, 20)), "mask": np.full((2, 20), -1.0)},
        ValueError,
        "mask has the weight -1; weights must be at least 0",
    ),
    ({"rows": infinite()}, ValueError, "X is infinite in row 2, column 4"),
    (
        {"rows": sp.csr_array((2, 20)), "mask": np.ones((2, 20))},
        ValueError,
        "mask is dense, but X is sparse; give a mask of X's kind",
    ),
    ({"rows": np.ones((2, 20)), "client": 3}, TypeError, "client must be a"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), REFUSED)
def test_refused(arguments: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        fitted().fold_in(**arguments)
