"""Solvers against textbook loops in NumPy, least squares, and each other."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dmf
from benchmarks.common import power_law
from dmf.init import random_strip, scale_for
from dmf.kernels.strips import divided_by
from dmf.objective import Side
from dmf.offsets import COLUMNS
from dmf.penalties import Lasso
from dmf.solvers.descent import metric_of
from tests.problems import MONOTONE, SOLVERS, low_rank, objective, objective_of

PENALTIES = [
    None,
    dmf.Ridge(0.3),
    dmf.Ridge(0.05, by_count=True),
    (dmf.Ridge(0.3), dmf.Ridge(0.02, by_count=True)),
    (None, dmf.Ridge(0.1)),
]


def start_of(X: Any, rank: int, mean_square: float, seed: int = 0) -> tuple[Any, Any]:
    """Return dmf's own start for a matrix, H as users see it."""
    scale = scale_for(mean_square, rank)
    W, H = (
        random_strip(seed, 0, axis, range(size), rank, scale, X.dtype)
        for axis, size in enumerate(X.shape)
    )
    return W, H.T


def ridges(penalty: Any, M: Any) -> tuple[Any, Any]:
    """Return λ_i for the rows and λ_j for the columns."""
    pair = penalty if isinstance(penalty, tuple) else (penalty, penalty)
    result = []
    for axis, one in enumerate(pair):
        counts = np.count_nonzero(M, axis=1 - axis)
        strength = one.strength if one else 0.0
        scaled = one is not None and one.by_count
        result.append(strength * (counts if scaled else np.ones_like(counts)))
    return result[0], result[1]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("solver", MONOTONE, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_objective_never_rises(solver: Any, penalty: Any, weighted: bool) -> None:
    problem = low_rank(m=40, n=30, observed=0.4)
    mask = problem.weights if weighted else None
    fit = dmf.factorize(
        problem.nan, 4, mask=mask, penalty=penalty, solver=solver, max_rounds=30, tol=0
    )
    path = np.array([fit.history.initial_objective, *fit.history.objective])
    assert np.all(np.diff(path) <= 1e-12 * path[:-1])
    assert path[-1] < path[0]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_history_holds_the_objective_of_the_factors(solver: Any, penalty: Any) -> None:
    """The loop never evaluates the objective: it follows from slope and curvature."""
    problem = low_rank(m=25, n=18, observed=0.5)
    fit = dmf.factorize(
        problem.nan, 3, penalty=penalty, solver=solver, max_rounds=12, tol=0
    )
    M = problem.mask.astype(float)
    expected = objective(problem.truth, M, fit.W, fit.H, ridges(penalty, M))
    assert fit.objective == pytest.approx(expected, rel=1e-10)
    residual = (fit.W @ fit.H - problem.truth)[problem.mask]
    assert fit.history[-1].rmse == pytest.approx(np.sqrt(np.mean(residual**2)))


def test_gradient_norms_are_those_that_the_half_steps_met() -> None:
    problem = low_rank()
    X, M = problem.nan, problem.mask.astype(float)
    penalty = dmf.Ridge(0.2)
    fits = [dmf.factorize(X, 3, penalty=penalty, max_rounds=k, tol=0) for k in (4, 5)]
    W, H = fits[0].W, fits[0].H
    residual = np.where(problem.mask, W @ H - problem.truth, 0) * M
    last = fits[1].history[-1]
    assert last.gradient_norm_W == pytest.approx(
        np.linalg.norm(residual @ H.T + 0.2 * W)
    )
    W = fits[1].W
    residual = np.where(problem.mask, W @ H - problem.truth, 0) * M
    assert last.gradient_norm_H == pytest.approx(
        np.linalg.norm(W.T @ residual + 0.2 * H)
    )
    assert last.step_W == pytest.approx(
        np.linalg.norm(fits[1].W - fits[0].W) / np.linalg.norm(fits[1].W)
    )


def textbook(
    X: Any, M: Any, W: Any, H: Any, ridge: float, move: Any, rounds: int
) -> Any:
    """Run alternating steps in plain NumPy; `move(G, k)` is the step for a gradient."""
    for k in range(1, rounds + 1):
        residual = M * (W @ H - np.where(M > 0, X, 0))
        W = W - move(residual @ H.T + ridge * W, k)
        residual = M * (W @ H - np.where(M > 0, X, 0))
        H = H - move((W.T @ residual + ridge * H).T, k).T
    return W, H


@pytest.mark.parametrize(
    ("solver", "move"),
    [
        (dmf.GradientDescent(2e-3), lambda G, k: 2e-3 * G),
        (
            dmf.NormalizedGradient("global", dmf.Constant(0.2)),
            lambda G, k: 0.2 * G / np.linalg.norm(G),
        ),
        (
            dmf.NormalizedGradient("global", dmf.Decay(0.4, power=0.7)),
            lambda G, k: 0.4 / k**0.7 * G / np.linalg.norm(G),
        ),
        (
            dmf.NormalizedGradient("row", dmf.Constant(0.03)),
            lambda G, k: 0.03 * G / np.linalg.norm(G, axis=1, keepdims=True),
        ),
    ],
)
def test_fixed_steps_are_the_textbook(solver: Any, move: Any) -> None:
    problem = low_rank()
    M = problem.mask.astype(float)
    mean_square = np.mean(problem.truth[problem.mask] ** 2)
    start = start_of(problem.truth, 3, mean_square)
    W, H = textbook(problem.truth, M, *start, 0.1, move, rounds=15)
    fit = dmf.factorize(
        problem.nan, 3, penalty=dmf.Ridge(0.1), solver=solver, max_rounds=15, tol=0
    )
    np.testing.assert_allclose(fit.W, W, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(fit.H, H, rtol=1e-9, atol=1e-11)


def test_als_solves_each_half_step_exactly() -> None:
    problem = low_rank()
    penalty = dmf.Ridge(0.1, by_count=True)
    solver = dmf.AlternatingLeastSquares()
    fit = dmf.factorize(
        problem.nan, 3, penalty=penalty, solver=solver, max_rounds=3, tol=0
    )
    # H has moved last: each of its columns solves a ridge problem against W.
    for j in range(problem.truth.shape[1]):
        seen = problem.mask[:, j]
        ridge = np.sqrt(0.1 * seen.sum())
        A = np.vstack([fit.W[seen], ridge * np.eye(3)])
        b = np.concatenate([problem.truth[seen, j], np.zeros(3)])
        expected = np.linalg.lstsq(A, b, rcond=None)[0]
        np.testing.assert_allclose(fit.H[:, j], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scope", ["row", "global"])
def test_no_step_in_the_plane_is_better(scope: Any) -> None:
    """Perturb the two lengths of the last H half-step: the objective only rises."""
    problem = low_rank()
    M = problem.mask.astype(float)
    penalty, solver = dmf.Ridge(0.1), dmf.NormalizedGradient(scope, dmf.Plane())
    before, earlier, after = (
        dmf.factorize(
            problem.nan, 3, penalty=penalty, solver=solver, max_rounds=k, tol=0
        )
        for k in (6, 5, 7)
    )
    W = after.W
    residual = np.where(problem.mask, W @ before.H - problem.truth, 0)
    gradient = W.T @ residual + 0.1 * before.H
    move = before.H - earlier.H
    best = objective(problem.truth, M, W, after.H, (0.1, 0.1))
    rng = np.random.default_rng(0)
    for _ in range(50):
        t = 1e-3 * rng.standard_normal(2)
        other = after.H + t[0] * gradient + t[1] * move
        assert objective(problem.truth, M, W, other, (0.1, 0.1)) > best - 1e-12


def test_the_plane_needs_fewer_rounds_than_the_line() -> None:
    """On unevenly observed data, where the rows' systems are badly conditioned."""
    X = power_law(2000, 1000, 60_000, rank=10)
    line, plane = (
        dmf.factorize(
            X,
            10,
            penalty=dmf.Ridge(0.1),
            solver=dmf.NormalizedGradient("row", step),
            max_rounds=25,
            tol=0,
        )
        for step in (dmf.Exact(), dmf.Plane())
    )
    assert plane.history.objective[17] < line.history.objective[24]


@given(power=st.integers(-15, 15), seed=st.integers(0, 100))
def test_the_default_does_not_depend_on_the_unit(power: int, seed: int) -> None:
    """X in other units gives the same fit in those units, also in float32."""
    problem = low_rank(seed=seed, dtype=np.float32)
    unit = np.float32(4.0**power)
    plain = dmf.factorize(problem.nan, 3, max_rounds=8, tol=0)
    scaled = dmf.factorize(problem.nan * unit, 3, max_rounds=8, tol=0)
    np.testing.assert_allclose(
        scaled.W @ scaled.H / unit, plain.W @ plain.H, rtol=2e-2, atol=1e-3
    )
    assert scaled.history[-1].rmse / unit == pytest.approx(
        plain.history[-1].rmse, rel=1e-3
    )


def test_constant_step_cannot_settle_and_exact_does() -> None:
    problem = low_rank(noise=0.0)
    fits = {
        name: dmf.factorize(
            problem.nan,
            3,
            penalty=None,
            solver=dmf.NormalizedGradient("global", step),
            max_rounds=300,
            tol=0,
        )
        for name, step in (("constant", dmf.Constant(0.3)), ("exact", dmf.Exact()))
    }
    last = fits["constant"].history.objective[-50:]
    assert np.any(np.diff(last) > 0)
    assert fits["exact"].objective < 0.01 * last.min()


def test_plain_gradient_explodes_where_the_normalised_one_does_not() -> None:
    problem = low_rank()
    X = 100 * problem.nan
    plain = dmf.factorize(X, 3, penalty=None, solver=dmf.GradientDescent(0.05))
    assert plain.status.code == "diverged"
    assert np.isfinite(plain.W).all()
    # At once, so that squares of the gradient leave float64.
    at_once = dmf.factorize(X, 3, penalty=None, solver=dmf.GradientDescent(1e60))
    assert at_once.status.code == "diverged"
    step = dmf.NormalizedGradient("global", dmf.Constant(0.05))
    normalised = dmf.factorize(X, 3, penalty=None, solver=step, max_rounds=50, tol=0)
    assert normalised.objective < normalised.history.initial_objective


@pytest.mark.parametrize("scope", ["row", "global"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_too_long_for_any_number_is_said_to_diverge(
    scope: Any, scaled: bool
) -> None:
    solver = dmf.NormalizedGradient(scope, dmf.Constant(1e60), scaled)
    fit = dmf.factorize(low_rank().nan, 3, penalty=None, solver=solver)
    assert fit.status.code == "diverged"


@pytest.mark.usefixtures("keep_chunks")
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_blocks_with_nothing_missing_are_added_to_others(solver: Any) -> None:
    """Of four blocks one isn't complete: the sums of the others begin with theirs."""
    X = low_rank(60, 40, 3, observed=1.0).nan
    X[-1, -1] = np.nan
    whole = dmf.factorize(X, 3, solver=solver, max_rounds=5, tol=0)
    with dask.config.set(num_workers=2):
        blocks = da.from_array(X, chunks=(30, 20))
        cut = dmf.factorize(blocks, 3, solver=solver, max_rounds=5, tol=0)
    assert cut.objective == pytest.approx(whole.objective, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 10])
def test_first_round_and_parallel_moves_follow_the_gradient_alone(rank: int) -> None:
    problem = low_rank(m=15, n=12, observed=0.8)
    fit = dmf.factorize(problem.nan, rank, max_rounds=6, tol=0)
    assert fit.history[0].plane_W == 0
    assert fit.history[0].plane_H == 0
    # With rank 1 a plane is a line: the 2 × 2 system is degenerate in every round.
    assert (fit.history[-1].plane_W > 0.9) == (rank > 1)


def test_row_plane_reaches_als_on_the_power_law_problem() -> None:
    """Within 0.1% of the objective of alternating least squares."""
    X = power_law(6000, 3000, 339_000, rank=10)
    penalty = dmf.Ridge(0.1)
    als = dmf.factorize(
        X,
        10,
        penalty=penalty,
        solver=dmf.AlternatingLeastSquares(),
        max_rounds=20,
        tol=0,
    )
    plane = dmf.factorize(X, 10, penalty=penalty, max_rounds=60, tol=0)
    assert plane.objective <= 1.001 * als.objective


@pytest.mark.parametrize("level", [0.0, 290.0])
def test_the_default_penalty_respects_the_level_of_the_data(level: float) -> None:
    """Temperatures in kelvin are imputed as well as the same in celsius."""
    rng = np.random.default_rng(0)
    truth = level + 5 * (
        rng.standard_normal((200, 3)) @ rng.standard_normal((3, 50)) / np.sqrt(3)
        + 0.2 * rng.standard_normal((200, 50))
    )
    hidden = rng.random(truth.shape) < 0.3
    X = np.where(hidden, np.nan, truth)
    # Such a level needs many rounds; a few leave it to rounding how far they get.
    filled = dmf.impute(X, dmf.factorize(X, 4, max_rounds=1000, tol=1e-6))
    error = (filled - truth)[hidden]
    # The penalty pulls by a share of the spread, 5, not of the level.
    assert abs(error.mean()) < 0.5
    assert np.sqrt(np.mean(error**2)) < 0.35 * truth.std()


def plain_penalty(penalty: Any, factor: Any, counts: Any) -> float:
    """Return Ω of one candidate's factor, shape (p, r), written plainly."""
    total = 0.0
    for one in getattr(penalty, "parts", (penalty,)):
        strengths = one.strength * (counts if one.by_count else np.ones_like(counts))
        sizes = np.abs(factor) if isinstance(one, Lasso) else 0.5 * factor**2
        total += float(np.sum(strengths[:, None] * sizes))
    return total


@pytest.mark.parametrize("by_count", [False, True])
@pytest.mark.parametrize("K", [1, 3])
def test_gradient_of_the_penalty_is_that_of_its_value(K: int, by_count: bool) -> None:
    """Each candidate has a strength of its own; the lasso isn't smooth."""
    rng = np.random.default_rng(0)
    factor, counts = rng.standard_normal((5, K, 3)), np.array([0.0, 1, 2, 5, 9])
    ridges = [dmf.Ridge(0.7 * (k + 1), by_count=by_count) for k in range(K)]
    for penalties in (ridges, [r + Lasso(0.2, by_count=not by_count) for r in ridges]):
        side = objective_of(penalties, rank=3).sides[0]
        terms = side.terms(factor, counts, np.zeros(K))
        assert terms.quadratic == (penalties is ridges)
        expected = [
            plain_penalty(penalty, factor[:, k], counts)
            for k, penalty in enumerate(penalties)
        ]
        np.testing.assert_allclose(terms.value(factor), expected)
        # Of the squares alone.
        terms = terms._replace(lasso=None)
        numeric = np.empty_like(factor)
        h = 1e-6
        for i, s in np.ndindex(5, 3):
            up, down = factor.copy(), factor.copy()
            up[i, :, s] += h
            down[i, :, s] -= h
            numeric[i, :, s] = terms.value(up) - terms.value(down)
        gradient = terms.gradient(factor)
        np.testing.assert_allclose(gradient, numeric / (2 * h), rtol=1e-6, atol=1e-8)
        move = rng.standard_normal(factor.shape)
        along = np.sum(move * (terms.gradient(factor + move) - gradient), axis=2)
        np.testing.assert_allclose(terms.curvature(move, move), along)


@pytest.mark.parametrize("K", [1, 3])
def test_als_needs_no_more_memory_than_its_tiles(K: int) -> None:
    """The systems of 20,000 rows are solved a few megabytes at a time."""
    import tracemalloc

    from dmf.solvers.als import TILE_BYTES, solve

    rows, rank = 20_000, 16
    rng = np.random.default_rng(0)
    shared = np.stack(
        [np.eye(rank, dtype=np.float32) + 0.1 * (k + 1) for k in range(K)]
    ).astype(np.float32)
    matrices = np.broadcast_to(shared, (rows, K, rank, rank))
    moving = rng.standard_normal((rows, K, rank), dtype=np.float32)
    gradient = rng.standard_normal((rows, K, rank), dtype=np.float32)
    side = objective_of([dmf.Ridge(0.0)] * K, rank).sides[0]
    summed, counts = (gradient, np.ones(K)), np.ones(rows)
    tracemalloc.start()
    try:
        moved = solve(
            moving,
            summed,
            matrices,
            counts,
            np.zeros(K),
            side=side,
            descend=lambda *parts: None,
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * TILE_BYTES + 12 * moving.nbytes
    for k in range(K):
        move = np.linalg.solve(shared[k].astype(float), gradient[:, k].T).T
        np.testing.assert_allclose(
            moved.factor[:, k], moving[:, k] - move, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("offsets", ["none", "both", "global"])
@pytest.mark.parametrize("unobserved", [0.0, 0.3])
@pytest.mark.parametrize("by_count", [False, True])
def test_scaled_gradients_are_newton_steps_of_average_rows(
    offsets: str, unobserved: float, by_count: bool
) -> None:
    """Against one linear system for each row, of the columns that move."""
    rng = np.random.default_rng(0)
    roles = COLUMNS[offsets][0]
    ridge = dmf.Ridge(0.2, by_count=by_count)
    # One candidate is filled up with a column that never moves.
    side = Side((ridge, ridge), (3, 2), 3, roles, ridge)
    c, q = side.width, 50
    moving, gradient = rng.standard_normal((2, 7, 2, c))
    counts = np.arange(1.0, 8.0)
    terms = side.terms(moving, counts, np.zeros(2))
    F = rng.standard_normal((2, q, c))
    live = np.ones((2, c), bool)
    live[1, 2] = False
    live[:, 3:] = [role == "offset" for role in roles]
    gradient[:, 1, 2] = moving[:, 1, 2] = F[1, :, 2] = 0
    gram = np.swapaxes(F, 1, 2) @ F
    metric = metric_of(moving, terms, counts, gram, fixed_rows=q, unobserved=unobserved)
    found = divided_by(-terms.still(gradient + terms.gradient(moving)), metric)
    for i in range(7):
        weight = counts[i] + unobserved * (q - counts[i])
        strength = 0.2 * (counts[i] if by_count else 1.0)
        for k in range(2):
            own = live[k]
            system = weight * gram[k][np.ix_(own, own)] / q + strength * np.eye(
                own.sum()
            )
            slope = (gradient + terms.gradient(moving))[i, k, own]
            assert not found[i, k, ~own].any()
            # However long they are: dmf measures how far to go.
            aims = found[i, k, own], -np.linalg.solve(system, slope)
            units = [aim / np.linalg.norm(aim) for aim in aims]
            np.testing.assert_allclose(*units, rtol=1e-9)


@pytest.mark.parametrize("unobserved", [0.0, 1.0])
def test_where_rows_are_average_scaled_gradients_are_least_squares(
    unobserved: float,
) -> None:
    """All is observed, or counts as if it were: the first half-steps are exact."""
    problem = low_rank(m=20, n=15, observed=0.5)
    X = problem.truth if unobserved == 0 else problem.sparse()
    options: dict[str, Any] = {
        "unobserved_weight": unobserved,
        "penalty": dmf.Ridge(0.3),
    }
    start = dmf.factorize(X, 3, max_rounds=1, **options)
    exact, scaled = (
        dmf.factorize(X, 3, start=start, solver=solver, max_rounds=1, **options)
        for solver in (
            dmf.AlternatingLeastSquares(),
            dmf.NormalizedGradient(step=dmf.Exact(), scaled=True),
        )
    )
    np.testing.assert_allclose(scaled.W, exact.W, rtol=1e-8)
    np.testing.assert_allclose(scaled.H, exact.H, rtol=1e-8)


def test_scaled_gradients_need_a_third_of_the_rounds_on_ratings() -> None:
    X = power_law(6000, 3000, 400_000, 4)
    train, held_out = dmf.split_observed(X, 0.1, seed=0)
    test = held_out.tocoo()

    def rmse(rounds: int, scaled: bool) -> float:
        fit = dmf.factorize(
            train,
            8,
            offsets="both",
            penalty=dmf.Ridge(0.05, by_count=True) + dmf.Ridge(1.0),
            solver=dmf.NormalizedGradient(scaled=scaled),
            max_rounds=rounds,
            tol=0,
        )
        error = fit.predict(test.row, test.col) - test.data
        return float(np.sqrt(np.mean(error**2)))

    assert rmse(8, scaled=True) < rmse(24, scaled=False)
