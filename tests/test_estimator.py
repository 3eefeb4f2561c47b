"""MatrixFactorization: scikit-learn's conventions, and rows folded in exactly."""

from __future__ import annotations

import pickle
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import dmf
from dmf import MatrixFactorization
from tests.problems import Problem, low_rank

Array = Any

PENALTIES = [
    None,
    dmf.Ridge(0.2, by_count=True),
    "auto",
    (dmf.Ridge(0.3), dmf.Ridge(5.0)),
]
FORMS = ["numpy", "sparse", "dask", "dask-sparse"]


def form_of(problem: Problem, form: str, chunks: Any = (10, 8)) -> Any:
    if form == "numpy":
        return problem.nan
    if form == "sparse":
        return problem.sparse()
    if form == "dask":
        return da.from_array(problem.nan, chunks=chunks)
    stored = da.from_array(np.where(problem.mask, problem.truth, 0), chunks=chunks)
    return stored.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))


def least_squares(X: Array, M: Array, H: Array, ridge: dmf.Penalty) -> Array:
    """Return, row by row, argmin ½ Σ_j M_j (w H_j − X_j)² + ½ λ ‖w‖²."""
    rank = H.shape[0]
    W = np.zeros((len(X), rank))
    for i, (x, weights) in enumerate(zip(X, M, strict=True)):
        observed = np.flatnonzero(weights)
        if not len(observed):
            continue
        root = np.sqrt(weights[observed].astype(float))
        strength = ridge.ridge(np.array([float(len(observed))]))[0]
        system = np.vstack(
            [root[:, None] * H[:, observed].T, strength**0.5 * np.eye(rank)]
        )
        right = np.concatenate([root * x[observed], np.zeros(rank)])
        W[i] = np.linalg.lstsq(system, right, rcond=None)[0]
    return W


# Parameters.


def test_parameters() -> None:
    solver, ridge = dmf.AlternatingLeastSquares(), dmf.Ridge(0.1)
    given: dict[str, Any] = {
        "rank": 4,
        "offsets": "both",
        "penalty": (ridge, None),
        "offset_penalty": dmf.Ridge(3.0),
        "unobserved_weight": 0.5,
        "solver": solver,
        "restarts": 2,
        "max_rounds": 9,
        "tol": 1e-3,
        "seed": 5,
        "client": None,
        "progress": None,
        "device": "cpu",
        "precision": "float32",
    }
    model = MatrixFactorization(**given)
    assert model.get_params() == given
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == given
    assert model.set_params(rank=2, seed=1) is model
    assert model.get_params() == given | {"rank": 2, "seed": 1}
    with pytest.raises(ValueError, match="Invalid parameter 'alpha'"):
        model.set_params(alpha=1)
    assert "rank=2" in repr(model)


def test_parameters_are_passed_on() -> None:
    problem = low_rank()
    options: dict[str, Any] = {
        "offsets": "both",
        "penalty": (dmf.Ridge(0.1), None),
        "offset_penalty": dmf.Ridge(3.0),
        "unobserved_weight": 0.5,
        "solver": dmf.AlternatingLeastSquares(),
        "restarts": 2,
        "max_rounds": 9,
        "tol": 1e-3,
        "seed": 5,
    }
    model = MatrixFactorization(3, **options).fit(problem.nan)
    expected = dmf.factorize(problem.nan, 3, **options)
    found = model.factorization_
    assert found.W.tobytes() == expected.W.tobytes()
    assert found.H.tobytes() == expected.H.tobytes()
    assert found.objectives == expected.objectives
    assert model.components_ is found.H
    assert model.n_iter_ == len(expected.history)
    assert model.n_features_in_ == 20


def test_wrong_parameters_are_refused_when_fitted() -> None:
    """scikit-learn's convention: __init__ only stores them."""
    X = low_rank().nan
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        MatrixFactorization(rank=0).fit(X)
    with pytest.raises(TypeError, match="solver must be a solver such as"):
        MatrixFactorization(2, solver="als").fit(X)


# Fit and transform.


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_transform_is_exact(form: str, penalty: Any, keep_chunks: None) -> None:
    problem = low_rank(m=40, observed=0.5)
    X = form_of(problem, form)
    model = MatrixFactorization(3, penalty=penalty, max_rounds=10).fit(X)
    W = model.transform(X)
    assert isinstance(W, da.Array if "dask" in form else np.ndarray)
    H = np.asarray(model.components_)
    ridge = model.factorization_.penalty[0]
    expected = least_squares(problem.truth, problem.mask, H, ridge)
    np.testing.assert_allclose(np.asarray(W), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_weights(form: str, penalty: Any, keep_chunks: None) -> None:
    problem = low_rank(m=40, observed=0.5)
    X = form_of(problem, form)
    mask: Any = problem.weights
    if form == "sparse":
        mask = problem.sparse(problem.weights)
    elif form == "dask":
        mask = da.from_array(mask, chunks=(7, 20))
    elif form == "dask-sparse":
        chunks = da.from_array(mask, chunks=(10, 8))
        mask = chunks.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))
    model = MatrixFactorization(3, penalty=penalty, max_rounds=10).fit(X, mask=mask)
    W = model.transform(X, mask=mask)
    H = np.asarray(model.components_)
    ridge = model.factorization_.penalty[0]
    expected = least_squares(problem.truth, problem.weights, H, ridge)
    np.testing.assert_allclose(np.asarray(W), expected, rtol=1e-6, atol=1e-9)
    other = MatrixFactorization(3, penalty=penalty, max_rounds=10)
    both = other.fit_transform(X, mask=mask)
    np.testing.assert_array_equal(np.asarray(both), np.asarray(W))


@pytest.mark.parametrize("form", FORMS)
def test_new_rows(form: str) -> None:
    problem = low_rank(m=60)
    first = MatrixFactorization(3, penalty=dmf.Ridge(0.1)).fit(problem.nan[:30])
    new = Problem(problem.truth[30:], problem.mask[30:], problem.weights[30:], (0, 0))
    W = first.transform(form_of(new, form))
    expected = least_squares(new.truth, new.mask, first.components_, dmf.Ridge(0.1))
    np.testing.assert_allclose(np.asarray(W), expected, rtol=1e-6, atol=1e-9)
    # Rows of the same kind: what is hidden in them is predicted.
    error = (first.inverse_transform(np.asarray(W)) - new.truth)[~new.mask]
    assert np.sqrt(np.mean(error**2)) < 0.3 * np.std(new.truth)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_rows_do_not_know_of_each_other(number: int) -> None:
    problem = low_rank()
    model = MatrixFactorization(3).fit(problem.nan)
    some = model.transform(problem.nan[5 : 5 + number])
    whole = model.transform(problem.nan)[5 : 5 + number]
    np.testing.assert_allclose(some, whole, rtol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_nothing_observed_give_0(form: str) -> None:
    problem = low_rank(observed=0.8)
    model = MatrixFactorization(3, penalty=None).fit(problem.nan)
    for rows in ([4], [0, 4, 29], range(10, 20), range(30)):
        M = problem.mask.copy()
        M[rows] = False
        holes = Problem(problem.truth, M, problem.weights, problem.start)
        W = np.asarray(model.transform(form_of(holes, form)))
        assert np.flatnonzero(~W.any(axis=1)).tolist() == list(rows)
        assert np.isfinite(W).all()


def test_fewer_entries_than_components() -> None:
    """Without a penalty the shortest of the many minimisers is taken."""
    problem = low_rank(observed=0.7)
    model = MatrixFactorization(4, penalty=None).fit(problem.nan)
    X = np.full((3, 20), np.nan)
    X[0, 2], X[1, 5:7], X[2, 1:4] = 1.5, (-1.0, 2.0), (1.0, 0.5, -0.5)
    W = model.transform(X)
    expected = least_squares(X, ~np.isnan(X), model.components_, dmf.Ridge(0.0))
    np.testing.assert_allclose(W, expected, rtol=1e-6, atol=1e-6)
    product = W @ model.components_
    np.testing.assert_allclose(product[~np.isnan(X)], X[~np.isnan(X)], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f8", 1e-5), ("f4", 1e-3)])
def test_fewer_entries_than_components_in_any_chunks(
    keep_chunks: None, dtype: str, tolerance: float
) -> None:
    """What rounding leaves in the directions without curvature must stay small."""
    X = low_rank().truth.astype(dtype)
    X[:3] = np.nan
    X[0, 2], X[1, 5], X[2, [1, 9]] = 1.5, -1.0, (2.0, 1.0)
    options: dict[str, Any] = {
        "solver": dmf.AlternatingLeastSquares(),
        "penalty": None,
        "max_rounds": 3,
    }
    one = dmf.factorize(X, 4, **options)
    other = dmf.factorize(da.from_array(X, chunks=(10, 7)), 4, **options)
    error = np.abs(other.W.compute() - one.W).max() / np.abs(one.W).max()
    assert error < tolerance


def test_the_exact_rows_lower_the_objective() -> None:
    problem = low_rank()
    model = MatrixFactorization(3, penalty=dmf.Ridge(0.1), max_rounds=3)
    W = model.fit_transform(problem.nan)
    H = model.components_

    def objective(W: Array) -> float:
        residual = (W @ H - problem.truth)[problem.mask]
        return 0.5 * float(
            np.sum(residual**2) + 0.1 * np.sum(W**2) + 0.1 * np.sum(H**2)
        )

    fitted = model.factorization_
    assert objective(fitted.W) == pytest.approx(fitted.objective)
    assert objective(W) < fitted.objective


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_dtypes(dtype: Any) -> None:
    X = (10 * low_rank().truth).astype(dtype)
    model = MatrixFactorization(3, max_rounds=5).fit(X)
    expected = np.float32 if dtype == np.float32 else np.float64
    assert model.transform(X).dtype == expected
    assert model.components_.dtype == expected


def test_inverse_transform_is_the_product() -> None:
    problem = low_rank()
    for form in FORMS:
        X = form_of(problem, form)
        model = MatrixFactorization(3, max_rounds=5).fit(X)
        W = model.transform(X)
        product = model.inverse_transform(W)
        assert isinstance(product, da.Array if "dask" in form else np.ndarray)
        assert product.shape == (30, 20)
        expected = np.asarray(W) @ np.asarray(model.components_)
        np.testing.assert_allclose(np.asarray(product), expected, rtol=1e-12)


def test_dask_models_and_numpy_rows_mix() -> None:
    problem = low_rank()
    lazy = MatrixFactorization(3, max_rounds=5).fit(form_of(problem, "dask"))
    plain = MatrixFactorization(3, max_rounds=5).fit(problem.nan)
    expected = plain.transform(problem.nan)
    assert isinstance(lazy.transform(problem.nan), np.ndarray)
    np.testing.assert_allclose(lazy.transform(problem.nan), expected, rtol=1e-6)
    mixed = plain.transform(form_of(problem, "dask"))
    assert isinstance(mixed, da.Array)
    np.testing.assert_allclose(mixed.compute(), expected, rtol=1e-6)


@pytest.mark.parametrize("chunks", [(30, 20), (7, 20), (10, 8), ((1, 29), (19, 1))])
def test_chunks_of_rows_stay(chunks: Any, keep_chunks: None) -> None:
    problem = low_rank()
    model = MatrixFactorization(3, max_rounds=5).fit(problem.nan)
    X = form_of(problem, "dask", chunks)
    W = model.transform(X)
    assert W.chunks == (X.chunks[0], (3,))
    np.testing.assert_allclose(W.compute(), model.transform(problem.nan), rtol=1e-9)


@pytest.mark.cluster
def test_on_a_cluster(client: Any) -> None:
    problem = low_rank()
    with dask.config.set(scheduler="threads"):
        plain = MatrixFactorization(3, max_rounds=5).fit(problem.nan)
        expected = plain.transform(problem.nan)
    for form in FORMS:
        X = form_of(problem, form)
        model = MatrixFactorization(3, max_rounds=5, client=client)
        W = model.fit_transform(X)
        np.testing.assert_allclose(np.asarray(W), expected, rtol=1e-6)


# Offsets.


@pytest.mark.parametrize("offsets", ["none", "global", "rows", "columns", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_offsets_of_rows_are_the_last_column(form: str, offsets: str) -> None:
    """And inverse_transform puts everything together again."""
    problem = low_rank(m=40)
    shifted = Problem(problem.truth + 3, problem.mask, problem.weights, problem.start)
    X = form_of(shifted, form)
    options: dict[str, Any] = {"offsets": offsets, "offset_penalty": dmf.Ridge(0.7)}
    model = MatrixFactorization(3, penalty=dmf.Ridge(0.3), max_rounds=5, **options)
    W = model.fit_transform(X)
    fit = model.factorization_
    own = offsets in ("rows", "both")
    assert W.shape == (40, 3 + own)
    assert isinstance(W, da.Array if "dask" in form else np.ndarray)
    names = model.get_feature_names_out().tolist()
    assert names == [f"matrixfactorization{k}" for k in range(3 + own)]
    # Row by row, least squares with a column of ones for the offset.
    H = np.asarray(model.components_)
    c = 0.0 if fit.column_offsets is None else np.asarray(fit.column_offsets)
    target = shifted.truth - fit.offset - c
    design = np.vstack([H, np.ones((1, 20))]) if own else H
    ridge = np.sqrt(np.diag([0.3] * 3 + [0.7] * own))
    expected = np.zeros((40, 3 + own))
    for i, seen in enumerate(shifted.mask):
        system = np.vstack([design[:, seen].T, ridge])
        right = np.append(target[i, seen], np.zeros(3 + own))
        expected[i] = np.linalg.lstsq(system, right, rcond=None)[0]
    found = np.asarray(W)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    product = model.inverse_transform(W)
    assert isinstance(product, da.Array if "dask" in form else np.ndarray)
    np.testing.assert_allclose(
        np.asarray(product), found @ design + fit.offset + c, rtol=1e-9, atol=1e-9
    )
    # A row without an entry is what is known of the columns.
    empty = model.transform(np.full((1, 20), np.nan))
    assert not empty.any()
    known = np.broadcast_to(fit.offset + c, (1, 20))
    np.testing.assert_allclose(
        np.asarray(model.inverse_transform(empty)), known, rtol=1e-12
    )


def test_the_offset_must_come_along() -> None:
    model = MatrixFactorization(3, offsets="both", max_rounds=3).fit(low_rank().nan)
    text = r"^W has shape \(4, 3\), but transform returns 4 columns; pass what it ret"
    with pytest.raises(ValueError, match=text):
        model.inverse_transform(np.ones((4, 3)))


# scikit-learn's ways.


def test_pickles() -> None:
    problem = low_rank()
    model = MatrixFactorization(3, max_rounds=5).fit(problem.nan)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        copy.transform(problem.nan), model.transform(problem.nan)
    )


def test_not_fitted() -> None:
    model = MatrixFactorization(3)
    for call in (
        lambda: model.transform(low_rank().nan),
        lambda: model.inverse_transform(np.ones((2, 3))),
        lambda: model.get_feature_names_out(),
    ):
        with pytest.raises(NotFittedError, match="This MatrixFactorization instance"):
            call()


@pytest.mark.parametrize("form", ["numpy", "sparse"])
def test_another_number_of_features(form: str) -> None:
    problem = low_rank()
    model = MatrixFactorization(3, max_rounds=5).fit(form_of(problem, form))
    text = "X has 19 features, but MatrixFactorization is expecting 20 features"
    with pytest.raises(ValueError, match=text):
        model.transform(form_of(problem, form)[:, 1:])


def test_another_number_of_features_in_dask_arrays() -> None:
    problem = low_rank()
    model = MatrixFactorization(3, max_rounds=5).fit(form_of(problem, "dask"))
    text = "X has 19 columns, but the model was fitted on 20; transform rows of the"
    with pytest.raises(ValueError, match=text):
        model.transform(form_of(problem, "dask")[:, 1:])
    # Fitting anew is no mismatch.
    assert model.fit(form_of(problem, "dask")[:, 1:]).n_features_in_ == 19


def test_the_shape_of_what_goes_back() -> None:
    model = MatrixFactorization(3, max_rounds=5).fit(low_rank().nan)
    with pytest.raises(ValueError, match=r"W has shape \(4, 2\)"):
        model.inverse_transform(np.ones((4, 2)))


def test_a_mask_of_another_shape() -> None:
    problem = low_rank()
    text = r"mask has shape \(20, 30\), but X has shape \(30, 20\)"
    with pytest.raises(ValueError, match=text):
        MatrixFactorization(3).fit(problem.nan, mask=problem.mask.T)
    model = MatrixFactorization(3, max_rounds=5).fit(problem.nan)
    with pytest.raises(ValueError, match=text):
        model.transform(problem.nan, mask=problem.mask.T)


def test_values_are_refused_as_in_factorize() -> None:
    problem = low_rank()
    model = MatrixFactorization(3, max_rounds=5).fit(problem.nan)
    X = problem.truth.copy()
    X[3, 4] = np.inf
    for call in (model.fit, model.transform):
        with pytest.raises(ValueError, match="X is infinite in row 3, column 4"):
            call(X)


def test_lists_are_arrays() -> None:
    X = low_rank().truth
    one = MatrixFactorization(3, max_rounds=5).fit(X.tolist())
    other = MatrixFactorization(3, max_rounds=5).fit(X)
    np.testing.assert_array_equal(one.components_, other.components_)


def test_feature_names_out() -> None:
    model = MatrixFactorization(3, max_rounds=5).fit(low_rank().nan)
    names = [f"matrixfactorization{k}" for k in range(3)]
    assert model.get_feature_names_out().tolist() == names


def test_in_a_pipeline() -> None:
    problem = low_rank(observed=0.8)
    y = problem.truth @ np.arange(20.0)
    pipeline = make_pipeline(MatrixFactorization(3), RidgeRegression(1e-3))
    pipeline.fit(problem.nan, y)
    assert pipeline.score(problem.nan, y) > 0.9
    pipeline.set_params(matrixfactorization__rank=2)
    assert pipeline.get_params()["matrixfactorization"].rank == 2
    pipeline.fit(problem.truth, y, matrixfactorization__mask=problem.mask)
    masked = pipeline[0].transform(problem.nan)
    np.testing.assert_array_equal(
        masked, MatrixFactorization(2).fit_transform(problem.nan)
    )


@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_set_output_default(form: str) -> None:
    X = form_of(low_rank(), form)
    model = MatrixFactorization(3, max_rounds=5)
    expected = np.asarray(model.fit_transform(X))
    W = model.set_output(transform="default").fit_transform(X)
    assert isinstance(W, da.Array if form == "dask" else np.ndarray)
    np.testing.assert_array_equal(np.asarray(W), expected)


def test_masked_arrays_do_not_lose_their_mask() -> None:
    X = np.ma.array(np.ones((4, 3)), mask=np.eye(4, 3, dtype=bool))
    with pytest.raises(TypeError, match="X is a masked array"):
        MatrixFactorization(rank=1).fit(X)


@parametrize_with_checks([MatrixFactorization(rank=1, max_rounds=20)])
def test_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
