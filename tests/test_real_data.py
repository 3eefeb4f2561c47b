"""Real ratings and a real panel: the numbers that a user would look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import dmf


def rmse(a: Any, b: Any) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.fixture(scope="module")
def ratings(real_data: Any) -> tuple[Any, Any, Any, float]:
    """MovieLens 100K, split 1: train (centred, sparse), test, and the mean."""
    data = real_data("ml-100k/ratings.npz")
    row, column, value = data["row"], data["col"], data["value"].astype(np.float32)
    test = data["fold"] == 1
    mean = float(value[~test].mean())
    train = sp.csr_array(
        (value[~test] - np.float32(mean), (row[~test], column[~test])),
        shape=tuple(data["shape"]),
    )
    return train, (row[test], column[test]), value[test], mean


def held_out(fit: Any, ratings: Any) -> float:
    _, (row, column), value, mean = ratings
    predicted = np.einsum("ij,ij->i", fit.W[row], fit.H.T[column]) + mean
    return rmse(np.clip(predicted, 1, 5), value)


def test_movielens(ratings: Any, record_property: Any) -> None:
    """Better than the mean by far; the model with offsets is another matter."""
    train, _, value, mean = ratings
    fit = dmf.factorize(train, 10, penalty=dmf.Ridge(0.1, by_count=True))
    score = held_out(fit, ratings)
    record_property("held-out RMSE", score)
    print(f"MovieLens 100K, split 1: held-out RMSE {score:.4f}")
    assert fit.status.converged
    assert rmse(np.full_like(value, mean), value) > 1.15
    # Least squares with the same penalty, run to its end, gets 0.954.
    assert score < 0.96


def test_movielens_agrees_with_least_squares(ratings: Any) -> None:
    train, *_ = ratings
    settings = {"penalty": dmf.Ridge(0.1, by_count=True), "tol": 1e-6}
    plane = dmf.factorize(train, 8, max_rounds=400, **settings)
    als = dmf.factorize(
        train, 8, solver=dmf.AlternatingLeastSquares(), max_rounds=100, **settings
    )
    assert plane.objective <= 1.001 * als.objective
    assert abs(held_out(plane, ratings) - held_out(als, ratings)) < 0.01


# The settings of the ratings below were chosen on a random tenth of the training parts
# alone; the test parts were not looked at.
MOVIELENS: dict[str, Any] = {
    "rank": 32,
    "offsets": "both",
    "penalty": dmf.Ridge(14.0),
    "max_rounds": 40,
    "tol": 0,
}


def movielens_splits(real_data: Any) -> Any:
    """Yield train, test positions and test values of the five published splits."""
    data = real_data("ml-100k/ratings.npz")
    row, column, value = data["row"], data["col"], data["value"].astype(np.float32)
    for fold in range(1, 6):
        test = data["fold"] == fold
        assert 19_000 < test.sum() < 21_000
        train = sp.csr_array(
            (value[~test], (row[~test], column[~test])), shape=tuple(data["shape"])
        )
        yield train, (row[test], column[test]), value[test]


def test_movielens_with_offsets(real_data: Any, record_property: Any) -> None:
    """The mean over the five splits; the settings come from their training parts."""
    scores = []
    for train, places, value in movielens_splits(real_data):
        fit = dmf.factorize(train, **MOVIELENS)
        scores.append(rmse(np.clip(fit.predict(*places), 1, 5), value))
    record_property("held-out RMSE", scores)
    print(f"MovieLens 100K: {np.mean(scores):.4f} over {np.round(scores, 4)}")
    assert np.mean(scores) <= 0.921


def test_movielens_averaged_over_starts(real_data: Any, record_property: Any) -> None:
    """Four starts in one pass; their average is better than each of them."""
    scores = []
    for train, places, value in movielens_splits(real_data):
        ensemble = dmf.Ensemble.fit(train, restarts=4, **MOVIELENS)
        scores.append(rmse(np.clip(ensemble.predict(*places).mean, 1, 5), value))
        alone = [
            rmse(np.clip(fit.predict(*places), 1, 5), value) for fit in ensemble.fits
        ]
        assert scores[-1] < min(alone)
    record_property("held-out RMSE", scores)
    print(f"MovieLens 100K, 4 starts: {np.mean(scores):.4f} over {np.round(scores, 4)}")
    assert np.mean(scores) <= 0.917


def test_jester_with_offsets(real_data: Any, record_property: Any) -> None:
    """A tenth of the ratings; the settings were chosen on a tenth of the others."""
    data = real_data("jester-1.npz")
    X = sp.csr_array(
        (data["value"].astype(np.float32), (data["row"], data["col"])),
        shape=tuple(data["shape"]),
    )
    train, held_out = dmf.split_observed(X, 0.1, seed=0)
    fit = dmf.factorize(
        train,
        20,
        offsets="both",
        penalty=(dmf.Ridge(70.0), dmf.Ridge(0.1, by_count=True)),
        offset_penalty=dmf.Ridge(5.0),
        max_rounds=60,
    )
    test = held_out.tocoo()
    predicted = np.clip(fit.predict(test.row, test.col), -10, 10)
    score = rmse(predicted, test.data)
    record_property("held-out RMSE", score)
    print(f"Jester: held-out RMSE {score:.4f}")
    assert rmse(np.full_like(test.data, train.data.mean()), test.data) > 4.5
    assert score <= 4.005


def test_panel_with_half_of_it_missing(real_data: Any) -> None:
    """PM10 in Germany: beats the mean of the day and the mean of the station."""
    X = real_data("pm10-germany.npz")["x"]
    assert 0.5 < np.isnan(X).mean() < 0.53
    observed = ~np.isnan(X)
    hidden = observed & (np.random.default_rng(0).random(X.shape) < 0.1)
    train = np.where(hidden, np.nan, X)
    fit = dmf.factorize(train, 5)
    filled = dmf.impute(train, fit)
    assert not np.isnan(filled).any()
    assert np.array_equal(filled[observed & ~hidden], X[observed & ~hidden])
    score = rmse(filled[hidden], X[hidden])
    print(f"PM10: held-out RMSE {score:.3f}")
    seen = observed & ~hidden
    total = np.where(seen, X, 0)
    overall = total.sum() / seen.sum()
    for axis in (0, 1):
        count = seen.sum(axis=axis, keepdims=True)
        mean = total.sum(axis=axis, keepdims=True) / np.maximum(count, 1)
        mean = np.broadcast_to(np.where(count > 0, mean, overall), X.shape)
        assert score < 0.9 * rmse(mean[hidden], X[hidden])


def test_columns_without_any_observation(real_data: Any) -> None:
    """Sea surface temperature: land is a column of NaN, and nothing warns."""
    X = real_data("sea-surface-temperature.npz")["x"]
    land = np.isnan(X).all(axis=0)
    assert land.any()
    fit = dmf.factorize(X, 5)
    assert not fit.H[:, land].any()
    assert np.isfinite(fit.H).all()
    assert fit.history[-1].rmse < 0.05 * np.sqrt(np.nanmean(X**2))


@pytest.mark.slow
def test_jester(real_data: Any) -> None:
    """1.8 M ratings; sparse and dense are two roads to the same place."""
    data = real_data("jester-1.npz")
    X = sp.csr_array(
        (data["value"].astype(np.float32), (data["row"], data["col"])),
        shape=tuple(data["shape"]),
    )
    dense = np.full(X.shape, np.nan, dtype=np.float32)
    dense[data["row"], data["col"]] = data["value"]
    sparse_fit, dense_fit = (dmf.factorize(Z, 8, max_rounds=20) for Z in (X, dense))
    assert sparse_fit.objective == pytest.approx(dense_fit.objective, rel=1e-4)
    assert sparse_fit.history[-1].rmse < 4.0
