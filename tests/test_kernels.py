"""Kernels against finite differences, plain formulas, and each other."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.entries import fill_block
from dmf.kernels import cuda, dense, kernels_for, sparse
from tests.blocks import (
    CANDIDATES,
    KINDS,
    block_of,
    each_axis,
    each_case,
    each_count,
    each_kind,
    each_mask,
    every_kernel,
    sides,
)
from tests.problems import Problem, low_rank, stacked_start

Array = Any


def across(M: Array, axis: int) -> Array:
    """Return a matrix with a row for each row of the moving factor."""
    return M if axis == 0 else M.T


def excess(problem: Problem, M: Array, alpha: float) -> Array:
    """Return M − α where something is stored, 0 elsewhere: what weighs (W H)²."""
    return np.where(problem.mask, M - alpha, 0) if alpha else M


def loss_of(
    problem: Problem,
    M: Array,
    moving: Array,
    fixed: Array,
    axis: int,
    alpha: float = 0.0,
) -> Array:
    """Return ½ Σ M (W H − X)² − α/2 Σ_stored (W H)² of each candidate, plainly."""
    W, H = (moving, fixed) if axis == 0 else (fixed, moving)
    losses = []
    for k in range(W.shape[1]):
        product = W[:, k] @ H[:, k].T
        loss = 0.5 * np.sum(M * (product - problem.truth) ** 2)
        loss -= 0.5 * alpha * np.sum(product[problem.mask] ** 2)
        losses.append(loss)
    return np.array(losses)


@each_count
@each_axis
@each_mask
@each_case
def test_gradient_is_that_of_the_loss(
    kind: str, alpha: float, mask: str, axis: int, K: int
) -> None:
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask, alpha)
    moving, fixed = sides(problem, axis, K)

    def plain(moving: Array) -> Array:
        return loss_of(problem, M, moving, fixed, axis, alpha)

    gradient, loss = kernels_for(kind).gradient(block, moving, fixed, axis)
    assert loss.shape == (K,)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, plain(moving), rtol=1e-12)
    h = 1e-6
    numeric = np.empty_like(moving)
    for i, s in np.ndindex(moving.shape[0], moving.shape[2]):
        # All candidates at once: their losses have nothing to do with each other.
        up, down = moving.copy(), moving.copy()
        up[i, :, s] += h
        down[i, :, s] -= h
        numeric[i, :, s] = (plain(up) - plain(down)) / (2 * h)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


@each_count
@pytest.mark.parametrize("moves", [1, 2])
@each_axis
@each_mask
@each_case
def test_curvature_is_the_second_derivative(
    kind: str, alpha: float, mask: str, axis: int, moves: int, K: int
) -> None:
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask, alpha)
    moving, fixed = sides(problem, axis, K)
    rng = np.random.default_rng(1)
    directions = tuple(rng.standard_normal(moving.shape) for _ in range(moves))
    found = kernels_for(kind).curvature(block, directions, fixed, axis)
    weights = across(excess(problem, M, alpha), axis)
    pairs = [(a, b) for k, a in enumerate(directions) for b in directions[k:]]
    assert found.dtype == np.float64
    assert found.shape == (len(moving), K, len(pairs))
    for k in range(K):
        F = fixed[:, k]
        for number, (a, b) in enumerate(pairs):
            terms = weights * (a[:, k] @ F.T) * (b[:, k] @ F.T)
            # Terms of both signs cancel: rounding is that of the largest.
            size = np.abs(terms).sum(axis=1).max()
            np.testing.assert_allclose(
                found[:, k, number], terms.sum(axis=1), rtol=1e-12, atol=1e-14 * size
            )


@each_count
@pytest.mark.parametrize("moves", [1, 2])
@each_case
def test_loss_along_a_plane_is_the_quadratic(
    kind: str, alpha: float, moves: int, K: int
) -> None:
    """Gradient and curvature together predict the loss after a move, exactly."""
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, "weights", alpha)
    moving, fixed = sides(problem, 0, K)
    rng = np.random.default_rng(1)
    directions = [rng.standard_normal(moving.shape) for _ in range(moves)]
    kernels = kernels_for(kind)
    gradient, loss = kernels.gradient(block, moving, fixed, 0)
    curvature = kernels.curvature(block, tuple(directions), fixed, 0).sum(axis=0)
    lengths = [0.3, -1.7][:moves]
    after = moving + sum(t * d for t, d in zip(lengths, directions, strict=True))
    expected = loss_of(problem, M, after, fixed, 0, alpha)
    for k, c in enumerate(curvature):
        matrix = (
            np.array([[c[0]]]) if moves == 1 else np.array([[c[0], c[1]], [c[1], c[2]]])
        )
        slopes = [np.sum(gradient[:, k] * d[:, k]) for d in directions]
        predicted = loss[k] + np.dot(slopes, lengths)
        predicted += 0.5 * np.dot(lengths, matrix @ lengths)
        assert expected[k] == pytest.approx(predicted, rel=1e-12)


@each_count
@each_axis
@each_mask
@each_case
def test_gram_is_the_sum_of_outer_products(
    kind: str, alpha: float, mask: str, axis: int, K: int
) -> None:
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask, alpha)
    moving, fixed = sides(problem, axis, K)
    weights = across(excess(problem, M, alpha), axis)
    found = kernels_for(kind).gram(block, fixed, axis)
    assert found.shape == (len(moving), K, 2, 2)
    for k in range(K):
        F = fixed[:, k]
        expected = np.einsum("ij,jr,js->irs", weights, F, F)
        # With α, weights of both signs cancel.
        size = np.einsum("ij,jr,js->irs", np.abs(weights), np.abs(F), np.abs(F)).max()
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-12, atol=1e-14 * size)


@each_count
@each_axis
@each_kind
def test_product_is_x_times_the_fixed_factor(kind: str, axis: int, K: int) -> None:
    """What isn't stored is a zero here."""
    problem = low_rank(m=9, n=7, rank=2)
    X = problem.truth
    block, _ = block_of(problem, kind, "none", 1.0)
    if kind == "sparse":
        X = np.where(problem.mask, X, 0)
    moving, fixed = sides(problem, axis, K)
    found = kernels_for(kind).product(block, fixed, axis)
    assert found.shape == moving.shape
    expected = np.stack([across(X, axis) @ fixed[:, k] for k in range(K)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@each_count
@each_mask
@each_case
def test_errors_are_sums_of_squares_and_of_sizes(
    kind: str, alpha: float, mask: str, K: int
) -> None:
    """Of what is stored alone: zeros of weight α are never held out."""
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask, alpha)
    W, H = stacked_start(problem, K)
    found = kernels_for(kind).errors(block, W, H)
    assert found.shape == (K, 2)
    assert found.dtype == np.float64
    for k in range(K):
        residual = problem.truth - W[:, k] @ H[:, k].T
        expected = [np.sum(M * residual**2), np.sum(M * np.abs(residual))]
        np.testing.assert_allclose(found[k], expected, rtol=1e-12)


@each_mask
@each_kind
def test_residuals_are_those_of_what_is_observed(kind: str, mask: str) -> None:
    """One for each entry, by rows, with its weight."""
    problem = low_rank(m=9, n=7, rank=2)
    block, M = block_of(problem, kind, mask)
    W, H = (factor[:, 0] for factor in stacked_start(problem, 1))
    parts = list(kernels_for(kind).residuals(block, W, H))
    found = np.concatenate([residuals for residuals, _ in parts])
    expected = (problem.truth - W @ H.T)[M > 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    weights = [np.ones(len(r)) if w is None else w for r, w in parts]
    np.testing.assert_allclose(np.concatenate(weights), M[M > 0], rtol=1e-12)


@each_axis
@each_mask
@each_case
def test_candidates_are_independent(
    kind: str, alpha: float, mask: str, axis: int
) -> None:
    """Stacked, each of them gets what it gets alone."""
    problem = low_rank()
    block, _ = block_of(problem, kind, mask, alpha)
    W, H = stacked_start(problem, 3)
    W[:, 1], H[:, 1] = 1e6 * W[:, 1], 0  # neighbours of other sizes must not matter
    stacked = every_kernel(kind, mask, block, W, H, axis)
    for k in range(3):
        alone = every_kernel(kind, mask, block, W[:, [k]], H[:, [k]], axis)
        for name, part in stacked.items():
            assert len(part) == 3
            np.testing.assert_allclose(
                part[k], alone[name][0], rtol=1e-12, atol=1e-12, err_msg=name
            )


@each_axis
@pytest.mark.parametrize("mask", ["bool", "weights"])
def test_what_stands_at_weight_0_does_not_matter(mask: str, axis: int) -> None:
    """Held-out entries keep their values there."""
    problem = low_rank()
    block, M = block_of(problem, "dense", mask)
    other = replace(block, values=np.where(M > 0, block.values, 1e3))
    W, H = stacked_start(problem, 3)
    expected = every_kernel("dense", mask, block, W, H, axis)
    found = every_kernel("dense", mask, other, W, H, axis)
    for name, part in found.items():
        np.testing.assert_array_equal(part, expected[name], err_msg=name)


def test_fill() -> None:
    problem = low_rank()
    W, H = problem.start
    product = W @ H.T
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
    K=st.sampled_from(CANDIDATES),
)
def test_dense_and_sparse_agree(
    shape: tuple[int, int],
    rank: int,
    observed: float,
    seed: int,
    axis: int,
    mask: str,
    K: int,
) -> None:
    problem = low_rank(*shape, rank, observed, seed=seed)
    W, H = stacked_start(problem, K)
    first, second = (block_of(problem, kind, mask)[0] for kind in KINDS)
    one = every_kernel("dense", mask, first, W, H, axis)
    other = every_kernel("sparse", mask, second, W, H, axis)
    for name, part in one.items():
        np.testing.assert_allclose(
            part, other[name], rtol=1e-9, atol=1e-9, err_msg=name
        )


@each_axis
@pytest.mark.parametrize("rank", [3, 16, 18])
def test_where_factors_begin_in_memory_does_not_matter(rank: int, axis: int) -> None:
    """And what the kernels make of them begins on a cache line."""
    problem = low_rank(m=60, n=40, rank=rank, dtype=np.float32)
    block, _ = block_of(problem, "sparse", "bool")
    plain = stacked_start(problem, 1)
    room = np.empty(plain[0].nbytes + plain[1].nbytes + 128, dtype=np.uint8)
    expected = every_kernel("sparse", "bool", block, *plain, axis)
    for beyond in (0, 4, 32):
        start = -room.ctypes.data % 64 + beyond
        W, H = (
            room[begin : begin + factor.nbytes].view(factor.dtype).reshape(factor.shape)
            for factor, begin in zip(
                plain, (start, start + plain[0].nbytes), strict=True
            )
        )
        W[...], H[...] = plain
        found = every_kernel("sparse", "bool", block, W, H, axis)
        for name, part in found.items():
            np.testing.assert_array_equal(part, expected[name], err_msg=name)
    moving, fixed = sides(problem, axis, 1)
    gradient, _ = sparse.gradient(block, moving, fixed, axis)
    if rank >= 8:  # shorter rows are padded
        assert gradient.ctypes.data % 64 == 0


def test_all_kinds_define_the_same_functions() -> None:
    """A solver names a kernel without asking what kind of blocks there are."""
    for name in ("gradient", "curvature", "product", "gram", "errors"):
        one, *others = (
            list(inspect.signature(getattr(module, name)).parameters)
            for module in (dense, sparse, cuda)
        )
        assert others == [one, one]
