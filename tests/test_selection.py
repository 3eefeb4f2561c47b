"""The loops that make sparse blocks, against NumPy's own passes over the entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.holdout import Share
from dmf.kernels.selection import drawn, picked, stored_in_columns

Array = Any


@st.composite
def compressed_rows(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Return where rows start, their columns, and how many columns there are."""
    q = draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(0, q), min_size=1, max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parts = [np.sort(rng.permutation(q)[:length]) for length in lengths]
    index = draw(st.sampled_from([np.int32, np.int64]))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(index)
    return starts, np.concatenate(parts).astype(index), q


@given(
    rows=compressed_rows(),
    seed=st.integers(0, 2**32),
    weighted=st.booleans(),
    double=st.booleans(),
    every=st.booleans(),
    panels=st.integers(1, 4),
)
def test_what_is_picked(
    rows: tuple[Array, Array, int],
    seed: int,
    weighted: bool,
    double: bool,
    every: bool,
    panels: int,
) -> None:
    """Panel after panel; in each of them row after row, as they were."""
    starts, columns, q = rows
    p = len(starts) - 1
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(len(columns)).astype("f8" if double else "f4")
    weights = rng.random(len(columns)).astype(values.dtype) if weighted else None
    chosen = rng.random(len(columns)) < rng.random()
    ends = np.sort(rng.integers(0, q + 1, panels))
    ends[-1] = q
    begin, own, kept, kept_weights = picked(
        starts, columns, values, weights, None if every else chosen, ends
    )
    assert (begin.dtype, own.dtype, kept.dtype) == (np.int64, np.int32, values.dtype)
    panel = np.searchsorted(ends, columns, side="right")
    lines = panel * p + np.repeat(np.arange(p), np.diff(starts))
    order = np.argsort(lines, kind="stable")
    if not every:
        order = order[chosen[order]]
    assert begin[0] == 0
    assert np.diff(begin).tolist() == (
        np.bincount(lines[order], minlength=panels * p).tolist()
    )
    assert own.tolist() == columns[order].tolist()
    assert kept.tolist() == values[order].tolist()
    if weights is None:
        assert kept_weights is None
    else:
        assert kept_weights is not None
        assert kept_weights.tolist() == weights[order].tolist()
    found = stored_in_columns(own, q)
    assert found.tolist() == np.bincount(own, minlength=q).tolist()


@given(compressed_rows(), st.integers(0, 2**70), st.floats(0.05, 0.95))
def test_what_is_drawn(
    rows: tuple[Array, Array, int], seed: int, fraction: float
) -> None:
    starts, columns, q = rows
    share = Share(fraction, seed)
    shape = (len(starts) - 1, q)
    i, j = (np.arange(length, dtype=np.uint64) for length in shape)
    everywhere = share.chosen(i[:, None], j[None, :])
    own = np.repeat(np.arange(shape[0]), np.diff(starts))
    of_row, of_column = share.words(np, shape, (0, 0))
    found = drawn(starts, columns, of_row, of_column, share.limit)
    assert found.tolist() == everywhere[own, columns].tolist()


@pytest.mark.parametrize("limit", [0, 2**64 - 1])
def test_the_ends_of_a_limit(limit: int) -> None:
    starts, columns = np.array([0, 3]), np.array([0, 1, 2])
    words = np.zeros(1, np.uint64), np.arange(3, dtype=np.uint64)
    found = drawn(starts, columns, *words, limit)
    assert found.tolist() == [limit > 0] * 3
