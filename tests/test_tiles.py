"""Compiled tiles of dense blocks against plain formulas, whatever their shape."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.kernels import dense, tiles
from dmf.kernels.dense import DenseBlock
from dmf.kernels.registers import VECTORS_BESIDE

Array = Any

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 150))


@st.composite
def problems(draw: Any, dtype: Any) -> tuple[DenseBlock, Array, Array]:
    """Blocks larger and smaller than what registers hold, of any layout and mask."""
    p, q = draw(SHAPES)
    K = draw(st.integers(1, 3))
    rank = draw(st.integers(1, 20) | st.sampled_from([32, 40, 41]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    layout = draw(st.sampled_from(["C", "F", "sliced"]))
    values = rng.standard_normal((p, 2 * q)).astype(dtype)
    values = values[:, ::2] if layout == "sliced" else values[:, :q].copy(layout)
    kind = draw(st.sampled_from(["none", "bool", "weights", "nothing"]))
    weights: Array | None = rng.random((p, q)) < 0.5
    if kind == "none":
        weights = None
    elif kind == "weights":
        weights = (weights * rng.random((p, q))).astype(dtype)
    elif kind == "nothing":
        weights = np.zeros((p, q), dtype=bool)
    W, H = (rng.standard_normal((length, K, rank)).astype(dtype) for length in (p, q))
    return DenseBlock(values, weights), W, H


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data(), two=st.booleans())
def test_tiles_follow_the_formulas(dtype: Any, data: Any, two: bool) -> None:
    block, W, H = data.draw(problems(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ROWS", (16, 16))
        patch.setattr(tiles, "LONG_TILE", 24)
        patch.setattr(tiles, "TILE_ROW_BYTES", 64 * np.dtype(dtype).itemsize)
        gradients = [dense.gradient(block, *pair) for pair in ((W, H, 0), (H, W, 1))]
        moves = [(A, A[::-1].copy()) if two else (A,) for A in (W, H)]
        curvatures = [
            dense.curvature(block, moves[0], H, 0),
            dense.curvature(block, moves[1], W, 1),
        ]
        errors = dense.errors(block, W, H)
    M = 1.0 if block.weights is None else block.weights.astype(float)
    X, W, H = (part.astype(float) for part in (block.values, W, H))
    R = np.einsum("ikr,jkr->kij", W, H) - X
    G = M * R
    close = {"rtol": 1e-4, "atol": 1e-3} if dtype == np.float32 else {"atol": 1e-10}
    for found, loss in gradients:
        np.testing.assert_allclose(loss, 0.5 * (G * R).sum(axis=(1, 2)), **close)
        assert found.dtype == dtype
    expected = np.einsum("kij,jkr->ikr", G, H), np.einsum("kij,ikr->jkr", G, W)
    for (found, _), plain in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, plain, **close)
    for axis, found in enumerate(curvatures):
        own = [move.astype(float) for move in moves[axis]]
        products = [
            np.einsum("ikr,jkr->kij", *((D, H) if axis == 0 else (W, D))) for D in own
        ]
        pairs = [(a, b) for k, a in enumerate(products) for b in products[k:]]
        plain = np.stack([(M * a * b).sum(axis=2 - axis).T for a, b in pairs], axis=-1)
        np.testing.assert_allclose(found, plain, **close)
    np.testing.assert_allclose(errors[:, 0], (G * R).sum(axis=(1, 2)), **close)
    np.testing.assert_allclose(errors[:, 1], np.abs(G).sum(axis=(1, 2)), **close)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rank", [8, 17, 40])
@pytest.mark.parametrize(("dtype", "off"), [(np.float32, 3e-6), (np.float64, 1e-14)])
def test_blas_and_patches_agree(
    axis: int, rank: int, dtype: Any, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether BLAS does the second product, or both are done patch by patch."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((505, 2003)).astype(dtype)
    block = DenseBlock(values, rng.random(values.shape) < 0.6)
    W, H = (rng.standard_normal((n, 2, rank)).astype(dtype) for n in block.shape)
    pair = (W, H) if axis == 0 else (H, W)
    found = []
    for suits in (True, False):
        monkeypatch.setattr(tiles, "suits", lambda *_, suits=suits: suits)
        found.append(dense.gradient(block, *pair, axis))
    (G, loss), (plain, same) = found
    np.testing.assert_allclose(G, plain, rtol=0, atol=off * np.abs(plain).max())
    np.testing.assert_allclose(loss, same, rtol=off)


def test_patches_suit_low_ranks_of_one_dtype() -> None:
    def suits(rank: int, dtype: Any, fixed: Any) -> bool:
        factors = np.zeros((3, 1, rank), dtype), np.zeros((5, 1, rank), fixed)
        return tiles.suits(DenseBlock(np.zeros((3, 5), dtype), None), *factors)

    f, d = np.float32, np.float64
    most = 8 * VECTORS_BESIDE
    assert [r for r in range(1, 700) if suits(r, f, f)] == list(range(8, most + 1))
    assert [r for r in range(1, 700) if suits(r, d, d)] == list(range(4, most // 2 + 1))
    assert not suits(16, f, d)


def test_what_is_unobserved_may_be_anything() -> None:
    """NaN and infinity do no harm where nothing is observed."""
    rng = np.random.default_rng(0)
    values, mask = rng.standard_normal((30, 70)), rng.random((30, 70)) < 0.5
    W, H = rng.standard_normal((30, 1, 5)), rng.standard_normal((70, 1, 5))
    clean = dense.gradient(DenseBlock(values, mask), W, H, 0)
    dirty = np.where(mask, values, np.nan)
    found = dense.gradient(DenseBlock(dirty, mask), W, H, 0)
    np.testing.assert_array_equal(found[0], clean[0])
    np.testing.assert_array_equal(found[1], clean[1])


def test_blocks_travel() -> None:
    block = DenseBlock(np.ones((3, 2)), np.zeros((3, 2), dtype=bool))
    assert block.empty
    again = pickle.loads(pickle.dumps(block))
    assert again.empty
    assert not DenseBlock(np.ones((3, 2)), None).empty


def test_complete_curvature_is_right_where_the_fixed_factor_is_nearly_singular() -> (
    None
):
    """It comes from FᵀF: sums of squares must not drown in it."""
    rng = np.random.default_rng(1)
    H = rng.standard_normal((200, 1, 4))
    H[:, 0, 3] = H[:, 0, 2] + 1e-5 * rng.standard_normal(200)
    D = np.zeros((5, 1, 4))
    D[:, 0, 2], D[:, 0, 3] = 1, -1
    block = DenseBlock(np.ones((5, 200)), None)
    found = dense.curvature(block, (D,), H, 0)[:, 0, 0]
    plain = ((D[:, 0] @ H[:, 0].T) ** 2).sum(axis=1)
    np.testing.assert_allclose(found, plain, rtol=1e-4)
    assert (found > 0).all()
