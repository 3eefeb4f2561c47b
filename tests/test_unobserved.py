"""What isn't stored as zeros of a weight: against the matrix with the zeros in it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from dmf.kernels import sparse as kernels
from tests.problems import SOLVERS, form_of, low_rank, sparse_chunks

Array = Any

PENALTIES = [
    dmf.Ridge(0.3),
    (dmf.Lasso(0.2) + dmf.Ridge(0.1), dmf.NonNegative() + dmf.Ridge(0.2)),
    (dmf.Ridge(0.3), dmf.Smooth(2.0) + dmf.Ridge(0.1)),
]
KINDS = ["none", "global", "rows", "columns", "both"]


def predicted(fit: dmf.Factorization) -> Array:
    total = np.asarray(fit.W @ fit.H, dtype=float) + fit.offset
    if fit.row_offsets is not None:
        total = total + np.asarray(fit.row_offsets, dtype=float)[:, None]
    if fit.column_offsets is not None:
        total = total + np.asarray(fit.column_offsets, dtype=float)
    return total


def assert_same_rounds(one: Any, other: Any, rel: float = 1e-8) -> None:
    """Assert that two fits went the same way, round by round."""
    assert one.history.initial_objective == pytest.approx(
        other.history.initial_objective, rel=rel
    )
    for name in ("objective", "rmse", "gradient_norm_W", "gradient_norm_H"):
        np.testing.assert_allclose(
            getattr(one.history, name), getattr(other.history, name), rtol=rel
        )
    np.testing.assert_allclose(predicted(one), predicted(other), rtol=0, atol=1e-6)


@given(
    offsets=st.sampled_from(KINDS),
    penalty=st.sampled_from(PENALTIES),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_weight_one_is_the_matrix_with_its_zeros(
    offsets: str, penalty: Any, seed: int
) -> None:
    """Counts of words, say: a fit of the sparse matrix is one of the dense matrix."""
    problem = low_rank(observed=0.3, seed=seed)
    dense = np.where(problem.mask, problem.truth, 0.0)
    options = {"offsets": offsets, "penalty": penalty, "max_rounds": 6, "tol": 0}
    sparse = dmf.factorize(problem.sparse(), 3, unobserved_weight=1.0, **options)
    complete = dmf.factorize(dense, 3, **options)
    assert_same_rounds(sparse, complete)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_every_solver_sees_the_zeros(solver: Any, alpha: float) -> None:
    """The same rounds as on a dense matrix with zeros, and α for a mask there.

    Scaled gradients count the entries of a mask, whatever their weights are.
    """
    if getattr(solver, "scaled", False):
        alpha = 1.0
    problem = low_rank(observed=0.4)
    dense = np.where(problem.mask, problem.truth, 0.0)
    options = {"solver": solver, "penalty": dmf.Ridge(0.3), "max_rounds": 5, "tol": 0}
    fit = dmf.factorize(problem.sparse(), 3, unobserved_weight=alpha, **options)
    mask = np.where(problem.mask, 1.0, alpha)
    assert_same_rounds(fit, dmf.factorize(dense, 3, mask=mask, **options))


@given(
    alpha=st.floats(0.0, 1.0),
    form=st.sampled_from(["numpy", "sparse", "dask", "dask-sparse"]),
    weighted=st.booleans(),
    penalty=st.sampled_from(PENALTIES[:2]),
    offsets=st.sampled_from(["none", "both"]),
    dtype=st.sampled_from([np.float64, np.float32]),
)
@settings(max_examples=20)
def test_the_objective_is_that_of_the_formula(
    alpha: float, form: str, weighted: bool, penalty: Any, offsets: str, dtype: Any
) -> None:
    problem = low_rank(observed=0.4, dtype=dtype)
    mask, M = None, problem.mask.astype(float)
    if weighted and "dask" not in form:
        M = problem.weights.astype(float)
        mask = problem.weights if form == "numpy" else sp.csr_array(problem.weights)
    fit = dmf.factorize(
        form_of(problem, form),
        3,
        mask=mask,
        unobserved_weight=alpha,
        penalty=penalty,
        offsets=offsets,
        max_rounds=5,
        tol=0,
    )
    weights = np.where(problem.mask, M, alpha)
    target = np.where(problem.mask, problem.truth.astype(float), 0.0)
    loss = 0.5 * np.sum(weights * (predicted(fit) - target) ** 2)
    rel = 1e-8 if dtype is np.float64 else 1e-3
    found = fit.history[-1].rmse ** 2 * np.sum(weights) / 2
    # At the end of a fit the offsets' level may settle: their penalty falls, no loss.
    assert found == pytest.approx(loss, rel=rel)
    W, H = np.asarray(fit.W, dtype=float), np.asarray(fit.H, dtype=float)
    if offsets == "none":
        for rows, one in zip((W, H.T), fit.penalty, strict=True):
            for part in getattr(one, "parts", (one,)):
                if isinstance(part, dmf.Ridge):
                    loss += 0.5 * part.strength * np.sum(rows**2)
                elif isinstance(part, dmf.Lasso):
                    loss += part.strength * np.sum(np.abs(rows))
        assert fit.objective == pytest.approx(loss, rel=rel)
    assert fit.unobserved_weight == alpha


def test_counts_hold_the_zeros_with_their_weight() -> None:
    """Ridge(by_count): each row's own sum, α for each entry that isn't observed."""
    problem = low_rank(observed=0.3)
    penalty = dmf.Ridge(0.05, by_count=True)
    options = {"penalty": penalty, "max_rounds": 5, "tol": 0}
    fit = dmf.factorize(problem.sparse(), 3, unobserved_weight=0.3, **options)
    W, H = fit.W, fit.H
    n = problem.mask.sum(axis=1) + 0.3 * (~problem.mask).sum(axis=1)
    k = problem.mask.sum(axis=0) + 0.3 * (~problem.mask).sum(axis=0)
    expected = 0.025 * (n @ np.sum(W**2, axis=1) + k @ np.sum(H**2, axis=0))
    weights = np.where(problem.mask, 1.0, 0.3)
    target = np.where(problem.mask, problem.truth, 0.0)
    expected += 0.5 * np.sum(weights * (W @ H - target) ** 2)
    assert fit.objective == pytest.approx(expected, rel=1e-9)


def test_zeros_pull_predictions_down() -> None:
    """The more they weigh, the smaller is what they are predicted as."""
    problem = low_rank(observed=0.4)
    sizes = []
    for alpha in (0.0, 0.05, 0.3, 1.0):
        fit = dmf.factorize(problem.sparse(), 3, unobserved_weight=alpha)
        found = dmf.impute(problem.sparse(), fit)
        np.testing.assert_array_equal(found[problem.mask], problem.truth[problem.mask])
        sizes.append(float(np.mean(found[~problem.mask] ** 2)))
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert sizes[3] < 0.3 * sizes[0]


def test_a_row_that_stores_nothing_is_drawn_to_zero() -> None:
    """To it zeros are what was observed; with offsets it ends below the mean."""
    problem = low_rank(observed=0.5)
    X = problem.sparse().toarray() + 5 * problem.mask
    X[4] = 0
    X = sp.csr_array(X)
    fits = [
        dmf.factorize(X, 3, unobserved_weight=alpha, offsets="rows", tol=0)
        for alpha in (0.0, 1.0)
    ]
    assert fits[0].row_offsets[4] == 0
    assert np.abs(predicted(fits[0])[4]).min() > 1
    assert np.abs(predicted(fits[1])[4]).mean() < 0.5


def test_folded_rows_see_their_zeros() -> None:
    problem = low_rank(observed=0.4)
    X = problem.sparse()
    fit = dmf.factorize(
        X, 3, unobserved_weight=0.3, penalty=dmf.Ridge(0.2), max_rounds=5, tol=0
    )
    new = fit.fold_in(rows=X[:6])
    for i in range(6):
        weights = np.where(problem.mask[i], 1.0, 0.3)
        target = np.where(problem.mask[i], problem.truth[i], 0.0)
        system = (fit.H * weights) @ fit.H.T + 0.2 * np.eye(3)
        expected = np.linalg.solve(system, fit.H @ (weights * target))
        np.testing.assert_allclose(new.W[i], expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_chunks_do_not_matter(alpha: float, keep_chunks: None) -> None:
    problem = low_rank(observed=0.4)
    dense = np.where(problem.mask, problem.truth, 0)
    options = {"unobserved_weight": alpha, "offsets": "both", "max_rounds": 6, "tol": 0}
    whole = dmf.factorize(problem.sparse(), 3, **options)
    for chunks in ((30, 7), (8, 20), (7, 7)):
        fit = dmf.factorize(sparse_chunks(dense, chunks=chunks), 3, **options)
        assert_same_rounds(fit, whole, rel=1e-6)


def few(size: int) -> Array:
    """Return a square matrix with a thousand stored entries in its corner."""
    rng = np.random.default_rng(0)
    places = rng.choice(200 * 200, 1000, replace=False)
    values = rng.standard_normal(1000) + 2
    return sp.csr_array((values, np.divmod(places, 200)), shape=(size, size))


@pytest.mark.parametrize("penalty", PENALTIES, ids=["ridge", "lasso", "smooth"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_zeros_cost_no_memory(alpha: float, penalty: Any) -> None:
    """4e8 entries would be 3.2 GB, and 400 MB as bools: there is nothing of the kind.

    Factors of 20,000 rows are half a megabyte each; a few dozen of them are scratch.
    """
    X = few(20_000)
    options = {"unobserved_weight": alpha, "penalty": penalty, "offsets": "both"}
    dmf.factorize(few(300), 3, max_rounds=2, **options)  # what compiles, compiles
    tracemalloc.start()
    try:
        fit = dmf.factorize(X, 3, max_rounds=3, tol=0, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert fit.objective < fit.history.initial_objective


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("solver", [None, dmf.AlternatingLeastSquares()], ids=str)
def test_passes_visit_what_is_stored_and_no_more(
    alpha: float, solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same entries, whether there are 40,000 or a million of zeros around them."""

    def visited(size: int) -> int:
        seen = []
        with monkeypatch.context() as patch:
            for name in ("gradient", "curvature", "product", "gram"):
                kernel = getattr(kernels, name)

                def counting(
                    block: Any, *rest: Any, _kernel: Any = kernel, **more: Any
                ):
                    seen.append(len(block.values))
                    return _kernel(block, *rest, **more)

                patch.setattr(kernels, name, counting)
            dmf.factorize(
                few(size),
                3,
                unobserved_weight=alpha,
                solver=solver,
                max_rounds=3,
                tol=0,
            )
        return sum(seen)

    small = visited(200)
    assert small == visited(1000)
    # Two half-steps a round, one or two passes each.
    assert 6 * 1000 <= small <= 14 * 1000


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_held_out_entries_are_no_zeros_of_the_fit(alpha: float) -> None:
    """They count neither as what X says nor as zeros: the fit knows nothing of them."""
    problem = low_rank(observed=0.6)
    X = problem.sparse()
    train, held = (part.toarray() for part in dmf.split_observed(X, 0.2))
    options = {"penalty": dmf.Ridge(0.3), "max_rounds": 6, "tol": 0, "patience": 99}
    fit = dmf.factorize(X, 3, unobserved_weight=alpha, validation=0.2, **options)
    errors = (fit.W @ fit.H - held)[held != 0]
    best = fit.history.validation_rmse.min()
    assert best == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9)
    weights = np.where(train != 0, 1.0, alpha)
    weights[held != 0] = 0
    expected = 0.5 * np.sum(weights * (fit.W @ fit.H - train) ** 2)
    expected += 0.15 * (np.sum(fit.W**2) + np.sum(fit.H**2))
    assert fit.objective == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (1.1, ValueError, "unobserved_weight must be at most 1, got 1.1"),
        (-0.1, ValueError, "unobserved_weight must be finite and at least 0, got -0.1"),
        (
            np.nan,
            ValueError,
            "unobserved_weight must be finite and at least 0, got nan",
        ),
        ("0.3", TypeError, "unobserved_weight must be a number at least 0, got '0.3'"),
        (None, TypeError, "unobserved_weight must be a number at least 0, got None"),
        (True, TypeError, "unobserved_weight must be a number at least 0, got True"),
    ],
)
def test_weights_outside_of_0_and_1_are_refused(
    alpha: Any, error: Any, message: str, no_tasks: None
) -> None:
    with pytest.raises(error, match="unobserved_weight") as caught:
        dmf.factorize(sp.csr_array(np.eye(4)), 2, unobserved_weight=alpha)
    assert str(caught.value) == message
