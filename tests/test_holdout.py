"""What is held out: the same entries however X comes, and errors by plain formulas."""

from __future__ import annotations

import math
import re
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from tests.problems import (
    FORMS,
    Problem,
    fitted,
    form_of,
    low_rank,
    mask_for,
    same_factors,
    sparse_chunks,
)

Array = Any

SEEDS = st.integers(0, 2**70)  # beyond 64 bits too
FRACTION = st.floats(0.05, 0.95)
SHAPE = (30, 20)


def dense(X: Any) -> Array:
    """Return a matrix in any form as a plain array; NaN where it has nothing."""
    X = X.compute() if isinstance(X, da.Array) else X
    if not sp.issparse(X):
        return np.asarray(X)
    entries = X.tocoo()
    result = np.full(X.shape, np.nan)
    result[entries.row, entries.col] = entries.data
    return result


def lots(shape: tuple[int, int], fraction: float, seed: int) -> Array:
    """Return which entries of a matrix are held out if all of them are observed."""
    return np.isfinite(dmf.split_observed(np.zeros(shape), fraction, seed)[1])


def cuts(length: int) -> Any:
    """Return a strategy for the chunks of an axis."""
    bounds = st.sets(st.integers(1, length - 1), max_size=6)
    return bounds.map(lambda b: tuple(np.diff([0, *sorted(b), length]).tolist()))


@settings(max_examples=15)
@given(
    fraction=FRACTION,
    seed=SEEDS,
    rows=cuts(SHAPE[0]),
    columns=cuts(SHAPE[1]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_same_entries_in_any_form_and_chunks(
    fraction: float, seed: int, rows: Any, columns: Any, dtype: Any
) -> None:
    problem = low_rank(dtype=dtype)
    given = [
        problem.nan,
        problem.sparse(),
        problem.sparse().tocsc(),
        da.from_array(problem.nan, chunks=(rows, columns)),
        sparse_chunks(np.where(problem.mask, problem.truth, 0), (rows, columns)),
    ]
    expected = problem.mask & lots(SHAPE, fraction, seed)
    for X in given:
        train, held_out = dmf.split_observed(X, fraction, seed)
        for part, own in ((train, problem.mask & ~expected), (held_out, expected)):
            assert part.shape == X.shape
            assert part.dtype == dtype
            assert isinstance(part, da.Array) == isinstance(X, da.Array)
            # Every value is in one part or in the other, and is the one it was.
            found = dense(part).astype(dtype)
            np.testing.assert_array_equal(found, np.where(own, problem.truth, np.nan))
            if isinstance(X, da.Array):
                assert part.chunks == X.chunks
                assert type(part.compute()) is type(X.compute())


@given(seed=SEEDS, fraction=st.floats(0.01, 0.99))
def test_the_share_is_the_fraction(seed: int, fraction: float) -> None:
    """Within six standard deviations of a binomial: once in 10⁹ it would be outside."""
    m, n = 200, 150
    count = int(lots((m, n), fraction, seed).sum())
    spread = math.sqrt(m * n * fraction * (1 - fraction))
    assert abs(count - m * n * fraction) < 6 * spread


@given(seed=SEEDS, fraction=FRACTION)
def test_lots_are_drawn_alike_everywhere(seed: int, fraction: float) -> None:
    """Over rows, columns, diagonals and checkerboards; and neighbours don't agree."""
    size = 120
    held = lots((size, size), fraction, seed)
    i, j = np.indices(held.shape)
    groups = [i, j, (i + j) % size, (i - j) % size, i // 12 * 10 + j // 12]
    variance = fraction * (1 - fraction)
    for group in groups:
        counts = np.bincount(group.ravel(), weights=held.ravel())
        sizes = np.bincount(group.ravel())
        squares = (counts - sizes * fraction) ** 2 / (sizes * variance)
        # χ² with one degree of freedom a group; its fourth moment shifts the spread.
        spread = math.sqrt(np.sum(2 + (1 / variance - 6) / sizes))
        assert abs(np.sum(squares) - len(sizes)) < 7 * spread
    for other in (held[1:, :-1], held[1:, 1:], held[2:, :-1], held.T[:-1, 1:]):
        one = held[: other.shape[0], : other.shape[1]]
        off = ~np.eye(*one.shape, dtype=bool)
        centred = ((one - fraction) * (other - fraction))[off] / variance
        assert abs(centred.sum()) < 7 * math.sqrt(centred.size)


@given(seed=st.integers(0, 2**63), by=st.integers(1, 2**63), fraction=FRACTION)
def test_seeds_are_independent(seed: int, by: int, fraction: float) -> None:
    one, other = (lots((200, 150), fraction, own) for own in (seed, seed + by))
    share = fraction**2
    spread = math.sqrt(one.size * share * (1 - share))
    assert abs(np.sum(one & other) - one.size * share) < 6 * spread
    assert (one != other).any()


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    fraction=FRACTION,
    seed=SEEDS,
)
def test_lots_stay_when_the_matrix_grows(
    shape: Any, more: Any, fraction: float, seed: int
) -> None:
    small = lots(shape, fraction, seed)
    large = lots((shape[0] + more[0], shape[1] + more[1]), fraction, seed)
    np.testing.assert_array_equal(large[: shape[0], : shape[1]], small)
    # A larger share holds out what the smaller one did, and more.
    wider = lots(shape, fraction + (1 - fraction) / 2, seed)
    assert (wider | ~small).all()


def test_an_entry_does_not_know_its_neighbours() -> None:
    problem = low_rank()
    _, held_out = dmf.split_observed(problem.nan, 0.3, seed=4)
    for row, column in zip(*np.nonzero(problem.mask), strict=True):
        alone = np.full(SHAPE, np.nan)
        alone[row, column] = 1.0
        kept = np.isfinite(dmf.split_observed(alone, 0.3, seed=4)[1]).any()
        assert kept == np.isfinite(held_out[row, column])


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.float16])
def test_other_numbers(dtype: Any) -> None:
    X = (np.arange(600).reshape(SHAPE) % 7).astype(dtype)
    expected = np.dtype(dtype if np.dtype(dtype).kind == "f" else np.float64)
    held = lots(SHAPE, 0.4, 0)
    for form in (X, da.from_array(X, chunks=(7, 9))):
        train, held_out = dmf.split_observed(form, 0.4)
        assert train.dtype == held_out.dtype == expected
        np.testing.assert_array_equal(dense(train), np.where(held, np.nan, X))
        np.testing.assert_array_equal(dense(held_out), np.where(held, X, np.nan))
    if dtype == np.float16:
        return  # scipy.sparse has none
    # Stored zeros are observed, and of sparse matrices the dtype can stay.
    stored = sp.csr_array(np.ones(SHAPE, dtype=dtype))
    stored.data = X.ravel().copy()
    train, held_out = dmf.split_observed(stored, 0.4)
    assert train.dtype == held_out.dtype == X.dtype
    np.testing.assert_array_equal(dense(held_out), np.where(held, X, np.nan))
    assert train.nnz + held_out.nnz == 600


FRACTIONS: list[tuple[Any, type[Exception], str]] = [
    (1.0, ValueError, "fraction must be below 1, got 1.0; 0.1 holds out a tenth"),
    (0, ValueError, "fraction must be finite and above 0, got 0"),
    (-0.1, ValueError, "fraction must be finite and above 0, got -0.1"),
    (math.nan, ValueError, "fraction must be finite and above 0, got nan"),
    ("some", TypeError, "fraction must be a number above 0, got 'some'"),
    (True, TypeError, "fraction must be a number above 0, got True"),
]


@pytest.mark.parametrize(("fraction", "error", "text"), FRACTIONS)
def test_fractions_are_refused(fraction: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        dmf.split_observed(low_rank().nan, fraction)
    text = text.replace("fraction", "validation")
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        dmf.factorize(low_rank().nan, 2, validation=fraction)


def test_matrices_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="X must have two dimensions, got shape"):
        dmf.split_observed(np.zeros(3), 0.1)
    with pytest.raises(TypeError, match="X must hold real numbers, got dtype complex"):
        dmf.split_observed(np.zeros((2, 2), dtype=complex), 0.1)
    with pytest.raises(ValueError, match=r"^seed must be at least 0, got -1$"):
        dmf.split_observed(np.zeros((2, 2)), 0.1, seed=-1)
    with pytest.raises(TypeError, match=r"^seed must be an integer of at least 0, got"):
        dmf.split_observed(np.zeros((2, 2)), 0.1, seed=0.5)


# ------------------------------------------------------------------ validation=


def weights_in(problem: Problem, form: str) -> Any:
    if form == "dask-sparse":
        return sparse_chunks(problem.weights)
    return mask_for(problem.weights, problem.mask, form)


def plain_errors(
    fit: dmf.Factorization, truth: Array, weights: Array
) -> tuple[float, float]:
    """Return RMSE and MAE of a model, entry by entry."""
    W, H = np.asarray(fit.W), np.asarray(fit.H)
    b, c = (
        np.zeros(size) if given is None else np.asarray(given)
        for given, size in zip(
            (fit.row_offsets, fit.column_offsets), fit.shape, strict=True
        )
    )
    squares = sizes = total = 0.0
    for i, j in zip(*np.nonzero(weights), strict=True):
        error = fit.offset + b[i] + c[j] + W[i] @ H[:, j] - truth[i, j]
        squares += weights[i, j] * error**2
        sizes += weights[i, j] * abs(error)
        total += weights[i, j]
    return math.sqrt(squares / total), sizes / total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offsets", ["none", "both"])
def test_errors_are_those_of_plain_formulas(
    form: str, weighted: bool, offsets: str, keep_chunks: None
) -> None:
    problem = low_rank()
    mask = weights_in(problem, form) if weighted else None
    options = {"validation": 0.2, "patience": 99, "offsets": offsets, "seed": 3}
    held = problem.mask & lots(SHAPE, 0.2, 3)
    weights = np.where(held, problem.weights if weighted else 1.0, 0.0)
    X = form_of(problem, form)
    for rounds in (1, 5):
        fit = fitted(X, mask=mask, max_rounds=rounds, **options)
        kept = fit.status.factors_of
        assert kept is not None
        record = fit.history[kept - 1]
        expected = plain_errors(fit, problem.truth, weights)
        found = (record.validation_rmse, record.validation_mae)
        assert found == pytest.approx(expected, rel=1e-9)
        assert kept == 1 + int(np.argmin(fit.history.validation_rmse))


@pytest.mark.parametrize("form", FORMS)
def test_a_share_a_mask_and_values_hold_out_alike(form: str, keep_chunks: None) -> None:
    """And the fit never sees them: it is that of the other entries."""
    problem = low_rank()
    held = problem.mask & lots(SHAPE, 0.2, 0)
    X = form_of(problem, form)
    train, held_out = dmf.split_observed(X, 0.2)
    named: Any = held
    if form == "sparse":
        named = sp.csr_array(held)
    elif form == "dask":
        named = da.from_array(held, chunks=(10, 10))
    elif form == "dask-sparse":
        named = sparse_chunks(held)
    options: dict[str, Any] = {"max_rounds": 5, "patience": 99, "offsets": "both"}
    share = fitted(X, validation=0.2, **options)
    alone = fitted(train, **options)
    fits = [fitted(X, validation=named, **options)]
    fits.append(fitted(train, validation=held_out, **options))
    for fit in fits:
        for column in ("objective", "validation_rmse", "validation_mae"):
            np.testing.assert_allclose(
                getattr(fit.history, column), getattr(share.history, column), rtol=1e-9
            )
        assert fit.status == share.status
        np.testing.assert_allclose(np.asarray(fit.W), np.asarray(share.W), rtol=1e-6)
    np.testing.assert_allclose(
        share.history.objective, alone.history.objective, rtol=1e-9
    )
    kept = share.status.factors_of
    assert kept is not None
    found = share.score(held_out)
    assert found.rmse == pytest.approx(share.history.validation_rmse[kept - 1])
    assert found.entries == held.sum()


def test_a_mask_may_name_what_is_not_observed() -> None:
    problem = low_rank()
    held = lots(SHAPE, 0.2, 0)
    one = fitted(problem.nan, validation=held)
    other = fitted(problem.nan, validation=held & problem.mask)
    assert same_factors(one, other)
    assert repr(one.history.validation_rmse) == repr(other.history.validation_rmse)


def test_memory_and_dask_mix() -> None:
    problem = low_rank()
    train, held_out = dmf.split_observed(problem.nan, 0.2)
    expected = fitted(train, validation=held_out).history.validation_rmse
    lazy = [da.from_array(part, chunks=(7, 6)) for part in (train, held_out)]
    for X, validation in ((train, lazy[1]), (lazy[0], held_out), lazy):
        found = fitted(X, validation=validation).history.validation_rmse
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("form", ["numpy", "sparse"])
def test_integers_are_held_out_too(form: str) -> None:
    X = np.random.default_rng(0).integers(1, 6, SHAPE)
    given: Any = sp.csr_array(X) if form == "sparse" else X
    fit = fitted(given, validation=0.2, max_rounds=2)
    expected = fitted(given.astype(float), validation=0.2, max_rounds=2)
    assert same_factors(fit, expected)
    held = lots(SHAPE, 0.2, 0)
    kept = fit.status.factors_of
    assert kept is not None
    errors = plain_errors(fit, X, held.astype(float))
    assert fit.history[kept - 1].validation_rmse == pytest.approx(errors[0])


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_errors_are_measured_at_checks(every: int) -> None:
    rounds = 8
    options: dict[str, Any] = {"max_rounds": rounds, "validation": 0.2, "patience": 99}
    each = fitted(**options).history
    history = fitted(check_every=every, **options).history
    checked = [r % every == 0 or r == rounds for r in range(1, rounds + 1)]
    for column in ("validation_rmse", "validation_mae"):
        found = getattr(history, column)
        np.testing.assert_array_equal(np.isfinite(found), checked)
        np.testing.assert_array_equal(found[checked], getattr(each, column)[checked])


OVERLAP = (
    "X has the entry in row 23, column 17, which validation holds out; take it out of "
    "X, or give validation as a bool mask of X's own entries"
)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_in_both_is_refused(form: str, keep_chunks: None) -> None:
    problem = low_rank()
    mask = problem.mask.copy()
    mask[23, 17] = True
    problem = Problem(problem.truth, mask, problem.weights, problem.start)
    values = np.where(mask, 0, problem.truth)  # complements X, but for …
    values[23, 17] = 1.0
    X = form_of(problem, form)
    if form in ("numpy", "dask"):
        validation: Any = np.where(values == 0, np.nan, values)
    else:
        validation = sp.csr_array(values)
        if form == "dask-sparse":
            validation = sparse_chunks(values)
    with pytest.raises(ValueError, match=f"^{re.escape(OVERLAP)}$"):
        fitted(X, validation=validation)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (
        np.zeros((30, 19)),
        ValueError,
        "validation has shape (30, 19), but X has shape (30, 20); give an array of the "
        "shape of X, or the share to hold out",
    ),
    (np.zeros(600), ValueError, "validation must have two dimensions, got shape"),
    (np.full(SHAPE, "a"), TypeError, "validation must hold real numbers, got dtype"),
    (sp.csr_array(SHAPE), ValueError, "validation is sparse, but X is dense; give a"),
    ([[0.1]], TypeError, "validation must be a number above 0, got [[0.1]]"),
    (np.ones(SHAPE, dtype=bool), ValueError, "validation holds out all observed"),
]


@pytest.mark.parametrize(("validation", "error", "text"), REFUSED)
def test_validation_is_refused(validation: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        fitted(validation=validation)


def test_infinite_values_are_refused_by_their_name() -> None:
    X = low_rank().nan
    X[3, 4] = np.nan
    values = np.full(SHAPE, np.nan)
    values[3, 4] = np.inf
    with pytest.raises(ValueError, match=r"^validation is infinite in row 3, column 4"):
        fitted(X, validation=values)
    sparse = sp.csr_array(([1.0, 2.0], ([0, 5], [1, 2])), shape=SHAPE)
    held_out = sp.csr_array(([math.inf], ([3], [4])), shape=SHAPE)
    with pytest.raises(ValueError, match=r"^validation is infinite in row 3, column 4"):
        fitted(sparse, rank=1, validation=held_out)


@pytest.mark.parametrize("form", ["numpy", "dask-sparse"])
def test_nothing_held_out_is_refused(form: str) -> None:
    """Without a single entry there is nothing to validate on, or to compare by."""
    X = form_of(low_rank(), form)
    with pytest.raises(ValueError, match="validation"):
        fitted(X, validation=1e-9)


def shifted(m: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    days = pd.date_range("2026-01-01", periods=m)
    return pd.DataFrame(
        rng.standard_normal((m, 30)), days, [f"s{k}" for k in range(30)]
    )


def test_labels_decide_where_there_are_any() -> None:
    """What is held out stays so when rows come and go, and columns change places."""
    whole = shifted()
    later = whole.iloc[7:, ::-1]
    (_, first), (_, second) = (dmf.split_observed(X, 0.2) for X in (whole, later))
    common = first.loc[later.index, later.columns]
    assert 0.1 < second.notna().to_numpy().mean() < 0.3
    pd.testing.assert_frame_equal(common, second)


def test_whole_numbers_and_positions_are_one() -> None:
    X = shifted().to_numpy()
    (_, plain), (_, framed) = (dmf.split_observed(Y, 0.2) for Y in (X, pd.DataFrame(X)))
    np.testing.assert_array_equal(plain, framed.to_numpy())


@pytest.mark.parametrize("chunk", [60, 13])
def test_fits_hold_out_by_labels_in_any_chunks(chunk: int) -> None:
    frame = shifted()
    array = xr.DataArray(
        da.from_array(frame.to_numpy(), chunks=(chunk, 11)),
        coords={"day": frame.index, "site": frame.columns},
        dims=("day", "site"),
    )
    options: dict[str, Any] = {"validation": 0.2, "max_rounds": 3, "tol": 0}
    ours, other = (dmf.factorize(X, 2, **options) for X in (frame, array))
    assert ours.validation_rmse == pytest.approx(other.validation_rmse, rel=1e-9)
    _, held_out = dmf.split_observed(frame, 0.2)
    assert ours.score(held_out).rmse == pytest.approx(ours.validation_rmse, rel=1e-6)
