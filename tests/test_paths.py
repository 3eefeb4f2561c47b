"""One problem in many forms: dense, sparse, masked, weighted, Dask; one answer."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from tests.problems import SOLVERS, Problem, low_rank


def dask_sparse(X: Any, chunks: tuple[int, int]) -> Any:
    """Return a Dask array whose blocks are scipy.sparse."""
    dense = da.from_array(np.arange(np.prod(X.shape)).reshape(X.shape), chunks=chunks)

    def cut(block: Any, block_info: Any = None) -> Any:
        (r0, r1), (c0, c1) = block_info[0]["array-location"]
        return X[r0:r1, c0:c1]

    return dense.map_blocks(cut, dtype=X.dtype, meta=sp.csr_array((0, 0)))


def forms(problem: Problem, weighted: bool, chunks: tuple[int, int]) -> dict[str, Any]:
    """Return (X, mask) in every form that stands for the same problem."""
    mask = problem.weights if weighted else problem.mask
    full = np.where(problem.mask, problem.truth, 7.0)  # hidden by the mask alone
    X, weights = problem.sparse(), problem.sparse(problem.weights)
    sparse_mask = weights if weighted else None
    result = {
        "NumPy, mask": (full, mask),
        "NumPy, NaN and mask": (problem.nan, mask),
        "sparse array": (X, sparse_mask),
        "sparse matrix, columns": (sp.csc_matrix(X), sparse_mask),
        "sparse coordinates": (X.tocoo(), sparse_mask),
        "Dask, NumPy mask": (da.from_array(full, chunks=chunks), mask),
        "Dask, Dask mask": (
            da.from_array(full, chunks=chunks),
            da.from_array(mask, chunks=(7, 20)),
        ),
        "Dask sparse": (
            dask_sparse(X, chunks),
            dask_sparse(weights, chunks) if weighted else None,
        ),
    }
    if not weighted:
        result["NumPy, NaN"] = (problem.nan, None)
        result["Dask, NaN"] = (da.from_array(problem.nan, chunks=chunks), None)
        result["NumPy, 0/1 weights"] = (full, mask.astype(int))
    return result


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("keep_chunks")
def test_all_forms_give_the_same_factors(solver: Any, weighted: bool) -> None:
    problem = low_rank(m=30, n=20)
    settings = {
        "penalty": (dmf.Ridge(0.2), dmf.Ridge(0.05, by_count=True)),
        "solver": solver,
        "max_rounds": 8,
        "tol": 0,
    }
    expected = None
    for name, (X, mask) in forms(problem, weighted, (12, 9)).items():
        fit = dmf.factorize(X, 3, mask=mask, **settings)
        assert isinstance(fit.W, da.Array) == name.startswith("Dask")
        W, H = np.asarray(fit.W), np.asarray(fit.H)
        if expected is None:
            expected = W, H
        np.testing.assert_allclose(W, expected[0], rtol=1e-7, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(H, expected[1], rtol=1e-7, atol=1e-9, err_msg=name)


@given(
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    chunks=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    observed=st.floats(0.2, 1.0),
    seed=st.integers(0, 1000),
    solver=st.sampled_from(SOLVERS),
    by_count=st.booleans(),
)
def test_chunks_do_not_change_the_answer(
    shape: tuple[int, int],
    chunks: tuple[int, int],
    observed: float,
    seed: int,
    solver: Any,
    by_count: bool,
) -> None:
    """The same to 1e-5 relative, whatever the chunks: also for tiny and thin ones."""
    problem = low_rank(*shape, 2, observed, seed=seed)
    problem.mask[0, 0] = True
    settings = {
        "penalty": dmf.Ridge(0.1, by_count=by_count),
        "solver": solver,
        "max_rounds": 4,
        "tol": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmf.engine.grid.KEEP_CHUNKS", 10**9)
        whole = dmf.factorize(problem.nan, min(2, *shape), **settings)
        X = da.from_array(problem.nan, chunks=chunks)
        cut = dmf.factorize(X, min(2, *shape), **settings)
        product = np.asarray(cut.W) @ np.asarray(cut.H)
    expected = whole.W @ whole.H
    assert np.linalg.norm(product - expected) <= 1e-5 * np.linalg.norm(expected)
    assert cut.objective == pytest.approx(whole.objective, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("chunks", [(60, 40), (20, 40), (60, 10), (17, 13), (5, 5)])
@pytest.mark.usefixtures("keep_chunks")
def test_float32_factors_agree_for_any_chunking(chunks: tuple[int, int]) -> None:
    problem = low_rank(m=60, n=40, dtype=np.float32)
    settings = {"penalty": dmf.Ridge(0.1), "max_rounds": 10, "tol": 0}
    expected = dmf.factorize(problem.nan, 3, **settings)
    found = dmf.factorize(da.from_array(problem.nan, chunks=chunks), 3, **settings)
    assert found.W.dtype == np.float32
    for a, b in ((found.W, expected.W), (found.H, expected.H)):
        assert np.linalg.norm(np.asarray(a) - b) <= 1e-5 * np.linalg.norm(b)


def test_weights_count_as_repetitions() -> None:
    """A weight of 2 is the same as the row twice, for H; so is a ridge twice."""
    problem = low_rank(m=12, n=10, observed=1.0)
    solver = dmf.AlternatingLeastSquares()
    weights = np.full(problem.truth.shape, 2.0)
    once = dmf.factorize(
        problem.truth, 2, mask=weights, penalty=dmf.Ridge(0.2), solver=solver, tol=0
    )
    plain = dmf.factorize(
        problem.truth, 2, penalty=dmf.Ridge(0.1), solver=solver, tol=0
    )
    np.testing.assert_allclose(once.W @ once.H, plain.W @ plain.H, rtol=1e-6)
    assert once.objective == pytest.approx(2 * plain.objective)
