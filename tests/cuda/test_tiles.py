"""Dense CUDA kernels in the simulator, against those of the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dmf.kernels import cuda_tiles, dense, lanes
from dmf.kernels.dense import DenseBlock
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


def factors() -> tuple[Array, Array]:
    return stacked_start(PROBLEM, 2)


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


def test_sums_of_float32_numbers_keep_their_digits() -> None:
    """Two large residuals would drown all others in a sum that is float32."""
    values = np.ones((8, 10), np.float32)
    values[0, :2] = 6000
    block = DenseBlock(values, None)
    W, H = np.zeros((8, 1, 1), np.float32), np.zeros((10, 1, 1), np.float32)
    tiles = list(cuda_tiles.residuals(block, W, H))
    assert {tile[3].dtype for tile in tiles} == {np.dtype(np.float32)}
    assert float(sum(tile[4] for tile in tiles)) == 2 * 6000.0**2 + 78
