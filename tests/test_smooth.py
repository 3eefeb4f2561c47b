"""Smooth factors against difference formulas, dense solves, and other strips."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.smoothness import Ties, differences_of
from tests.problems import same_factors

Array = Any

LENGTH = 40
UNEVEN = tuple(np.random.default_rng(8).uniform(0.3, 3.0, LENGTH - 1).tolist())
# With a ridge beside it, W and H have one scale, and a hundred rounds get there.
RIDGE = dmf.Ridge(0.5)
TIED = {
    "first": dmf.Smooth(5.0) + RIDGE,
    "second": dmf.Smooth(2.0, order=2) + RIDGE,
    "first-uneven": dmf.Smooth(3.0, step=UNEVEN) + RIDGE,
    "second-uneven": dmf.Smooth(2.0, order=2, step=UNEVEN) + RIDGE,
    "both": dmf.Smooth(2.0) + dmf.Smooth(0.5, order=2, step=UNEVEN) + RIDGE,
}
each_tie = pytest.mark.parametrize("tie", TIED)
pytestmark = pytest.mark.usefixtures("keep_chunks")


def signals(rows: int = 25, noise: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
    """Return X of two slow signals, a third of it missing, and the truth.

    Nothing at all is observed in columns 15 to 18.
    """
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, LENGTH)
    H = np.stack([np.sin(2 * np.pi * t), np.cos(3 * np.pi * t)])
    truth = rng.standard_normal((rows, 2)) @ H
    X = truth + noise * rng.standard_normal(truth.shape)
    X[rng.random(X.shape) < 0.35] = np.nan
    X[:, 15:19] = np.nan
    return X, truth


def fitted(X: Array, smooth: Any, rounds: int = 100, **options: Any) -> Any:
    penalty = (RIDGE, smooth)
    chosen = {"penalty": penalty, "max_rounds": rounds, "tol": 0, "check_every": 50}
    return dmf.factorize(X, 2, **(chosen | options))


def roughness(rows: Array, smooth: dmf.Smooth) -> float:
    """Return λ/2 Σ of squared differences, by np.diff, gap by gap."""
    gaps = np.broadcast_to(np.asarray(smooth.step, dtype=float), len(rows) - 1)[:, None]
    slopes = np.diff(rows, axis=0) / gaps
    if smooth.order == 1:
        return 0.5 * smooth.strength * float(np.sum(gaps * slopes**2))
    middle = (gaps[1:] + gaps[:-1]) / 2
    bends = np.diff(slopes, axis=0) / middle
    return 0.5 * smooth.strength * float(np.sum(middle * bends**2))


def omega(penalty: Any, rows: Array) -> float:
    """Return Ω of a factor, its rows along the axis."""
    total = 0.0
    for part in getattr(penalty, "parts", (penalty,)):
        if isinstance(part, dmf.Smooth):
            total += roughness(rows, part)
        else:
            total += 0.5 * part.strength * float(np.sum(rows**2))
    return total


def plain(W: Array, H: Array, X: Array, penalty: Any) -> float:
    residual = np.nan_to_num(W @ H - X)
    return 0.5 * np.sum(residual**2) + omega(penalty[0], W) + omega(penalty[1], H.T)


def ties_of(smooth: dmf.Smooth, start: int, length: int, total: int) -> Ties:
    """Return the ties of a strip of one candidate of rank 2, with all of its halo."""
    part = differences_of(smooth, start, length, total)
    return Ties((part,), 2, length, min(smooth.order, start))


@given(
    order=st.sampled_from([1, 2]),
    even=st.booleans(),
    cuts=st.lists(st.integers(1, 11), max_size=3, unique=True),
    seed=st.integers(0, 100),
)
def test_value_and_gradient_of_any_strips(
    order: int, even: bool, cuts: list[int], seed: int
) -> None:
    """Strips add up to the whole: each difference counts once, wherever the cuts are.

    And the gradient, strip by strip, is that of the np.diff formula.
    """
    rng = np.random.default_rng(seed)
    steps = 0.7 if even else tuple(rng.uniform(0.2, 4.0, 11).tolist())
    smooth = dmf.Smooth(1.7, order=order, step=steps)
    rows = rng.standard_normal((12, 2))
    bounds = [0, *sorted(cuts), 12]
    if np.diff(bounds).min() < order:
        bounds = [0, 12]
    total, parts = 0.0, []
    for start, stop in pairwise(bounds):
        halo = min(order, start)
        strip = rows[start - halo : min(12, stop + order), None]
        value, pull = ties_of(smooth, start, stop - start, 12).pull(strip)
        total += value[0]
        parts.append(pull[:, 0])
    assert total == pytest.approx(roughness(rows, smooth), rel=1e-10)
    gradient = np.concatenate(parts)
    for i, k in np.ndindex(12, 2):
        ends = []
        for h in (0.5, -0.5):  # a quadratic: any step is exact
            moved = rows.copy()
            moved[i, k] += h
            ends.append(roughness(moved, smooth))
        assert gradient[i, k] == pytest.approx(ends[0] - ends[1], rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("length", [3, 4, 9])
def test_the_banded_matrix_is_that_of_the_gradient(order: int, length: int) -> None:
    """Its columns are the gradients of the unit vectors, within the strip."""
    gaps = tuple(np.linspace(0.5, 2.0, 14).tolist())
    smooth = dmf.Smooth(0.8, order=order, step=gaps)
    ties = ties_of(smooth, 3, length, 15)
    before, after = min(order, 3), min(order, 15 - 3 - length)
    dense = np.zeros((length, length))
    for k in range(length):
        unit = np.zeros((before + length + after, 1, 2))
        unit[before + k] = 1.0
        dense[:, k] = ties.pull(unit)[1][:, 0, 0]
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    bands = ties.banded(0)
    for k in range(order + 1):
        np.testing.assert_allclose(
            bands[k, : length - k], np.diagonal(dense, -k), atol=1e-12
        )
    np.testing.assert_allclose(np.tril(dense, -order - 1), 0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_steps_are_distances(order: int) -> None:
    """A straight line costs the same slope², or nothing, however it is sampled."""
    places = np.concatenate([[0.0], np.cumsum(UNEVEN)])
    rows = 2.0 * places[:, None]
    found = roughness_of_fit(rows, dmf.Smooth(1.0, order=order, step=UNEVEN))
    expected = 0.5 * 4.0 * places[-1] if order == 1 else 0.0
    assert found == pytest.approx(expected, abs=1e-9)


def roughness_of_fit(rows: Array, smooth: dmf.Smooth) -> float:
    ties = Ties((differences_of(smooth, 0, len(rows), len(rows)),), 1, len(rows), 0)
    return float(ties.pull(rows[:, None])[0][0])


def exact_H(W: Array, X: Array, penalty: Any) -> Array:
    """Solve for the whole H at once, all columns tied, as one dense system."""
    r, n = W.shape[1], X.shape[1]
    seen = np.isfinite(X)
    system, right = np.zeros((n, r, n, r)), np.zeros((n, r))
    for j in range(n):
        own = W[seen[:, j]]
        system[j, :, j] += own.T @ own
        right[j] = own.T @ X[seen[:, j], j]
    # The Hessian of Ω along the axis, by its values: a quadratic without a slope.
    units = np.eye(n)[:, :, None]
    values = np.array([omega(penalty, one) for one in units])
    for i in range(n):
        for j in range(n):
            both = omega(penalty, units[i] + units[j]) - values[i] - values[j]
            system[i, :, j] += both * np.eye(r)
    return np.linalg.solve(system.reshape(n * r, n * r), right.ravel()).reshape(n, r).T


@each_tie
def test_a_converged_fit_solves_both_halves_exactly(tie: str) -> None:
    smooth, (X, _) = TIED[tie], signals()
    fit = fitted(X, smooth)
    assert fit.objective == pytest.approx(plain(fit.W, fit.H, X, fit.penalty), rel=1e-9)
    np.testing.assert_allclose(fit.H, exact_H(fit.W, X, smooth), rtol=0, atol=2e-5)
    ridge = exact_H(fit.H.T, X.T, RIDGE).T
    np.testing.assert_allclose(fit.W, ridge, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("tie", "chunks"),
    [
        ("first", (25, 20)),
        ("first", (25, 5)),
        ("second-uneven", (25, 20)),
        ("second-uneven", (13, 10)),
    ],
)
def test_any_strips_reach_the_same_minimum(tie: str, chunks: Any) -> None:
    """Cuts change the preconditioner, so the way; not the minimum, nor the descent."""
    X, _ = signals()
    whole = fitted(X, TIED[tie], rounds=60)
    fit = fitted(da.from_array(X, chunks=chunks), TIED[tie], rounds=60)
    assert len(fit.H.chunks[1]) == -(-LENGTH // chunks[1])
    assert fit.objective == pytest.approx(whole.objective, rel=1e-6)
    np.testing.assert_allclose(np.asarray(fit.W @ fit.H), whole.W @ whole.H, atol=1e-3)
    path = np.append(fit.history.initial_objective, fit.history.objective)
    assert np.all(np.diff(path) <= 1e-12 * path[:-1])
    assert path[3] > 1.0001 * path[-1]


@pytest.mark.parametrize("form", ["whole", "both"])
def test_smooth_rows_are_smooth_columns_of_the_transpose(form: str) -> None:
    """On W, with strips of rows: the same minimum as on H of Xᵀ."""
    X, _ = signals()
    chunks = {"whole": (40, 25), "both": (14, 13)}[form]
    columns = fitted(X, TIED["first"])
    rows = fitted(
        da.from_array(X.T, chunks=chunks),
        None,
        penalty=(TIED["first"], RIDGE),
    )
    assert rows.objective == pytest.approx(columns.objective, rel=1e-6)
    np.testing.assert_allclose(
        np.asarray(rows.W @ rows.H), (columns.W @ columns.H).T, atol=1e-3
    )


@pytest.mark.parametrize("chunks", [(25, 40), (13, 14)])
def test_both_factors_may_be_smooth(chunks: Any) -> None:
    """An image of a slow surface: both axes are tied, and both halves exact."""
    y, x = np.linspace(0, 1, 25)[:, None], np.linspace(0, 1, LENGTH)
    truth = np.sin(3 * y) * np.cos(4 * x) + y * x
    rng = np.random.default_rng(0)
    X = truth + 0.05 * rng.standard_normal(truth.shape)
    X[rng.random(X.shape) < 0.6] = np.nan
    X[8:10] = np.nan
    penalty = (dmf.Smooth(0.3) + dmf.Ridge(0.1), dmf.Smooth(0.5) + dmf.Ridge(0.2))
    fit = fitted(da.from_array(X, chunks=chunks), None, penalty=penalty)
    W, H = np.asarray(fit.W), np.asarray(fit.H)
    assert fit.objective == pytest.approx(plain(W, H, X, penalty), rel=1e-9)
    np.testing.assert_allclose(H, exact_H(W, X, penalty[1]), rtol=0, atol=1e-3)
    np.testing.assert_allclose(W, exact_H(H.T, X.T, penalty[0]).T, rtol=0, atol=1e-3)
    error = np.sqrt(np.mean((W @ H - truth)[np.isnan(X)] ** 2))
    assert error < 0.2 * truth.std()


def test_dropping_empty_columns_changes_nothing() -> None:
    """Order 1: a column that nobody saw lies on the line between its neighbours.

    So without it, its two gaps merged into one, the minimum is the same. The ridge
    goes by counts here, or it would draw the empty columns to 0.
    """
    ridge = dmf.Ridge(0.05, by_count=True)
    X, _ = signals()
    empty = np.isnan(X).all(axis=0)
    assert np.flatnonzero(empty).tolist() == [15, 16, 17, 18]
    places = np.concatenate([[0.0], np.cumsum(UNEVEN)])
    merged = tuple(np.diff(places[~empty]).tolist())
    full = fitted(X, dmf.Smooth(3.0, step=UNEVEN) + ridge)
    short = fitted(
        X[:, ~empty], dmf.Smooth(3.0, step=merged) + ridge, start=cut(full, ~empty)
    )
    assert short.history.initial_objective == pytest.approx(full.objective, rel=1e-9)
    assert short.objective == pytest.approx(full.objective, rel=1e-8)
    np.testing.assert_allclose(
        (full.W @ full.H)[:, ~empty], short.W @ short.H, atol=1e-5
    )
    inside = [np.interp(places[15:19], places[[14, 19]], h[[14, 19]]) for h in full.H]
    np.testing.assert_allclose(full.H[:, 15:19], inside, atol=1e-4)


def cut(fit: Any, kept: Array) -> Any:
    from dataclasses import replace

    return replace(fit, H=np.ascontiguousarray(fit.H[:, kept]))


@pytest.mark.parametrize("order", [1, 2])
def test_gaps_in_time_are_bridged(order: int) -> None:
    """Better than by the line between what was seen, row by row."""
    X, truth = signals(rows=60, noise=0.3)
    smooth = dmf.Smooth((0.0, 20.0, 200.0)[order], order=order)
    fit = fitted(X, smooth + dmf.Ridge(0.01))
    without = fitted(X, dmf.Ridge(0.01))
    t = np.arange(LENGTH)
    lines = np.array([np.interp(t, t[np.isfinite(x)], x[np.isfinite(x)]) for x in X])
    gap = slice(15, 19)
    errors = {
        name: np.sqrt(np.mean((found - truth)[:, gap] ** 2))
        for name, found in (
            ("smooth", dmf.impute(X, fit)),
            ("without", dmf.impute(X, without)),
            ("lines", lines),
        )
    }
    assert not np.any(without.H[:, gap])
    assert np.all(np.any(fit.H[:, gap] != 0, axis=0))
    assert errors["smooth"] < 0.7 * errors["lines"]
    assert errors["smooth"] < 0.3 * errors["without"]


@pytest.mark.parametrize("order", [1, 2])
def test_a_very_strong_tie_leaves_a_constant_or_a_line(order: int) -> None:
    X, _ = signals()
    fit = fitted(X, dmf.Smooth(1e7, order=order), rounds=100)
    assert np.isfinite(fit.H).all()
    assert fit.W.std() > 0.01
    left = np.abs(np.diff(fit.H, n=order, axis=1)).max()
    assert left < 1e-3 * np.abs(fit.H).max()
    path = np.append(fit.history.initial_objective, fit.history.objective)
    assert np.all(np.diff(path) <= 1e-9 * path[:-1])


def test_a_tie_of_no_strength_is_none() -> None:
    X, _ = signals()
    one = fitted(X, dmf.Ridge(0.2), rounds=8, check_every=1)
    other = fitted(X, dmf.Ridge(0.2) + dmf.Smooth(0.0), rounds=8, check_every=1)
    assert same_factors(one, other)


@pytest.mark.parametrize(
    "options",
    [{"offsets": "both"}, {"unobserved_weight": 0.3}, {"validation": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_objective_never_rises(options: Any, dtype: Any) -> None:
    X, _ = signals()
    rounds = {"rounds": 40, "check_every": 1, "patience": 100}
    fit = fitted(X.astype(dtype), TIED["both"], **rounds, **options)
    path = np.append(fit.history.initial_objective, fit.history.objective)
    rounding = 1e-12 if dtype is np.float64 else 1e-6
    assert fit.H.dtype == dtype
    assert np.all(np.diff(path) <= rounding * path[0])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("order", [1, 2])
def test_chunks_shorter_than_the_order_are_refused(order: int, axis: int) -> None:
    X = np.random.default_rng(0).standard_normal((9, 9))
    penalty: list[Any] = [None, None]
    penalty[axis] = dmf.Smooth(1.0, order=order)
    chunks: list[Any] = [9, 9]
    chunks[axis] = (4, 1, 4)
    cut = da.from_array(X, chunks=tuple(chunks))
    options = {"penalty": tuple(penalty), "max_rounds": 2}
    if order == 1:
        assert dmf.factorize(cut, 2, **options).W.shape == (9, 2)
        return
    with pytest.raises(ValueError, match="Smooth of order 2") as caught:
        dmf.factorize(cut, 2, **options)
    name = ("rows", "columns")[axis]
    assert str(caught.value) == (
        f"Smooth of order 2 needs chunks of at least 2 {name}, but X has one of 1; "
        "rechunk X"
    )


def test_new_columns_of_a_smooth_axis_are_refused_and_new_rows_are_not() -> None:
    X, _ = signals()
    fit = fitted(X, TIED["first"], rounds=20)
    with pytest.raises(ValueError, match="can't be folded in") as caught:
        fit.fold_in(columns=X[:, :2])
    assert str(caught.value) == (
        "new columns can't be folded in one by one, because Smooth ties them to their "
        "neighbours; fit the grown matrix with start=this model"
    )
    new = fit.fold_in(rows=X[:3])
    ridge = exact_H(fit.H.T, X[:3].T, RIDGE).T
    np.testing.assert_allclose(new.W, ridge, rtol=1e-7, atol=1e-9)


@pytest.mark.cluster
def test_workers_give_the_bits_of_threads(client: Any) -> None:
    X, _ = signals()
    penalty = (dmf.Smooth(2.0), TIED["both"])
    X = da.from_array(X, chunks=(9, 7))
    options = {"penalty": penalty, "rounds": 6, "check_every": 3}
    with dask.config.set(scheduler="threads"):
        expected = fitted(X, None, **options)
        W, H = np.asarray(expected.W), np.asarray(expected.H)
    found = fitted(X, None, **options)
    assert np.asarray(found.W).tobytes() == W.tobytes()
    assert np.asarray(found.H).tobytes() == H.tobytes()
    assert found.objective == expected.objective
