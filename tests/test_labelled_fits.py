"""Data frames, labelled arrays and triplets, through all that a model can do.

The plain matrix goes beside them: what is called by names is the same, bit by bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from dmf.containers import Triplets, unwrap
from dmf.entries import is_sparse
from dmf.holdout import Share
from dmf.labels import numbers_of
from tests.problems import fitted, low_rank, same_factors

pd = pytest.importorskip("pandas")
xr = pytest.importorskip("xarray")

Array = Any

PROBLEM = low_rank(m=20, n=12, observed=0.7)
NAMES = [f"row {i}" for i in range(40)]
DAYS = pd.date_range("2024-03-28", periods=40, tz="Europe/Berlin", name="day")
OPTIONS: dict[str, Any] = {"offsets": "both", "penalty": dmf.Ridge(0.3)}


def frame_of(array: Array, rows: int = 0, columns: int = 0) -> Any:
    """Return a data frame whose labels begin with the given ones."""
    m, n = array.shape
    index = pd.Index(NAMES[rows : rows + m], name="place")
    return pd.DataFrame(array, index=index, columns=DAYS[columns : columns + n])


def array_of(array: Array, rows: int = 0, columns: int = 0) -> Any:
    m, n = array.shape
    days = DAYS.tz_localize(None)[columns : columns + n]
    coords = {"place": NAMES[rows : rows + m], "day": days}
    return xr.DataArray(array, dims=("place", "day"), coords=coords)


def triplets_of(array: Array, rows: int = 0, columns: int = 0) -> Any:
    """Return triplets whose ids appear in order; some lines are missing ones."""
    m, n = array.shape
    i, j = np.indices((m, n))
    lines = pd.DataFrame(
        {
            "r": np.array(NAMES)[rows + i.ravel()],
            "c": columns + j.ravel(),
            "v": array.ravel(),
            "w": np.where(np.isnan(array), 1.0, 2.0).ravel(),
        }
    )
    return dmf.from_triplets(lines, row="r", column="c", value="v", weight="w")


Make = Callable[..., Any]
MAKES: list[Make] = [frame_of, array_of, triplets_of]
TABLES: list[Make] = [frame_of, array_of]


def plain(X: Any) -> tuple[Any, Any]:
    """Return the matrix of a container and its weights."""
    if isinstance(X, Triplets):
        return X.X, X.mask
    return unwrap(X)[0], None


def values(X: Any) -> Array:
    return np.asarray(X)


def both(X: Any, call: Callable[..., Any]) -> tuple[Any, Any]:
    """Return what a call makes of a container, and of its plain matrix."""
    matrix, mask = plain(X)
    return call(X), call(matrix, **({} if mask is None else {"mask": mask}))


def held_out_of(X: Any, fraction: float) -> Any:
    """Return what is held out of a container: its labels decide."""
    matrix, labels = plain(X)[0], X.labels if isinstance(X, Triplets) else unwrap(X)[1]
    numbers = np.meshgrid(*numbers_of(labels), indexing="ij")
    chosen = Share(fraction, 0).chosen(*numbers)
    return matrix.astype(bool).multiply(chosen) if is_sparse(matrix) else chosen


@pytest.mark.parametrize("make", MAKES)
def test_shares_that_are_held_out_go_by_labels(make: Make) -> None:
    X = make(PROBLEM.nan)
    matrix, mask = plain(X)
    found = fitted(X, validation=0.2, **OPTIONS)
    held_out = held_out_of(X, 0.2)
    expected = fitted(matrix, mask=mask, validation=held_out, **OPTIONS)
    assert same_factors(found, expected)


@pytest.mark.parametrize("make", MAKES)
def test_factorize(make: Make) -> None:
    X = make(PROBLEM.nan)
    fit, expected = both(X, lambda X, **own: fitted(X, **OPTIONS, **own))
    assert same_factors(fit, expected)
    assert expected.labels is None
    assert fit.labels.rows.tolist() == NAMES[:20]
    assert fit.labels.row_positions(["row 7", "row 2"]).tolist() == [7, 2]
    assert len(fit.labels.columns) == 12


@pytest.mark.parametrize("make", MAKES)
def test_impute(make: Make) -> None:
    X = make(PROBLEM.nan)
    fit, expected = both(X, lambda X, **own: fitted(X, **OPTIONS, **own))
    filled = dmf.impute(X, fit)
    matrix, _ = plain(X)
    np.testing.assert_array_equal(values(filled), dmf.impute(matrix, expected))
    if make is array_of:
        xr.testing.assert_identical(filled.coords.to_dataset(), X.coords.to_dataset())
        assert filled.dims == X.dims
        return
    assert isinstance(filled, pd.DataFrame)
    assert filled.index.tolist() == NAMES[:20]
    columns = X.columns
    pd.testing.assert_index_equal(filled.columns, columns)


@pytest.mark.parametrize("make", TABLES)
def test_masks_and_validation_with_labels(make: Make) -> None:
    train, held_out = dmf.split_observed(PROBLEM.nan, 0.2)
    options = OPTIONS | {"max_rounds": 4}
    expected = fitted(train, mask=PROBLEM.weights, validation=held_out, **options)
    mask, validation = make(PROBLEM.weights), make(held_out)
    for given_validation in (validation, held_out):
        fit = fitted(make(train), mask=mask, validation=given_validation, **options)
        assert same_factors(fit, expected)
        np.testing.assert_array_equal(
            fit.history.validation_rmse, expected.history.validation_rmse
        )
    text = (
        "the labels of validation aren't those of X: its row 0 is 'row 1', not "
        "'row 0'; align them first, for example with validation.reindex_like(X)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fitted(make(train), validation=make(held_out, rows=1))
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        dmf.sweep(make(train), [2], validation=make(held_out, rows=1))


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("axis", [0, 1])
def test_fold_in(make: Make, axis: int) -> None:
    name = ("rows", "columns")[axis]
    known, new = (
        (PROBLEM.nan[:15], PROBLEM.nan[15:])
        if axis == 0
        else (PROBLEM.nan[:, :8], PROBLEM.nan[:, 8:])
    )
    start = {"rows": 15} if axis == 0 else {"columns": 8}
    X, more = make(known), make(new, **start)
    fit, expected = both(X, lambda X, **own: fitted(X, **OPTIONS, **own))
    model, other = both(
        more,
        lambda part, **own: (fit if part is more else expected).fold_in(
            **{name: part}, **own
        ),
    )
    assert same_factors(model, other)
    assert model.labels.rows.tolist() == (NAMES[15:20] if axis == 0 else NAMES[:20])
    filled = dmf.impute(more, model)
    np.testing.assert_array_equal(values(filled), dmf.impute(plain(more)[0], other))
    # New rows of other columns than those that were fitted.
    wrong = make(new, rows=15, columns=1) if axis == 0 else make(new, rows=1, columns=8)
    with pytest.raises(ValueError, match="the labels of X aren't those that were"):
        fit.fold_in(**{name: wrong})
    # Without labels, rows go by position.
    bare = fit.fold_in(**{name: new})
    assert bare.labels is None


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("old", [(15, 12), (20, 8), (15, 8), (20, 12)])
def test_growth(make: Make, old: tuple[int, int]) -> None:
    m, n = old
    first, second = make(PROBLEM.nan[:m, :n]), make(PROBLEM.nan)
    if make is triplets_of:
        assert second.rows.tolist()[:m] == first.rows.tolist()
    fit, expected = both(first, lambda X, **own: fitted(X, **OPTIONS, **own))
    grown, other = both(
        second,
        lambda X, **own: fitted(
            X, start=fit if X is second else expected, **OPTIONS, **own
        ),
    )
    assert same_factors(grown, other)
    assert grown.labels.rows.tolist() == NAMES[:20]
    wrong = make(PROBLEM.nan, rows=1)
    text = (
        "the labels of X don't go on from those that were factorized: its row 0 is "
        "'row 1', not 'row 0'; put what is known first, in its order, with X.reindex"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fitted(wrong, start=fit)
    wrong = make(PROBLEM.nan, columns=2)
    with pytest.raises(
        ValueError, match=r"the labels of X don't go on .* its column 0"
    ):
        fitted(wrong, start=fit)


@pytest.mark.parametrize("make", MAKES)
def test_sweeps_and_ensembles(make: Make) -> None:
    X = make(PROBLEM.nan)
    options: dict[str, Any] = {"max_rounds": 4, "tol": 0}
    matrix, mask = plain(X)
    found = dmf.sweep(X, [1, 2], validation=0.1, **options)
    options["validation"] = held_out_of(X, 0.1)
    expected = dmf.sweep(matrix, [1, 2], mask=mask, **options)
    del options["validation"]
    assert same_factors(found.best, expected.best)
    assert found.best.labels.rows.tolist() == NAMES[:20]
    assert [t.objective for t in found] == [t.objective for t in expected]
    ensemble, other = both(
        X, lambda X, **own: dmf.Ensemble.fit(X, 2, restarts=3, **options, **own)
    )
    for one, alike in zip(ensemble.fits, other.fits, strict=True):
        assert same_factors(one, alike)
        assert one.labels.rows.tolist() == NAMES[:20]
    pairs = ensemble.predict([0, 1], [2, 3]), other.predict([0, 1], [2, 3])
    np.testing.assert_array_equal(*pairs)


@pytest.mark.parametrize("make", TABLES)
def test_an_ensemble_with_labelled_validation(make: Make) -> None:
    train, held_out = dmf.split_observed(PROBLEM.nan, 0.2)
    options: dict[str, Any] = {"restarts": 2, "max_rounds": 3}
    expected = dmf.Ensemble.fit(train, 2, validation=held_out, **options)
    found = dmf.Ensemble.fit(make(train), 2, validation=make(held_out), **options)
    for one, other in zip(found.fits, expected.fits, strict=True):
        assert same_factors(one, other)


def test_labels_of_arrays_that_have_none() -> None:
    """As in xarray, a dimension without labels fits one with any."""
    bare = xr.DataArray(PROBLEM.nan, dims=("place", "day"))
    named = array_of(PROBLEM.nan)
    for one, other in ((bare, named), (named, bare)):
        fit = fitted(one)
        assert dmf.impute(other, fit).shape == (20, 12)
        assert fit.fold_in(rows=other[:3]).shape == (3, 12)
        assert fitted(other, start=fit).shape == (20, 12)


def test_other_dimensions_do_not_go_on() -> None:
    fit = fitted(array_of(PROBLEM.nan))
    turned = array_of(PROBLEM.nan).rename(place="station")
    with pytest.raises(ValueError, match=r"its dimensions are \('station', 'day'\)"):
        fitted(turned, start=fit)


# ------------------------------------------------------------------------- on disk

INDEXES = {
    "strings": pd.Index(["ä", "b c", "", "d"], name="place"),
    "ints": pd.Index([7, -1, 2**62, 0]),
    "range": pd.RangeIndex(10, 18, 2, name="k"),
    "floats": pd.Index([0.1, -0.0, 1e300, 5e-324]),
    "bools": pd.Index([True, False, True, False]),
    "mixed": pd.Index(["a", 1, 2.5, True], dtype=object),
    "days": pd.date_range("1600-01-01", periods=4, unit="s", name="day"),
    "zone": pd.date_range("2024-10-26 23:00", periods=4, freq="h", tz="Europe/Berlin"),
    "utc": pd.date_range("2024-10-26", periods=4, freq="h", tz="UTC", unit="ms"),
    "spans": pd.to_timedelta([0, 1, -5, 10**9], unit="us"),
}


def round_trip(index: Any, columns: Any, path: Path) -> tuple[Any, Any]:
    X = pd.DataFrame(low_rank(4, 4).truth, index=index, columns=columns)
    fit = fitted(X, rank=2)
    fit.save(str(path))
    return fit, dmf.load(path)


@pytest.mark.parametrize("name", INDEXES)
def test_labels_come_back(name: str, tmp_path: Path) -> None:
    fit, again = round_trip(INDEXES[name], INDEXES["ints"], tmp_path / "rows.zarr")
    assert same_factors(fit, again)
    loaded = again.labels.rows
    assert loaded.equals(INDEXES[name])
    assert loaded.name == INDEXES[name].name
    assert list(map(repr, loaded)) == list(map(repr, INDEXES[name]))
    _, other = round_trip(INDEXES["ints"], INDEXES[name], tmp_path / "columns.zarr")
    assert other.labels.columns.equals(INDEXES[name])
    # It fills frames, and knows its own labels.
    X = pd.DataFrame(low_rank(4, 4).nan, index=INDEXES[name], columns=INDEXES["ints"])
    filled = dmf.impute(X, again)
    pd.testing.assert_frame_equal(filled, dmf.impute(X, fit))


@settings(max_examples=10)
@given(names=st.lists(st.text(max_size=5), min_size=4, max_size=4))
def test_any_text_comes_back(names: list[str], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("text") / "model.zarr"
    _, again = round_trip(pd.Index(names), INDEXES["ints"], path)
    assert again.labels.rows.tolist() == names


BAD = {
    "tuples": (pd.Index([(1, "a"), (2, "b"), (3, "c"), (4, "d")]), (1, "a")),
    "dates": (pd.Index([date(2024, 1, k) for k in range(1, 5)]), date(2024, 1, 1)),
    "name": (pd.Index([1, 2, 3, 4], name=("a", 1)), ("a", 1)),
    "missing": (pd.Index(["a", "b", None, "d"], dtype=object), None),
}


@pytest.mark.parametrize("name", BAD)
def test_labels_that_are_no_plain_values_are_refused(name: str, tmp_path: Path) -> None:
    index, value = BAD[name]
    text = (
        f"{value!r}, a label of the rows, can't be saved, because a model holds "
        "strings, numbers and times only; save dataclasses.replace(fit, labels=None), "
        "or rename the labels"
    )
    path = tmp_path / "model.zarr"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        round_trip(index, INDEXES["ints"], path)
    assert not path.exists()
    X = pd.DataFrame(low_rank(4, 4).truth, index=index)
    replace(fitted(X, rank=2), labels=None).save(str(path))
    assert dmf.load(path).labels is None


@pytest.mark.parametrize("make", MAKES)
def test_saved_models_go_on(make: Make, tmp_path: Path) -> None:
    """Of what was a DataArray, or triplets, the labels stay."""
    X = make(PROBLEM.nan)
    fit = fitted(X, **OPTIONS)
    fit.save(str(tmp_path / "model.zarr"))
    again = dmf.load(tmp_path / "model.zarr")
    np.testing.assert_array_equal(
        values(dmf.impute(X, again)), values(dmf.impute(X, fit))
    )
    options = OPTIONS | {"max_rounds": 2}
    # Arrays from disk may lie otherwise in memory, which BLAS rounds otherwise.
    one, other = (fitted(X, start=start, **options) for start in (again, fit))
    np.testing.assert_allclose(one.W, other.W, rtol=1e-9)
    with pytest.raises(ValueError, match="the labels of X aren't those that were"):
        dmf.impute(make(PROBLEM.nan, rows=1), again)
