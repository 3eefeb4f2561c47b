"""What a fit found in X, against plain formulas on whole matrices."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.jobs import findings, looks
from dmf.jobs.findings import find
from dmf.offsets import COLUMNS
from tests.problems import FORMS, form_of, low_rank, mask_for, sparse_chunks
from tests.test_predict import counted, lazy

Array = Any

PROBLEM = low_rank(30, 20)
OFFSETS = sorted(COLUMNS)


def fit_of(X: Array, **options: Any) -> dmf.Factorization:
    settings = {"max_rounds": 30, "tol": 0, "penalty": dmf.Ridge(0.3)}
    return dmf.factorize(X, 3, **(settings | options))


def predictions(fit: dmf.Factorization) -> Array:
    return fit.reconstruct().compute()


def deviations(fit: dmf.Factorization, M: Array, s: float) -> Array:
    """Return the standard deviations of all predictions, from one Jacobian a factor.

    The parameters of a factor, its offsets among them, are one long vector; nothing is
    taken apart by rows.
    """
    m, n = M.shape
    W, H = np.asarray(fit.W), np.asarray(fit.H)
    alpha = fit.unobserved_weight
    weights = np.where(M > 0, M, alpha).ravel()
    variance = np.zeros(m * n)
    for axis, offset in ((0, fit.row_offsets), (1, fit.column_offsets)):
        other = H.T if axis == 0 else W
        columns = [np.kron(np.eye(m), other)]  # for W: row i of it moves the row i of X
        if axis == 1:
            columns = [np.einsum("ik,jl->ijlk", other, np.eye(n)).reshape(m * n, -1)]
        length = M.shape[axis]
        n_i = np.sum(M > 0, axis=1 - axis) + alpha * np.sum(M == 0, axis=1 - axis)
        strengths = [np.repeat(fit.penalty[axis].ridge(n_i.astype(float)), fit.rank)]
        if offset is not None:
            ones = np.ones(n if axis == 0 else m)
            own = np.kron(np.eye(length), ones[:, None])
            if axis == 1:
                own = np.kron(ones[:, None], np.eye(length))
            columns.append(own)
            assert fit.offset_penalty is not None
            strengths.append(fit.offset_penalty.ridge(n_i.astype(float)))
        jacobian = np.hstack(columns)
        A = (jacobian.T * weights) @ jacobian + np.diag(np.concatenate(strengths))
        variance += np.sum(jacobian * np.linalg.solve(A, jacobian.T).T, axis=1)
    return s * np.sqrt(variance).reshape(m, n)


def told(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found["cells"]["most"] + found["cells"]["least"]


def check(X: Array, M: Array, found: dict[str, Any], fit: dmf.Factorization) -> None:
    """Compare findings with formulas on the whole of X and M (weights, or bools)."""
    seen = M > 0
    assert json.loads(json.dumps(found)) == found
    assert found["shape"] == [*X.shape]
    assert found["observed"] == seen.sum()
    np.testing.assert_allclose(found["missing"], 1 - seen.mean(), atol=1e-12)
    # All cells of the picture are single entries: X is small.
    np.testing.assert_array_equal(found["picture"], seen.astype(float))
    for axis, name in enumerate(("rows", "columns")):
        counts = seen.sum(axis=1 - axis)
        one = found[name]
        assert (one["length"], one["empty"]) == (len(counts), np.sum(counts == 0))
        np.testing.assert_array_equal(
            one["counts"], np.histogram(counts, one["edges"])[0]
        )
        assert sum(one["counts"]) == len(counts)
    residuals = (X - predictions(fit))[seen]
    w = np.asarray(M, dtype=float)[seen]
    mean = np.average(residuals, weights=w)
    std = np.sqrt(np.average((residuals - mean) ** 2, weights=w))
    one = found["residuals"]
    np.testing.assert_allclose(one["mean"], mean, atol=1e-9)
    np.testing.assert_allclose(one["std"], std, rtol=1e-6)
    rmse = np.sqrt(np.average(residuals**2, weights=w))
    np.testing.assert_allclose(one["rmse"], rmse, rtol=1e-6)
    beyond = np.mean(np.abs(residuals - mean) > 4 * std)
    np.testing.assert_allclose(one["beyond"], beyond, atol=1e-12)
    assert sum(one["counts"]) == round((1 - beyond) * len(residuals))
    np.testing.assert_allclose(one["edges"][0], mean - 4 * (std or 1), atol=1e-6)

    expected = deviations(fit, np.asarray(M, dtype=float), std)
    missing = np.sort(expected[~seen])
    assert found["cells"]["sampled"] == len(missing)
    most, least = found["cells"]["most"], found["cells"]["least"]
    np.testing.assert_allclose(
        [cell["std"] for cell in most], missing[: len(most)], rtol=1e-5
    )
    np.testing.assert_allclose(
        [cell["std"] for cell in least], missing[::-1][: len(least)], rtol=1e-5
    )
    for cell in told(found):
        place = cell["row"], cell["column"]
        assert not seen[place]
        np.testing.assert_allclose(cell["std"], expected[place], rtol=1e-5)
        np.testing.assert_allclose(cell["value"], predictions(fit)[place], rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offsets", OFFSETS)
def test_all_of_it(form: str, offsets: str) -> None:
    X = form_of(PROBLEM, form)
    fit = fit_of(PROBLEM.nan, offsets=offsets)
    check(PROBLEM.truth, PROBLEM.mask, find(X, None, fit), fit)


@pytest.mark.parametrize("form", FORMS)
def test_weights_count(form: str) -> None:
    mask = mask_for(PROBLEM.weights, PROBLEM.mask, form)
    X = form_of(PROBLEM, form)
    fit = fit_of(
        X if form == "sparse" else PROBLEM.nan,
        mask=mask if form == "sparse" else PROBLEM.weights,
        penalty=(dmf.Ridge(0.1, by_count=True), dmf.Ridge(0.2) + dmf.Ridge(0.1, True)),
        offsets="both",
    )
    check(PROBLEM.truth, PROBLEM.weights, find(X, mask, fit), fit)


@pytest.mark.parametrize("form", FORMS)
def test_unobserved_zeros_make_predictions_surer(form: str) -> None:
    fit = fit_of(PROBLEM.nan, unobserved_weight=0.25)
    check(PROBLEM.truth, PROBLEM.mask, find(form_of(PROBLEM, form), None, fit), fit)


@given(
    m=st.integers(3, 25),
    n=st.integers(3, 25),
    observed=st.floats(0.3, 0.95),
    p=st.integers(1, 25),
    q=st.integers(1, 25),
    sparse=st.booleans(),
    far=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_chunks(
    m: int,
    n: int,
    observed: float,
    p: int,
    q: int,
    sparse: bool,
    far: bool,
    seed: int,
) -> None:
    problem = low_rank(m, n, 2, observed, seed=seed)
    mask = problem.mask.copy()
    mask[0] = False  # a row and a column without entries
    mask[:, -1] = False
    mask[1, 0] = True
    problem = dataclasses.replace(problem, mask=mask)
    fit = dmf.factorize(problem.nan, 1, max_rounds=3, penalty=dmf.Ridge(0.5))
    chunks = (p, q)
    X = da.from_array(problem.nan, chunks=chunks)
    if sparse:
        X = sparse_chunks(np.where(mask, problem.truth, 0), chunks)
    found = find(X, None, lazy(fit, (q, p)) if far else fit)
    assert found["rows"]["empty"] >= 1
    assert found["columns"]["empty"] >= 1
    check(problem.truth, mask, found, fit)


def test_the_picture_of_a_large_matrix() -> None:
    """Each of its cells is the mean of the entries that it stands for."""
    rng = np.random.default_rng(0)
    M = rng.random((150, 70)) < np.linspace(0.1, 0.9, 70)
    X = np.where(M, 1.0, np.nan)
    fit = dmf.factorize(X, 1, max_rounds=1)
    rows, columns = np.arange(150) * 64 // 150, np.arange(70) * 64 // 70
    expected = [
        [M[np.ix_(rows == i, columns == j)].mean() for j in range(64)]
        for i in range(64)
    ]
    for form in (X, da.from_array(X, chunks=(37, 41)), sp.csr_array(M.astype(float))):
        picture = find(form, None, fit)["picture"]
        np.testing.assert_allclose(picture, expected, atol=1e-4)


def test_large_matrices_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are by any chunks; every cell that is told is one of the sample."""
    monkeypatch.setattr(looks, "DRAWN", 200)
    fit = fit_of(PROBLEM.nan)
    first = find(PROBLEM.nan, None, fit)
    assert 60 <= first["cells"]["sampled"] <= 100  # of 200 drawn, two fifths missing
    for chunks in ((7, 6), (30, 1), (4, 20)):
        X = da.from_array(PROBLEM.nan, chunks=chunks)
        cells = find(X, None, fit)["cells"]
        assert cells["sampled"] == first["cells"]["sampled"]
        for kind in ("most", "least"):
            for one, other in zip(cells[kind], first["cells"][kind], strict=True):
                assert (one["row"], one["column"]) == (other["row"], other["column"])
                np.testing.assert_allclose(one["std"], other["std"], rtol=1e-9)
    # A wide model has a smaller sample: its curvatures must fit.
    monkeypatch.setattr(findings, "CURVATURES", 9 * 12)
    assert find(PROBLEM.nan, None, fit)["cells"]["sampled"] == 12


def test_each_block_is_read_twice() -> None:
    read: list[Any] = []
    X = counted(PROBLEM.nan, (10, 7), read)
    fit = fit_of(PROBLEM.nan)
    find(X, None, fit)
    assert sorted(read) == sorted(2 * [(i, j) for i in range(3) for j in range(3)])


def test_certainty_orders_the_errors() -> None:
    """Where the model says that it is less sure, it is further from the truth."""
    rng = np.random.default_rng(0)
    m, n = 120, 100
    truth = rng.standard_normal((m, 3)) @ rng.standard_normal((3, n))
    often = np.outer(rng.uniform(0.1, 1, m), rng.uniform(0.1, 1, n))
    M = rng.random((m, n)) < often
    X = np.where(M, truth + 0.3 * rng.standard_normal((m, n)), np.nan)
    fit = dmf.factorize(X, 3, penalty=dmf.Ridge(0.09), max_rounds=300)
    std = find(X, None, fit)["residuals"]["std"]
    stds = deviations(fit, M.astype(float), std)[~M]
    errors = (predictions(fit) - truth)[~M]
    low, high = np.quantile(stds, [0.1, 0.9])
    sure, unsure = errors[stds <= low], errors[stds >= high]
    assert np.std(unsure) > 2 * np.std(sure)
    # Nor are they far from what was said, where there are enough entries to say it.
    assert 0.5 < np.std(sure) / np.sqrt(np.mean(stds[stds <= low] ** 2)) < 2


def test_without_a_penalty_some_cells_have_no_bound() -> None:
    X = np.outer(np.arange(1.0, 7), np.arange(1.0, 6))
    X[0, 1:] = np.nan
    X[1] = np.nan
    fit = dmf.factorize(X, 2, penalty=None, max_rounds=5, tol=0)
    cells = find(X, None, fit)["cells"]
    assert cells["sampled"] == 9
    # A row with one entry can't tell two factors, one without entries tells nothing.
    assert [cell["std"] for cell in told({"cells": cells})] == [None] * 9


def test_nothing_is_missing() -> None:
    X = PROBLEM.truth
    found = find(X, None, fit_of(X))
    assert found["missing"] == 0
    assert found["cells"] == {"sampled": 0, "most": [], "least": []}


def test_residuals_of_nothing() -> None:
    """Where all residuals are 0, they still have a place in the histogram."""
    X = np.zeros((4, 3))
    X[0, 0] = np.nan
    found = find(X, None, dmf.factorize(X, 1))
    assert found["residuals"]["std"] == 0
    assert sum(found["residuals"]["counts"]) == 11
    assert found["residuals"]["beyond"] == 0


def test_labels() -> None:
    pd = pytest.importorskip("pandas")
    xr = pytest.importorskip("xarray")
    rows = pd.MultiIndex.from_product([["a", "b"], range(15)])
    frame = pd.DataFrame(PROBLEM.nan, rows, [f"day {j}" for j in range(20)])
    fit = fit_of(frame)
    found = find(frame, None, fit)
    plain = find(PROBLEM.nan, None, fit_of(PROBLEM.nan))
    for one, other in zip(told(found), told(plain), strict=True):
        a, b = "ab"[other["row"] // 15], other["row"] % 15
        assert (one["row"], one["column"]) == (f"{a} / {b}", f"day {other['column']}")
    # Those of the fit name an X without any; what is given comes first.
    assert find(PROBLEM.nan, None, fit)["cells"] == found["cells"]
    array = xr.DataArray(PROBLEM.nan, dims=("site", "day"), coords={"day": range(20)})
    bare = find(array, None, fit_of(array))["cells"]["most"][0]
    assert isinstance(bare["row"], int)
    assert isinstance(bare["column"], str)
    own = find(array, None, fit, labels=fit.labels)
    assert own["cells"]["most"][0]["row"] == found["cells"]["most"][0]["row"]


def test_triplets() -> None:
    pd = pytest.importorskip("pandas")
    i, j = np.nonzero(PROBLEM.mask)
    table = pd.DataFrame({"i": i, "j": j, "x": PROBLEM.truth[i, j]})
    X = dmf.from_triplets(table, row="i", column="j", value="x")
    found = find(X, None, fit_of(X))
    assert found["observed"] == len(i)
    assert {type(cell["row"]) for cell in told(found)} == {str}


def test_another_matrix_is_refused() -> None:
    fit = fit_of(PROBLEM.nan)
    with pytest.raises(ValueError, match=r"X has shape \(30, 19\), but the factoriz"):
        find(PROBLEM.nan[:, 1:], None, fit)
    with pytest.raises(ValueError, match="one mask entry for each entry of X"):
        find(PROBLEM.nan, PROBLEM.mask[1:], fit)


@pytest.mark.cluster
@pytest.mark.parametrize("form", ["numpy", "dask", "dask-sparse"])
def test_on_a_cluster(client: Any, form: str) -> None:
    X = form_of(PROBLEM, form)
    fit = fit_of(X)
    check(PROBLEM.truth, PROBLEM.mask, find(X, None, fit), fit)
