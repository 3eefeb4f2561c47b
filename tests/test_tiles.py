"""Compiled tiles of dense blocks against plain formulas, whatever their shape."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.errors import TypingError

from dmf.kernels import dense, tiles
from dmf.kernels.dense import DenseBlock

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
        patch.setattr(tiles, "TILE_ROWS", 24)
        patch.setattr(tiles, "WRITTEN_ROWS", 12)
        patch.setattr(tiles, "TILE_COLUMNS", 64)
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
@pytest.mark.parametrize("rank", [1, 17, 40, 300])
@pytest.mark.parametrize(("dtype", "off"), [(np.float32, 3e-6), (np.float64, 1e-14)])
def test_many_tiles_give_what_one_product_gives(
    axis: int, rank: int, dtype: Any, off: float
) -> None:
    """Tiles as large as they are, some of them not full, against BLAS on all of X."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((505, 2003)).astype(dtype)
    M = rng.random(values.shape) < 0.6
    W, H = (rng.standard_normal((n, 2, rank)).astype(dtype) for n in values.shape)
    moving, fixed = (W, H) if axis == 0 else (H, W)
    moves = moving, rng.standard_normal(moving.shape).astype(dtype)
    block = DenseBlock(values, M)
    G, loss = dense.gradient(block, moving, fixed, axis)
    curved = dense.curvature(block, moves, fixed, axis)
    of_one = dense.curvature(block, moves[:1], fixed, axis)
    turn = (lambda A: A) if axis == 0 else np.transpose
    values, M = turn(values).astype(float), turn(M)
    for k in range(2):
        F, D, S = (A[:, k].astype(float) for A in (fixed, *moves))
        DF, SF = D @ F.T, S @ F.T
        R = M * (DF - values)
        plain = np.stack([(M * DF**2), (M * DF * SF), (M * SF**2)]).sum(axis=2).T
        size = np.abs(R) @ np.abs(F)
        np.testing.assert_array_less(np.abs(G[:, k] - R @ F), off * size)
        np.testing.assert_allclose(loss[k], 0.5 * (R**2).sum(), rtol=off)
        sizes = np.sqrt(plain[:, :1] * plain[:, 2:])
        assert np.abs((curved[:, k] - plain)[:, 1:2] / sizes).max() < off
        np.testing.assert_allclose(curved[:, k, ::2], plain[:, ::2], rtol=off)
        np.testing.assert_allclose(of_one[:, k, 0], plain[:, 0], rtol=off)


@pytest.mark.parametrize("axis", [0, 1])
def test_factors_of_another_dtype_are_taken_as_that_of_x(axis: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 70)).astype(np.float32)
    block = DenseBlock(values, rng.random(values.shape) < 0.5)
    for dtypes in ([np.float64, np.float32], [np.float32, np.float64]):
        factors = [
            rng.standard_normal((n, 1, 5)).astype(dtype)
            for n, dtype in zip(block.shape, dtypes, strict=True)
        ]
        moving, fixed = factors if axis == 0 else factors[::-1]
        same = moving.astype(np.float32), fixed.astype(np.float32)
        found, loss = dense.gradient(block, moving, fixed, axis)
        plain, plain_loss = dense.gradient(block, *same, axis)
        assert found.dtype == moving.dtype
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(loss, plain_loss)
        curved = dense.curvature(block, (moving,), fixed, axis)
        plain = dense.curvature(block, same[:1], same[1], axis)
        np.testing.assert_allclose(curved, plain, rtol=1e-5)


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


def test_blocks_that_are_no_blocks_are_refused() -> None:
    values, M = np.ones((3, 5)), np.ones((3, 5), np.float32)
    W, H = np.ones((3, 1, 2)), np.ones((5, 1, 2))
    with pytest.raises(TypingError, match="M is float32, but X is float64"):
        dense.gradient(DenseBlock(values, M), W, H, 0)
    with pytest.raises(TypingError, match="M is float32, but X is float64"):
        dense.curvature(DenseBlock(values, M), (W,), H, 0)
    with pytest.raises(TypingError, match="X is int64; it must be float32 or float64"):
        dense.errors(DenseBlock(values.astype(int), M > 0), W, H)


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
