"""Lasso and bounds against scipy, coordinate descent, and scikit-learn's NMF."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import dmf
from dmf.engine.loading import load
from dmf.engine.rounds import build_half, start_state
from dmf.engine.runner import choose_runner
from dmf.init import GivenStart
from dmf.objective import Objective, Side
from tests.problems import Problem, form_of, low_rank, same_factors

Array = Any

ALS = dmf.AlternatingLeastSquares()
ROUGH = [
    dmf.Lasso(1.0),
    dmf.Lasso(0.5) + dmf.Ridge(0.3),
    dmf.Lasso(0.1, by_count=True),
    dmf.NonNegative(),
    dmf.NonNegative() + dmf.Lasso(0.5) + dmf.Ridge(0.05, by_count=True),
]
each_rough = pytest.mark.parametrize("penalty", ROUGH, ids=str)


def strengths(penalty: Any, counts: Array) -> tuple[Array, Array]:
    """Return the λ_i of the lasso, and of the ridge."""
    found = []
    for kind in (dmf.Lasso, dmf.Ridge):
        total = np.zeros(len(counts))
        for part in getattr(penalty, "parts", (penalty,)):
            if isinstance(part, kind):
                total += part.strength * (counts if part.by_count else 1.0)
        found.append(total)
    return found[0], found[1]


def omega(penalty: Any, rows: Array, counts: Array) -> float:
    lasso, ridge = strengths(penalty, counts)
    assert rows.min() >= 0 or not penalty.nonnegative
    return float(np.sum(lasso @ np.abs(rows)) + 0.5 * np.sum(ridge @ rows**2))


def plain(fit: dmf.Factorization, X: Array, M: Array) -> float:
    """Return E on dense arrays."""
    W, H = np.asarray(fit.W, dtype=float), np.asarray(fit.H, dtype=float)
    residual = np.where(M > 0, W @ H - X, 0)
    total = 0.5 * float(np.sum(M * residual**2))
    total += omega(fit.penalty[0], W, np.count_nonzero(M, axis=1))
    return total + omega(fit.penalty[1], H.T, np.count_nonzero(M, axis=0))


def half(W: Array, H: Array, X: Array, M: Array, penalty: Any) -> float:
    """Return E as far as it depends on W."""
    residual = np.where(M > 0, W @ H - X, 0)
    counts = np.count_nonzero(M, axis=1)
    return 0.5 * float(np.sum(M * residual**2)) + omega(penalty, W, counts)


def minimum(H: Array, X: Array, M: Array, penalty: Any) -> Array:
    """Return the W that minimises E for a given H, by scipy: w = u − v, u, v ≥ 0."""
    shape = (len(X), len(H))
    lasso, ridge = strengths(penalty, np.count_nonzero(M, axis=1))
    signs = 1 if penalty.nonnegative else 2
    X = np.where(M > 0, X, 0)

    def cost(flat: Array) -> tuple[float, Array]:
        parts = flat.reshape(signs, *shape)
        W = parts[0] - parts[1] if signs == 2 else parts[0]
        residual = M * (W @ H - X)
        G = residual @ H.T + ridge[:, None] * W
        value = 0.5 * np.sum(residual * (W @ H - X)) + 0.5 * np.sum(ridge @ W**2)
        value += np.sum(lasso @ parts.sum(axis=0))
        slopes = [G + lasso[:, None], lasso[:, None] - G][:signs]
        return float(value), np.stack(slopes).ravel()

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-10}
    size = signs * shape[0] * shape[1]
    found = minimize(
        cost,
        np.full(size, 0.1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * size,
        options=options,
    )
    parts = found.x.reshape(signs, *shape)
    return parts[0] - parts[1] if signs == 2 else parts[0]


@each_rough
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_new_rows_get_the_minimum_that_scipy_finds(
    penalty: Any, axis: int, weighted: bool
) -> None:
    problem = low_rank()
    X = problem.nan
    M = problem.weights if weighted else problem.mask.astype(float)
    mask = M if weighted else None
    fit = dmf.factorize(X, 3, mask=mask, penalty=penalty, max_rounds=5, tol=0)
    folded = fit.fold_in(**{("rows", "columns")[axis]: X}, mask=mask)
    H, truth = (fit.H, problem.truth) if axis == 0 else (fit.W.T, problem.truth.T)
    M = M if axis == 0 else M.T
    found = folded.W if axis == 0 else folded.H.T
    expected = minimum(H, truth, M, penalty)
    assert half(found, H, truth, M, penalty) <= half(expected, H, truth, M, penalty) * (
        1 + 1e-9
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def half_steps(
    X: Array, start: tuple[Array, Array], penalty: Any, solver: Any, rounds: int
) -> tuple[Array, Array]:
    """Move W alone; return it, and what its steps say of the objective."""
    r = start[0].shape[1]
    sides = (Side((penalty,), (r,), r), Side((dmf.Ridge(0.0),), (r,), r))
    objective = Objective(sides)
    runner = choose_runner(None)
    told = []
    with runner.session():
        data = load(X, None, r, runner)
        state = start_state(data, runner, start=GivenStart(start), objective=objective)
        for _ in range(rounds):
            tasks, moved, total = build_half(data, solver, objective, state, 0)
            graph = {**data.leaves, **state.leaves, **tasks}
            leaves = runner.run(graph, [*moved, total])
            (report,) = runner.fetch([leaves.pop(total)])
            told.append((report.loss + report.penalty + data.constant)[0])
            state = replace(
                state,
                round=state.round + 1,
                strips=(moved, state.strips[1]),
                leaves=state.leaves | leaves,
            )
        factors = runner.fetch([state.leaves[key] for key in moved])
    return np.concatenate([f.factor[:, 0] for f in factors]), np.array(told)


@each_rough
@pytest.mark.parametrize("observed", [0.6, 1.1])
def test_half_steps_lead_to_the_minimum_of_the_convex_problem(
    penalty: Any, observed: float
) -> None:
    """One factor fixed, there is one minimum; coordinate descent finds it at once."""
    problem = low_rank(observed=observed)
    X, M = problem.nan, problem.mask.astype(float)
    W, H = problem.start
    W = np.abs(W) if penalty.nonnegative else W
    exact, _ = half_steps(X, (W, H), penalty, ALS, 1)
    found, path = half_steps(X, (W, H), penalty, dmf.NormalizedGradient(), 60)
    best = half(exact, H.T, problem.truth, M, penalty)
    assert path[-1] == pytest.approx(best, rel=1e-10)
    assert path[-1] == pytest.approx(half(found, H.T, problem.truth, M, penalty))
    assert np.all(np.diff(path) <= 1e-13 * path[:-1])
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found == 0, exact == 0)


@given(
    for_W=st.sampled_from(ROUGH),
    for_H=st.sampled_from([dmf.Ridge(0.2), None, *ROUGH]),
    weighted=st.booleans(),
    dtype=st.sampled_from([np.float64, np.float32]),
    observed=st.sampled_from([0.3, 0.6, 1.1]),
    seed=st.integers(0, 1000),
)
def test_the_objective_never_rises_and_zeros_are_counted(
    for_W: Any, for_H: Any, weighted: bool, dtype: Any, observed: float, seed: int
) -> None:
    problem = low_rank(observed=observed, seed=seed, dtype=dtype)
    fit = dmf.factorize(
        problem.nan,
        3,
        mask=problem.weights if weighted else None,
        penalty=(for_W, for_H),
        max_rounds=15,
        tol=0,
    )
    M = problem.weights if weighted else problem.mask
    path = np.append(fit.history.initial_objective, fit.history.objective)
    scale = float(np.sum(M * problem.truth.astype(float) ** 2))
    rounding = 1e-13 if dtype is np.float64 else 1e-6
    assert np.all(np.diff(path) <= rounding * scale)
    assert path[-1] < path[0]
    exact = 1e-10 if dtype is np.float64 else 1e-4
    expected = plain(fit, problem.truth, M.astype(float))
    assert fit.objective == pytest.approx(expected, rel=exact)
    assert fit.history[-1].zeros_W == np.mean(fit.W == 0)
    assert fit.history[-1].zeros_H == np.mean(fit.H == 0)
    for factor, penalty in zip((fit.W, fit.H), fit.penalty, strict=True):
        assert factor.dtype == dtype
        assert np.isfinite(factor).all()
        assert not penalty.nonnegative or factor.min() >= 0
        assert not np.any((factor != 0) & (np.abs(factor) < np.finfo(dtype).tiny))


def test_zeros_are_plain_zeros() -> None:
    """Entries at the bound are 0.0, and many rows have some, not all."""
    problem = low_rank(observed=0.6)
    fit = dmf.factorize(problem.nan, 3, penalty=dmf.NonNegative(), max_rounds=60)
    for factor in (fit.W, fit.H.T):
        zero = factor == 0
        assert 0.1 < zero.mean() < 0.9
        assert np.all(np.signbit(factor[zero]) == 0)


def test_without_a_lasso_the_step_is_that_of_the_plane() -> None:
    """A sum of ridges is one, to the bit; a lasso of no strength is none."""
    X = low_rank().nan
    fits = [
        dmf.factorize(X, 3, penalty=penalty, max_rounds=8, tol=0)
        for penalty in (
            dmf.Ridge(0.3),
            dmf.Ridge(0.3) + dmf.Ridge(0.0) + dmf.Penalty(),
            dmf.Ridge(0.3) + dmf.Lasso(0.0),
        )
    ]
    assert same_factors(fits[0], fits[1])
    np.testing.assert_allclose(fits[2].W, fits[0].W, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fits[2].H, fits[0].H, rtol=1e-7, atol=1e-9)


def parts_problem(noise: float, observed: float, m: int = 60, n: int = 40) -> Problem:
    """Return a non-negative problem whose parts hardly overlap: one clear optimum."""
    rng = np.random.default_rng(3)
    W = rng.random((m, 4)) * (rng.random((m, 4)) < 0.5)
    H = rng.random((4, n)) * (rng.random((4, n)) < 0.5)
    W[:4], H[:, :4] = np.eye(4), np.eye(4)
    truth = np.abs(10 * W @ H + noise * rng.standard_normal((m, n)))
    mask = rng.random((m, n)) < observed
    start = (rng.random((m, 4)), rng.random((n, 4)))
    return Problem(truth, mask, mask.astype(float), start)


def start_at(W: Array, H: Array) -> dmf.Factorization:
    """Return a start; H is (r, n), as users see it."""
    blank = dmf.factorize(np.ones((len(W), H.shape[1])), W.shape[1], max_rounds=1)
    return replace(blank, W=W, H=np.ascontiguousarray(H))


@pytest.mark.parametrize(
    ("penalty", "form"),
    [
        (
            (dmf.NonNegative() + dmf.Lasso(0.3), dmf.NonNegative() + dmf.Ridge(1)),
            "numpy",
        ),
        ((dmf.Lasso(0.5), dmf.Ridge(0.5)), "sparse"),
    ],
)
def test_full_fits_reach_the_optimum_of_coordinate_descent(
    penalty: Any, form: str
) -> None:
    """From one start, on data with a clear optimum; both must be at its bottom."""
    problem = parts_problem(noise=0.1, observed=0.7)
    W, H = problem.start
    options = {"penalty": penalty, "tol": 0, "start": start_at(W, H.T)}
    oracle = dmf.factorize(problem.nan, 4, solver=ALS, max_rounds=300, **options)
    fit = dmf.factorize(form_of(problem, form), 4, max_rounds=250, **options)
    assert fit.objective < 0.1 * fit.history.initial_objective
    assert fit.objective == pytest.approx(oracle.objective, rel=1e-4)
    assert fit.certificate.relative_W < 1e-3
    assert fit.certificate.relative_H < 1e-3


def test_nmf_is_that_of_scikit_learn() -> None:
    from sklearn.decomposition import NMF

    problem = parts_problem(noise=0.1, observed=1.1)
    W, H = problem.start
    start = start_at(W, H.T)
    options = {"penalty": dmf.NonNegative(), "start": start, "tol": 0}
    fit = dmf.factorize(problem.truth, 4, max_rounds=300, **options)
    model = NMF(4, init="custom", solver="cd", tol=0, max_iter=2000)
    W = model.fit_transform(problem.truth, W=W.copy(), H=H.T.copy())
    expected = 0.5 * np.sum((problem.truth - W @ model.components_) ** 2)
    assert fit.objective == pytest.approx(expected, rel=5e-3)
    assert fit.history[0].objective > 10 * fit.objective
    assert fit.certificate.relative_W < 1e-4
    assert fit.certificate.relative_H < 1e-4
    assert fit.certificate.objective == pytest.approx(fit.objective, rel=1e-8)


def dictionary(observed: float, seed: int) -> tuple[Array, Array, Array]:
    """Return X = W H + noise with three of twelve atoms in each row, W and H."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((500, 12))
    for row in W:
        row[rng.permutation(12)[3:]] = 0
    H = rng.standard_normal((12, 200))
    X = W @ H + 0.05 * rng.standard_normal((500, 200))
    X[rng.random(X.shape) >= observed] = np.nan
    return X, W, H


@pytest.mark.slow
@pytest.mark.parametrize("observed", [0.6, 1.0])
def test_a_sparse_dictionary_is_found(observed: float) -> None:
    X, W, H = dictionary(observed, seed=2)
    penalty = (dmf.Lasso(5.0), dmf.Ridge(1.0))
    fit = dmf.factorize(X, 12, penalty=penalty, max_rounds=300, tol=0)
    true, found = (
        atoms / np.linalg.norm(atoms, axis=1, keepdims=True) for atoms in (H, fit.H)
    )
    cosines = np.abs(true @ found.T)
    order = cosines.argmax(axis=1)
    assert sorted(order) == list(range(12))
    assert cosines.max(axis=1).min() > 0.98
    assert np.mean(fit.W[:, order][W == 0] == 0) > 0.95
    assert np.mean(fit.W[:, order][W != 0] != 0) > 0.8


@pytest.mark.parametrize(
    ("penalty", "form"), [(p, ("numpy", "sparse")[k % 2]) for k, p in enumerate(ROUGH)]
)
def test_rows_without_anything_to_say_are_zero(penalty: Any, form: str) -> None:
    """Empty rows and columns, and rows that hold nothing but zeros."""
    problem = low_rank()
    mask, truth = problem.mask.copy(), problem.truth.copy()
    mask[[0, 5]] = False
    mask[:, 7] = False
    truth[3] = 0
    problem = Problem(truth, mask, problem.weights, problem.start)
    fit = dmf.factorize(form_of(problem, form), 3, penalty=penalty, max_rounds=60)
    assert not np.any(fit.W[[0, 5]])
    assert not np.any(fit.H[:, 7])
    assert np.isfinite(fit.W).all()
    assert np.isfinite(fit.H).all()
    np.testing.assert_allclose(fit.W[3], 0, atol=1e-6)
    if not penalty.nonnegative or "Lasso" in str(penalty):
        assert not np.any(fit.W[3])


@pytest.mark.parametrize("observed", [0.6, 1.1])
@pytest.mark.parametrize("solver", [None, ALS], ids=str)
@pytest.mark.parametrize(
    "penalty", [dmf.Lasso(1e9), dmf.Lasso(1e9) + dmf.NonNegative()], ids=str
)
def test_a_huge_lasso_leaves_nothing(
    penalty: Any, solver: Any, observed: float
) -> None:
    problem = low_rank(observed=observed)
    fit = dmf.factorize(
        problem.nan, 3, penalty=penalty, solver=solver, max_rounds=5, tol=0
    )
    assert not np.any(fit.W)
    assert not np.any(fit.H)
    zero = 0.5 * np.sum(problem.truth[problem.mask] ** 2)
    assert fit.objective == pytest.approx(zero, rel=1e-9)
    assert fit.history[-1].zeros_W == fit.history[-1].zeros_H == 1


@given(
    penalty=st.sampled_from([dmf.NonNegative(), dmf.NonNegative() + dmf.Ridge(0.0)]),
    power=st.integers(-9, 9),
    observed=st.sampled_from([0.6, 1.1]),
    rank=st.sampled_from([1, 3]),
)
@settings(max_examples=10)
def test_the_unit_of_the_data_does_not_matter_in_float32(
    penalty: Any, power: int, observed: float, rank: int
) -> None:
    unit = np.float32(10.0**power)
    problem = low_rank(observed=observed, dtype=np.float32)
    one, other = (
        dmf.factorize(X, rank, penalty=penalty, max_rounds=12, tol=0)
        for X in (problem.nan, problem.nan * unit)
    )
    assert np.isfinite(other.W).all()
    assert np.isfinite(other.H).all()
    path = np.append(other.history.initial_objective, other.history.objective)
    assert np.all(np.diff(path) <= 1e-6 * path[0])
    assert other.objective / float(unit) ** 2 == pytest.approx(one.objective, rel=0.02)


@pytest.mark.parametrize("observed", [0.6, 1.1])
def test_rank_one_with_a_lasso_is_that_of_coordinate_descent(observed: float) -> None:
    problem = low_rank(rank=1, observed=observed)
    penalty = dmf.Lasso(0.5) + dmf.Ridge(0.5)
    fits = [
        dmf.factorize(problem.nan, 1, penalty=penalty, solver=s, max_rounds=80, tol=0)
        for s in (None, ALS)
    ]
    assert fits[0].objective == pytest.approx(fits[1].objective, rel=1e-8)
    np.testing.assert_allclose(fits[0].W, fits[1].W, atol=1e-5)
    np.testing.assert_array_equal(fits[0].H == 0, fits[1].H == 0)
