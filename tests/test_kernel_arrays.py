"""Kernels on arrays as they come: namespaces, dtypes, tiles, memory, read-only data."""

from __future__ import annotations

import tracemalloc
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from dmf.kernels import dense, kernels_for, tiles
from tests.blocks import (
    MASKS,
    block_of,
    each_axis,
    each_case,
    each_count,
    each_kind,
    each_mask,
    every_kernel,
    sides,
)
from tests.problems import low_rank, stacked_start


@each_count
@each_axis
@each_mask
def test_dense_kernels_need_only_the_array_api(mask: str, axis: int, K: int) -> None:
    """array-api-strict offers nothing but the standard, and mixes no dtypes."""
    problem = low_rank(m=9, n=7, rank=2, dtype=np.float32)
    block, _ = block_of(problem, "dense", mask)
    weights = block.weights
    same = dense.DenseBlock(
        strict.asarray(block.values.copy()),
        None if weights is None else strict.asarray(weights.copy()),
    )
    moving, fixed = sides(problem, axis, K)
    strictly = strict.asarray(moving), strict.asarray(fixed)
    gradient, loss = dense.gradient(block, moving, fixed, axis)
    found, found_loss = dense.gradient(same, *strictly, axis)
    np.testing.assert_allclose(np.asarray(found), gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found_loss), loss, rtol=1e-6)
    moves = (moving, moving**2)
    expected = dense.curvature(block, moves, fixed, axis)
    strict_moves = tuple(strict.asarray(move) for move in moves)
    found = dense.curvature(same, strict_moves, strictly[1], axis)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)
    found = dense.gram(same, strictly[1], axis)
    expected = dense.gram(block, fixed, axis)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)
    if mask == "none":
        found = dense.product(same, strictly[1], axis)
        expected = dense.product(block, fixed, axis)
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-5)
    W, H = (0, 1) if axis == 0 else (1, 0)
    found = dense.errors(same, strictly[W], strictly[H])
    expected = dense.errors(block, (moving, fixed)[W], (moving, fixed)[H])
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6)


@each_kind
@each_axis
def test_inputs_are_never_changed(kind: str, axis: int) -> None:
    """Dask hands the same block to many tasks: read-only inputs must be enough."""
    problem = low_rank()
    W, H = stacked_start(problem, 2)
    for factor in (W, H):
        factor.flags.writeable = False
    for mask in MASKS:
        block, _ = block_of(problem, kind, mask)
        for part in vars(block).values():
            if isinstance(part, np.ndarray):
                part.flags.writeable = False
        every_kernel(kind, mask, block, W, H, axis)


@each_count
@each_kind
@each_axis
def test_float32_stays_float32_and_is_accurate(kind: str, axis: int, K: int) -> None:
    exact = low_rank(m=400, n=300, rank=5)
    single = low_rank(m=400, n=300, rank=5, dtype=np.float32)
    kernels = kernels_for(kind)
    for mask in ("bool", "none"):
        block, rounded = (block_of(p, kind, mask)[0] for p in (exact, single))
        (moving, fixed), factors = (sides(p, axis, K) for p in (exact, single))
        expected, loss = kernels.gradient(block, moving, fixed, axis)
        found, found_loss = kernels.gradient(rounded, *factors, axis)
        assert found.dtype == np.float32
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
        # The scalar is a sum in float64 of residuals in float32.
        np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
        assert kernels.gram(rounded, factors[1], axis).dtype == np.float32
        errors = kernels.errors(block, *stacked_start(exact, K))
        found = kernels.errors(rounded, *stacked_start(single, K))
        np.testing.assert_allclose(found, errors, rtol=1e-6)
    expected = kernels.product(block, fixed, axis)
    found = kernels.product(rounded, factors[1], axis)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@each_axis
def test_tiles_give_what_one_tile_gives(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = low_rank(m=50, n=20)
    W, H = stacked_start(problem, 3)
    block, _ = block_of(problem, "dense", "weights")
    whole = every_kernel("dense", "weights", block, W, H, axis)
    monkeypatch.setattr(tiles, "TILE_ROWS", 7)
    monkeypatch.setattr(tiles, "WRITTEN_ROWS", 5)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 11)
    monkeypatch.setattr(dense, "TILE_BYTES", 7 * 3 * 3**2 * 8)  # for `gram`
    for name, part in every_kernel("dense", "weights", block, W, H, axis).items():
        np.testing.assert_allclose(
            part, whole[name], rtol=1e-12, atol=1e-12, err_msg=name
        )


@each_count
def test_no_residual_of_a_whole_block_exists(K: int) -> None:
    problem = low_rank(m=3000, n=1500, rank=4)
    block, _ = block_of(problem, "dense", "bool")
    W, H = stacked_start(problem, K)
    tracemalloc.start()
    try:
        dense.gradient(block, H, W, 1)
        dense.curvature(block, (H, H), W, 1)
        dense.errors(block, W, H)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < block.values.nbytes / 3


@each_count
@each_axis
@each_case
def test_a_block_with_nothing_observed_is_all_zeros(
    kind: str, alpha: float, axis: int, K: int
) -> None:
    problem = low_rank(observed=0.0)
    block, _ = block_of(problem, kind, "bool", alpha)
    W, H = stacked_start(problem, K)
    for name, part in every_kernel(kind, "bool", block, W, H, axis).items():
        assert part.shape[0] == K
        assert not part.any(), name


@pytest.mark.parametrize("namespace", [np, strict], ids=["numpy", "strict"])
def test_long_rows_are_summed_in_float64(namespace: Any) -> None:
    """One row of two million entries: float32 alone would lose the fifth digit."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1, 2_000_000), dtype=np.float32)
    weights = rng.random(X.shape, dtype=np.float32)
    W, H = (np.ones((n, 2, 1), np.float32) for n in X.shape)
    block = dense.DenseBlock(*map(namespace.asarray, (X, weights)))
    W, H = namespace.asarray(W), namespace.asarray(H)
    M, residual = weights.astype(float), 1 - X.astype(float)
    _, loss = dense.gradient(block, W, H, 0)
    np.testing.assert_allclose(np.asarray(loss), 0.5 * np.sum(M * residual**2), 1e-7)
    sums = [np.sum(M * residual**2), np.sum(M * np.abs(residual))]
    errors = dense.errors(block, W, H)
    np.testing.assert_allclose(np.asarray(errors), [sums, sums], rtol=1e-7)
    curved = dense.curvature(block, (W,), H, 0)
    np.testing.assert_allclose(np.asarray(curved)[0, :, 0], np.sum(M), rtol=1e-7)
