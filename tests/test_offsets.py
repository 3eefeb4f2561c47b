"""Offsets against the plain objective, its finite differences, and other solvers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from tests.problems import FORMS, SOLVERS, Problem, form_of, low_rank

Array = Any

KINDS = ["global", "rows", "columns", "both"]
OFFSET_PENALTIES = [None, "auto", dmf.Ridge(0.2, by_count=True)]
# Strong enough for a pronounced minimum: a hundred rounds get there.
RIDGE = 2.0
each_kind = pytest.mark.parametrize("kind", KINDS)


def lifted(level: float = 3.0, **options: Any) -> Problem:
    """Return a problem of low rank with a level, and an offset for rows and columns."""
    problem = low_rank(**({"rank": 2, "observed": 0.7, "noise": 0.3} | options))
    m, n = problem.truth.shape
    rng = np.random.default_rng(99)
    beside = level + rng.standard_normal((m, 1)) + rng.standard_normal(n)
    truth = (problem.truth + beside).astype(problem.truth.dtype)
    return Problem(truth, problem.mask, problem.weights, problem.start)


def converged(X: Array, kind: str, **options: Any) -> dmf.Factorization:
    chosen = {"penalty": dmf.Ridge(RIDGE), "max_rounds": 100, "check_every": 50}
    return dmf.factorize(X, 2, offsets=kind, tol=0, **(chosen | options))


def parts_of(fit: dmf.Factorization) -> dict[str, Array]:
    """Return W, H, μ, b and c as arrays of float64, those that the fit has."""
    found = {"W": fit.W, "H": fit.H, "mu": fit.offset}
    found |= {"b": fit.row_offsets, "c": fit.column_offsets}
    return {k: np.array(v, dtype=float) for k, v in found.items() if v is not None}


def predicted(W: Array, H: Array, mu: Array, b: Any = None, c: Any = None) -> Array:
    total = W @ H + mu
    total = total if b is None else total + b[:, None]
    return total if c is None else total + c


def plain(
    parts: dict[str, Array], X: Array, M: Array, ridge: float, offset_ridge: Any
) -> float:
    """Return E with a ridge on both factors and another on the offsets."""
    W, H = parts["W"], parts["H"]
    total = 0.5 * np.sum(M * (predicted(**parts) - X) ** 2)
    total += 0.5 * ridge * (np.sum(W**2) + np.sum(H**2))
    for name, axis in (("b", 1), ("c", 0)):
        if name in parts:
            total += 0.5 * np.sum(strengths(offset_ridge, M, axis) * parts[name] ** 2)
    return float(total)


def strengths(penalty: Any, M: Array, axis: int) -> Array:
    """Return λ_i of each row's offset (axis 1), or of each column's (axis 0)."""
    if penalty is None:
        penalty = dmf.Ridge(0.0)
    elif penalty == "auto":
        penalty = dmf.Ridge(2.0)
    counts = np.count_nonzero(M, axis=axis)
    return penalty.strength * (counts if penalty.by_count else np.ones_like(counts))


def slopes(parts: dict[str, Array], *arguments: Any) -> dict[str, Array]:
    """Return the derivatives of E by central differences."""
    found = {}
    for name, part in parts.items():
        found[name] = np.empty_like(part)
        for index in np.ndindex(part.shape):
            ends = []
            for h in (1e-4, -1e-4):
                moved = np.array(part)
                moved[index] += h
                ends.append(plain(parts | {name: moved}, *arguments))
            found[name][index] = (ends[0] - ends[1]) / 2e-4
    return found


@each_kind
@pytest.mark.parametrize("offset_penalty", OFFSET_PENALTIES, ids=str)
def test_a_converged_fit_is_stationary_in_all_its_parts(
    kind: str, offset_penalty: Any
) -> None:
    """In μ, b and c as well: they aren't estimated beforehand, and none is left out."""
    problem = lifted(m=14, n=11, observed=0.8, seed=1)
    M = problem.weights
    options = {"offset_penalty": offset_penalty, "max_rounds": 150}
    fit = converged(problem.nan, kind, mask=M, **options)
    arguments = (problem.truth, M, RIDGE, offset_penalty)
    parts = parts_of(fit)
    has_rows, has_columns = kind in ("rows", "both"), kind in ("columns", "both")
    assert ("b" in parts, "c" in parts) == (has_rows, has_columns)
    assert fit.objective == pytest.approx(plain(parts, *arguments), rel=1e-10)
    shifted = {name: part + 0.01 for name, part in parts.items()}
    for name, slope in slopes(parts, *arguments).items():
        # The same derivatives, a hundredth away, tell what counts as nothing.
        size = np.abs(slopes(shifted, *arguments)[name]).max()
        assert np.abs(slope).max() < 1e-5 * size, name
    for name, axis in (("b", 1), ("c", 0)):
        if name in parts:
            weights = strengths(offset_penalty, M, axis)
            weights = weights if weights.any() else np.ones_like(weights)
            spread = np.average(np.abs(parts[name]), weights=weights)
            mean = np.average(parts[name], weights=weights)
            assert spread > 0.1
            assert abs(mean) < 1e-6 * spread


def block_by_block(
    kind: str, X: Array, M: Array, ridge: float, offset_ridge: float, rounds: int
) -> dict[str, Array]:
    """Minimise E by plain least squares: over W, H, μ, b and c, one after the other."""
    rng = np.random.default_rng(5)
    W, H = rng.standard_normal((len(X), 2)), rng.standard_normal((2, X.shape[1]))
    parts = {"W": W, "H": H, "mu": np.average(X, weights=M)}
    parts |= {"b": np.zeros(len(X))} if kind in ("rows", "both") else {}
    parts |= {"c": np.zeros(X.shape[1])} if kind in ("columns", "both") else {}
    for _ in range(rounds):
        rest = X - predicted(**(parts | {"W": 0 * parts["W"]}))
        parts["W"] = ridge_rows(parts["H"].T, rest, M, ridge)
        rest = X - predicted(**(parts | {"W": 0 * parts["W"]}))
        parts["H"] = ridge_rows(parts["W"], rest.T, M.T, ridge).T
        for name, axis in (("b", 1), ("c", 0)):
            if name in parts:
                rest = X - predicted(**(parts | {name: 0 * parts[name]}))
                sums = np.sum(M * rest, axis=axis)
                parts[name] = sums / (np.sum(M, axis=axis) + offset_ridge)
        rest = X - predicted(**parts)
        parts["mu"] = parts["mu"] + np.average(rest, weights=M)
    return parts


def ridge_rows(F: Array, X: Array, M: Array, ridge: float) -> Array:
    systems = np.einsum("ij,jk,jl->ikl", M, F, F) + ridge * np.eye(F.shape[1])
    return np.linalg.solve(systems, ((M * X) @ F)[..., None])[..., 0]


@each_kind
def test_offsets_are_those_of_plain_least_squares(kind: str) -> None:
    """Other blocks, other start, no augmented columns: the same minimum."""
    problem = lifted()
    M = problem.mask.astype(float)
    fit = converged(problem.nan, kind, offset_penalty=dmf.Ridge(0.4))
    parts = block_by_block(kind, problem.truth, M, RIDGE, 0.4, rounds=1000)
    expected = plain(parts, problem.truth, M, RIDGE, dmf.Ridge(0.4))
    assert fit.objective == pytest.approx(expected, rel=1e-8)
    found = parts_of(fit)
    for name in ("mu", "b", "c"):
        assert (name in found) == (name in parts)
        if name in parts:
            np.testing.assert_allclose(found[name], parts[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS[1:4:2], ids=str)
def test_solvers_agree_on_the_offsets(solver: Any) -> None:
    problem = lifted()
    fit = converged(problem.nan, "both", solver=solver, max_rounds=150)
    oracle = converged(problem.nan, "both", solver=dmf.AlternatingLeastSquares())
    assert fit.objective == pytest.approx(oracle.objective, rel=1e-5)
    for name in ("b", "c"):
        error = np.abs(parts_of(fit)[name] - parts_of(oracle)[name]).max()
        assert error < 0.02 * np.abs(parts_of(oracle)[name]).max()


@given(
    kind=st.sampled_from(KINDS),
    level=st.sampled_from([-1000.0, 1000.0]),
    penalty=st.sampled_from([None, "auto", dmf.Lasso(0.1) + dmf.Ridge(0.1)]),
    form=st.sampled_from(["numpy", "sparse"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_the_level_of_the_data_does_not_matter(
    kind: str, level: float, penalty: Any, form: str, seed: int
) -> None:
    problem = low_rank(seed=seed, dtype=np.float64)
    higher = Problem(
        problem.truth + level, problem.mask, problem.weights, problem.start
    )
    one, other = (
        dmf.factorize(
            form_of(p, form), 3, offsets=kind, penalty=penalty, max_rounds=8, tol=0
        )
        for p in (problem, higher)
    )
    assert other.offset - level == pytest.approx(one.offset, abs=1e-7)
    for name, part in parts_of(one).items():
        if name != "mu":
            np.testing.assert_allclose(
                parts_of(other)[name], part, rtol=1e-4, atol=1e-6
            )
    assert other.objective == pytest.approx(one.objective, rel=1e-6)


def test_a_high_level_takes_no_component_in_float32() -> None:
    """Kelvins in float32: their error isn't that of a thousand times the spread."""
    plain_one, kelvin = (
        lifted(level, dtype=np.float32, noise=0.05) for level in (0.0, 290.0)
    )
    errors = []
    for problem in (plain_one, kelvin):
        fit = converged(problem.nan, "both", penalty=dmf.Ridge(0.05))
        assert fit.W.dtype == np.float32
        full = np.asarray(fit.reconstruct(), dtype=float)
        errors.append(np.sqrt(np.mean((full - problem.truth)[~problem.mask] ** 2)))
    assert errors[0] < 0.3
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


@pytest.mark.parametrize(
    ("form", "offset_penalty"), [("numpy", None), ("sparse", dmf.Ridge(0.3))]
)
@each_kind
def test_what_is_not_observed_has_no_offset(
    kind: str, offset_penalty: Any, form: str
) -> None:
    """It is predicted by what remains: μ, and the other axis' offset."""
    problem = lifted()
    mask = problem.mask.copy()
    mask[[0, 7]] = False
    mask[:, 19] = False
    gaps = Problem(problem.truth, mask, problem.weights, problem.start)
    X = form_of(gaps, form)
    fit = converged(X, kind, offset_penalty=offset_penalty, max_rounds=20)
    b = np.zeros(30) if fit.row_offsets is None else fit.row_offsets
    c = np.zeros(20) if fit.column_offsets is None else fit.column_offsets
    assert not np.any(b[[0, 7]])
    assert c[19] == 0
    assert not np.any(fit.W[[0, 7]])
    assert not np.any(fit.H[:, 19])
    filled = dmf.impute(X, fit)
    for row in (0, 7):
        np.testing.assert_allclose(filled[row], fit.offset + c, rtol=1e-12)
    np.testing.assert_allclose(filled[:, 19], fit.offset + b, rtol=1e-12)
    assert abs(fit.offset) > 1


@pytest.mark.parametrize(
    "solver", [*SOLVERS[1:6:2], dmf.GradientDescent(1e-3)], ids=str
)
@pytest.mark.parametrize("case", ["plain", "weights", "zeros", "weighted zeros"])
def test_global_is_the_exact_minimiser(solver: Any, case: str) -> None:
    """μ is the mean of what the factors of that moment leave, whatever the solver."""
    problem = lifted(m=15, n=12)
    X, alpha = problem.sparse(), 0.0
    M = problem.mask.astype(float)
    options = {"solver": solver}
    if "weight" in case:
        M = problem.weights
        options["mask"] = sp.csr_array(M)
    if "zeros" in case:
        alpha = options["unobserved_weight"] = 0.3
    before, fit = (
        converged(X, "global", max_rounds=k, **options, check_every=1) for k in (3, 4)
    )
    weights = np.where(problem.mask, M, alpha)
    target = np.where(problem.mask, problem.truth, 0)
    # μ moves first in the half-step of H: it meets the new W and the former H.
    rest = target - fit.W @ before.H
    assert fit.offset == pytest.approx(np.average(rest, weights=weights), rel=1e-9)
    assert fit.row_offsets is None
    assert fit.column_offsets is None


@pytest.mark.parametrize("form", ["numpy", "dask-sparse"])
@each_kind
def test_every_prediction_uses_them(kind: str, form: str) -> None:
    problem = lifted()
    X = form_of(problem, form)
    fit = converged(X, kind, max_rounds=5, check_every=1)
    expected = predicted(**parts_of(fit))
    assert np.abs(expected - np.asarray(fit.W @ fit.H)).max() > 1
    filled = np.asarray(dmf.impute(X, fit))
    np.testing.assert_allclose(filled[~problem.mask], expected[~problem.mask])
    np.testing.assert_array_equal(filled[problem.mask], problem.truth[problem.mask])
    np.testing.assert_allclose(np.asarray(fit.reconstruct()), expected)
    rows, columns = np.arange(30)[:, None], np.arange(20)
    np.testing.assert_allclose(fit.predict(rows, columns), expected)
    best, scores = fit.recommend([4], 3)
    np.testing.assert_array_equal(best[0], np.argsort(-expected[4])[:3])
    np.testing.assert_allclose(scores[0], np.sort(expected[4])[::-1][:3])
    error = (expected - problem.truth)[problem.mask]
    assert fit.score(X).rmse == pytest.approx(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("offset_penalty", [None, dmf.Ridge(0.3, by_count=True)])
@each_kind
def test_new_rows_are_folded_in_with_their_offset(
    kind: str, offset_penalty: Any, axis: int
) -> None:
    """One least-squares problem for a new row's factor and offset together."""
    problem = lifted()
    X, cuts = problem.nan, ((slice(25, None), slice(15)), (slice(25), slice(15, None)))
    X, new = X[:25, :15], X[cuts[axis]]
    fit = converged(X, kind, offset_penalty=offset_penalty, max_rounds=20)
    folded = fit.fold_in(**{("rows", "columns")[axis]: new})
    parts = parts_of(fit)
    own, other = ("b", "c") if axis == 0 else ("c", "b")
    F = parts["H"].T if axis == 0 else parts["W"]
    new = new if axis == 0 else new.T
    beside = parts["mu"] + parts.get(other, np.zeros(len(F)))
    found = parts_of(folded)
    factors = found["W"] if axis == 0 else found["H"].T
    for k, row in enumerate(new):
        seen = np.isfinite(row)
        A, y = F[seen], (row - beside)[seen]
        ridge = [RIDGE, RIDGE]
        if own in parts:
            A = np.column_stack([A, np.ones(len(A))])
            ridge.append(0.3 * seen.sum() if offset_penalty else 0.0)
        A = np.vstack([A, np.diag(np.sqrt(ridge))])
        y = np.concatenate([y, np.zeros(len(ridge))])
        expected = np.linalg.lstsq(A, y, rcond=None)[0]
        np.testing.assert_allclose(factors[k], expected[:2], rtol=1e-6, atol=1e-8)
        if own in parts:
            assert found[own][k] == pytest.approx(expected[2], rel=1e-6, abs=1e-8)
    assert folded.offset == fit.offset
    full = predicted(**found)
    np.testing.assert_allclose(np.asarray(folded.reconstruct()), full)


@pytest.mark.parametrize("penalty", [dmf.NonNegative(), dmf.Lasso(0.2) + dmf.Ridge(1)])
def test_offsets_are_free_of_the_factors_bounds_and_lassos(penalty: Any) -> None:
    """They may be negative, and none is 0; they are stationary all the same."""
    problem = lifted(level=-3.0)
    fit = converged(
        problem.nan,
        "both",
        penalty=penalty,
        offset_penalty=dmf.Ridge(0.4),
        max_rounds=1000,
    )
    parts = parts_of(fit)
    assert fit.offset < 0
    assert parts["b"].min() < 0 < parts["b"].max()
    assert np.all(parts["b"] != 0)
    rest = np.where(problem.mask, predicted(**parts) - problem.truth, 0)
    assert np.abs(rest).sum() > 50
    np.testing.assert_allclose(rest.sum(), 0, atol=1e-3)
    np.testing.assert_allclose(rest.sum(axis=1) + 0.4 * parts["b"], 0, atol=1e-3)
    np.testing.assert_allclose(rest.sum(axis=0) + 0.4 * parts["c"], 0, atol=1e-3)


def test_the_penalty_is_reported_as_it_was_used() -> None:
    X = lifted().nan
    auto, given, none, without = (
        converged(X, kind, offset_penalty=penalty, max_rounds=3)
        for kind, penalty in (
            ("both", "auto"),
            ("both", dmf.Ridge(2.0)),
            ("both", None),
            ("none", dmf.Ridge(1.0)),
        )
    )
    assert auto.offset_penalty == given.offset_penalty == dmf.Ridge(2.0)
    assert auto.row_offsets.tobytes() == given.row_offsets.tobytes()
    assert none.offset_penalty == dmf.Ridge(0.0)
    assert np.abs(none.row_offsets - auto.row_offsets).max() > 1e-3
    assert without.offset_penalty is None
    assert without.offset == 0


def test_a_row_with_two_entries_gets_half_of_its_offset() -> None:
    """What "auto" promises: Ridge(2) against two entries."""
    X = np.zeros((4000, 2)) + np.where(np.arange(4000) % 2, 3.0, -3.0)[:, None]
    fit = dmf.factorize(X, 1, offsets="rows", penalty=dmf.Ridge(1e9), max_rounds=3)
    np.testing.assert_allclose(np.abs(fit.row_offsets), 1.5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["all", "row", None, True, 1, ["rows"]])
def test_unknown_kinds_are_refused(kind: Any, no_tasks: None) -> None:
    with pytest.raises(ValueError, match="offsets must be one of") as caught:
        dmf.factorize(np.eye(3), 1, offsets=kind)
    names = '"none", "global", "rows", "columns", "both"'
    assert str(caught.value) == f"offsets must be one of {names}; got {kind!r}"


@pytest.mark.parametrize("penalty", [0.5, "none", dmf.Lasso(1.0), dmf.NonNegative()])
def test_other_penalties_on_offsets_are_refused(penalty: Any, no_tasks: None) -> None:
    with pytest.raises(TypeError, match="offset_penalty") as caught:
        dmf.factorize(np.eye(3), 1, offsets="both", offset_penalty=penalty)
    assert str(caught.value) == (
        f'offset_penalty must be a dmf.Ridge, None or "auto", got {penalty!r}'
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "solver",
    [dmf.NormalizedGradient(), dmf.AlternatingLeastSquares()],
    ids=repr,
)
@pytest.mark.parametrize("offsets", ["rows", "columns", "both"])
def test_what_is_told_of_rows_that_are_held_out_is_what_their_result_does(
    offsets: str, solver: Any, form: str
) -> None:
    """Where nothing is observed, an offset is the level, in each round already."""
    problem = lifted()
    held = np.full(problem.truth.shape, np.nan)
    for places in ([5, 9], np.s_[:, 7], np.s_[20:25, 11]):
        held[places] = problem.nan[places]
    seen = np.isfinite(held)
    X = form_of(replace(problem, mask=problem.mask & ~seen), form)
    validation = form_of(replace(problem, mask=seen), form)
    options: dict[str, Any] = {"max_rounds": 8, "patience": 100, "tol": 0}
    fit = dmf.factorize(
        X, 2, offsets=offsets, solver=solver, validation=validation, **options
    )
    predicted = np.asarray(fit.reconstruct(), dtype=float)
    error = np.sqrt(np.nanmean((predicted - held) ** 2))
    told = fit.history.validation_rmse[fit.status.factors_of - 1]
    assert told == pytest.approx(error, rel=1e-9)
