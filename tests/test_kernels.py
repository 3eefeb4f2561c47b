"""Kernels against finite differences, plain formulas, and each other."""

from __future__ import annotations

import inspect
import tracemalloc
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.kernels import dense, kernels_for, sparse
from dmf.observed import fill_block, observe
from tests.problems import Problem, low_rank

KINDS = ["dense", "sparse"]
MASKS = ["none", "bool", "weights"]


def block_of(problem: Problem, kind: str, mask: str) -> tuple[Any, Any]:
    """Return a block, and the mask M that it stands for as a plain array."""
    weights = {
        "none": None,
        "bool": problem.mask,
        "weights": problem.weights,
    }[mask]
    if kind == "dense":
        X = problem.truth if mask == "none" else problem.nan
        M = np.ones_like(problem.truth) if weights is None else weights
        return observe(X, weights, X.dtype), M.astype(X.dtype)
    X = problem.sparse()
    if mask == "weights":
        return observe(X, problem.sparse(problem.weights), X.dtype), problem.weights
    return observe(X, None, X.dtype), problem.mask.astype(X.dtype)


def sides(problem: Problem, axis: int) -> tuple[Any, Any]:
    """Return the moving and the fixed factor."""
    W, H = problem.start
    return (W, H) if axis == 0 else (H, W)


def loss_of(problem: Problem, M: Any, moving: Any, fixed: Any, axis: int) -> float:
    W, H = (moving, fixed) if axis == 0 else (fixed, moving)
    return 0.5 * float(np.sum(M * (W @ H.T - problem.truth) ** 2))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_loss(kind: str, mask: str, axis: int) -> None:
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask)
    moving, fixed = sides(problem, axis)
    gradient, loss = kernels_for(kind).gradient(block, moving, fixed, axis)
    assert loss == pytest.approx(loss_of(problem, M, moving, fixed, axis), rel=1e-12)
    h = 1e-6
    numeric = np.empty_like(moving)
    for index in np.ndindex(moving.shape):
        up, down = moving.copy(), moving.copy()
        up[index] += h
        down[index] -= h
        rise = loss_of(problem, M, up, fixed, axis)
        fall = loss_of(problem, M, down, fixed, axis)
        numeric[index] = (rise - fall) / (2 * h)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("moves", [1, 2])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_the_second_derivative(
    kind: str, mask: str, axis: int, moves: int
) -> None:
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask)
    moving, fixed = sides(problem, axis)
    rng = np.random.default_rng(1)
    directions = tuple(rng.standard_normal(moving.shape) for _ in range(moves))
    found = kernels_for(kind).curvature(block, directions, fixed, axis)
    across = M if axis == 0 else M.T
    pairs = [(a, b) for k, a in enumerate(directions) for b in directions[k:]]
    expected = [
        np.sum(across * (a @ fixed.T) * (b @ fixed.T), axis=1) for a, b in pairs
    ]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-12)


@pytest.mark.parametrize("moves", [1, 2])
def test_loss_along_a_plane_is_the_quadratic(moves: int) -> None:
    """Gradient and curvature together predict the loss after a move, exactly."""
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, "dense", "weights")
    moving, fixed = sides(problem, 0)
    rng = np.random.default_rng(1)
    directions = [rng.standard_normal(moving.shape) for _ in range(moves)]
    gradient, loss = dense.gradient(block, moving, fixed, 0)
    c = dense.curvature(block, tuple(directions), fixed, 0).sum(axis=0)
    lengths = [0.3, -1.7][:moves]
    matrix = (
        np.array([[c[0]]]) if moves == 1 else np.array([[c[0], c[1]], [c[1], c[2]]])
    )
    slopes = [np.sum(gradient * d) for d in directions]
    predicted = loss + np.dot(slopes, lengths) + 0.5 * np.dot(lengths, matrix @ lengths)
    after = moving + sum(t * d for t, d in zip(lengths, directions, strict=True))
    assert loss_of(problem, M, after, fixed, 0) == pytest.approx(predicted, rel=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gram_is_the_sum_of_outer_products(kind: str, mask: str, axis: int) -> None:
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask)
    _, fixed = sides(problem, axis)
    across = M if axis == 0 else M.T
    expected = np.einsum("ij,jr,js->irs", across, fixed, fixed)
    found = kernels_for(kind).gram(block, fixed, axis)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_predict_and_fill() -> None:
    problem = low_rank()
    W, H = problem.start
    dense_block, _ = block_of(problem, "dense", "bool")
    sparse_block, _ = block_of(problem, "sparse", "bool")
    product = W @ H.T
    np.testing.assert_allclose(dense.predict(dense_block, W, H), product)
    np.testing.assert_allclose(
        sparse.predict(sparse_block, W, H), product[problem.mask], rtol=1e-12
    )
    filled = fill_block(problem.nan, None, W, H, np.float64)
    assert np.array_equal(filled[problem.mask], problem.truth[problem.mask])
    np.testing.assert_allclose(filled[~problem.mask], product[~problem.mask])


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rank=st.integers(1, 9),
    observed=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    axis=st.sampled_from([0, 1]),
    mask=st.sampled_from(["bool", "weights"]),
)
def test_dense_and_sparse_agree(
    shape: tuple[int, int], rank: int, observed: float, seed: int, axis: int, mask: str
) -> None:
    problem = low_rank(*shape, rank, observed, seed=seed)
    moving, fixed = sides(problem, axis)
    first, _ = block_of(problem, "dense", mask)
    second, _ = block_of(problem, "sparse", mask)
    for name, operands in (
        ("gradient", (moving, fixed, axis)),
        ("curvature", ((moving, 2 * moving - 1), fixed, axis)),
        ("gram", (fixed, axis)),
    ):
        one = getattr(dense, name)(first, *operands)
        other = getattr(sparse, name)(second, *operands)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_dense_kernels_need_only_the_array_api(mask: str, axis: int) -> None:
    """array-api-strict offers nothing but the standard, and mixes no dtypes."""
    problem = low_rank(m=9, n=7, rank=2, dtype=np.float32)
    block, _ = block_of(problem, "dense", mask)
    weights = block.weights
    same = dense.DenseBlock(
        strict.asarray(block.values.copy()),
        None if weights is None else strict.asarray(weights.copy()),
    )
    moving, fixed = sides(problem, axis)
    strictly = strict.asarray(moving), strict.asarray(fixed)
    gradient, loss = dense.gradient(block, moving, fixed, axis)
    found, found_loss = dense.gradient(same, *strictly, axis)
    np.testing.assert_allclose(np.asarray(found), gradient, rtol=1e-5, atol=1e-5)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    moves = (moving, moving**2)
    expected = dense.curvature(block, moves, fixed, axis)
    strict_moves = tuple(strict.asarray(move) for move in moves)
    found = dense.curvature(same, strict_moves, strictly[1], axis)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)
    found = dense.gram(same, strictly[1], axis)
    expected = dense.gram(block, fixed, axis)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1])
def test_inputs_are_never_changed(kind: str, axis: int) -> None:
    """Dask hands the same block to many tasks: read-only inputs must be enough."""
    problem = low_rank()
    block, _ = block_of(problem, kind, "weights")
    for part in vars(block).values():
        if isinstance(part, np.ndarray):
            part.flags.writeable = False
    moving, fixed = sides(problem, axis)
    moving.flags.writeable = False
    fixed.flags.writeable = False
    kernels = kernels_for(kind)
    kernels.gradient(block, moving, fixed, axis)
    kernels.curvature(block, (moving, moving), fixed, axis)
    kernels.gram(block, fixed, axis)
    kernels.predict(block, *problem.start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1])
def test_float32_stays_float32_and_is_accurate(kind: str, axis: int) -> None:
    exact = low_rank(m=400, n=300, rank=5)
    single = low_rank(m=400, n=300, rank=5, dtype=np.float32)
    kernels = kernels_for(kind)
    expected, loss = kernels.gradient(
        block_of(exact, kind, "bool")[0], *sides(exact, axis), axis
    )
    found, found_loss = kernels.gradient(
        block_of(single, kind, "bool")[0], *sides(single, axis), axis
    )
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    # The scalar is a sum in float64 of residuals in float32.
    assert found_loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_give_what_one_tile_gives(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = low_rank(m=50, n=20)
    block, _ = block_of(problem, "dense", "weights")
    moving, fixed = sides(problem, axis)

    def results() -> list[Any]:
        return [
            *dense.gradient(block, moving, fixed, axis),
            dense.curvature(block, (moving, moving + 1), fixed, axis),
        ]

    whole = results()
    monkeypatch.setattr(dense, "TILE_ROWS", (7, 7))
    for a, b in zip(whole, results(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_no_residual_of_a_whole_block_exists() -> None:
    problem = low_rank(m=3000, n=1500, rank=4)
    block, _ = block_of(problem, "dense", "bool")
    moving, fixed = sides(problem, 1)
    tracemalloc.start()
    try:
        dense.gradient(block, moving, fixed, 1)
        dense.curvature(block, (moving, moving), fixed, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < block.values.nbytes / 3


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_with_nothing_observed_is_all_zeros(kind: str, axis: int) -> None:
    problem = low_rank(observed=0.0)
    block, _ = block_of(problem, kind, "bool")
    gradient, loss = kernels_for(kind).gradient(block, *sides(problem, axis), axis)
    assert loss == 0
    assert not gradient.any()


def test_dense_and_sparse_define_the_same_functions() -> None:
    """A solver names a kernel without asking what kind of blocks there are."""
    for name in ("gradient", "curvature", "gram", "predict"):
        one, other = (inspect.signature(getattr(m, name)) for m in (dense, sparse))
        assert list(one.parameters) == list(other.parameters)


def test_long_rows_are_summed_in_float64() -> None:
    """One row of two million entries: float32 alone would lose the fifth digit."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1, 2_000_000), dtype=np.float32)
    W, H = np.zeros((1, 1), np.float32), np.zeros((X.shape[1], 1), np.float32)
    _, loss = dense.gradient(observe(X, None, X.dtype), W, H, 0)
    assert loss == pytest.approx(0.5 * np.sum(X.astype(float) ** 2), rel=1e-7)
