"""impute: observed entries stay as they are, bit by bit; the rest is W H."""

from __future__ import annotations

import dataclasses
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dmf
from tests.problems import Problem, low_rank

Array = Any

CHUNKS = (10, 8)


@pytest.fixture(scope="module")
def fit() -> dmf.Factorization:
    """NumPy factors for the shape of `low_rank()`."""
    return dmf.factorize(low_rank().nan, 3, max_rounds=5)


def lazy(fit: dmf.Factorization, chunks: Any = (7, 3)) -> dmf.Factorization:
    """Return the same factorization with Dask factors, in strips of their own."""
    W = da.from_array(fit.W, chunks=(chunks[0], -1))
    H = da.from_array(fit.H, chunks=(-1, chunks[1]))
    return dataclasses.replace(fit, W=W, H=H)


def with_factors(fit: dmf.Factorization, W: Array, H: Array) -> dmf.Factorization:
    return dataclasses.replace(fit, W=W, H=H)


def sparse_chunks(X: Array, chunks: Any = CHUNKS) -> Any:
    X = da.from_array(X, chunks=chunks)
    return X.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0), dtype=X.dtype))


def assert_filled(filled: Array, X: Array, observed: Array, fit: Any) -> None:
    """Assert that `filled` has the bits of X where observed, and W H elsewhere."""
    assert isinstance(filled, np.ndarray)
    assert filled.shape == X.shape
    kept = X.astype(filled.dtype)[observed]
    assert filled[observed].tobytes() == kept.tobytes()
    product = np.asarray(fit.W) @ np.asarray(fit.H)
    tolerance = 20 * np.finfo(filled.dtype).eps
    np.testing.assert_allclose(
        filled[~observed],
        product[~observed].astype(filled.dtype),
        rtol=tolerance,
        atol=tolerance,
    )


# NumPy.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_observed_entries_keep_their_bits(fit: Any, dtype: str) -> None:
    problem = low_rank()
    X = problem.nan.astype(dtype)
    X[:, 0] = -0.0
    X[0, 1] = np.finfo(X.dtype).smallest_subnormal
    X[1, 1] = np.finfo(X.dtype).max
    filled = dmf.impute(X, fit)
    assert filled.dtype == dtype
    assert np.signbit(filled[:, 0]).all()
    assert_filled(filled, X, ~np.isnan(X), fit)


@given(
    X=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        (6, 5),
        elements=st.floats(width=32, allow_infinity=False),
    )
)
def test_observed_entries_keep_their_bits_whatever_they_are(X: Array) -> None:
    rng = np.random.default_rng(0)
    W, H = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    fit = dmf.Factorization(
        W,
        H,
        history=dmf.History([]),
        status=dmf.Status("converged", 1),
        penalty=(dmf.Ridge(0), dmf.Ridge(0)),
        solver=dmf.NormalizedGradient(),
        seed=0,
    )
    assert_filled(dmf.impute(X, fit), X, ~np.isnan(X), fit)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64"])
def test_integers_become_float64(fit: Any, dtype: str) -> None:
    problem = low_rank()
    X = (10 * problem.truth).astype(dtype)
    filled = dmf.impute(X, fit, problem.mask)
    assert filled.dtype == np.float64
    assert_filled(filled, X, problem.mask, fit)


@pytest.mark.parametrize("mask", ["bool", "weights", "integers"])
@pytest.mark.parametrize("lazy_mask", [False, True])
def test_masks(fit: Any, mask: str, lazy_mask: bool) -> None:
    problem = low_rank()
    M = {
        "bool": problem.mask,
        "weights": problem.weights,
        "integers": problem.mask.astype(int),
    }[mask]
    M = da.from_array(M, chunks=(11, 9)) if lazy_mask else M
    assert_filled(dmf.impute(problem.truth, fit, M), problem.truth, problem.mask, fit)
    # NaN is missing whatever the mask says.
    X = problem.truth.copy()
    X[problem.mask & (X > 1)] = np.nan
    assert_filled(dmf.impute(X, fit, M), X, problem.mask & ~np.isnan(X), fit)


def test_what_the_mask_hides_is_filled_also_if_infinite(fit: Any) -> None:
    problem = low_rank()
    X = np.where(problem.mask, problem.truth, np.inf)
    filled = dmf.impute(X, fit, problem.mask)
    assert_filled(filled, X, problem.mask, fit)


def test_without_missing_entries_it_is_a_copy(fit: Any) -> None:
    X = low_rank().truth
    filled = dmf.impute(X, fit)
    assert filled is not X
    assert not np.shares_memory(filled, X)
    assert filled.tobytes() == X.tobytes()


def test_the_input_is_not_changed(fit: Any) -> None:
    problem = low_rank()
    for X in (problem.nan, problem.nan.astype(np.float32)):
        X.flags.writeable = False
        before = X.tobytes()
        dmf.impute(X, fit)
        assert X.tobytes() == before


@pytest.mark.parametrize("order", ["F", "strided"])
def test_memory_layouts(fit: Any, order: str) -> None:
    problem = low_rank()
    X = np.asfortranarray(problem.nan)
    if order == "strided":
        X = np.repeat(problem.nan, 2, axis=0)[::2]
    assert_filled(dmf.impute(X, fit), problem.nan, problem.mask, fit)


def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch, fit: Any) -> None:
    monkeypatch.setattr("dmf.kernels.dense.TILE_ROWS", (7, 7))
    problem = low_rank()
    assert_filled(dmf.impute(problem.nan, fit), problem.nan, problem.mask, fit)


def test_dask_factors_of_a_numpy_matrix(fit: Any) -> None:
    problem = low_rank()
    filled = dmf.impute(problem.nan, lazy(fit))
    assert_filled(filled, problem.nan, problem.mask, fit)


# Sparse.


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_sparse(fit: Any, format: str, dtype: str) -> None:
    problem = low_rank(observed=0.3)
    truth = (100 * problem.truth).astype(dtype)
    truth[truth == 0] = 1  # dia can't store a zero
    X = problem.sparse(truth)
    filled = dmf.impute(X.asformat(format), fit)
    assert filled.dtype == ("float64" if dtype == "int64" else dtype)
    assert_filled(filled, truth, problem.mask, fit)


def test_what_sparse_matrices_store_is_observed_zeros_too(fit: Any) -> None:
    data, rows, columns = (
        [0.0, -0.0, np.nan, 4.0, 5.0],
        [0, 1, 2, 3, 3],
        [0, 1, 2, 3, 3],
    )
    X = sp.coo_array((data, (rows, columns)), shape=fit.shape)
    filled = dmf.impute(X, fit)
    expected = np.zeros(fit.shape)
    observed = np.zeros(fit.shape, dtype=bool)
    observed[[0, 1, 3], [0, 1, 3]] = True
    expected[1, 1], expected[3, 3] = -0.0, 9.0  # stored twice: added up
    assert_filled(filled, expected, observed, fit)


def test_a_sparse_mask(fit: Any) -> None:
    problem = low_rank()
    chosen = problem.mask & (problem.truth > 0)
    X = problem.sparse()
    mask = problem.sparse(np.where(chosen, 2.5, 0))
    assert mask.nnz == X.nnz  # with stored zeros
    assert_filled(dmf.impute(X, fit, mask), problem.truth, chosen, fit)
    assert_filled(
        dmf.impute(X, fit, mask.astype(bool).tocsc()), problem.truth, chosen, fit
    )


# Dask.


def assert_lazily_filled(
    filled: Any, chunks: Any, X: Array, observed: Array, fit: Any
) -> None:
    assert isinstance(filled, da.Array)
    assert filled.chunks == chunks
    meta = filled._meta
    assert isinstance(meta, np.ndarray)
    assert meta.ndim == 2
    computed = filled.compute()
    assert computed.dtype == filled.dtype == meta.dtype
    assert_filled(computed, X, observed, fit)
    # A part of it is the same part.
    part = filled[3:17, 5:12].compute()
    assert part.tobytes() == computed[3:17, 5:12].tobytes()


@pytest.mark.parametrize("factors", ["numpy", "dask"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("chunks", [CHUNKS, (30, 20), ((1, 0, 29), (19, 1))])
def test_dask(fit: Any, factors: str, dtype: str, chunks: Any) -> None:
    problem = low_rank()
    observed = problem.mask
    X = problem.nan.astype(dtype) if dtype != "int32" else problem.truth.astype(dtype)
    if dtype == "int32":
        observed = np.full(X.shape, True)
    lazy_X = da.from_array(X, chunks=chunks)
    filled = dmf.impute(lazy_X, lazy(fit) if factors == "dask" else fit)
    assert_lazily_filled(filled, lazy_X.chunks, X, observed, fit)


@pytest.mark.parametrize("mask", ["numpy", "dask", "other chunks", "weights"])
def test_dask_with_a_mask(fit: Any, mask: str) -> None:
    problem = low_rank()
    X = da.from_array(problem.truth, chunks=CHUNKS)
    M: Any = problem.weights if mask == "weights" else problem.mask
    if mask in ("dask", "weights"):
        M = da.from_array(M, chunks=CHUNKS)
    elif mask == "other chunks":
        M = da.from_array(M, chunks=(9, 20))
    filled = dmf.impute(X, lazy(fit), M)
    assert_lazily_filled(filled, X.chunks, problem.truth, problem.mask, fit)


@pytest.mark.parametrize("factors", ["numpy", "dask"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_dask_with_sparse_chunks(fit: Any, dtype: str, factors: str) -> None:
    problem = low_rank()
    truth = (100 * problem.truth).astype(dtype)
    observed = problem.mask & (truth != 0)
    X = sparse_chunks(np.where(observed, truth, 0))
    filled = dmf.impute(X, lazy(fit) if factors == "dask" else fit)
    assert_lazily_filled(filled, X.chunks, truth, observed, fit)


@pytest.mark.parametrize("mask", ["csr", "coo", "bsr", "dia", "dask", "cut"])
def test_dask_with_sparse_chunks_and_a_mask(fit: Any, mask: str) -> None:
    problem = low_rank()
    X = sparse_chunks(np.where(problem.mask, problem.truth, 0))
    M: Any = sparse_chunks(problem.weights, CHUNKS if mask == "dask" else (15, 20))
    if mask not in ("dask", "cut"):
        M = problem.sparse(problem.weights).asformat(mask)
    filled = dmf.impute(X, fit, M)
    assert_lazily_filled(filled, X.chunks, problem.truth, problem.mask, fit)


def dask_arguments(problem: Problem, fit: dmf.Factorization) -> list[tuple[Any, ...]]:
    X = da.from_array(problem.truth, chunks=CHUNKS)
    stored = np.where(problem.mask, problem.truth, 0)
    return [
        (X, fit),
        (X, lazy(fit)),
        (X, fit, problem.mask),
        (X, lazy(fit), da.from_array(problem.mask, chunks=(9, 20))),
        (sparse_chunks(stored), lazy(fit)),
        (sparse_chunks(stored), fit, sparse_chunks(problem.weights)),
        (sparse_chunks(stored), fit, problem.sparse(problem.weights)),
    ]


@pytest.mark.parametrize("case", range(7))
def test_building_computes_nothing(no_tasks: None, fit: Any, case: int) -> None:
    filled = dmf.impute(*dask_arguments(low_rank(), fit)[case])
    with pytest.raises(AssertionError, match="a task was about to run"):
        filled.compute()


def test_what_a_dask_fit_returns_fills_its_matrix(keep_chunks: None) -> None:
    problem = low_rank()
    X = da.from_array(problem.nan, chunks=CHUNKS)
    fit = dmf.factorize(X, 3, max_rounds=5)
    assert isinstance(fit.W, da.Array)
    filled = dmf.impute(X, fit)
    assert_lazily_filled(filled, X.chunks, problem.nan, problem.mask, fit)
    same = dmf.impute(problem.nan, dmf.factorize(problem.nan, 3, max_rounds=5))
    np.testing.assert_allclose(filled.compute(), same, rtol=1e-6)


@pytest.mark.cluster
def test_on_a_cluster(client: Any, fit: Any) -> None:
    problem = low_rank()
    X = da.from_array(problem.nan, chunks=CHUNKS)
    for factors in (fit, lazy(fit)):
        filled = dmf.impute(X, factors)
        assert_lazily_filled(filled, X.chunks, problem.nan, problem.mask, fit)


# Wrong input.


def test_another_shape(fit: Any, no_tasks: None) -> None:
    text = (
        r"X has shape \(20, 30\), but the factorization is of a matrix of shape "
        r"\(30, 20\); factorize this X first"
    )
    X = low_rank().nan.T
    for wrong in (X, da.from_array(X, chunks=5), sp.csr_array(X)):
        for factors in (fit, lazy(fit)):
            with pytest.raises(ValueError, match=text):
                dmf.impute(wrong, factors)


def test_a_mask_of_another_shape(fit: Any, no_tasks: None) -> None:
    X = low_rank().nan
    text = r"mask has shape \(2, 2\), but X has shape \(30, 20\); give one mask entry"
    for matrix in (X, da.from_array(X, chunks=5)):
        for mask in (np.ones((2, 2)), da.ones((2, 2))):
            with pytest.raises(ValueError, match=text):
                dmf.impute(matrix, fit, mask)


def test_no_matrix(fit: Any) -> None:
    with pytest.raises(TypeError, match="X must be a NumPy, scipy"):
        dmf.impute(low_rank().nan.tolist(), fit)
    with pytest.raises(TypeError, match="X must hold real numbers, got dtype complex"):
        dmf.impute(low_rank().truth.astype(complex), fit)
    with pytest.raises(ValueError, match="X must have two dimensions"):
        dmf.impute(low_rank().nan[0], fit)


def shifted(problem: Problem) -> Any:
    """A mask of as many entries as X stores, but not of the same."""
    mask = np.roll(problem.mask, 1, axis=1)
    return sp.csr_array((np.ones(mask.sum()), np.nonzero(mask)), shape=mask.shape)


@pytest.mark.parametrize("pattern", ["fewer", "as many"])
def test_a_sparse_mask_with_another_pattern(fit: Any, pattern: str) -> None:
    """As many entries in other places would fill the wrong ones, silently."""
    problem = low_rank()
    mask = shifted(problem) if pattern == "as many" else sp.eye_array(*fit.shape)
    with pytest.raises(ValueError, match="must store the same entries as X"):
        dmf.impute(problem.sparse(), fit, mask)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_mask_of_the_other_kind(no_tasks: None, fit: Any, kind: str) -> None:
    problem = low_rank()
    X, mask = problem.nan, problem.sparse()
    if kind == "sparse":
        X, mask = mask, problem.mask
    other = "dense" if kind == "sparse" else "sparse"
    with pytest.raises(ValueError, match=f"mask is {other}, but X is {kind}; give a"):
        dmf.impute(X, fit, mask)


@pytest.mark.parametrize("weight", [-1.0, np.nan])
def test_bad_weights_are_refused_as_in_factorize(fit: Any, weight: float) -> None:
    problem = low_rank()
    mask = problem.weights.copy()
    mask[3, 4] = weight
    with pytest.raises(ValueError, match="mask has"):
        dmf.impute(problem.nan, fit, mask)
