"""Compiled passes over strips against the plain formulas."""

from __future__ import annotations

from typing import Any

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.kernels import strips
from dmf.kernels.vectors import layout_of, shortest_row
from dmf.objective import Side
from dmf.offsets import COLUMNS
from tests.blocks import metric_of

Array = Any


def side_of(rank: int, K: int, offsets: str, same: bool, by_count: bool) -> Side:
    penalties = tuple(
        dmf.Ridge(0.3 if same else 0.1 + k, by_count=by_count) for k in range(K)
    )
    roles = COLUMNS[offsets][0]
    if same:
        penalties = penalties[:1] * K
    return Side(penalties, (rank,) * K, rank, roles, dmf.Ridge(0.7), unit=1.5)


@st.composite
def strips_of(draw: Any, dtype: Any) -> tuple[Array, ...]:
    rank, K = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    offsets = draw(st.sampled_from(["none", "rows", "both", "global"]))
    side = side_of(rank, K, offsets, draw(st.booleans()), draw(st.booleans()))
    shape = (draw(st.integers(1, 9)), K, side.width)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    gradient, moving, last = (
        rng.standard_normal(shape).astype(dtype) for _ in range(3)
    )
    if draw(st.booleans()):  # as H is, when a user gave it
        moving = np.asfortranarray(moving)
    for array in (gradient, moving, last):
        array[rng.random(shape[0]) < 0.2] = 0
    counts = rng.integers(0, 5, shape[0]).astype(float)
    return side, gradient, moving, last, counts


def agree(found: Any, expected: Any, dtype: Any) -> None:
    epsilon = 200 * float(np.finfo(dtype).eps)
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        size = max(1.0, *(float(np.abs(part).max()) for part in np.atleast_1d(b)))
        np.testing.assert_allclose(
            np.stack(a) if isinstance(a, tuple) else a,
            np.stack(b) if isinstance(b, tuple) else b,
            rtol=epsilon,
            atol=epsilon * size,
            err_msg=name,
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    data=st.data(),
    moves=st.sampled_from([1, 2]),
    first=st.booleans(),
    scaled=st.booleans(),
)
def test_compiled_strips_follow_the_formulas(
    dtype: Any, data: Any, moves: int, first: bool, scaled: bool
) -> None:
    side, gradient, moving, last, counts = data.draw(strips_of(dtype))
    K = moving.shape[1]
    terms = side.terms(moving, counts, np.linspace(-1, 1, K))
    arguments = (gradient, moving, None if first else last, terms)
    if scaled:
        arguments = (*arguments, metric_of(moving, data.draw(st.integers(0, 99))))
    found = strips.directions(*arguments, moves=moves)
    slope = terms.still(gradient + terms.gradient(moving)).astype(float)
    np.testing.assert_allclose(found.gradient, np.sum(slope**2, axis=(0, 2)), rtol=1e-4)
    agree(found, strips.plain_directions(*arguments, moves=moves), dtype)
    strides = found.norms * np.linspace(0.1, 1, moves)
    arguments = (moving, found.units, strides, terms)
    after = strips.advance(*arguments, rank=side.rank)
    agree(after, strips.plain_advance(*arguments, rank=side.rank), dtype)
    assert after.factor.flags.c_contiguous
    if first and moves == 2:
        assert not found.units[1].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_of_tiny_and_huge_rows_are_right(dtype: Any, scale: float) -> None:
    """Their squares leave float32."""
    side = side_of(16, 1, "none", True, False)
    rng = np.random.default_rng(0)
    gradient = (scale * rng.standard_normal((5, 1, 16))).astype(dtype)
    moving = np.zeros_like(gradient)
    terms = side.terms(moving, np.ones(5), np.zeros(1))
    found = strips.directions(gradient, moving, None, terms, moves=1)
    exact = np.linalg.norm(gradient.astype(float), axis=-1)
    np.testing.assert_allclose(found.norms[..., 0], exact, rtol=1e-6)
    lengths = np.linalg.norm(found.units[0].astype(float), axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_the_formulas_need_only_the_array_api() -> None:
    """So that strips on a GPU move by the same lines."""
    side = side_of(6, 2, "both", True, True)
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((7, 2, side.width)) for _ in range(3)]
    counts, centre = np.arange(7.0), np.array([0.5, -0.5])
    terms = side.terms(arrays[1], counts, centre)
    expected = strips.directions(*arrays, terms, moves=2)
    alike = [strict.asarray(array) for array in arrays]
    same_terms = side.terms(alike[1], strict.asarray(counts), strict.asarray(centre))
    found = strips.directions(*alike, same_terms, moves=2)
    for a, b in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-12, atol=1e-12)
    strides = expected.norms * 0.1
    after = strips.advance(
        alike[1], found.units, strict.asarray(strides), same_terms, rank=6
    )
    plain = strips.advance(arrays[1], expected.units, strides, terms, rank=6)
    for a, b in zip(after, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-12, atol=1e-12)


@given(width=st.integers(1, 1000), dtype=st.sampled_from([np.float32, np.float64]))
def test_layouts_cover_each_number_once(width: int, dtype: Any) -> None:
    width = max(width, shortest_row(dtype))
    starts, kept = layout_of(width, dtype)
    covered = np.zeros(width)
    for start in starts:
        shares = kept if start == starts[-1] else np.ones(len(kept))
        covered[start : start + len(kept)] += shares
    assert (covered == 1).all()
    assert len(starts) <= 8


@given(
    p=st.integers(0, 20),
    K=st.integers(1, 3),
    moves=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_lengths_and_changes_follow_the_formulas(
    p: int, K: int, moves: int, data: Any
) -> None:
    """Also where rows are flat, or their plane is degenerate."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pairs = moves * (moves + 1) // 2
    slopes = np.moveaxis(rng.standard_normal((moves, p, K)), 0, -1)
    root = rng.standard_normal((p, K, moves, moves))
    root[rng.random((p, K)) < 0.3] *= 0
    root[rng.random((p, K)) < 0.3, -1] = 0
    square = root.swapaxes(-1, -2) @ root
    curvature = np.stack(
        [square[..., 0, 0], square[..., 0, -1], square[..., -1, -1]], -1
    )
    curvature = curvature[..., :pairs]
    lengths = rng.standard_normal((p, K, moves))
    if moves == 2:
        # What adds up to them: of the loss, and of the penalty.
        parts = [(0.25 * whole, 0.75 * whole) for whole in (slopes, curvature)]
        lengths = strips.plane_lengths(*parts, 1e-9)
        plain = strips.plane_minimum(
            tuple(np.moveaxis(slopes, -1, 0)),
            tuple(np.moveaxis(curvature, -1, 0)),
            1e-9,
        )
        np.testing.assert_allclose(lengths, np.stack(plain, -1), rtol=1e-9, atol=1e-12)
    found = strips.change_along(slopes, curvature, lengths)
    rows = [strips.change_along(slopes[i], curvature[i], lengths[i]) for i in range(p)]
    expected = np.sum(rows, axis=0) if rows else np.zeros(K)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
