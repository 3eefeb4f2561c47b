"""MatrixFactorizationImputer: scikit-learn's conventions for imputers, and dmf's."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import dmf
from dmf.imputer import MatrixFactorizationImputer
from tests.problems import low_rank

Array = Any
nan = np.nan


def table(m: int = 60, n: int = 12, observed: float = 0.7, seed: int = 0) -> Any:
    """Return a problem whose columns differ in level and unit by orders."""
    problem = low_rank(m, n, observed=observed, seed=seed)
    rng = np.random.default_rng(seed)
    problem.truth[:] *= 10.0 ** rng.uniform(-3, 3, n)
    problem.truth[:] += 10.0 ** rng.uniform(-3, 3, n)
    return problem


def holed(kind: str) -> tuple[Array, Array]:
    """Return a training table and new rows, with empty and constant features."""
    X = table().nan
    if "empty" in kind:
        X[:, [2, 5]] = nan
    if "constant" in kind:
        X[:, 3] = np.where(np.isnan(X[:, 3]), nan, 4.5)
    train, new = X[:40], X[40:].copy()
    new[0, [2, 3]] = 1.25, nan
    return train, new


# The parameters.


def test_parameters() -> None:
    given: dict[str, Any] = {
        "rank": 4,
        "missing_values": -1,
        "standardize": False,
        "offsets": "columns",
        "penalty": (dmf.Ridge(0.1), None),
        "offset_penalty": dmf.Ridge(1.0),
        "restarts": 2,
        "max_rounds": 9,
        "tol": 1e-3,
        "seed": 5,
        "add_indicator": True,
        "keep_empty_features": True,
    }
    model = MatrixFactorizationImputer(**given)
    assert model.get_params() == given
    assert clone(model).get_params() == given


def test_parameters_are_passed_on() -> None:
    X = low_rank().nan
    options: dict[str, Any] = {
        "offsets": "columns",
        "penalty": (dmf.Ridge(0.1), None),
        "offset_penalty": dmf.Ridge(1.0),
        "restarts": 2,
        "max_rounds": 9,
        "tol": 1e-3,
        "seed": 5,
    }
    model = MatrixFactorizationImputer(3, standardize=False, **options).fit(X)
    expected = dmf.factorize(X, 3, **options)
    found = model.factorization_
    assert found is not None
    assert found.W.tobytes() == expected.W.tobytes()
    assert found.H.tobytes() == expected.H.tobytes()
    assert found.objectives == expected.objectives
    assert model.n_iter_ == len(expected.history)
    assert model.rank_ == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ({"standardize": 1}, "standardize must be True or False, got 1"),
        ({"add_indicator": "no"}, "add_indicator must be True or False, got 'no'"),
        ({"keep_empty_features": 0}, "keep_empty_features must be True or False, got"),
        ({"offsets": "all"}, "offsets must be one of"),
        ({"penalty": 0.1}, "penalty must be a penalty such as"),
        (
            {"missing_values": "?"},
            r"missing_values must be NaN, None, pandas.NA or a finite number, got '\?'",
        ),
        ({"missing_values": np.inf}, "or a finite number, got inf"),
        ({"missing_values": True}, "or a finite number, got True"),
        (
            {"penalty": dmf.Smooth(1.0)},
            "an imputer fills rows one by one, but Smooth on W ties them to their",
        ),
    ],
)
def test_bad_parameters(options: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        MatrixFactorizationImputer(**options).fit(low_rank().truth)


def test_smooth_columns_are_fine() -> None:
    penalty = (dmf.Ridge(0.1), dmf.Smooth(1.0) + dmf.Ridge(0.1))
    filled = MatrixFactorizationImputer(3, penalty=penalty).fit_transform(table().nan)
    assert np.isfinite(filled).all()


# What is filled.


@pytest.mark.parametrize("offsets", ["none", "global", "rows", "columns", "both"])
@pytest.mark.parametrize("standardize", [False, True])
def test_the_same_by_hand(standardize: bool, offsets: str) -> None:
    X = table().nan if standardize else low_rank(60, 12).nan
    train, new = X[:40], X[40:]
    model = MatrixFactorizationImputer(3, standardize=standardize, offsets=offsets)
    filled = model.fit(train).transform(new)

    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(train)
    fit = dmf.factorize(scaler.transform(train), 3, offsets=offsets, progress=False)
    Z = scaler.transform(new)
    expected = scaler.inverse_transform(dmf.impute(Z, fit.fold_in(rows=Z)))
    error = np.abs(filled - expected) / X.std(axis=0, where=~np.isnan(X))
    assert error.max() < 1e-4
    if standardize:
        np.testing.assert_allclose(model.mean_, scaler.mean_, rtol=1e-12)
        np.testing.assert_allclose(model.scale_, scaler.scale_, rtol=1e-12)


@pytest.mark.parametrize("observed", [0.9, 0.5])
@pytest.mark.parametrize("rank", [3, 10])
def test_better_than_the_mean(rank: int, observed: float) -> None:
    problem = table(200, 30, observed)
    deviation = problem.truth.std(axis=0)

    def error(imputer: Any) -> float:
        filled = imputer.fit_transform(problem.nan)
        hidden = ((filled - problem.truth) / deviation)[~problem.mask]
        return float(np.sqrt(np.mean(hidden**2)))

    assert error(MatrixFactorizationImputer(rank)) < 0.25 * error(SimpleImputer())


def test_new_rows_are_predicted() -> None:
    problem = table(200, 30)
    model = MatrixFactorizationImputer(3).fit(problem.nan[:150])
    error = (model.transform(problem.nan[150:]) - problem.truth[150:]) / model.scale_
    assert np.sqrt(np.mean(error[~problem.mask[150:]] ** 2)) < 0.25


def test_units_do_not_matter() -> None:
    X = low_rank().nan
    filled = MatrixFactorizationImputer(3).fit_transform(X)
    # Powers of two don't round: the same bits come out.
    units = 2.0 ** np.random.default_rng(0).integers(-300, 300, X.shape[1])
    other = MatrixFactorizationImputer(3).fit_transform(X * units)
    np.testing.assert_array_equal(other, filled * units)
    # A level of millions costs digits, and nothing else.
    levels = 1e6 * np.arange(X.shape[1])
    moved = MatrixFactorizationImputer(3).fit_transform(X + levels) - levels
    np.testing.assert_allclose(moved, filled, atol=1e-4)


def test_a_column_of_another_unit_does_not_dominate() -> None:
    problem = low_rank(100, 20)
    X = problem.nan
    X[:, 0] = 1e4 * np.random.default_rng(0).standard_normal(100)

    def error(standardize: bool) -> float:
        model = MatrixFactorizationImputer(4, standardize=standardize)
        missed = (model.fit_transform(X) - problem.truth)[:, 1:][~problem.mask[:, 1:]]
        return float(np.sqrt(np.mean(missed**2)))

    assert error(True) < 0.5 * error(False)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 5e307])
def test_extreme_units(size: float) -> None:
    X = low_rank().nan
    X *= size / np.nanmax(np.abs(X))
    filled = MatrixFactorizationImputer(3).fit_transform(X)
    assert np.isfinite(filled).all()
    assert np.abs(filled).max() < 3 * size


@pytest.mark.parametrize("kind", ["plain", "empty", "constant", "empty constant"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_observed_entries_stay(kind: str, keep: bool, standardize: bool) -> None:
    train, new = holed(kind)
    model = MatrixFactorizationImputer(
        3, keep_empty_features=keep, standardize=standardize
    ).fit(train)
    for X in (train, new):
        before = X.tobytes()
        filled = model.transform(X)
        assert X.tobytes() == before
        assert not np.shares_memory(filled, X)
        assert np.isfinite(filled).all()
        kept = X if keep else X[:, ~np.isnan(train).all(axis=0)]
        observed = ~np.isnan(kept)
        assert filled[observed].tobytes() == kept[observed].tobytes()


@pytest.mark.parametrize("indicator", [False, True])
@pytest.mark.parametrize("kind", ["plain", "empty constant"])
def test_fit_transform_is_fit_then_transform(kind: str, indicator: bool) -> None:
    X, _ = holed(kind)
    one = MatrixFactorizationImputer(3, add_indicator=indicator).fit_transform(X)
    other = MatrixFactorizationImputer(3, add_indicator=indicator).fit(X).transform(X)
    assert one.tobytes() == other.tobytes()


def test_complete_rows_come_back() -> None:
    problem = table()
    model = MatrixFactorizationImputer(3).fit(problem.nan)
    copy = model.transform(problem.truth)
    assert copy.tobytes() == problem.truth.tobytes()
    assert not np.shares_memory(copy, problem.truth)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("offsets", ["none", "columns", "both"])
def test_rows_with_nothing_observed(offsets: str, standardize: bool) -> None:
    X = table().nan
    X[7] = nan
    model = MatrixFactorizationImputer(3, offsets=offsets, standardize=standardize)
    fit = model.fit(X).factorization_
    assert fit is not None
    learned = 0.0 if offsets == "none" else fit.offset + fit.column_offsets
    expected = model.mean_ + model.scale_ * learned
    for rows in (X[[7, 8]], np.full((2, 12), nan)):
        np.testing.assert_allclose(model.transform(rows)[0], expected, rtol=1e-9)


def test_the_rank_is_cut_at_the_table() -> None:
    X = table(60, 5).nan
    wide, cut = MatrixFactorizationImputer(10).fit(X), MatrixFactorizationImputer(5)
    assert wide.rank_ == 5
    assert wide.transform(X).tobytes() == cut.fit_transform(X).tobytes()
    assert MatrixFactorizationImputer().fit(table(4, 9, 1.0).nan).rank_ == 4
    # Columns that aren't in the fit don't count.
    X[:, :2], X[:, 2] = nan, 1.0
    assert wide.fit(X).rank_ == 2


@pytest.mark.parametrize("standardize", [False, True])
def test_one_row_and_one_column(standardize: bool) -> None:
    model = MatrixFactorizationImputer(standardize=standardize)
    one = model.fit_transform([[1.0, nan, 3.0]])
    assert one.tolist() == [[1.0, 3.0]]
    assert np.isfinite(model.transform(np.full((2, 3), nan))).all()
    filled = model.fit_transform([[1.0], [nan], [3.0]])
    assert filled[[0, 2], 0].tolist() == [1.0, 3.0]
    assert abs(filled[1, 0] - 2) < 0.5


def test_constant_columns() -> None:
    X = table().nan
    without = MatrixFactorizationImputer(3).fit_transform(X[:, 1:])
    X[:, 0] = np.where(np.isnan(X[:, 0]), nan, 0.1)
    model = MatrixFactorizationImputer(3)
    filled = model.fit_transform(X)
    assert set(filled[:, 0]) == {0.1}
    assert model.scale_[0] == 0
    # They tell nothing about the others.
    assert filled[:, 1:].tobytes() == without.tobytes()
    assert set(MatrixFactorizationImputer().fit_transform(X[:, :1])[:, 0]) == {0.1}


def test_the_order_in_memory_does_not_matter() -> None:
    X = table().nan
    by_rows = MatrixFactorizationImputer(3).fit_transform(X)
    by_columns = MatrixFactorizationImputer(3).fit_transform(np.asfortranarray(X))
    np.testing.assert_array_equal(by_columns, by_rows)


# Features with nothing observed.


@pytest.mark.filterwarnings("ignore:Skipping features without any observed values")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("indicator", [False, True])
def test_empty_features_as_in_scikit_learn(keep: bool, indicator: bool) -> None:
    train, new = holed("empty")
    options: dict[str, Any] = {
        "keep_empty_features": keep,
        "add_indicator": indicator,
    }
    ours = MatrixFactorizationImputer(3, **options).fit(train)
    theirs = SimpleImputer(**options).fit(train)
    assert ours.get_feature_names_out().tolist() == (
        theirs.get_feature_names_out().tolist()
    )
    for X in (train, new):
        filled, expected = ours.transform(X), theirs.transform(X)
        assert filled.shape == expected.shape
        if keep:
            # 0, except where something was observed after the fit.
            np.testing.assert_array_equal(filled[:, [2, 5]], expected[:, [2, 5]])


def test_nothing_observed_at_all() -> None:
    X = np.full((3, 2), nan)
    model = MatrixFactorizationImputer()
    assert model.fit_transform(X).shape == (3, 0)
    assert model.get_feature_names_out().tolist() == []
    assert (model.factorization_, model.rank_, model.n_iter_) == (None, 0, 0)
    kept = MatrixFactorizationImputer(keep_empty_features=True)
    np.testing.assert_array_equal(kept.fit_transform(X), np.zeros((3, 2)))
    flagged = MatrixFactorizationImputer(add_indicator=True)
    np.testing.assert_array_equal(flagged.fit_transform(X), np.ones((3, 2)))


# The indicator.


@pytest.mark.parametrize("missing_values", [nan, -1])
def test_the_indicator_is_scikit_learns(missing_values: float) -> None:
    problem = table()
    problem.mask[:40, 1] = True  # missing in no training row, but in new ones
    X = np.where(problem.mask, problem.truth, missing_values)
    X[:, 4] = missing_values
    train, new = X[:40], X[40:]
    options: dict[str, Any] = {"missing_values": missing_values}
    plain = MatrixFactorizationImputer(3, **options).fit(train)
    both = MatrixFactorizationImputer(3, add_indicator=True, **options).fit(train)
    flags = MissingIndicator(error_on_new=False, **options).fit(train)
    for rows in (train, new):
        expected = np.hstack([plain.transform(rows), flags.transform(rows)])
        np.testing.assert_array_equal(both.transform(rows), expected)
    names = [*plain.get_feature_names_out(), *flags.get_feature_names_out()]
    assert both.get_feature_names_out().tolist() == names
    assert "missingindicator_x1" not in names
    assert plain.indicator_ is None


# What stands for missing.


@pytest.mark.parametrize("value", [0, -1, 0.1, 99999])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_that_stand_for_missing(value: float, dtype: Any) -> None:
    X = table().nan.astype(dtype)
    expected = MatrixFactorizationImputer(3).fit_transform(X)
    marked = np.where(np.isnan(X), np.asarray(value, dtype), X)
    before = marked.tobytes()
    model = MatrixFactorizationImputer(3, missing_values=value)
    np.testing.assert_array_equal(model.fit_transform(marked), expected)
    assert marked.tobytes() == before


def test_integers() -> None:
    X = np.rint(table().truth).astype(int)
    X[~low_rank(60, 12, observed=0.7).mask] = -999
    filled = MatrixFactorizationImputer(3, missing_values=-999).fit_transform(X)
    assert filled.dtype == np.float64
    np.testing.assert_array_equal(filled[X != -999], X[X != -999])
    expected = MatrixFactorizationImputer(3).fit_transform(
        np.where(X == -999, nan, X.astype(float))
    )
    np.testing.assert_array_equal(filled, expected)
    # Without a number that stands for missing, nothing is missing.
    np.testing.assert_array_equal(MatrixFactorizationImputer().fit_transform(X), X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_dtypes(dtype: Any) -> None:
    X = np.nan_to_num(10 * low_rank().nan).astype(dtype)
    filled = MatrixFactorizationImputer(3, missing_values=0).fit_transform(X)
    assert filled.dtype == (np.float32 if dtype == np.float32 else np.float64)
    assert (filled != 0).all()


def test_nan_where_a_number_stands_for_missing() -> None:
    X = table().nan
    row, column = np.argwhere(np.isnan(X))[0]
    model = MatrixFactorizationImputer(missing_values=-1)
    text = (
        f"X contains NaN in row {row}, column {column}, but missing_values is -1; "
        "replace NaN by it, or leave missing_values out"
    )
    with pytest.raises(ValueError, match=text):
        model.fit(X)
    with pytest.raises(ValueError, match="X contains NaN"):
        model.fit(np.nan_to_num(X)).transform(X)


@pytest.mark.parametrize("missing_values", [None, "NA", nan])
@pytest.mark.parametrize("holder", ["array", "frame", "extension"])
def test_none_and_pandas_na(missing_values: Any, holder: str) -> None:
    pandas = pytest.importorskip("pandas")
    X = table().nan
    expected = MatrixFactorizationImputer(3).fit_transform(X)
    objects = X.astype(object)
    holes = np.argwhere(np.isnan(X))
    for k, (i, j) in enumerate(holes):
        objects[i, j] = [None, pandas.NA, nan][k % 3]
    given: Any = objects
    if holder != "array":
        given = pandas.DataFrame(objects)
    if holder == "extension":
        given = given.astype("Float64")
    value = pandas.NA if missing_values == "NA" else missing_values
    model = MatrixFactorizationImputer(3, missing_values=value)
    np.testing.assert_array_equal(model.fit_transform(given), expected)
    assert objects[tuple(holes[0])] is None


def test_none_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    filled = MatrixFactorizationImputer().fit_transform([[1, None], [2, 3], [None, 4]])
    assert np.isfinite(filled).all()
    assert filled[1].tolist() == [2.0, 3.0]


# What is refused.


@pytest.mark.parametrize("make", [sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_sparse_matrices_are_refused(make: Any) -> None:
    X = np.eye(4)
    model = MatrixFactorizationImputer().fit(X)
    text = (
        "X is a sparse matrix, whose unstored entries an imputer would have to take "
        "for zeros; give it to dmf.factorize and dmf.impute, for which they are missing"
    )
    for call in (model.fit, model.transform, model.fit_transform):
        with pytest.raises(TypeError, match=text):
            call(make(X))


def test_dask_arrays_are_refused() -> None:
    text = "X is a Dask array, but an imputer works in memory; give it to dmf.factor"
    with pytest.raises(TypeError, match=text):
        MatrixFactorizationImputer().fit(da.ones((4, 4)))


def test_masked_arrays_are_refused() -> None:
    X = np.ma.array(np.ones((4, 3)), mask=np.eye(4, 3, dtype=bool))
    with pytest.raises(TypeError, match="X is a masked array, whose mask scikit-learn"):
        MatrixFactorizationImputer().fit(X)


def test_infinite_values_are_refused() -> None:
    X = table().truth
    model = MatrixFactorizationImputer(3).fit(X)
    X[3, 4] = np.inf
    for call in (model.fit, model.transform):
        with pytest.raises(ValueError, match="Input X contains infinity"):
            call(X)


def test_another_number_of_features() -> None:
    model = MatrixFactorizationImputer(3).fit(table().nan)
    text = "X has 11 features, but MatrixFactorizationImputer is expecting 12 features"
    with pytest.raises(ValueError, match=text):
        model.transform(table().nan[:, 1:])


def test_not_fitted() -> None:
    model = MatrixFactorizationImputer()
    for call in (lambda: model.transform(np.eye(3)), model.get_feature_names_out):
        with pytest.raises(NotFittedError, match="MatrixFactorizationImputer instance"):
            call()


# Together with scikit-learn and pandas.


def test_feature_names_out() -> None:
    train, _ = holed("empty")
    model = MatrixFactorizationImputer(3).fit(train)
    kept = [f"x{j}" for j in range(12) if j not in (2, 5)]
    assert model.get_feature_names_out().tolist() == kept
    letters = list("abcdefghijkl")
    assert "".join(model.get_feature_names_out(letters)) == "abdeghijkl"
    with pytest.raises(ValueError, match="input_features should have length equal"):
        model.get_feature_names_out(["a", "b"])


def test_set_output_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    train, _ = holed("empty")
    letters = list("abcdefghijkl")
    frame = pandas.DataFrame(train, columns=letters, index=np.arange(40) + 100)
    before = frame.copy()
    model = MatrixFactorizationImputer(3, add_indicator=True)
    expected = model.fit_transform(train)
    filled = model.set_output(transform="pandas").fit_transform(frame)
    assert isinstance(filled, pandas.DataFrame)
    assert filled.columns.tolist() == model.get_feature_names_out().tolist()
    assert filled.columns.tolist()[:3] == ["a", "b", "d"]
    assert filled.columns.tolist()[10] == "missingindicator_a"
    assert filled.index.equals(frame.index)
    np.testing.assert_array_equal(filled.to_numpy(), expected)
    pandas.testing.assert_frame_equal(frame, before)
    with pytest.raises(ValueError, match="The feature names should match"):
        model.transform(frame[letters[::-1]])


def test_the_global_output_setting_is_for_the_imputer_alone() -> None:
    pandas = pytest.importorskip("pandas")
    train, _ = holed("empty")
    expected = MatrixFactorizationImputer(3, add_indicator=True).fit_transform(train)
    with sklearn.config_context(transform_output="pandas"):
        model = MatrixFactorizationImputer(3, add_indicator=True)
        filled = model.fit_transform(train)
    assert isinstance(filled, pandas.DataFrame)
    np.testing.assert_array_equal(filled.to_numpy(), expected)


def test_in_a_pipeline() -> None:
    problem = table(150, 12)
    y = problem.truth @ (1 / problem.truth.std(axis=0))

    def score(imputer: Any) -> float:
        pipeline = make_pipeline(imputer, StandardScaler(), RidgeRegression(1e-3))
        pipeline.fit(problem.nan[:100], y[:100])
        return float(pipeline.score(problem.nan[100:], y[100:]))

    ours = score(MatrixFactorizationImputer(3))
    assert ours > 0.8
    assert ours > score(SimpleImputer())
    # NaN goes through a scaler before it, too.
    first = make_pipeline(StandardScaler(), MatrixFactorizationImputer(3))
    assert np.isfinite(first.fit_transform(problem.nan)).all()


def test_in_a_grid_search() -> None:
    problem = table(120, 12)
    y = problem.truth @ (1 / problem.truth.std(axis=0))
    pipeline = make_pipeline(
        MatrixFactorizationImputer(), StandardScaler(), RidgeRegression(1e-3)
    )
    # 50 is more than there are columns.
    grid = {"matrixfactorizationimputer__rank": [1, 3, 50]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise")
    search.fit(problem.nan, y)
    assert search.best_params_["matrixfactorizationimputer__rank"] != 1
    assert np.isfinite(search.predict(problem.nan)).all()


def test_pickles() -> None:
    X = table().nan
    model = MatrixFactorizationImputer(3, add_indicator=True).fit(X)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.transform(X).tobytes() == model.transform(X).tobytes()


@parametrize_with_checks(
    [
        MatrixFactorizationImputer(max_rounds=20),
        MatrixFactorizationImputer(
            max_rounds=20,
            missing_values=-1,
            standardize=False,
            add_indicator=True,
            keep_empty_features=True,
        ),
    ]
)
def test_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
