"""Random starts: each row from its own place in a stream of random numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

import dmf
from dmf.init import random_strip, scale_for
from tests.problems import low_rank

Array = Any


def strip(
    rows: range,
    *,
    seed: int = 0,
    start: int = 0,
    axis: int = 0,
    rank: int = 5,
    scale: float = 1.0,
    dtype: Any = np.float64,
) -> Array:
    return random_strip(seed, start, axis, rows, rank, scale, np.dtype(dtype))


@given(
    cuts=st.sets(st.integers(1, 59), max_size=10),
    rank=st.integers(1, 13),
    seed=st.integers(0, 2**70),
    dtype=st.sampled_from([np.float32, np.float64]),
    axis=st.sampled_from([0, 1]),
)
def test_any_split_into_strips_gives_the_same_rows(
    cuts: set[int], rank: int, seed: int, dtype: Any, axis: int
) -> None:
    options: dict[str, Any] = {"seed": seed, "rank": rank, "dtype": dtype, "axis": axis}
    whole = strip(range(60), **options)
    bounds = [0, *sorted(cuts), 60]
    parts = [strip(range(a, b), **options) for a, b in pairwise(bounds)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert [part.shape for part in parts] == [
        (b - a, rank) for a, b in pairwise(bounds)
    ]


@given(row=st.integers(0, 2**40), rank=st.integers(1, 9))
def test_rows_far_away_cost_nothing(row: int, rank: int) -> None:
    pair = strip(range(row, row + 2), rank=rank)
    assert pair.shape == (2, rank)
    assert np.array_equal(pair[1:], strip(range(row + 1, row + 2), rank=rank))
    assert np.isfinite(pair).all()


def test_the_start_of_a_fit_does_not_depend_on_chunks(keep_chunks: None) -> None:
    """One step of next to no length shows the start."""
    problem = low_rank()
    options: dict[str, Any] = {
        "solver": dmf.GradientDescent(1e-300),
        "penalty": None,
        "max_rounds": 1,
    }
    whole = dmf.factorize(problem.truth, 3, **options)
    for chunks in ((7, 20), (30, 3), (11, 9)):
        X = da.from_array(problem.truth, chunks=chunks)
        fit = dmf.factorize(X, 3, **options)
        # The scale is a sum over blocks: their order leaves its rounding.
        np.testing.assert_allclose(fit.W.compute(), whole.W, rtol=1e-14)
        np.testing.assert_allclose(fit.H.compute(), whole.H, rtol=1e-14)
    scale = scale_for(float(np.mean(problem.truth**2)), 3)
    rows = strip(range(30), rank=3, scale=scale)
    columns = strip(range(20), rank=3, scale=scale, axis=1)
    np.testing.assert_allclose(whole.W, rows, rtol=1e-14)
    np.testing.assert_allclose(whole.H.T, columns, rtol=1e-14)


def test_seeds_restarts_and_factors_differ() -> None:
    rows = range(50)
    starts = [
        strip(rows, seed=seed, start=start, axis=axis)
        for seed in (0, 1, 2, 12345, 2**31, 2**40 + 1)
        for start in range(3)
        for axis in (0, 1)
    ]
    for k, one in enumerate(starts):
        for other in starts[k + 1 :]:
            assert not np.isin(one, other).any()
            correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(one.size)


def test_seeds_of_many_bits_are_no_restarts_of_others() -> None:
    """numpy.random.SeedSequence pads with zeros: (2**32, 0, 0) and (0, 1, 0) collide
    if they are handed over as they are."""
    rows = range(5)
    assert not np.array_equal(
        strip(rows, seed=2**32, start=0), strip(rows, seed=0, start=1)
    )


def test_the_same_seed_gives_the_same_start() -> None:
    assert np.array_equal(strip(range(9), seed=3), strip(range(9), seed=3))


def test_no_two_rows_are_the_same() -> None:
    for rank in (1, 3, 4, 5):
        rows = strip(range(20_000), rank=rank)
        assert len(np.unique(rows)) == rows.size
        # Rows that follow each other have nothing to do with each other.
        for lag in (1, 2, 4):
            correlation = np.corrcoef(rows[:-lag].ravel(), rows[lag:].ravel())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(rows.size)


@pytest.mark.parametrize("rank", [1, 3, 4, 7])
def test_entries_are_standard_normal(rank: int) -> None:
    entries = strip(range(40_000), rank=rank).ravel()
    error = 1 / np.sqrt(entries.size)
    assert abs(entries.mean()) < 5 * error
    assert abs(entries.std() - 1) < 5 * error
    assert kstest(entries, "norm").pvalue > 1e-4
    assert np.abs(entries).max() < 9
    for column in strip(range(40_000), rank=rank).T:
        assert abs(column.mean()) < 5 / np.sqrt(column.size)


def test_scale_is_the_standard_deviation() -> None:
    once, twice = strip(range(9)), strip(range(9), scale=2.0)
    np.testing.assert_array_equal(twice, 2 * once)
    assert not strip(range(9), scale=0.0).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype(dtype: Any) -> None:
    found = strip(range(30), dtype=dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, strip(range(30)).astype(dtype))


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_the_start_has_half_the_size_of_the_data(rank: int) -> None:
    mean_square = 9.0
    scale = scale_for(mean_square, rank)
    W = strip(range(1500), rank=rank, scale=scale)
    H = strip(range(1500), rank=rank, scale=scale, axis=1)
    rms = np.sqrt(np.mean((W @ H.T) ** 2))
    assert rms == pytest.approx(0.5 * np.sqrt(mean_square), rel=0.1)


def test_an_empty_strip() -> None:
    assert strip(range(4, 4)).shape == (0, 5)
