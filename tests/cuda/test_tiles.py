"""Dense CUDA kernels in the simulator, against those of the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dmf.kernels import cuda_tiles, dense, lanes
from dmf.kernels.strips import PAIRS
from tests.blocks import MASKS, block_of, each_axis
from tests.problems import low_rank, stacked_start

Array = Any
each_mask = pytest.mark.parametrize("mask", MASKS)
PROBLEM = low_rank(m=11, n=14, rank=3, dtype=np.float64)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of four rows, with parts of five columns, and two warps of four lanes."""
    monkeypatch.setattr(lanes, "WARP", 4)
    monkeypatch.setattr(lanes, "WARPS", 2)
    monkeypatch.setattr(cuda_tiles, "PART", 5)
    monkeypatch.setattr(dense, "TILE_BYTES", 1)
    monkeypatch.setattr(dense, "TILE_ROWS", (4, 4))


def factors(dtype: Any = np.float64) -> tuple[Array, Array]:
    W, H = stacked_start(PROBLEM, 2)
    return W.astype(dtype), H.astype(dtype)


@each_mask
def test_residuals(mask: str) -> None:
    block, M = block_of(PROBLEM, "dense", mask)
    W, H = factors()
    seen = np.zeros((2, *block.shape), dtype=int)
    for rows, columns, k, weighted, squares in cuda_tiles.residuals(block, W, H):
        expected = (W[:, k] @ H[:, k].T - block.values)[rows, columns]
        here = M[rows, columns]
        np.testing.assert_allclose(weighted, here * expected, rtol=0, atol=1e-12)
        assert squares == pytest.approx(float(np.sum(here * expected**2)), rel=1e-12)
        seen[k, rows, columns] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("moves", [1, 2])
@each_axis
@each_mask
def test_curvature(mask: str, axis: int, moves: int) -> None:
    block, M = block_of(PROBLEM, "dense", mask)
    pair = factors()
    moving, fixed = pair if axis == 0 else pair[::-1]
    courses = (moving, 2 * moving - 1)[:moves]
    result = np.zeros((block.shape[axis], 2, PAIRS[moves]))
    cuda_tiles.curvature(block, courses, fixed, axis, result)
    M = M if axis == 0 else M.T
    products = [np.einsum("ikr,jkr->kij", move, fixed) for move in courses]
    pairs = [(a, b) for n, a in enumerate(products) for b in products[n:]]
    for number, (a, b) in enumerate(pairs):
        expected = np.einsum("ij,kij->ik", M, a * b)
        np.testing.assert_allclose(result[:, :, number], expected, atol=1e-12)


def test_in_float32() -> None:
    """Sums are float64: those of float32 numbers keep their digits."""
    problem = low_rank(m=11, n=14, rank=3, dtype=np.float32)
    block, _ = block_of(problem, "dense", "bool")
    W, H = factors(np.float32)
    tiles = [tile[3:] for tile in cuda_tiles.residuals(block, W, H) if tile[2] == 0]
    assert {tile.dtype for tile, _ in tiles} == {np.dtype(np.float32)}
    found = sum(float(squares) for _, squares in tiles)
    expected = dense.gradient(block, W, H, 0)[1][0]
    assert 0.5 * found == pytest.approx(float(expected), rel=1e-5)
