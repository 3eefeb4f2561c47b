"""What is observed: NaN, masks, weights, and what sparse matrices store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.entries import (
    canonical_csr,
    filled_dtype,
    is_sparse,
    observed_entries,
)
from dmf.holdout import Share
from dmf.kernels.dense import DenseBlock
from dmf.observed import observe
from dmf.totals import Totals
from tests.problems import low_rank

Array = Any

FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]
CLASSES = ["array", "matrix"]
NAN, INF = np.nan, np.inf


def unpack(block: Any) -> tuple[Array, Array]:
    """Return what a block holds, plainly: its values and its M, both (p, q)."""
    if isinstance(block, DenseBlock):
        ones = np.ones(block.shape)
        M = ones if block.weights is None else block.weights * ones
        return np.asarray(block.values, dtype=float), M
    stored = (np.repeat(np.arange(block.shape[0]), np.diff(block.starts)),)
    stored += (block.columns,)
    values, M = np.zeros(block.shape), np.zeros(block.shape)
    values[stored] = block.values
    M[stored] = 1 if block.weights is None else block.weights
    assert len(block.values) == np.count_nonzero(M)  # each entry once, none of weight 0
    return values, M


def assert_observes(block: Any, values: Array, M: Array) -> None:
    found_values, found_M = unpack(block)
    np.testing.assert_array_equal(found_M, M)
    np.testing.assert_array_equal(found_values, values)


def as_class(X: Any, format: str, kind: str) -> Any:
    """Return a sparse X in a format, as a sparse array or as a sparse matrix."""
    return getattr(sp, f"{format}_{kind}")(X)


# Dense blocks.


def test_nan_is_missing() -> None:
    X = np.array([[1.0, NAN, 0.0], [NAN, NAN, -2.0]])
    block = observe(X, None, np.float64).block
    assert_observes(block, [[1, 0, 0], [0, 0, -2]], [[1, 0, 1], [0, 0, 1]])
    assert block.weights.dtype == bool


def test_everything_observed_needs_no_weights() -> None:
    """Kernels skip the product with M then."""
    X = np.arange(6.0).reshape(2, 3)
    assert observe(X, None, np.float64).block.weights is None
    assert observe(X, np.full(X.shape, True), np.float64).block.weights is None
    assert observe(X, np.ones(X.shape), np.float64).block.weights is None


def test_a_bool_mask_says_what_is_observed() -> None:
    X = np.arange(6.0).reshape(2, 3) + 1
    mask = np.array([[True, False, True], [False, True, True]])
    assert_observes(observe(X, mask, np.float64).block, X * mask, mask)


def test_weights_count_and_0_is_unobserved() -> None:
    X = np.arange(6.0).reshape(2, 3) + 1
    weights = np.array([[0.5, 0.0, 2.0], [0.0, 3.0, 1e-300]])
    assert_observes(observe(X, weights, np.float64).block, X * (weights > 0), weights)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "float32", "float64"])
def test_weights_of_0_and_1_are_a_bool_mask(dtype: str) -> None:
    problem = low_rank()
    block = observe(problem.truth, problem.mask.astype(dtype), np.float64).block
    expected = observe(problem.truth, problem.mask, np.float64).block
    assert block.weights.dtype == bool
    np.testing.assert_array_equal(block.weights, expected.weights)
    np.testing.assert_array_equal(block.values, expected.values)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_fit_with_weights_of_0_and_1_is_that_with_a_bool_mask(kind: str) -> None:
    problem = low_rank()
    X: Any = problem.truth
    masks: list[Any] = [problem.mask, problem.mask.astype(float)]
    if kind == "sparse":
        X = sp.csr_array(problem.truth)
        rows, columns = np.nonzero(problem.truth)
        places = rows, columns
        masks = [
            sp.csr_array((mask[rows, columns], places), shape=X.shape) for mask in masks
        ]
    first, second = (dmf.factorize(X, 2, mask=mask, max_rounds=3) for mask in masks)
    expected = dmf.factorize(problem.nan, 2, max_rounds=3)
    assert first.W.tobytes() == second.W.tobytes()
    assert first.H.tobytes() == second.H.tobytes()
    np.testing.assert_allclose(first.W, expected.W, rtol=1e-9)


def test_nan_is_missing_also_where_the_mask_is_true() -> None:
    X = np.array([[1.0, NAN], [2.0, 3.0]])
    for mask in (np.full(X.shape, True), np.full(X.shape, 2.0)):
        _, M = unpack(observe(X, mask, np.float64).block)
        np.testing.assert_array_equal(M > 0, [[1, 0], [1, 1]])


@pytest.mark.parametrize("off", [False, 0, 0.0])
def test_infinite_values_may_hide_behind_the_mask(off: Any) -> None:
    X = np.array([[1.0, INF], [-INF, 3.0]])
    mask = np.array([[1, off], [off, 1]]).astype(type(off))
    assert_observes(
        observe(X, mask, np.float64).block, [[1, 0], [0, 3]], [[1, 0], [0, 1]]
    )


def test_infinite_values_behind_the_mask_do_not_reach_the_fit() -> None:
    problem = low_rank()
    hidden = np.where(problem.mask, problem.truth, INF)
    fit = dmf.factorize(hidden, 2, mask=problem.mask, max_rounds=3)
    expected = dmf.factorize(problem.nan, 2, max_rounds=3)
    assert fit.W.tobytes() == expected.W.tobytes()


def test_the_place_of_an_infinite_value_is_that_in_the_whole_matrix() -> None:
    X = np.zeros((4, 3))
    X[2, 1] = -INF
    text = "X is infinite in row 102, column 21; replace the value, or mark it"
    with pytest.raises(ValueError, match=text):
        observe(X, None, np.float64, (100, 20))
    with pytest.raises(ValueError, match=text):
        observe(sp.csr_array(X), None, np.float64, (100, 20))


@pytest.mark.parametrize(
    ("dtype", "working"),
    [
        ("bool", "float64"),
        ("int8", "float64"),
        ("uint16", "float64"),
        ("int64", "float64"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_dtypes(dtype: str, working: str) -> None:
    X = (np.arange(12).reshape(4, 3) % 5).astype(dtype)
    mask = np.arange(12).reshape(4, 3) % 3 > 0
    assert_observes(observe(X, mask, np.dtype(working)).block, X * mask, mask)
    fit = dmf.factorize(X, 2, mask=mask, max_rounds=2)
    assert fit.W.dtype == fit.H.dtype == working
    # The same numbers in the working dtype are the same problem.
    same = dmf.factorize(X.astype(working), 2, mask=mask, max_rounds=2)
    assert fit.W.tobytes() == same.W.tobytes()
    if dtype != "float16":  # scipy.sparse has none
        sparse = dmf.factorize(sp.csr_array(X), 2, max_rounds=2)
        assert sparse.W.dtype == working


def test_float16_weights() -> None:
    X = np.ones((2, 2), dtype=np.float16)
    weights = np.array([[0.5, 0], [1, 2]], dtype=np.float16)
    assert_observes(observe(X, weights, np.float32).block, weights > 0, weights)


@pytest.mark.parametrize("order", ["C", "F", "strided", "read-only", "swapped"])
def test_memory_layouts(order: str) -> None:
    problem = low_rank()
    X = problem.nan
    expected = dmf.factorize(X, 2, max_rounds=2)
    if order == "F":
        X = np.asfortranarray(X)
    elif order == "strided":
        X = np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
    elif order == "read-only":
        X.flags.writeable = False
    elif order == "swapped":
        X = X.astype(X.dtype.newbyteorder())
    fit = dmf.factorize(X, 2, max_rounds=2)
    np.testing.assert_allclose(fit.W, expected.W, rtol=1e-12)


def test_inputs_are_not_changed() -> None:
    problem = low_rank()
    unsorted = unsorted_csr()
    inputs = [problem.nan, problem.weights, unsorted.data, unsorted.indices]
    before = [array.tobytes() for array in inputs]
    dmf.factorize(problem.nan, 2, mask=problem.weights, max_rounds=2)
    dmf.factorize(unsorted, 2, max_rounds=2)
    assert [array.tobytes() for array in inputs] == before


# Sparse blocks.


def unsorted_csr() -> Any:
    """Row 0 stores its columns as 3, 0, 3 (twice the same), row 2 as 2, 1."""
    data = np.array([1.0, 2.0, 10.0, 5.0, 6.0])
    return sp.csr_array((data, [3, 0, 3, 2, 1], [0, 3, 3, 5]), shape=(3, 4))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_sparse_format(format: str, kind: str) -> None:
    problem = low_rank(observed=0.3)
    X = as_class(problem.sparse(), format, kind)
    assert X.format == format
    assert is_sparse(X)
    block = observe(X, None, np.float64).block
    assert_observes(block, np.where(problem.mask, problem.truth, 0), problem.mask)
    weights = as_class(problem.sparse(problem.weights), format, kind)
    values, M = unpack(observe(X, weights, np.float64).block)
    np.testing.assert_array_equal(M, problem.weights)
    np.testing.assert_array_equal(values, unpack(block)[0])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_fit_is_the_same_for_every_sparse_format(format: str, kind: str) -> None:
    problem = low_rank()
    X = as_class(problem.sparse(), format, kind)
    fit = dmf.factorize(X, 2, max_rounds=2)
    expected = dmf.factorize(problem.sparse(), 2, max_rounds=2)
    assert fit.W.tobytes() == expected.W.tobytes()
    dense = dmf.factorize(problem.nan, 2, max_rounds=2)
    np.testing.assert_allclose(fit.W, dense.W, rtol=1e-9)


# dia matrices can't tell a zero on a stored diagonal from one that isn't stored.
@pytest.mark.parametrize("format", [f for f in FORMATS if f != "dia"])
def test_stored_zeros_are_observed(format: str) -> None:
    X = sp.coo_array(([0.0, 0.0, 2.0], ([0, 1, 2], [1, 0, 2])), shape=(3, 4))
    block = observe(X.asformat(format), None, np.float64).block
    M = np.zeros((3, 4))
    M[[0, 1, 2], [1, 0, 2]] = 1
    assert_observes(block, 2 * np.eye(3, 4) * (np.arange(3)[:, None] == 2), M)


def test_blocks_of_bsr_are_stored_whole() -> None:
    X = sp.bsr_array(np.kron(np.eye(2), [[1.0, 0.0], [0.0, 0.0]]), blocksize=(2, 2))
    _, M = unpack(observe(X, None, np.float64).block)
    np.testing.assert_array_equal(M, np.kron(np.eye(2), np.ones((2, 2))))


def test_a_stored_nan_is_missing() -> None:
    X = sp.csr_array(([1.0, NAN, 3.0], ([0, 0, 1], [0, 1, 1])), shape=(2, 2))
    assert_observes(
        observe(X, None, np.float64).block, [[1, 0], [0, 3]], [[1, 0], [0, 1]]
    )
    weights = sp.csr_array(([5.0, 6.0, 7.0], ([0, 0, 1], [0, 1, 1])), shape=(2, 2))
    assert_observes(
        observe(X, weights, np.float64).block, [[1, 0], [0, 3]], [[5, 0], [0, 7]]
    )


@pytest.mark.parametrize("dtype", [bool, float])
def test_a_stored_0_in_a_sparse_mask_is_unobserved(dtype: Any) -> None:
    places = ([0, 0, 1], [0, 1, 1])
    X = sp.csr_array(([1.0, INF, 3.0], places), shape=(2, 2))
    mask = sp.csr_array((np.array([1, 0, 1], dtype), places), shape=(2, 2))
    assert_observes(
        observe(X, mask, np.float64).block, [[1, 0], [0, 3]], [[1, 0], [0, 1]]
    )


def test_entries_stored_twice_are_added_up() -> None:
    X = sp.coo_array(([1.0, 2.0, 4.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    assert_observes(
        observe(X, None, np.float64).block, [[0, 3], [4, 0]], [[0, 1], [1, 0]]
    )
    assert_observes(
        observe(unsorted_csr(), None, np.float64).block,
        [[2, 0, 0, 11], [0, 0, 0, 0], [0, 6, 5, 0]],
        [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]],
    )


def test_room_that_is_not_used_is_no_entry() -> None:
    X = sp.csr_array((np.ones(3), [0, 1, 2], [0, 2, 3]), shape=(2, 3))
    X.indptr = np.array([0, 1, 2])  # the third entry is nobody's
    for share in (None, Share(0.5, 1)):
        seen = observe(X, None, np.float64, validation=share)
        held = 0 if seen.held_out is None else len(seen.held_out.values)
        assert len(seen.block.values) + held == 2
    assert len(X.data) == 3


def test_indices_may_come_in_any_order() -> None:
    canonical = canonical_csr(unsorted_csr())
    assert canonical.has_canonical_format
    fit = dmf.factorize(unsorted_csr(), 2, max_rounds=2)
    expected = dmf.factorize(canonical, 2, max_rounds=2)
    assert fit.W.tobytes() == expected.W.tobytes()
    # The mask's order has nothing to do with that of X.
    weights = canonical.copy()
    weights.data = np.array([1.0, 2.0, 3.0, 4.0])
    _, M = unpack(observe(unsorted_csr(), weights, np.float64).block)
    np.testing.assert_array_equal(M, weights.toarray())


def test_what_is_sparse() -> None:
    assert not is_sparse(np.eye(2))
    assert not is_sparse([[1.0]])


# Counts and totals.


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    observed=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    mask=st.sampled_from(["none", "bool", "weights"]),
    kind=st.sampled_from(["dense", "sparse"]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_counts_and_totals(
    shape: tuple[int, int], observed: float, seed: int, mask: str, kind: str, dtype: Any
) -> None:
    problem = low_rank(*shape, 2, observed, seed=seed, dtype=dtype)
    M = {"none": None, "bool": problem.mask, "weights": problem.weights}[mask]
    if kind == "dense":
        X = problem.nan if mask == "none" else problem.truth
        part = observe(X, M, dtype)
    else:
        sparse_mask = None if M is None else problem.sparse(M)
        part = observe(problem.sparse(), sparse_mask, dtype)
    M = problem.mask if M is None else M
    found, truth = part.totals, problem.truth.astype(float)
    assert part.held_out is None
    assert found.held_out == 0
    assert found.entries == problem.mask.sum()
    assert found.weight == pytest.approx(M.sum(dtype=float), rel=1e-6)
    total = found.weight * found.mean
    assert total == pytest.approx(np.sum(M * truth), rel=1e-6, abs=1e-5)
    squares = np.sum(M * truth**2)
    assert found.sum_of_squares == pytest.approx(squares, rel=1e-6)
    # What a sparse matrix doesn't store is missing, also if it stores everything.
    complete = kind == "dense" and problem.mask.all() and mask != "weights"
    assert found.masked == (not complete)
    for axis, numbers in enumerate(part.counts):
        assert numbers.dtype == np.float64
        np.testing.assert_array_equal(numbers, problem.mask.sum(axis=1 - axis))
    if found.entries:
        mean = np.average(truth**2, weights=M)
        assert found.mean_square == pytest.approx(mean, rel=1e-6)
        around = np.average((truth - found.mean) ** 2, weights=M) ** 0.5
        assert found.deviation == pytest.approx(around, rel=1e-6, abs=1e-12)
    else:
        assert found.mean_square == 0


def test_counts_and_totals_without_a_single_missing_entry() -> None:
    part = observe(np.full((3, 5), 2.0), None, np.float64)
    assert part.totals == Totals(entries=15, weight=15.0, mean=2.0, spread=0.0)
    assert part.counts[0].tolist() == [5] * 3
    assert part.counts[1].tolist() == [3] * 5


@given(
    values=st.lists(st.floats(-1, 1), min_size=2, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    level=st.sampled_from([0.0, 1e8]),
)
def test_totals_add_up_wherever_the_data_are_cut(
    values: list[float], cuts: list[int], level: float
) -> None:
    """Also far from 0, where squares would have lost the spread."""
    X = np.array(values) + level
    parts = np.split(X, sorted(cuts))
    whole = sum((Totals.of(part, None) for part in parts), Totals())
    assert whole.weight == len(X)
    assert whole.mean == pytest.approx(X.mean(), abs=1e-7)
    assert whole.deviation == pytest.approx(X.std(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("size", [1e-25, 1e25])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_totals_of_float32_are_those_of_float64(kind: str, size: float) -> None:
    """The squares of small and of large values leave float32; their sum must not."""
    X = np.array([[1.0, 2.0], [3.0, 4.0]]) * size
    form = sp.csr_array if kind == "sparse" else np.asarray
    for weights in (np.ones((2, 2)), np.full((2, 2), 2.0)):
        found = observe(form(X.astype("f4")), form(weights), np.float32).totals
        assert found.mean_square == pytest.approx(np.mean(X**2), rel=1e-5, abs=0)


# The dense rule on its own, and the dtype of what is filled.


def test_observed_entries() -> None:
    X = np.array([[1.0, NAN], [INF, 0.0]])
    assert observed_entries(X, None).tolist() == [[True, False], [True, True]]
    weights = np.array([[0.0, 1.0], [0.5, 1.0]])
    assert observed_entries(X, weights).tolist() == [[False, False], [True, True]]
    assert observed_entries(np.eye(2, dtype=int), None).all()


def test_filled_dtype() -> None:
    for dtype in ("float16", "float32", "float64"):
        assert filled_dtype(np.dtype(dtype)) == dtype
    for dtype in ("bool", "int8", "uint64"):
        assert filled_dtype(np.dtype(dtype)) == "float64"
