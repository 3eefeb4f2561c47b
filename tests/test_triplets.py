"""Tables of triplets: by plain loops, in any partitions, with any ids."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import dask
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.containers import Triplets
from dmf.triplets import DUPLICATES, from_triplets

pd = pytest.importorskip("pandas")
dd = pytest.importorskip("dask.dataframe")

NAMES = {"row": "r", "column": "c", "value": "v"}


def frame_of(lines: list[tuple[Any, Any, Any, Any]]) -> Any:
    frame = pd.DataFrame(lines, columns=["r", "c", "v", "w"])
    return frame.astype({"v": float, "w": float})


def by_loops(
    lines: list[tuple[Any, Any, float, float]], rule: str, weighted: bool
) -> tuple[dict[tuple[Any, Any], tuple[float, float]], list[Any], list[Any]]:
    """Return {(row, column): (value, weight)} and the ids, by dicts alone."""
    found: dict[tuple[Any, Any], tuple[float, float]] = {}
    rows: dict[Any, None] = {}
    columns: dict[Any, None] = {}
    groups: dict[tuple[Any, Any], list[tuple[float, float]]] = {}
    for row, column, value, weight in lines:
        rows[row] = columns[column] = None
        weight = weight if weighted else 1.0
        if not np.isnan(value) and weight > 0:
            groups.setdefault((row, column), []).append((value, weight))
    for pair, group in groups.items():
        total = sum(weight for _, weight in group)
        value, weight = {
            "mean": (sum(v * w for v, w in group) / total, total),
            "sum": (sum(v for v, _ in group), total),
            "last": group[-1],
        }[rule]
        found[pair] = (value, weight if weighted else 1.0)
    return found, list(rows), list(columns)


def as_dict(t: Triplets) -> dict[tuple[Any, Any], tuple[float, float]]:
    X, mask = dask.compute(t.X, t.mask)
    weights = np.ones(X.nnz) if mask is None else mask.data
    if mask is not None:
        assert np.array_equal(X.indptr, mask.indptr)
        assert np.array_equal(X.indices, mask.indices)
    pairs = zip(*places(X), strict=True)
    rows, columns = t.rows.tolist(), t.columns.tolist()
    return {
        (rows[i], columns[j]): (float(v), float(w))
        for (i, j), v, w in zip(pairs, X.data, weights, strict=True)
    }


def places(X: Any) -> tuple[Any, Any]:
    """Return where a csr array stores entries, zeros too."""
    return np.repeat(np.arange(X.shape[0]), np.diff(X.indptr)), X.indices


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for pair in expected:
        assert found[pair] == pytest.approx(expected[pair], rel=1e-12, abs=1e-12)


LINES = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.integers(-2, 3),
        st.one_of(st.just(np.nan), st.integers(-3, 3).map(float)),
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=30,
)


@given(
    LINES, st.sampled_from(["mean", "sum", "last"]), st.booleans(), st.integers(1, 6)
)
def test_against_loops(lines: Any, rule: str, weighted: bool, parts: int) -> None:
    """pandas and Dask, partitions with nothing in them among them."""
    frame = frame_of(lines)
    options: Any = {**NAMES, "weight": "w" if weighted else None, "duplicates": rule}
    expected, rows, columns = by_loops(lines, rule, weighted)
    one = from_triplets(frame, **options)
    with dask.config.set(scheduler="sync"):
        many = from_triplets(dd.from_pandas(frame, npartitions=parts), **options)
        for t in (one, many):
            assert (t.rows.tolist(), t.columns.tolist()) == (rows, columns)
            assert t.X.shape == (len(rows), len(columns))
            assert_same(as_dict(t), expected)


def test_dask_partitions_without_lines() -> None:
    frame = dd.from_pandas(
        frame_of([(k, k % 3, k, 1) for k in range(9)]), npartitions=3
    )
    t = from_triplets(frame[frame.r > 5], **NAMES)
    assert t.rows.tolist() == [6, 7, 8]
    assert t.X.compute().sum() == 21


IDS = [
    [3, 1, 2],
    ["z", "a", "é"],
    [2**60 + 1, 2**60, 0],
    [(1, "x"), (1,), ()],
    [("a", 1), ("b", 2), ("a", 2)],  # pandas makes levels of such tuples, if it may
    [frozenset("ab"), "ab", 7],
    list(pd.to_datetime(["2024-02-29", "1999-12-31", "2024-01-01"])),
    [date(2024, 1, 2), date(2023, 1, 1), date(2022, 1, 1)],
    [0.5, -1.5, 2.0],
]


@pytest.mark.parametrize("ids", IDS)
def test_any_hashable_ids(ids: list[Any]) -> None:
    lines = [(ids[k % 3], ids[(k // 3) % 3], float(k), 1.0) for k in range(8)]
    t = from_triplets(frame_of(lines), **NAMES)
    assert_same(as_dict(t), by_loops(lines, "last", False)[0])
    assert t.rows.name == "r"
    assert t.labels.row_positions(ids[::-1]).tolist() == [2, 1, 0]
    with dask.config.set({"dataframe.convert-string": False, "scheduler": "sync"}):
        many = from_triplets(dd.from_pandas(frame_of(lines), npartitions=3), **NAMES)
        assert many.rows.tolist() == ids
        assert as_dict(many) == as_dict(t)


@pytest.mark.parametrize(
    "make", [pd.DataFrame, lambda x: dd.from_pandas(x, npartitions=2)]
)
def test_categorical_ids_are_their_values(make: Any) -> None:
    frame = frame_of([("b", 1, 1, 1), ("a", 2, 2, 1), ("b", 2, 3, 1)])
    frame["r"] = pd.Categorical(frame["r"], categories=["a", "b", "never"])
    t = from_triplets(make(frame), **NAMES)
    assert t.rows.tolist() == ["b", "a"]
    assert not isinstance(t.rows, pd.CategoricalIndex)


def test_order_of_appearance_grows_at_the_ends() -> None:
    lines = [(9, "x", 1.0, 1.0), (2, "y", 2.0, 1.0)]
    small = from_triplets(frame_of(lines), **NAMES)
    large = from_triplets(frame_of([*lines, (5, "a", 3.0, 1.0)]), **NAMES)
    assert large.rows.tolist()[:2] == small.rows.tolist() == [9, 2]
    assert (large.X[:2, :2] != small.X).nnz == 0


def test_stored_zeros_are_observed_and_missing_values_are_not() -> None:
    values = pd.array([0.0, None, 2.0], dtype="Float32")
    frame = pd.DataFrame({"r": [1, 1, 2], "c": [1, 2, 2], "v": values})
    t = from_triplets(frame, **NAMES)
    assert (t.X.nnz, t.X.shape, t.X.dtype) == (2, (2, 2), np.float32)
    assert isinstance(t.X, sp.csr_array)
    objects = frame.astype({"v": object})
    assert as_dict(from_triplets(objects, **NAMES)) == as_dict(t)


def test_one_column_may_be_rows_and_columns() -> None:
    frame = pd.DataFrame({"id": [1, 2], "v": [1.0, 2.0]})
    for table in (frame, dd.from_pandas(frame, npartitions=2)):
        X = from_triplets(table, "id", "id", "v").X
        assert dask.compute(X)[0].toarray().tolist() == [[1, 0], [0, 2]]


def random_lines(count: int = 400, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "r": rng.zipf(1.5, count) % 30,
            "c": rng.integers(0, 12, count),
            "v": rng.standard_normal(count),
            "w": rng.uniform(0.5, 2, count),
        }
    )


@pytest.mark.parametrize("weight", [None, "w"])
def test_dask_array_fits_like_the_matrix(weight: str | None) -> None:
    frame = random_lines()
    options: Any = {**NAMES, "weight": weight, "duplicates": "mean"}
    one = from_triplets(frame, **options)
    many = from_triplets(dd.from_pandas(frame, npartitions=5), **options)
    assert len(many.X.chunks[0]) == 5
    assert isinstance(many.X._meta, sp.csr_array)
    assert_same(as_dict(many), as_dict(one))
    fits = [
        dmf.factorize(t.X, 3, mask=t.mask, tol=0, max_rounds=5) for t in (one, many)
    ]
    np.testing.assert_allclose(fits[1].W.compute(), fits[0].W, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("no_tasks")
def test_names_are_checked_before_anything_is_read() -> None:
    frame = dd.from_pandas(random_lines(), npartitions=2)
    with pytest.raises(ValueError, match="column='film', but no columns of the frame"):
        from_triplets(frame, row="r", column="film", value="v")
    with pytest.raises(AssertionError, match="a task was about to run"):
        from_triplets(frame, **NAMES)


def test_only_ids_are_read_at_first() -> None:
    frame = dd.from_pandas(random_lines(), npartitions=2)
    t = from_triplets(frame, **NAMES)  # with duplicates, but nobody has looked yet
    assert repr(t) == f"Triplets({len(t.rows)} × 12, lazy)"
    with pytest.raises(ValueError, match="pairs of ids have several values, row "):
        t.X.compute()


def test_threads_look_up_together() -> None:
    """A hash table that isn't ready would give wrong positions."""
    rng = np.random.default_rng(1)
    ids = rng.permutation(20_000)
    frame = pd.DataFrame({"r": ids, "c": ids[::-1], "v": ids.astype(float)})
    t = from_triplets(dd.from_pandas(frame, npartitions=16), **NAMES)
    X = t.X.compute(scheduler="threads", num_workers=8)
    rows, columns = places(X)
    assert np.array_equal(t.rows.to_numpy()[rows], X.data)
    assert np.array_equal(t.columns.to_numpy()[columns], ids[::-1][rows])


@pytest.mark.cluster
@pytest.mark.usefixtures("client")
def test_on_a_cluster() -> None:
    frame = random_lines()
    options: Any = {**NAMES, "weight": "w", "duplicates": "sum"}
    t = from_triplets(dd.from_pandas(frame, npartitions=4), **options)
    assert_same(as_dict(t), as_dict(from_triplets(frame, **options)))
    assert dmf.factorize(t.X, 2, mask=t.mask, max_rounds=2).shape == t.X.shape


GOOD = [("a", 1, 1.0, 1.0), ("a", 2, 2.0, 1.0), ("b", 1, 3.0, 1.0)]
NUMBERS_FIRST = "convert it first, for example with pandas.to_numeric"
REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    (
        {},
        {"duplicates": "first"},
        ValueError,
        'duplicates must be one of "error", "mean", "sum", "last", got \'first\'',
    ),
    (
        {},
        {"row": "user"},
        ValueError,
        "row='user', but no columns of the frame have that name; its columns are 'r', "
        "'c', 'v', 'w'",
    ),
    (
        {"v": pd.array(["1", "2", "3"], dtype="string")},
        {},
        TypeError,
        f"the value column 'v' holds string, not numbers; {NUMBERS_FIRST}",
    ),
    (
        {"v": pd.Series([1, "x", 2], dtype=object)},
        {},
        TypeError,
        "the value column 'v' holds objects (mixed-integer), not numbers; "
        f"{NUMBERS_FIRST}",
    ),
    (
        {"v": [1, np.inf, -np.inf]},
        {},
        ValueError,
        "the value of row 'a', column 2 is inf (2 are like it); leave it out, or make "
        "it NaN",
    ),
    (
        {"w": [1, 1, -0.5]},
        {"weight": "w"},
        ValueError,
        "the weight of row 'b', column 1 is -0.5 (1 are like it); weights must be from "
        "0 (for missing) to 1e+12",
    ),
    (
        {"w": [1, np.nan, 1]},
        {"weight": "w"},
        ValueError,
        "the weight of row 'a', column 2 is nan (1 are like it); weights must be from "
        "0 (for missing) to 1e+12",
    ),
    (
        {"r": ["a", None, None]},
        {},
        ValueError,
        "2 lines have no id in column 'r'; drop them with frame.dropna(subset=['r'])",
    ),
    (
        {"c": [1, 2, np.nan]},
        {},
        ValueError,
        "1 lines have no id in column 'c'; drop them with frame.dropna(subset=['c'])",
    ),
    (
        {"r": [[1], [2], [3]]},
        {},
        TypeError,
        "the ids in column 'r' can't be hashed (unhashable type: 'list'); turn them "
        "into tuples or strings",
    ),
    (
        {"c": [1, 1, 1]},
        {},
        ValueError,
        "1 pairs of ids have several values, row 'a', column 1 for example; say what "
        'becomes of them with duplicates="mean", "sum" or "last"',
    ),
]


@pytest.mark.parametrize(("change", "options", "error", "text"), REFUSED)
def test_refused(change: Any, options: Any, error: type[Exception], text: str) -> None:
    frame = frame_of(GOOD).assign(**change)
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        from_triplets(frame, **(NAMES | options))
    if "objects" in text or "hashed" in text:
        return  # Dask makes strings of objects
    lazy = dd.from_pandas(frame, npartitions=1)
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        from_triplets(lazy, **(NAMES | options)).X.compute()


def test_refused_frames() -> None:
    empty = "the frame has no lines; give at least one triplet"
    for frame in (frame_of([]), dd.from_pandas(frame_of([]), npartitions=1)):
        with pytest.raises(ValueError, match=f"^{empty}$"):
            from_triplets(frame, **NAMES)
    with pytest.raises(TypeError, match="must be a pandas or Dask DataFrame, got list"):
        from_triplets([(1, 2, 3.0)], **NAMES)
    twice = frame_of(GOOD).set_axis(["r", "c", "v", "v"], axis=1)
    with pytest.raises(ValueError, match="value='v', but 2 columns of the frame have"):
        from_triplets(twice, **NAMES)


def test_duplicates_that_are_missing_dont_count() -> None:
    lines = [("a", 1, 1.0, 1.0), ("a", 1, np.nan, 1.0), ("a", 1, 5.0, 0.0)]
    t = from_triplets(frame_of(lines), **NAMES, weight="w")
    assert as_dict(t) == {("a", 1): (1.0, 1.0)}
    assert repr(t) == "Triplets(1 × 1, 1 entries, weighted)"
    assert set(DUPLICATES) == {"error", "mean", "sum", "last"}
