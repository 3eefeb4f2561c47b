"""Blocks that are read anew in each pass: the same fit, in less memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from dask.array import PerformanceWarning
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from benchmarks.memory import peak_of
from dmf.engine import layout
from dmf.engine.cost import Machine, Work
from dmf.engine.grid import Grid, even_bounds
from dmf.engine.layout import layout_for, work_of
from dmf.engine.loading import load
from dmf.engine.memory import PROCESS
from dmf.engine.runner import Threads
from dmf.io.matrices import open_matrix, write_matrix


def gappy(m: int, n: int) -> Any:
    """Return a matrix of rank 3 with noise, of which 40% are missing."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((m, 3)) @ rng.standard_normal((3, n))
    X += 0.1 * rng.standard_normal((m, n))
    X[rng.random((m, n)) < 0.4] = np.nan
    return X


@contextmanager
def cut(P: int, Q: int) -> Iterator[None]:
    """Let every layout have P × Q blocks: kept or streamed, sums have one order."""

    def grid_of_chunks(X: Any, work: Work, machine: Machine) -> Grid:
        return Grid(even_bounds(X.shape[0], P), even_bounds(X.shape[1], Q))

    with mock.patch.object(layout, "grid_of_chunks", grid_of_chunks):
        yield


OPTIONS: list[dict[str, Any]] = [
    {},
    {"validation": 0.1, "offsets": "both"},
    {"restarts": 2, "penalty": dmf.NonNegative()},
    {"solver": dmf.AlternatingLeastSquares()},
    {"unobserved_weight": 0.2},
    {"penalty": (dmf.Smooth(0.1), dmf.Ridge(0.1))},
]


@pytest.mark.parametrize("grid", [(1, 1), (3, 1), (1, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=[str(k) for k in range(len(OPTIONS))])
def test_streamed_fits_have_the_bits_of_kept_ones(
    grid: tuple[int, int], options: dict[str, Any]
) -> None:
    X = da.from_array(gappy(60, 40), chunks=(20, 25))
    with cut(*grid):
        fits = [
            dmf.factorize(X, 3, max_rounds=8, tol=0, stream=stream, **options)
            for stream in (False, True)
        ]
    kept, streamed = fits
    assert [r.objective for r in kept.history] == [
        r.objective for r in streamed.history
    ]
    for name in ("W", "H"):
        both = getattr(kept, name), getattr(streamed, name)
        np.testing.assert_array_equal(*(np.asarray(factor) for factor in both))


def test_sparse_blocks_and_weights_are_streamed_too() -> None:
    rng = np.random.default_rng(0)
    X = sp.random_array((60, 40), density=0.3, rng=rng, format="csr")
    mask = X.copy()
    mask.data = rng.random(X.nnz) + 0.5
    lazy, own = (
        da.from_array(Y.toarray(), chunks=(20, 40)).map_blocks(
            sp.csr_array, meta=sp.csr_array((0, 0))
        )
        for Y in (X, mask)
    )
    fits = [
        dmf.factorize(lazy, 3, mask=own, max_rounds=6, tol=0, stream=stream)
        for stream in (False, True)
    ]
    np.testing.assert_array_equal(*(np.asarray(fit.W) for fit in fits))


class Reads:
    """A source that counts how often its chunks are read."""

    def __init__(self, X: Any) -> None:
        self.X, self.count = X, 0
        self.shape, self.dtype, self.ndim = X.shape, X.dtype, X.ndim

    def __getitem__(self, where: Any) -> Any:
        self.count += 1
        return self.X[where]


@pytest.mark.parametrize(
    ("grid", "passes"), [((4, 1), 1 + 2), ((1, 4), 2 + 1), ((2, 2), 2 + 2)], ids=str
)
def test_a_round_reads_each_block_once_a_pass(
    grid: tuple[int, int], passes: int
) -> None:
    """Once where a strip is a block, else for the gradient and for the curvature."""
    source = Reads(gappy(40, 40))
    P, Q = grid
    chunks = (40 // P, 40 // Q)
    X = da.from_array(source, chunks=chunks, inline_array=True, meta=np.empty((0, 0)))
    reads = []
    for rounds in (1, 4):
        source.count = 0
        with cut(*grid):
            dmf.factorize(X, 3, max_rounds=rounds, tol=0, stream=True)
        reads.append(source.count)
    assert reads[1] - reads[0] == 3 * passes * P * Q
    # And before: to count what is observed. After: to measure how it ended.
    assert reads[0] <= P * Q * (1 + passes + 4)


def test_what_is_in_memory_cant_be_streamed() -> None:
    with pytest.raises(ValueError, match="X is a ndarray in memory, leave stream=True"):
        dmf.factorize(np.eye(4), 2, stream=True)
    with pytest.raises(TypeError, match="stream must be True or False, got 'yes'"):
        dmf.factorize(np.eye(4), 2, stream="yes")  # type: ignore[arg-type]


def test_what_would_not_fit_is_streamed_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the tests before this one use of this process isn't meant.
    monkeypatch.setattr(Threads, "used", lambda self: PROCESS)
    X = da.zeros((8000, 8000), chunks=(500, 8000), dtype=np.float32)
    with pytest.warns(PerformanceWarning, match="0.32 GB, too much for 0.7 GB"):
        data = load(X + 1, None, 4, Threads(), machine=Machine(2, memory=700e6))
    assert data.grid.shape == (16, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(X + 1, None, 4, Threads(), machine=Machine(2, memory=700e6), stream=True)


def test_bad_values_are_refused_when_blocks_are_first_read() -> None:
    X = np.ones((40, 30))
    X[25, 7] = np.inf
    with pytest.raises(ValueError, match="X is infinite in row 25, column 7"):
        dmf.factorize(da.from_array(X, chunks=(10, 30)), 2, stream=True)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    chunk=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    memory=st.floats(1.01 * PROCESS, 1.2 * PROCESS),
)
@settings(deadline=None)
def test_chunks_are_cut_where_they_are_read_least(
    rows: int, columns: int, chunk: tuple[int, int], memory: float
) -> None:
    """Blocks are small enough, and cover X once."""
    X = da.zeros((250 * rows, 250 * columns), chunks=tuple(250 * k for k in chunk))
    work = work_of(X, 4)
    machine = Machine(1, 1, memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)
        found = layout_for(X, work, machine, stream=True)
    bounds = found.grid.row_bounds, found.grid.column_bounds
    assert [own[-1] for own in bounds] == list(X.shape)
    area, most = math.prod(X.shape), math.prod(X.chunksize)
    entries = area / math.prod(found.grid.shape)
    # Of float64: a block and its mask, a copy, three masks; the chunk, three times.
    taken = entries * (9 + 8 + 3) + 24 * max(entries, most)
    assert taken <= max(memory / 4, memory - PROCESS) / 2 or entries < most / 4


def test_blocks_follow_the_rows_of_chunks_that_are_too_large() -> None:
    """A block of columns would read each chunk once for every one of them."""
    X = da.zeros((16000, 16000), chunks=(500, 16000), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)
        found = layout_for(X, work_of(X, 32), Machine(1, 1, 512 * 2**20), stream=True)
    P, Q = found.grid.shape
    assert Q == 1
    assert P > 32


def test_a_streamed_fit_resumes(tmp_path: Path) -> None:
    X = da.from_array(gappy(60, 40), chunks=(20, 40))
    whole = dmf.factorize(X, 3, max_rounds=9, tol=0, stream=True)

    def stop(record: dmf.Record) -> bool:
        return record.round == 4

    place = tmp_path / "saved"
    common: dict[str, Any] = {"max_rounds": 9, "tol": 0, "checkpoint": place}
    dmf.factorize(X, 3, callbacks=[stop], stream=True, **common)
    again = dmf.factorize(X, 3, resume=True, stream=True, **common)
    np.testing.assert_array_equal(np.asarray(whole.W), np.asarray(again.W))
    with pytest.raises(ValueError, match="with stream=True, but this one has None"):
        dmf.factorize(X, 3, resume=True, **common)


# On a cluster whose only worker has too little memory.

LIMIT = 640 * 2**20


@pytest.fixture
def small_worker() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.cluster
def test_three_times_the_memory_is_factorized_and_filled(
    tmp_path: Path, small_worker: Any
) -> None:
    """With the limit never exceeded, as the kernel has counted it."""
    m, n, rank = 39_325, 12_800, 3
    assert m * n * 4 >= 3 * LIMIT
    rng = np.random.default_rng(0)
    W = rng.standard_normal((m, rank), dtype=np.float32)
    H = rng.standard_normal((rank, n), dtype=np.float32)
    target = zarr.create_array(
        tmp_path / "X.zarr",
        shape=(m, n),
        dtype="float32",
        chunks=(275, n),
        compressors=None,
    )
    # A third is missing, in a pattern that shifts from row to row.
    hidden = (np.arange(275)[:, None] + np.arange(n)) % 3 == 0
    for start in range(0, m, 275):
        block = W[start : start + 275] @ H
        block[hidden] = np.nan
        target[start : start + 275] = block
    before = small_worker.run(os.getpid)

    X = open_matrix(tmp_path / "X.zarr")
    with pytest.warns(PerformanceWarning, match="each pass reads them anew"):
        fit = dmf.factorize(X, rank, max_rounds=2, tol=0, penalty=None, progress=False)
    write_matrix(dmf.impute(X, fit), tmp_path / "filled.zarr")

    assert small_worker.run(os.getpid) == before  # none was restarted
    peak = max(peak_of(str(pid)) for pid in before.values()) * 2**20
    assert peak < LIMIT
    filled = zarr.open_array(tmp_path / "filled.zarr", mode="r")
    truth = W[3300:3400] @ H
    assert np.sqrt(np.mean((filled[3300:3400] - truth) ** 2)) < 0.9 * truth.std()


@pytest.mark.cluster
def test_what_lies_on_workers_isnt_streamed(small_worker: Any) -> None:
    X = da.from_array(gappy(60, 40), chunks=(20, 40))
    with pytest.raises(ValueError, match="is on the workers already; leave"):
        dmf.factorize(X.persist(), 3, stream=True)
    kept, streamed = (
        dmf.factorize(X, 3, max_rounds=5, tol=0, stream=stream).W.compute()
        for stream in (False, True)
    )
    np.testing.assert_allclose(kept, streamed, rtol=1e-9)


# What can't work at all.


def _refusal(X: Any, rank: int, machine: Machine) -> str | None:
    return layout.refusal(layout_for(X, work_of(X, rank), machine), PROCESS)


def test_refusals_name_what_would_fit() -> None:
    X = da.zeros((100_000, 50_000), chunks=(100, 50_000), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)
        told = _refusal(X, 1000, Machine(4, 4, 2e9))
        assert told is not None
        assert "what would fit: a rank of at most" in told
        assert "such workers, or" in told
        rank = int(told.split("a rank of at most ")[1].split(",")[0])
        workers = int(told.split(", or ")[1].split()[0])
        assert _refusal(X, rank, Machine(4, 4, 2e9)) is None
        assert _refusal(X, 2 * rank, Machine(4, 4, 2e9)) is not None
        assert _refusal(X, 1000, Machine(workers, workers, 2e9)) is None
    in_memory = np.zeros((3000, 3000))
    told = _refusal(in_memory, 8, Machine(2, memory=330e6))
    assert told is not None
    assert "this machine has 0.33 GB" in told
    assert "X as a Dask array, a .npy file or a Zarr array, read in parts" in told


def test_a_fit_that_cant_work_is_refused_before_it_begins() -> None:
    read: list[int] = []
    X = da.zeros((40_000, 40_000), chunks=(1000, 40_000), dtype=np.float32)
    X = X.map_blocks(
        lambda block: read.append(1) or block, dtype=X.dtype, meta=np.empty((0, 0))
    )
    small = Machine(2, memory=1e9)
    with (
        pytest.warns(PerformanceWarning, match="40 × 1 chunks, which are too large"),
        pytest.raises(ValueError, match="but this machine has 1 GB"),
    ):
        load(X, None, 8000, Threads(), machine=small, stream=True)
    assert read == []
