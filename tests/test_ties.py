"""Compiled passes over tied strips against the formulas, and against dense solves."""

from __future__ import annotations

from typing import Any

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.kernels import ties as kernels
from dmf.objective import Side
from dmf.offsets import COLUMNS
from dmf.smoothness import Ties, differences_of
from dmf.solvers.base import Halo, Moved
from dmf.solvers.smooth import Course, build_model, find_course, update

Array = Any

TOTAL = 30
UNEVEN = tuple(np.random.default_rng(3).uniform(0.2, 3.0, TOTAL - 1).tolist())
# Of three candidates: one tie, two of them beside a ridge, none at all.
PENALTIES = (
    dmf.Smooth(1.7) + dmf.Ridge(0.4),
    dmf.Smooth(0.6, order=2, step=UNEVEN) + dmf.Smooth(2.0, step=0.5) + dmf.Ridge(0.2),
    dmf.Ridge(1.5),
)
dtypes = st.sampled_from([np.float32, np.float64])


def side_of(rank: int, K: int, offsets: str) -> Side:
    roles = COLUMNS[offsets][1]
    return Side(PENALTIES[:K], (rank,) * K, rank, roles, dmf.Ridge(0.7), unit=1.5)


def halo_of(wholes: tuple[Array, ...], start: int, stop: int, xp: Any) -> Halo:
    """Return the two rows on either side of a strip, as a solver gets them."""

    def edge(rows: slice) -> Any:
        if not len(wholes[0][rows]):
            return None
        parts = tuple(xp.asarray(whole[rows]) for whole in wholes)
        return parts if len(parts) > 1 else parts[0]

    before, after = slice(max(0, start - 2), start), slice(stop, stop + 2)
    return Halo(edge(before), edge(after), start, TOTAL)


@st.composite
def places(draw: Any) -> tuple[int, int]:
    """Draw where a strip begins and ends; what is left beside it is a strip too."""
    start = draw(st.sampled_from([0, 2, 9]))
    return start, draw(st.sampled_from([start + 2, start + 7, TOTAL - 2, TOTAL]))


@given(
    place=places(),
    rank=st.integers(1, 40),
    K=st.integers(1, 3),
    beside=st.integers(0, 2),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
def test_compiled_ties_follow_the_formulas(
    place: tuple[int, int], rank: int, K: int, beside: int, dtype: Any, seed: int
) -> None:
    start, stop = place
    parts = tuple(
        differences_of(smooth, start, stop - start, TOTAL, candidate=k)
        for k, penalty in enumerate(PENALTIES[:K])
        for smooth in penalty.smooth
    )
    before, after = min(2, start), min(2, TOTAL - stop)
    ties = Ties(parts, rank, stop - start, before)
    rng = np.random.default_rng(seed)
    shape = (before + stop - start + after, K, rank + beside)
    one, other = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    value, gradient = ties.pull(one)
    products = ties.products(one, other)
    alike, alike_too = strict.asarray(one), strict.asarray(other)
    found, pull = ties.pull(alike)
    np.testing.assert_allclose(value, np.asarray(found), rtol=1e-12)
    np.testing.assert_allclose(gradient, np.asarray(pull), rtol=1e-12, atol=1e-11)
    found = np.asarray(ties.products(alike, alike_too))
    np.testing.assert_allclose(products, found, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(products[:, 0], 2 * value, rtol=1e-12)
    assert not gradient[:, :, rank:].any()


@given(
    order=st.integers(0, 3),
    p=st.integers(1, 12),
    r=st.integers(1, 9),
    least=st.sampled_from([0.0, 1e-8, 0.1]),
    seed=st.integers(0, 99),
)
def test_banded_systems_are_solved_as_dense_ones(
    order: int, p: int, r: int, least: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    root = np.tril(np.triu(rng.standard_normal((p, p)), -order))
    matrix = root @ root.T + 0.1 * np.eye(p)
    bands = np.zeros((order + 1, p))
    for j in range(min(order, p - 1) + 1):
        bands[j, : p - j] = np.diagonal(matrix, -j)
    curvature, counts = rng.uniform(0, 3, r), rng.integers(0, 4, p).astype(float)
    right = rng.standard_normal((p, r))
    found = right.copy()
    kernels.solve(bands, curvature, counts, least, found)
    for column, sigma in enumerate(curvature):
        system = matrix + np.diag(sigma * counts)
        system += least * np.diagonal(system).max() * np.eye(p)
        expected = np.linalg.solve(system, right[:, column])
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-8, atol=1e-10)


def half_step(
    place: tuple[int, int], rank: int, K: int, offsets: str, dtype: Any, xp: Any
) -> tuple[Course, Moved]:
    """Run a strip through a half-step, its sums over the factor being its own."""
    side = side_of(rank, K, offsets)
    start, stop = place
    rng = np.random.default_rng(rank)
    width = side.width
    whole, last, slopes = (
        rng.standard_normal((TOTAL, K, width)).astype(dtype) for _ in range(3)
    )
    root = rng.standard_normal((K, width, width))
    gram = 7 * (root @ root.swapaxes(1, 2) + 0.1 * np.eye(width))
    counts = rng.integers(0, 5, stop - start).astype(float)
    curvature = rng.uniform(4, 5, (stop - start, K, 3)) * [1, 0.1, 1]
    moving, memory, slopes = (xp.asarray(x[start:stop]) for x in (whole, last, slopes))
    counts, gram, curvature = (xp.asarray(x) for x in (counts, gram, curvature))
    terms = side.terms(moving, counts, xp.zeros(K, dtype=xp.float64))

    course = find_course(
        (slopes, xp.ones(K, dtype=xp.float64)),
        moving,
        (memory,),
        halo_of((whole,), start, stop, xp),
        gram,
        terms,
        counts,
        side=side,
        fixed_rows=7,
    )
    model = build_model(
        course, curvature, halo_of((last, whole), start, stop, xp), terms, side=side
    )
    return course, update(moving, course, model, model, terms, counts, side=side)


@pytest.mark.parametrize("offsets", ["none", "both"])
@pytest.mark.parametrize("place", [(0, TOTAL), (0, 9), (9, 20)], ids=str)
def test_the_half_step_needs_only_the_array_api(
    place: tuple[int, int], offsets: str
) -> None:
    """But for the banded systems, which are solved on NumPy arrays."""
    course, moved = half_step(place, 6, 3, offsets, np.float64, np)
    same, moved_too = half_step(place, 6, 3, offsets, np.float64, strict)
    pairs = [*zip(course[1:], same[1:], strict=True)]
    pairs += zip(course.moves, same.moves, strict=True)
    pairs += zip(moved.report, moved_too.report, strict=True)
    pairs += [(moved.factor, moved_too.factor)]
    for a, b in pairs:
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [(0, TOTAL), (9, 20)], ids=str)
def test_the_move_solves_the_approximate_system(
    place: tuple[int, int], dtype: Any
) -> None:
    """Counts times the mean Gram matrix, the ridge, and the ties: one dense matrix."""
    rank, K = 5, 2
    course, _ = half_step(place, rank, K, "none", dtype, np)
    p = place[1] - place[0]
    rng = np.random.default_rng(rank)  # the numbers of `half_step`, in its order
    whole, _, slopes = (
        rng.standard_normal((TOTAL, K, rank)).astype(dtype) for _ in range(3)
    )
    root = rng.standard_normal((K, rank, rank))
    mean = root @ root.swapaxes(1, 2) + 0.1 * np.eye(rank)
    counts = rng.integers(0, 5, p).astype(float)
    own = slice(*place)
    for k, penalty in enumerate(PENALTIES[:K]):
        tied = np.zeros((TOTAL, TOTAL))
        for smooth in penalty.smooth:
            part = differences_of(smooth, 0, TOTAL, TOTAL)
            matrix = np.zeros((len(part.coefficients), TOTAL))
            for row, factors in enumerate(part.coefficients):
                matrix[row, row : row + len(factors)] = factors
            tied += matrix.T @ matrix
        ridge = penalty.ridge(np.ones(1))[0]
        gradient = slopes[own, k] + tied[own] @ whole[:, k] + ridge * whole[own, k]
        system = np.kron(np.diag(counts), mean[k])
        system += np.kron(tied[own, own] + ridge * np.eye(p), np.eye(rank))
        expected = -np.linalg.solve(system, gradient.ravel()).reshape(p, rank)
        # The systems have a share of 1e-8 added to them, to be safe.
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype is np.float32 else {"atol": 1e-5}
        np.testing.assert_allclose(course.moves[0][:, k], expected, **close)
