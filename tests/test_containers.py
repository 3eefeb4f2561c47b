"""Data frames and labelled arrays: what goes in comes back, with its labels."""

from __future__ import annotations

import gc
import pickle
import re
import subprocess
import sys
import weakref
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.containers import (
    Triplets,
    check_same_labels,
    unwrap,
    unwrap_like,
    unwrap_pair,
)
from dmf.labels import ArrayLabels, Labels
from tests.conftest import refuse
from tests.problems import low_rank

pd = pytest.importorskip("pandas")
xr = pytest.importorskip("xarray")

PROBLEM = low_rank(6, 5, rank=2)


def frame_like(array: Any, **options: Any) -> Any:
    m, n = array.shape
    index = pd.Index([f"row {i}" for i in range(m)], name="place")
    columns = pd.date_range("2024-01-01", periods=n, name="day")
    return pd.DataFrame(array, **({"index": index, "columns": columns} | options))


def array_like(array: Any, name: str = "rain") -> Any:
    m, n = array.shape
    return xr.DataArray(
        array,
        dims=("station", "time"),
        coords={
            "station": [f"s{i}" for i in range(m)],
            "time": pd.date_range("2024-01-01", periods=n),
            "height": ("station", np.arange(m) * 10.0),
            "month": ("time", np.ones(n, dtype=int)),
            "quality": (("station", "time"), np.zeros((m, n), dtype=int)),
            "version": 3,
        },
        name=name,
        attrs={"units": "mm"},
    )


@pytest.mark.parametrize("make", [frame_like, array_like])
def test_round_trip(make: Any) -> None:
    """The same bits as with the plain array, and X's container with its labels."""
    X = make(PROBLEM.nan)
    array, labels = unwrap(X)
    assert labels is not None
    fit = dmf.factorize(array, 2)
    plain = dmf.factorize(PROBLEM.nan, 2)
    assert fit.W.tobytes() == plain.W.tobytes()
    filled = labels.wrap_matrix(dmf.impute(array, fit))
    assert type(filled) is type(X)
    expected = make(dmf.impute(PROBLEM.nan, plain))
    if make is frame_like:
        pd.testing.assert_frame_equal(filled, expected)
    else:
        xr.testing.assert_identical(filled, expected)
    product = labels.wrap_W(fit.W) @ labels.wrap_H(fit.H)
    np.testing.assert_allclose(product, fit.W @ fit.H)


def test_factors_of_a_frame() -> None:
    _, labels = unwrap(frame_like(PROBLEM.nan))
    assert labels is not None
    factor = np.zeros((6, 2))
    W = labels.wrap_W(factor)
    assert W.index.equals(labels.rows)
    assert W.columns.tolist() == [0, 1]
    assert W.index.name == "place"
    H = labels.wrap_H(np.zeros((2, 5)))
    assert (H.shape, H.columns.name) == ((2, 5), "day")
    W.iloc[0, 0] = 1  # the fit keeps its own
    assert factor[0, 0] == 0


def test_factors_of_an_array() -> None:
    _, labels = unwrap(array_like(PROBLEM.nan))
    assert labels is not None
    W, H = labels.wrap_W(np.zeros((6, 2))), labels.wrap_H(np.zeros((2, 5)))
    assert (W.name, W.dims, set(W.coords)) == (
        "W",
        ("station", "component"),
        {"station", "height", "version"},
    )
    assert (H.name, H.dims, set(H.coords)) == (
        "H",
        ("component", "time"),
        {"time", "month", "version"},
    )
    named = xr.DataArray(PROBLEM.nan, dims=("component", "time"))
    _, labels = unwrap(named)
    assert labels is not None
    assert labels.wrap_W(np.zeros((6, 2))).dims == ("component", "component_")


DTYPES = {
    "float32": (np.float32, np.float32),
    "Float64": (np.float64, "Float64"),
    "Int64": (np.float64, "float64"),
    "boolean": (np.float64, "float64"),
    "object": (np.float64, "float64"),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str) -> None:
    """Whatever stands for missing becomes NaN; columns of floats keep their dtype."""
    values = [1, None, 0]
    X = pd.DataFrame({name: pd.Series(values, dtype=dtype) for name in "ab"})
    array, labels = unwrap(X)
    expected_array, expected = DTYPES[dtype]
    assert labels is not None
    assert array.dtype == expected_array
    np.testing.assert_array_equal(array, np.array([[1, 1], [np.nan] * 2, [0, 0]]))
    filled = labels.wrap_matrix(np.ones((3, 2), dtype=array.dtype))
    assert (filled.dtypes == expected).all()


def test_mixed_dtypes_come_back_column_by_column() -> None:
    X = pd.DataFrame({"f": np.float32([0.1, 2]), "i": [1, 2], "b": [True, False]})
    X.insert(1, "f", pd.array([0.1, None], dtype="Float32"), allow_duplicates=True)
    array, labels = unwrap(X)
    assert labels is not None
    assert array.dtype == np.float64
    assert array[0].tolist() == [np.float32(0.1), np.float32(0.1), 1, 1]
    filled = labels.wrap_matrix(np.where(np.isnan(array), 7, array))
    assert filled.columns.tolist() == ["f", "f", "i", "b"]
    assert filled.dtypes.tolist() == [
        "float32",
        pd.Float32Dtype(),
        "float64",
        "float64",
    ]
    assert filled.iloc[0, 0] == X.iloc[0, 0]


def test_bools_stay_bools() -> None:
    """A mask, or what is held out, means something else than numbers."""
    for dtype in (bool, "boolean"):
        array, _ = unwrap(frame_like(PROBLEM.mask).astype(dtype))
        assert array.dtype == np.bool
        assert np.array_equal(array, PROBLEM.mask)


def test_sparse_columns() -> None:
    X = pd.DataFrame({"a": pd.arrays.SparseArray([1.0, np.nan])})
    array, labels = unwrap(X)
    assert labels is not None
    np.testing.assert_array_equal(array, [[1], [np.nan]])
    assert labels.wrap_matrix(np.ones((2, 1))).dtypes.tolist() == ["float64"]


REFUSED = [
    (
        pd.DataFrame({"city": pd.array(["x", "y"], dtype="string"), "t": [1.0, 2.0]}),
        TypeError,
        "column 'city' of X holds string, not numbers; drop it with "
        "X.drop(columns='city'), or convert it, for example with pandas.to_numeric",
    ),
    (
        pd.DataFrame({3: pd.Series(["1", 2], dtype=object)}),
        TypeError,
        "column 3 of X holds objects (mixed-integer), not numbers; drop it with "
        "X.drop(columns=3), or convert it, for example with pandas.to_numeric",
    ),
    (
        pd.DataFrame({"when": pd.date_range("2024", periods=2)}),
        TypeError,
        "column 'when' of X holds datetime64[",
    ),
    (
        pd.DataFrame({"a": pd.Categorical([1, 2])}),
        TypeError,
        "column 'a' of X holds category, not numbers",
    ),
    (
        pd.DataFrame({"a": pd.arrays.SparseArray([0, 1])}),
        ValueError,
        "column 'a' of X is sparse, with 0 where nothing is stored; pass "
        "X.sparse.to_dense() if that was observed, or "
        "scipy.sparse.csr_array(X.sparse.to_coo()) if it is missing",
    ),
    (
        xr.DataArray(np.zeros((2, 2, 2)), dims=("x", "y", "z")),
        ValueError,
        "X must have two dimensions, got ('x', 'y', 'z'); stack some of them first",
    ),
]


@pytest.mark.parametrize(("X", "error", "text"), REFUSED)
def test_refused(X: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        unwrap(X)


@pytest.mark.parametrize("X", [PROBLEM.nan, sp.eye_array(3), [[1.0]], None, 0.1])
def test_anything_else_is_left_alone(X: Any) -> None:
    array, labels = unwrap(X)
    assert array is X
    assert labels is None
    assert unwrap_like(X, None) is X


# Lazy arrays.


@pytest.mark.usefixtures("no_tasks")
def test_lazy_arrays_stay_lazy() -> None:
    X = array_like(da.from_array(PROBLEM.nan, chunks=3))
    X = X.assign_coords(lazy=("station", da.from_array(np.ones(6), chunks=2)))
    array, labels = unwrap(X)
    assert labels is not None
    assert array is X.data
    filled = labels.wrap_matrix(array * 2)
    assert filled.chunks == X.chunks
    assert (filled.dims, set(filled.coords)) == (X.dims, set(X.coords))
    W = labels.wrap_W(da.zeros((6, 2), chunks=3))
    assert W.chunks == ((3, 3), (2,))


def test_a_lazy_array_is_imputed_lazily() -> None:
    X = array_like(da.from_array(PROBLEM.nan, chunks=3))
    array, labels = unwrap(X)
    assert labels is not None
    fit = dmf.factorize(array, 2)
    with dask.config.set(scheduler=refuse):
        filled = labels.wrap_matrix(dmf.impute(array, fit))
    expected = np.where(PROBLEM.mask, PROBLEM.truth, (fit.W @ fit.H).compute())
    np.testing.assert_allclose(filled.values, expected)


def test_labels_let_go_of_the_data() -> None:
    data = np.ones((300, 400))
    alive = weakref.ref(data)
    labels = unwrap(array_like(data))[1]
    del data
    gc.collect()
    assert alive() is None
    assert isinstance(pickle.loads(pickle.dumps(labels)), ArrayLabels)


# Labels beside labels.


@pytest.mark.parametrize("make", [frame_like, array_like])
def test_masks_with_labels(make: Any) -> None:
    X, mask = make(PROBLEM.truth), make(PROBLEM.mask)
    array, plain, labels = unwrap_pair(X, mask)
    assert labels is not None
    assert array.shape == plain.shape
    assert plain.dtype == np.bool
    assert unwrap_like(PROBLEM.mask, labels) is PROBLEM.mask  # goes by position
    assert unwrap_pair(X, None)[1] is None
    # Without labels of X, those of the mask don't matter.
    assert unwrap_pair(PROBLEM.truth, mask)[1].tolist() == PROBLEM.mask.tolist()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda mask: mask[::-1], "its row 0 is 'row 5', not 'row 0'"),
        (lambda mask: mask.iloc[:4], "it has 4 rows, not 6"),
        (
            lambda mask: mask.iloc[:, [0, 1, 3, 2, 4]],
            "its column 2 is Timestamp('2024-01-04 00:00:00'), not "
            "Timestamp('2024-01-03 00:00:00')",
        ),
    ],
)
def test_masks_with_other_labels(change: Any, text: str) -> None:
    X, mask = frame_like(PROBLEM.truth), frame_like(PROBLEM.mask)
    sentence = (
        f"the labels of mask aren't those of X: {text}; align them first, for example "
        "with mask.reindex_like(X)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        unwrap_pair(X, change(mask))
    assert unwrap_pair(X, change(mask).reindex_like(X))[1].shape == X.shape


def test_masks_of_other_dimensions() -> None:
    X, mask = array_like(PROBLEM.truth), array_like(PROBLEM.mask)
    with pytest.raises(ValueError, match=r"dimensions are \('time', 'station'\), not"):
        unwrap_pair(X, mask.T)
    with pytest.raises(ValueError, match="its row 1 is 's2', not 's1'"):
        unwrap_pair(X, mask.isel(station=[0, 2, 1, 3, 4, 5]))
    # As in xarray, what has no labels fits by position.
    bare = xr.DataArray(PROBLEM.mask, dims=X.dims)
    assert unwrap_pair(X, bare)[1] is bare.data


def test_labels_of_the_fit() -> None:
    X = frame_like(PROBLEM.nan)
    labels = unwrap(X)[1]
    check_same_labels(labels, labels)
    check_same_labels(None, labels)
    check_same_labels(labels, None)
    sentence = (
        "the labels of X aren't those that were factorized: its row 0 is 'row 1', not "
        "'row 0'; put its rows and columns into that order with X.reindex, or "
        "factorize this X"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_same_labels(unwrap(X.iloc[[1, 0, 2, 3, 4, 5]])[1], labels)


@given(st.lists(st.sampled_from([0, 1.5, "a", None, np.nan, (1, 2)]), min_size=1))
def test_the_first_difference_is_found(names: list[Any]) -> None:
    """Missing labels are equal to themselves."""
    own = pd.Index(names, dtype=object, tupleize_cols=False)
    columns = pd.RangeIndex(2)
    assert Labels(own, columns, {}).difference(Labels(own.copy(), columns, {})) is None
    k = len(names) // 2
    other = pd.Index([*names[:k], "new", *names[k + 1 :]], tupleize_cols=False)
    found = Labels(own, columns, {}).difference(Labels(other, columns, {}))
    assert found is not None
    assert found.startswith(f"its row {k} is 'new', not ")


# Positions of ids.


def test_positions() -> None:
    labels = unwrap(frame_like(PROBLEM.nan))[1]
    assert labels is not None
    assert labels.row_positions(["row 4", "row 0"]).tolist() == [4, 0]
    assert labels.row_positions([]).tolist() == []
    assert labels.column_positions(labels.columns[[3, 1, 1]]).tolist() == [3, 1, 1]
    levels = pd.MultiIndex.from_product([["a", "b"], [1, 2]])
    labels = Labels(levels, pd.Index([(1, 2), (3,)], tupleize_cols=False), {})
    assert labels.row_positions([("b", 1)]).tolist() == [2]
    assert labels.row_positions([]).tolist() == []
    assert labels.column_positions([(3,), (1, 2)]).tolist() == [1, 0]


def test_unknown_ids() -> None:
    labels = Labels(pd.Index(["a", "b"]), pd.Index([1, 2, 1]), {})
    text = (
        "no row has the id 'z' (2 of 3 ids are unknown); the 2 ids are in labels.rows"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        labels.row_positions(["a", "z", 3])
    with pytest.raises(
        TypeError, match=r"give a list of ids of rows, got 'a'; for one"
    ):
        labels.row_positions("a")
    with pytest.raises(ValueError, match="several columns have the id 1; make the ids"):
        labels.column_positions([2])


def test_triplets_and_masks() -> None:
    X = sp.csr_array(np.eye(2))
    rows = pd.Index(["a", "b"])
    t = Triplets(X, None, rows, rows)
    assert unwrap_pair(t, None)[:2] == (X, None)
    assert unwrap_pair(t, X)[1] is X
    assert t.labels.wrap_matrix(np.eye(2)).loc["b", "b"] == 1
    weighted = Triplets(X, X, rows, rows)
    assert unwrap_pair(weighted, None)[1] is X
    with pytest.raises(ValueError, match="the triplets have weights of their own"):
        unwrap_pair(weighted, X)
    lazy = da.zeros((2, 2))
    for wrap in (t.labels.wrap_matrix, t.labels.wrap_W, t.labels.wrap_H):
        assert wrap(lazy) is lazy


def test_nothing_is_imported_for_plain_arrays() -> None:
    code = (
        "import sys, numpy, dmf.containers, dmf.triplets\n"
        "dmf.containers.unwrap_pair(numpy.eye(2), None)\n"
        "print([n for n in ('pandas', 'xarray', 'dask.dataframe') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
