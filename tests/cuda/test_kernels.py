"""CUDA kernels in the simulator, against those of the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmf.device import to_device
from dmf.kernels import cuda, kernels_for, lanes, sparse
from dmf.kernels.sparse import SparseBlock

Array = Any

PATTERNS = ["random", "empty", "one row", "one column", "long row", "unsorted"]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two warps of four lanes in a block, and rows of more than eight entries are long:
    a simulated thread is a Python thread."""
    monkeypatch.setattr(lanes, "WARP", 4)
    monkeypatch.setattr(lanes, "WARPS", 2)
    monkeypatch.setattr(cuda, "SEGMENT", 8)


def block_of(
    pattern: str, dtype: Any, weighted: bool, alpha: float = 0.0
) -> SparseBlock:
    """Return a block of a pattern; "long row": longer than a warp's segment."""
    rng = np.random.default_rng(len(pattern))
    shape, observed = (6, 5), 0.6
    if pattern == "one row":
        shape = (1, 40)
    elif pattern == "one column":
        shape = (40, 1)
    elif pattern == "long row":
        shape, observed = (2, lanes.WARP + cuda.SEGMENT), 1.0
    stored = rng.random(shape) < (0.0 if pattern == "empty" else observed)
    if pattern == "long row":
        stored[1, 3:] = False
    rows, columns = np.nonzero(stored)
    if pattern == "unsorted":
        order = np.lexsort((rng.random(len(rows)), rows))
        columns = columns[order]
        assert np.any(np.diff(columns)[np.diff(rows) == 0] < 0)
    weights = rng.uniform(0.2, 3.0, len(rows)).astype(dtype) if weighted else None
    return SparseBlock(
        np.append(0, np.cumsum(stored.sum(axis=1))),
        columns.astype(np.int32),
        rng.standard_normal(len(rows)).astype(dtype),
        weights,
        shape,
        alpha,
    )


def factors(block: SparseBlock, K: int, rank: int, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng(rank)
    W, H = (rng.standard_normal((n, K, rank)).astype(dtype) for n in block.shape)
    return W, H


def assert_same(found: Any, expected: Any, dtype: Any) -> None:
    """Compare results: sums of the same terms in another order."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else None
    for one, other in pairs or [(found, expected)]:
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        scale = max(1.0, float(np.abs(other).max(initial=0.0)))
        limit = 2e-6 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(one, other, rtol=0, atol=limit * scale)


@pytest.mark.parametrize(
    ("dtype", "K", "rank"), [(np.float32, 2, 3), (np.float64, 1, 3)], ids=str
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_kernel_on_every_pattern(
    pattern: str, weighted: bool, axis: int, dtype: Any, K: int, rank: int
) -> None:
    block = block_of(pattern, dtype, weighted)
    compare(block, factors(block, K, rank, dtype), axis, dtype)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_with_a_weight_for_what_is_not_stored(weighted: bool, axis: int) -> None:
    block = block_of("random", np.float32, weighted, alpha=0.3)
    compare(block, factors(block, 2, 3, np.float32), axis, np.float32)


@pytest.mark.parametrize("rank", [1, 2, 7, 8, 16, 17])
def test_teams_of_every_width(rank: int) -> None:
    """From one lane, with numbers beyond the row or without, to the whole warp."""
    block = block_of("random", np.float64, True)
    compare(block, factors(block, 2, rank, np.float64), 0, np.float64)


@pytest.mark.parametrize("rank", [3, 32, 70, 130])
def test_warps_as_wide_as_those_of_devices(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "WARP", 32)
    monkeypatch.setattr(lanes, "WARPS", 1)
    block = block_of("random", np.float64, True)
    compare(block, factors(block, 1, rank, np.float64), 1, np.float64)


class Interfaced(np.ndarray):
    """Stands for CuPy's arrays where numba-cuda looks at them."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.__array_interface__


@pytest.mark.parametrize("axis", [0, 1])
def test_arrays_in_another_order(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels read is brought to theirs; what they write never is, or is lost."""

    def plain(value: Any) -> Any:
        return np.asarray(value) if isinstance(value, np.ndarray) else value

    monkeypatch.setattr(lanes, "_view", plain)
    block = block_of("random", np.float64, True)
    both = factors(block, 2, 3, np.float64)
    W, H = (np.asfortranarray(factor).view(Interfaced) for factor in both)
    assert not W.flags.c_contiguous
    compare(block, (W, H), axis, np.float64)


def compare(
    block: SparseBlock, both: tuple[Array, Array], axis: int, dtype: Any
) -> None:
    """Hold all kernels against those of the processor."""
    kernels = kernels_for("sparse", gpu=True)
    assert kernels is cuda
    there = to_device(block)
    assert isinstance(there, cuda.CudaBlock)
    W, H = both
    moving, fixed = (W, H) if axis == 0 else (H, W)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("gradient", (moving, fixed, axis)),
        ("curvature", ((moving,), fixed, axis)),
        ("curvature", ((moving, 2 * moving - 1), fixed, axis)),
        ("errors", (W, H)),
    ]
    if W.shape[2] < 8:  # r² sums for each row are slow to simulate
        calls.append(("gram", (fixed, axis)))
    if block.weights is None and not block.unobserved:
        calls.append(("product", (fixed, axis)))
    for name, arguments in calls:
        found = getattr(kernels, name)(there, *arguments)
        assert_same(found, getattr(sparse, name)(block, *arguments), dtype)


@given(counts=st.lists(st.integers(0, 5 * cuda.SEGMENT), max_size=12))
def test_segments_cover_each_entry_once(counts: list[int]) -> None:
    owners, starts = cuda.segments_of(np.array(counts, dtype=np.int64))
    lengths = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] == sum(counts)
    assert np.all((lengths > 0) & (lengths <= cuda.SEGMENT))
    found = np.bincount(owners, lengths, minlength=len(counts))
    assert found.tolist() == counts
    assert np.all(np.diff(owners) >= 0)


def test_both_halves_hold_the_same_entries() -> None:
    block = block_of("unsorted", np.float64, True)
    whole = []
    for half in cuda.CudaBlock.of(block).halves:
        dense = np.zeros((int(half.owners.max()) + 1, int(half.others.max()) + 1, 2))
        rows = np.repeat(half.owners, np.diff(half.starts))
        dense[rows, half.others] = np.stack([half.values, half.weights], axis=-1)
        whole.append(dense)
    np.testing.assert_array_equal(whole[0], np.swapaxes(whole[1], 0, 1))
