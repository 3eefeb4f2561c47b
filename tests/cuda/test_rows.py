"""CUDA kernels on the rows of strips in the simulator, against the plain formulas."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from dmf.kernels import cuda_rows, lanes, strips
from dmf.objective import Terms
from tests.blocks import metric_of

Array = Any
each_rank = pytest.mark.parametrize("rank", [1, 3, 4, 9])


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two warps of four lanes in a block: a simulated thread is a Python thread."""
    monkeypatch.setattr(lanes, "WARP", 4)
    monkeypatch.setattr(lanes, "WARPS", 2)


def strip_of(rank: int, dtype: Any = np.float64, K: int = 2) -> list[Array]:
    """Return strips of 11 rows: more than the teams of a block, and no multiple."""
    rng = np.random.default_rng(rank)
    strips = [rng.standard_normal((11, K, rank)).astype(dtype) for _ in range(3)]
    for strip in strips:
        strip[3] = 0  # a row that goes nowhere
    return strips


def terms_for(like: Array, each: bool, centred: bool, still: bool) -> Terms:
    """Return a penalty whose λ differ for each candidate and column, or for none."""
    rng = np.random.default_rng(7)
    p, K, c = like.shape
    several = each or still
    shape = (p, K if each else 1, 2 if several else 1)
    strengths = rng.random(shape).astype(like.dtype)
    first = np.arange(c) == 0
    columns = np.stack([~first, first & (not still)]).astype(like.dtype)
    centre = rng.standard_normal((K, c)).astype(like.dtype) if centred else None
    return Terms(strengths, columns if several else None, centre, None, None)


def assert_same(found: Any, expected: Any) -> None:
    limit = 1e-12 if expected[0][0].dtype == np.float64 else 1e-5
    for name, one, other in zip(found._fields, found, expected, strict=True):
        for a, b in zip(
            *((x if isinstance(x, tuple) else (x,)) for x in (one, other)), strict=True
        ):
            assert a.shape == b.shape, name
            assert a.dtype == b.dtype, name
            np.testing.assert_allclose(a, b, rtol=limit, atol=limit, err_msg=name)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("moves", "led"), [(1, False), (2, False), (2, True)])
@each_rank
def test_directions(rank: int, moves: int, led: bool, begun: bool) -> None:
    moving, gradient, last = strip_of(rank)
    terms = terms_for(moving, each=begun, centred=led, still=rank == 9)
    arguments = (
        gradient,
        moving,
        last if begun else None,
        terms,
        metric_of(moving, rank) if led else None,
    )
    found = cuda_rows.directions(*arguments, moves=moves)
    assert_same(found, strips.plain_directions(*arguments, moves=moves))


@pytest.mark.parametrize("moves", [1, 2])
@each_rank
def test_advance(rank: int, moves: int) -> None:
    """With a column that isn't the factor's own, if there are several."""
    moving, *units = strip_of(rank)
    terms = terms_for(moving, each=moves == 1, centred=rank == 3, still=False)
    strides = np.random.default_rng(rank).standard_normal((11, 2, moves))
    strides[5] = 0
    moving[5, 0] = 0  # what is 0 and stays there is counted
    arguments = (moving, tuple(units[:moves]), strides, terms)
    own = max(1, rank - 1)
    found = cuda_rows.advance(*arguments, rank=own)
    assert_same(found, strips.plain_advance(*arguments, rank=own))
    assert found.zeros[0] >= own


@pytest.mark.parametrize(("each", "centred"), list(product([False, True], repeat=2)))
def test_in_float32(each: bool, centred: bool) -> None:
    moving, gradient, last = strip_of(6, np.float32)
    terms = terms_for(moving, each, centred, still=True)
    found = cuda_rows.directions(gradient, moving, last, terms, moves=2)
    expected = strips.plain_directions(gradient, moving, last, terms, moves=2)
    assert_same(found, expected)
    # Their squares leave float32.
    tiny = cuda_rows.directions(1e-30 * gradient, 0 * moving, None, terms, moves=1)
    np.testing.assert_allclose(np.linalg.norm(tiny.units[0][0], axis=-1), 1, rtol=1e-6)


def test_strips_without_rows() -> None:
    moving, gradient, last = (strip[:0] for strip in strip_of(3))
    terms = terms_for(moving, each=False, centred=False, still=False)
    found = cuda_rows.directions(gradient, moving, last, terms, moves=2)
    assert found.norms.shape == (0, 2, 2)
    assert found.penalty.tolist() == [0.0, 0.0]
    assert cuda_rows.advance(
        moving, found.units, np.zeros((0, 2, 2)), terms, rank=3
    ).zeros.tolist() == [0.0, 0.0]
