"""Predictions against plain NumPy: pairs, everything, the best of a row, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf import _predict
from dmf._predict import Score, predict, recommend, reconstruct, score
from dmf.engine import predict as engine
from dmf.offsets import COLUMNS
from tests.problems import FORMS, form_of, low_rank, mask_for, sparse_chunks

Array = Any

OFFSETS = sorted(COLUMNS)
SHAPE = (30, 20)


def model(
    W: Array, H: Array, offsets: str = "none", seed: int = 0, **parts: Any
) -> dmf.Factorization:
    """Return a factorization with given factors, and integers as its offsets."""
    rng = np.random.default_rng(seed)
    m, n = W.shape[0], H.shape[1]
    b, c = rng.integers(-3, 4, m), rng.integers(-3, 4, n)
    return dmf.Factorization(
        W,
        H,
        history=dmf.History([]),
        status=dmf.Status("converged", 1),
        penalty=(dmf.Ridge(0), dmf.Ridge(0)),
        solver=dmf.NormalizedGradient(),
        seed=0,
        offsets=offsets,
        offset=0.0 if offsets == "none" else 2.0,
        row_offsets=b.astype(W.dtype) if offsets in ("rows", "both") else None,
        column_offsets=c.astype(W.dtype) if offsets in ("columns", "both") else None,
        **parts,
    )


def random_model(
    offsets: str = "none", dtype: Any = np.float64, shape: tuple[int, int] = SHAPE
) -> dmf.Factorization:
    rng = np.random.default_rng(1)
    W, H = rng.standard_normal((shape[0], 3)), rng.standard_normal((3, shape[1]))
    return model(W.astype(dtype), H.astype(dtype), offsets)


def lazy(fit: dmf.Factorization, chunks: Any = (7, 6)) -> dmf.Factorization:
    """Return the same factorization with Dask factors, in strips of their own."""

    def strips(offsets: Array | None, length: int) -> Array | None:
        return None if offsets is None else da.from_array(offsets, chunks=length)

    return dataclasses.replace(
        fit,
        W=da.from_array(fit.W, chunks=(chunks[0], -1)),
        H=da.from_array(fit.H, chunks=(-1, chunks[1])),
        row_offsets=strips(fit.row_offsets, chunks[0]),
        column_offsets=strips(fit.column_offsets, chunks[1]),
    )


def plain(fit: dmf.Factorization) -> Array:
    """Return all predictions, written plainly."""
    b, c = (0 if o is None else o for o in (fit.row_offsets, fit.column_offsets))
    b, c = np.asarray(b), np.asarray(c)
    product = np.asarray(fit.W) @ np.asarray(fit.H)
    return product + fit.offset + b.reshape(-1, 1) + c.reshape(1, -1)


def counted(X: Array, chunks: Any, read: list[Any]) -> Any:
    """Return a Dask array that writes down which of its chunks are computed."""

    def block(chunk: Array, block_info: Any = None) -> Array:
        if block_info:
            read.append(block_info[0]["chunk-location"])
        return chunk

    X = da.from_array(X, chunks=chunks)
    return X.map_blocks(block, dtype=X.dtype, meta=np.empty((0, 0), X.dtype))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Make tiles so small that a few rows and columns need many of them."""
    patch.setattr(_predict, "PAIRS_BYTES", 300)
    patch.setattr(_predict, "TILE_COLUMNS", 4)
    patch.setattr(_predict, "TILE_ENTRIES", 40)
    patch.setattr(engine, "FETCH_ENTRIES", 30)


# Pairs.


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("form", [lambda fit: fit, lazy], ids=["numpy", "dask"])
@pytest.mark.usefixtures("small_tiles")
def test_pairs(offsets: str, form: Any) -> None:
    fit = random_model(offsets)
    rng = np.random.default_rng(2)
    rows, columns = rng.integers(0, 30, 50), rng.integers(0, 20, 50)
    found = predict(form(fit), rows, columns)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, plain(fit)[rows, columns], rtol=1e-12)


@pytest.mark.parametrize("form", [lambda fit: fit, lazy], ids=["numpy", "dask"])
def test_pairs_are_broadcast(form: Any) -> None:
    fit = form(random_model("both", np.float32))
    expected = plain(fit)
    rows = np.array([5, 2], dtype=np.uint8)
    found = predict(fit, rows[:, None], range(20))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[[5, 2]], rtol=1e-5, atol=1e-5)
    assert predict(fit, 29, [[19]]).shape == (1, 1)
    one = predict(fit, 29, 19)
    assert one.shape == ()
    np.testing.assert_allclose(one, expected[29, 19], rtol=1e-5)
    assert predict(fit, [], []).shape == (0,)
    assert predict(fit, np.empty((0, 1)), [1, 2]).shape == (0, 2)


def test_pairs_compute_their_chunks_only() -> None:
    fit = random_model()
    read_W: list[Any] = []
    read_H: list[Any] = []
    W = counted(fit.W, (7, 3), read_W)
    H = counted(fit.H, (3, 6), read_H)
    predict(dataclasses.replace(fit, W=W, H=H), [29, 0, 3], [7, 6, 7])
    assert sorted(read_W) == [(0, 0), (4, 0)]
    assert read_H == [(0, 1)]


def test_many_pairs_read_each_strip_of_rows_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = random_model()
    monkeypatch.setattr(_predict, "PAIRS_BYTES", 7 * 2 * 3 * 8)
    read: list[Any] = []
    W = counted(fit.W, (7, 3), read)
    rows = np.random.default_rng(0).permutation(30)
    found = predict(dataclasses.replace(fit, W=W), rows, rows % 20)
    np.testing.assert_allclose(found, plain(fit)[rows, rows % 20], rtol=1e-12)
    assert sorted(read) == [(i, 0) for i in range(5)]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [0, -1, 30],
            [0, 0, 0],
            r"rows\[1\] is -1, but the matrix has 30 rows; give positions from 0 to 29",
        ),
        (
            [[0], [1]],
            [[0, 1], [0, 20]],
            r"columns\[1, 1\] is 20, but the matrix has 20 columns; give positions "
            "from 0 to 19",
        ),
        (
            np.uint64(2**63),
            0,
            "rows is 9223372036854775808, but the matrix has 30 rows; give positions "
            "from 0 to 29",
        ),
        (
            [1, 2, 3],
            [1, 2],
            r"rows of shape \(3,\) and columns of shape \(2,\) don't make pairs; give "
            r"equally many, or rows\[:, None\] for all pairs",
        ),
    ],
)
def test_bad_pairs(rows: Any, columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        predict(random_model(), rows, columns)


@pytest.mark.parametrize("rows", [[0.0], [True], ["ann"], [2**70]])
def test_positions_are_integers(rows: Any) -> None:
    message = (
        f"^rows must be integers, got dtype {np.asarray(rows).dtype}; give the "
        "positions of rows and columns, for those of a mask numpy.flatnonzero"
    )
    with pytest.raises(TypeError, match=message):
        predict(random_model(), rows, [0])
    with pytest.raises(TypeError, match=message):
        recommend(random_model(), rows, 2)


# Everything.


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("form", [lambda fit: fit, lazy], ids=["numpy", "dask"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reconstruction(offsets: str, form: Any, dtype: Any) -> None:
    fit = random_model(offsets, dtype)
    whole = reconstruct(form(fit))
    assert isinstance(whole, da.Array)
    assert (whole.shape, whole.dtype) == (SHAPE, dtype)
    tolerance = 20 * np.finfo(dtype).eps
    values = whole.compute()
    assert values.dtype == dtype
    np.testing.assert_allclose(values, plain(fit), rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("no_tasks")
@pytest.mark.parametrize("form", [lambda fit: fit, lazy], ids=["numpy", "dask"])
def test_reconstruction_computes_nothing(form: Any) -> None:
    reconstruct(form(random_model("both")))


def test_reconstruction_has_chunks_of_32_MiB() -> None:
    fit = random_model(shape=(9000, 5000))
    whole = reconstruct(fit)
    largest = np.prod(whole.chunksize) * 8
    assert 2**23 < largest <= 2**25
    rows, columns = slice(8990, None), slice(2, 4)
    np.testing.assert_allclose(
        whole[rows, columns].compute(), plain(fit)[rows, columns], rtol=1e-12
    )


def test_reconstruction_keeps_the_chunks_of_factors() -> None:
    assert reconstruct(lazy(random_model())).chunks == ((7, 7, 7, 7, 2), (6, 6, 6, 2))


def test_one_factor_may_be_lazy() -> None:
    fit = random_model("both")
    mixed = dataclasses.replace(fit, W=da.from_array(fit.W, chunks=(7, 2)))
    assert reconstruct(mixed).chunks == ((7, 7, 7, 7, 2), (20,))
    np.testing.assert_allclose(reconstruct(mixed).compute(), plain(fit), rtol=1e-12)
    np.testing.assert_allclose(predict(mixed, 3, 4), plain(fit)[3, 4], rtol=1e-12)


@pytest.mark.parametrize(
    ("chunks", "most"), [((15, 10), 40), ((30, 1), 7), ((1, 20), 7), ((7, 6), 1)]
)
def test_blocks_that_would_be_too_large_are_cut(
    chunks: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_BYTES", most * 8)
    fit = random_model("rows")
    whole = reconstruct(lazy(fit, chunks))
    assert np.prod(whole.chunksize) <= most
    for axis in (0, 1):  # the bounds of the factors are still there
        own = range(0, SHAPE[axis], chunks[axis])
        assert set(own) <= {0, *np.cumsum(whole.chunks[axis]).tolist()}
    np.testing.assert_allclose(whole.compute(), plain(fit), rtol=1e-12)


# The best of a row.


def plain_best(values: Array, n: int) -> tuple[Array, Array]:
    """Return the n best columns of each row, one after the other, as Python sorts."""
    columns, scores = np.full((len(values), n), -1), np.full((len(values), n), np.nan)
    for i, row in enumerate(values.tolist()):
        kept = [j for j in range(len(row)) if row[j] > -np.inf]
        for k, j in enumerate(sorted(kept, key=lambda j: (-row[j], j))[:n]):
            columns[i, k], scores[i, k] = j, row[j]
    return columns, scores


def excluding(hidden: Array, form: str) -> Any:
    """Return a bool array in one of the forms that say what is excluded."""
    if form == "bool":
        return hidden
    if form == "nan":
        return np.where(hidden, 0.0, np.nan)
    if form == "coo":  # stored zeros count
        places = np.nonzero(hidden)
        return sp.coo_matrix((np.zeros(len(places[0])), places), shape=hidden.shape)
    if form == "csc":
        return sp.csc_array(hidden)
    if form == "dask-sparse":
        return sparse_chunks(hidden.astype(float), (4, 5))
    chunked = da.from_array(excluding(hidden, form.removeprefix("dask-")), (4, 5))
    return chunked


EXCLUDING = ["bool", "nan", "coo", "csc", "dask-bool", "dask-nan", "dask-sparse"]


@given(data=st.data())
def test_the_best_with_ties(data: st.DataObject) -> None:
    """Factors of few integers: many predictions are equal, and all are exact."""
    m, n = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    W, H = rng.integers(-1, 2, (m, 2)), rng.integers(-1, 2, (2, n))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    offsets = data.draw(st.sampled_from(OFFSETS))
    fit = model(W.astype(dtype), H.astype(dtype), offsets, seed)
    form = data.draw(st.sampled_from([None, *EXCLUDING]))
    hidden = rng.random((m, n)) < data.draw(st.sampled_from([0.0, 0.4, 1.0]))
    rows = data.draw(st.lists(st.integers(0, m - 1), max_size=8))
    wanted = data.draw(st.integers(1, n + 3))

    values = plain(fit)
    if form is not None:
        values[hidden] = -np.inf
    expected = plain_best(values[rows], wanted)
    if data.draw(st.booleans()):
        fit = lazy(fit, (5, 3))
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            shrink(patch)
        exclude = None if form is None else excluding(hidden, form)
        columns, scores = recommend(fit, rows, wanted, exclude)
    assert (columns.dtype, scores.dtype) == (np.int64, dtype)
    assert columns.shape == scores.shape == (len(rows), wanted)
    np.testing.assert_array_equal(columns, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("form", [lambda fit: fit, lazy], ids=["numpy", "dask"])
@pytest.mark.usefixtures("small_tiles")
def test_the_best_are_those_of_the_dense_product(offsets: str, form: Any) -> None:
    problem = low_rank()
    fit = random_model(offsets)
    columns, scores = recommend(form(fit), range(30), 6, exclude=problem.sparse())
    values = np.where(problem.mask, -np.inf, plain(fit))
    np.testing.assert_array_equal(columns, plain_best(values, 6)[0])
    np.testing.assert_allclose(scores, plain_best(values, 6)[1], rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_the_fitted_matrix_excludes_what_is_known(form: str) -> None:
    problem = low_rank()
    X = form_of(problem, form)
    fit = dmf.factorize(X, 3, max_rounds=5)
    columns, _ = recommend(fit, [4, 4, 0], 20, X)
    for row, found in zip([4, 4, 0], columns, strict=True):
        left = set(np.flatnonzero(~problem.mask[row]).tolist())
        assert set(found.tolist()) == left | {-1}


def test_only_the_chunks_of_the_rows_are_computed() -> None:
    read: list[Any] = []
    exclude = counted(np.zeros(SHAPE, dtype=bool), (10, 5), read)
    fit = random_model()
    columns, _ = recommend(fit, [29, 2, 25], 4, exclude)
    np.testing.assert_array_equal(columns, recommend(fit, [29, 2, 25], 4)[0])
    assert sorted(read) == [(i, j) for i in (0, 2) for j in range(4)]


def test_each_chunk_of_the_factors_is_computed_once() -> None:
    fit = random_model()
    read: list[Any] = []
    H = counted(fit.H, (3, 6), read)
    recommend(dataclasses.replace(fit, H=H), np.arange(30).repeat(3), 4)
    assert sorted(read) == [(0, j) for j in range(4)]


def test_tiles_are_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of predictions is larger than a tile."""
    seen: list[int] = []

    def improve(*arguments: Any) -> None:
        seen.append(arguments[3].size)
        original(*arguments)

    original = _predict._improve
    monkeypatch.setattr(_predict, "_improve", improve)
    monkeypatch.setattr(_predict, "TILE_COLUMNS", 16)
    monkeypatch.setattr(_predict, "TILE_ENTRIES", 400)
    fit = random_model(shape=(300, 200))
    for one in (fit, lazy(fit, (300, 200))):
        recommend(one, range(300), 3, da.zeros((300, 200), dtype=bool, chunks=-1))
        recommend(one, range(300), 3)
    assert max(seen) <= 400


def test_what_is_not_a_number_is_never_recommended() -> None:
    W, H = np.ones((2, 1)), np.array([[1.0, np.nan, -np.inf, np.inf, 0.0]])
    columns, scores = recommend(model(W, H), [0, 1], 4)
    np.testing.assert_array_equal(columns, [[3, 0, 4, -1]] * 2)
    np.testing.assert_array_equal(scores, [[np.inf, 1, 0, np.nan]] * 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"rows": [3, -2]},
            ValueError,
            r"rows\[1\] is -2, but the matrix has 30 rows; give positions from 0 to 29",
        ),
        (
            {"rows": 3},
            ValueError,
            r"rows must have one dimension, got shape \(\); give \[row\] for one row",
        ),
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, "n must be an integer of at least 1, got 2.0"),
        (
            {"exclude": np.zeros((30, 21))},
            ValueError,
            r"exclude has shape \(30, 21\), but the factorization is of a matrix of "
            r"shape \(30, 20\); give one entry for each entry of that matrix",
        ),
        (
            {"exclude": np.zeros(SHAPE, dtype=int)},
            TypeError,
            "exclude is a dense array of int64, in which nothing is missing and all "
            "would be excluded; give bools, True for what is excluded",
        ),
        (
            {"exclude": [[True]]},
            TypeError,
            "exclude must be a NumPy, scipy.sparse or Dask array, got list; .*",
        ),
    ],
)
@pytest.mark.usefixtures("no_tasks")
def test_bad_recommendations(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        recommend(lazy(random_model()), **({"rows": [0], "n": 2} | options))


# Errors.


def plain_score(fit: dmf.Factorization, X: Array, M: Array) -> Score:
    """Return the errors where M > 0, in float64."""
    own = M > 0
    w, x = M[own].astype(float), X[own].astype(float)
    residual = x - plain(fit)[own]
    spread = np.sum(w * (x - np.average(x, weights=w)) ** 2)
    return Score(
        float(np.sqrt(np.average(residual**2, weights=w))),
        float(np.average(np.abs(residual), weights=w)),
        float(1 - np.sum(w * residual**2) / spread),
        int(own.sum()),
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["pattern", "weights"])
@pytest.mark.parametrize("lazy_fit", [False, True], ids=["numpy-fit", "dask-fit"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("keep_chunks")
def test_errors(form: str, lazy_fit: bool, weighted: bool, dtype: Any) -> None:
    problem = low_rank(dtype=dtype)
    fit = random_model("both")
    M = problem.weights if weighted else problem.mask
    mask: Any = None
    if weighted:
        mask = mask_for(M, problem.mask, form)
        if form == "dask":
            mask = da.from_array(mask, chunks=(10, 10))
        elif form == "dask-sparse":
            mask = sparse_chunks(M)
    found = score(lazy(fit) if lazy_fit else fit, form_of(problem, form), mask)
    expected = plain_score(fit, problem.truth, M)
    assert found.entries == expected.entries
    assert isinstance(found.entries, int)
    np.testing.assert_allclose(
        found, expected, rtol=1e-5 if dtype is np.float32 else 1e-11
    )


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("form", FORMS)
def test_errors_of_a_fit(offsets: str, form: str) -> None:
    problem = low_rank()
    X = form_of(problem, form)
    fit = dmf.factorize(X, 2, offsets=offsets, max_rounds=7)
    found = score(fit, X)
    np.testing.assert_allclose(found.rmse, fit.history[-1].rmse, rtol=1e-9)
    expected = plain_score(fit, problem.truth, problem.mask)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_unobserved_entries_do_not_count_whatever_their_weight_in_the_fit() -> None:
    problem = low_rank()
    X = problem.sparse()
    fit = dmf.factorize(X, 2, unobserved_weight=0.1, max_rounds=3)
    expected = plain_score(fit, problem.truth, problem.mask)
    np.testing.assert_allclose(score(fit, X), expected, rtol=1e-9)


def test_rows_without_entries_do_not_matter() -> None:
    problem = low_rank()
    X = problem.nan
    X[3] = X[:, 5] = np.nan
    fit = random_model("columns")
    expected = plain_score(fit, problem.truth, ~np.isnan(X))
    np.testing.assert_allclose(score(fit, X), expected, rtol=1e-11)


def test_r2_far_from_zero() -> None:
    """Where sums of squares would have lost the spread."""
    problem = low_rank(noise=0)
    X = problem.truth * 1e-3 + 1e7
    fit = model(np.ones((30, 1)), np.full((1, 20), 1e7))
    mean = np.mean(X - 1e7)  # exact differences
    expected = 1 - np.sum((X - 1e7) ** 2) / np.sum((X - 1e7 - mean) ** 2)
    np.testing.assert_allclose(score(fit, X).r2, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5 / 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_entries_have_no_r2(value: float, dtype: Any) -> None:
    found = score(random_model(), np.full(SHAPE, value, dtype=dtype))
    assert np.isnan(found.r2)
    assert found.rmse > 0


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_score(form: str) -> None:
    empty = dataclasses.replace(low_rank(), mask=np.zeros(SHAPE, dtype=bool))
    with pytest.raises(ValueError, match=r"^X of shape \(30, 20\) has no observed "):
        score(random_model(), form_of(empty, form))


@pytest.mark.usefixtures("no_tasks")
def test_bad_matrices_to_score() -> None:
    fit = lazy(random_model())
    message = (
        r"^X has shape \(20, 30\), but the factorization is of a matrix of shape "
        r"\(30, 20\); give entries of the matrix that was factorized$"
    )
    with pytest.raises(ValueError, match=message):
        score(fit, da.zeros((20, 30)))
    with pytest.raises(ValueError, match=r"^mask has shape \(30, 19\), but X has"):
        score(fit, np.zeros(SHAPE), np.ones((30, 19)))
    with pytest.raises(ValueError, match=r"^mask is dense, but X is sparse; "):
        score(fit, sp.csr_array(np.ones(SHAPE)), np.ones(SHAPE))
    with pytest.raises(TypeError, match=r"^client must be a distributed.Client or"):
        score(fit, np.zeros(SHAPE), client="tcp://nowhere")  # type: ignore[arg-type]


# On a cluster.


@pytest.mark.cluster
@pytest.mark.parametrize("form", FORMS)
def test_on_a_cluster(form: str, client: Any) -> None:
    problem = low_rank()
    X = form_of(problem, form)
    fit = dmf.factorize(X, 2, offsets="both", max_rounds=3)
    expected = plain(fit)
    np.testing.assert_allclose(
        score(fit, X, client=client),
        plain_score(fit, problem.truth, problem.mask),
        rtol=1e-9,
    )
    np.testing.assert_allclose(predict(fit, [3, 9], [1, 0]), expected[[3, 9], [1, 0]])
    np.testing.assert_allclose(reconstruct(fit).compute(), expected, rtol=1e-9)
    columns, _ = recommend(fit, [3, 9], 4, exclude=X)
    values = np.where(problem.mask, -np.inf, expected)[[3, 9]]
    np.testing.assert_array_equal(columns, plain_best(values, 4)[0])


@pytest.mark.cluster
def test_big_factors_are_not_in_the_graph(client: Any) -> None:
    import pickle

    whole = reconstruct(random_model(shape=(200_000, 50)))
    assert len(pickle.dumps(dict(whole.__dask_graph__()))) < 1e6
    assert whole[-1].compute().shape == (50,)
