"""The plan: what a round is predicted to cost, and the grid that follows from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.array import PerformanceWarning
from hypothesis import given
from hypothesis import strategies as st

import dmf
from benchmarks.common import power_law
from dmf.engine import grid
from dmf.engine.cost import Machine, Work, cost_of, goes_together, tasks_of
from dmf.engine.grid import (
    Grid,
    balanced_bounds,
    balanced_grid,
    even_bounds,
    merged_bounds,
    ranked_grids,
    stored_in,
)
from dmf.engine.layout import layout_for
from dmf.engine.loading import load
from dmf.engine.losses import WorkersLost
from dmf.engine.memory import threads_of
from dmf.engine.runner import Threads
from tests.problems import low_rank

works = st.builds(
    lambda m, n, share, width, kind, itemsize: Work(
        (m, n), max(1, int(share * m * n)), width, kind, itemsize
    ),
    st.integers(1, 10**7),
    st.integers(1, 10**7),
    st.floats(0, 1),
    st.integers(1, 200),
    st.sampled_from(["dense", "sparse"]),
    st.sampled_from([4, 8]),
)
machines = st.builds(
    Machine, st.integers(1, 300), st.sampled_from([0, 1, 7]), st.floats(1e6, 1e12)
)


@given(work=works, machine=machines)
def test_a_plan_fits_the_matrix_the_threads_and_the_memory(
    work: Work, machine: Machine
) -> None:
    P, Q = ranked_grids(work, machine)[0]
    assert 1 <= P <= work.shape[0]
    assert 1 <= Q <= work.shape[1]
    data = work.stored * work.entry_bytes
    large = data / (P * Q) > machine.memory / 4
    many = 4 * machine.threads < P * Q
    if large:  # it can't be cut any finer
        assert work.shape[0] < 2 * P or work.shape[1] < 2 * Q
    if many:  # only for the memory's sake, of which each thread has a share
        assert 2 * data / (P * Q) > machine.memory / 16 / threads_of(machine)


@given(work=works, memory=st.floats(1e9, 1e12))
def test_up_to_four_threads_share_a_plan(work: Work, memory: float) -> None:
    """And so the order of all sums: the bits of a fit don't depend on their number."""
    for workers in (False, True):
        plans = {
            ranked_grids(work, Machine(count, workers * count, memory))[0]
            for count in (1, 2, 3, 4)
        }
        assert len(plans) == 1


def test_plans_grow_with_the_work_and_with_the_threads() -> None:
    def blocks(stored: int, threads: int) -> int:
        work = Work((10**5, 10**4), stored, 32, "sparse")
        return math.prod(ranked_grids(work, Machine(threads))[0])

    assert blocks(10**3, 64) < 16
    assert blocks(33 * 10**6, 4) == 4
    assert blocks(33 * 10**6, 16) == 16
    assert 16 < blocks(33 * 10**6, 64) <= 64
    # Tall matrices are cut into rows: then a half-step on W is one task a strip.
    tall = Work((10**6, 10**3), 10**7, 32, "sparse")
    assert ranked_grids(tall, Machine(16))[0] == (16, 1)


def test_a_small_problem_stays_in_one_block() -> None:
    """Where tasks would cost more than they save."""
    ratings = Work((943, 1682), 80_000, 16, "sparse")
    assert ranked_grids(ratings, Machine(2))[0] == (1, 1)
    larger = Work((60_000, 20_000), 33_000_000, 32, "sparse")
    assert ranked_grids(larger, Machine(2, 2))[0] != (1, 1)


@given(work=works, machine=machines, P=st.integers(1, 9), Q=st.integers(1, 9))
def test_costs_add_up(work: Work, machine: Machine, P: int, Q: int) -> None:
    cost = cost_of(work, (P, Q), machine)
    assert cost.seconds == pytest.approx(sum(cost))
    assert min(cost) >= 0
    assert cost.arithmetic > 0
    worse = cost_of(work, (P, Q), machine, imbalance=2)
    assert worse.arithmetic == pytest.approx(2 * cost.arithmetic)
    if machine.workers <= 1:
        assert cost.messages == 0


def test_tasks_are_those_of_a_round() -> None:
    from dmf.engine.rounds import build_rounds
    from tests.test_engine import prepared

    solver = dmf.NormalizedGradient()
    for workers in (0, 2):
        for shape in ((1, 1), (4, 1), (1, 4), (2, 2), (4, 4), (8, 2)):
            data, state, objective = prepared(*shape)
            machine, work = Machine(2, workers), Work(data.shape, 1, 2, "dense")
            together = tuple(goes_together(work, n, machine) for n in shape)
            data = replace(data, remote=workers > 0, together=together)
            graph, _, _ = build_rounds(data, state, solver, objective, 1)
            tasks = len(graph) - len(data.leaves) - len(state.leaves)
            assert tasks == tasks_of(work, shape, machine)


# ---------------------------------------------------------------- balance


@pytest.mark.parametrize("threads", [4, 16, 64])
def test_blocks_of_power_laws_are_balanced(threads: int) -> None:
    X = power_law(6000, 3000, 400_000, 4)
    work = Work(X.shape, X.nnz, 64, "sparse")
    found = balanced_grid(X, work, Machine(threads))
    stored = stored_in(X, found)
    assert stored.shape == found.shape
    assert stored.sum() == X.nnz
    assert stored.size > 1
    assert stored.max() <= 1.15 * stored.mean()


def test_where_boundaries_do_not_balance_the_grid_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two groups of rows with columns of their own: half of 2 × 2 blocks are empty."""
    rng = np.random.default_rng(0)
    part = sp.random_array((2000, 2000), density=0.1, rng=rng)
    X = sp.csr_array(sp.block_diag([part, part]))
    work = Work(X.shape, X.nnz, 64, "sparse")
    monkeypatch.setattr(grid, "ranked_grids", lambda work, machine: [(2, 2), (4, 1)])
    assert balanced_grid(X, work, Machine(4)).shape == (4, 1)
    # Where nothing balances, what is predicted to be fastest with what there is.
    monkeypatch.setattr(grid, "ranked_grids", lambda work, machine: [(2, 2)])
    assert balanced_grid(X, work, Machine(4)).shape == (2, 2)


def test_entries_of_blocks_are_counted() -> None:
    problem = low_rank(30, 20, 2, 0.3)
    X = sp.csr_array(np.where(problem.mask, problem.truth, 0))
    found = balanced_grid(X, Work(X.shape, X.nnz, 2, "sparse"), Machine(1))
    assert stored_in(X, found).tolist() == [[X.nnz]]


@given(
    counts=st.lists(st.integers(0, 100), min_size=1, max_size=60),
    parts=st.integers(1, 20),
)
def test_bounds_cover_everything_and_no_strip_is_empty(
    counts: list[int], parts: int
) -> None:
    parts = min(parts, len(counts))
    for bounds in (
        balanced_bounds(np.array(counts), parts),
        even_bounds(len(counts), parts),
    ):
        assert bounds[0] == 0
        assert bounds[-1] == len(counts)
        assert len(bounds) == parts + 1
        assert np.all(np.diff(bounds) > 0)


def test_balanced_bounds_balance() -> None:
    counts = np.arange(1000) ** 2
    bounds = balanced_bounds(counts, 7)
    sums = np.add.reduceat(counts, bounds[:-1])
    assert sums.max() < 1.01 * sums.mean()


# ---------------------------------------------------------------- a user's chunks


@given(
    chunks=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    parts=st.integers(1, 20),
)
def test_merged_bounds_are_made_of_whole_chunks(chunks: list[int], parts: int) -> None:
    bounds = merged_bounds(tuple(chunks), parts)
    assert bounds[0] == 0
    assert bounds[-1] == sum(chunks)
    assert len(bounds) <= parts + 1 or len(bounds) == len(chunks) + 1
    assert np.all(np.diff(bounds) > 0)
    assert set(bounds) <= {0, *np.cumsum(chunks).tolist()}


def grid_of(X: Any, machine: Machine) -> Any:
    work = Work(X.shape, X.size, 16, "dense", X.dtype.itemsize)
    return layout_for(X, work, machine, stream=False).grid


def test_good_chunks_are_kept() -> None:
    X = da.zeros((8000, 6000), chunks=(1000, 6000), dtype="f4")
    assert grid_of(X, Machine(2)).shape == (8, 1)  # a warning would be an error


def test_a_large_chunk_is_cut_with_a_message() -> None:
    X = da.zeros((20_000, 20_000), chunks=-1, dtype="f4")
    with pytest.warns(PerformanceWarning, match=r"X has 1 × 1 chunks.*Rechunk X"):
        found = grid_of(X, Machine(4))
    assert math.prod(found.shape) == 4


def test_small_chunks_are_merged_whole_with_a_message() -> None:
    X = da.zeros((2000, 3000), chunks=(5, 3000), dtype="f4")
    with pytest.warns(PerformanceWarning, match=r"X has 400 × 1 chunks, with which"):
        bounds = grid_of(X, Machine(4)).row_bounds
    assert len(bounds) <= 5
    assert set(bounds) <= {0, 2000, *range(0, 2000, 5)}


def test_chunks_are_cut_before_they_are_too_large_for_a_worker() -> None:
    X = da.zeros((8000, 6000), chunks=-1, dtype="f4")
    with pytest.warns(PerformanceWarning):
        grid = grid_of(X, Machine(1, 1, memory=50e6))
    rows, columns = (
        np.diff(bounds).max() for bounds in (grid.row_bounds, grid.column_bounds)
    )
    assert 5 * rows * columns <= 50e6 / 4


def test_one_chunk_may_be_too_large_though_the_others_are_not() -> None:
    X = da.zeros((100_000, 100), chunks=((99_000, 500, 500), -1), dtype="f4")
    with pytest.warns(PerformanceWarning, match="too large for the memory of a worker"):
        found = grid_of(X, Machine(4, 0, memory=100e6))
    assert 5 * np.diff(found.row_bounds).max() * 100 <= 100e6 / 4


def test_one_chunk_may_hold_nearly_everything() -> None:
    lengths = (250_000, *[1] * 30, 3_750_000)
    X = da.zeros((4_000_030, 100), chunks=(lengths, -1), dtype="f4")
    with pytest.warns(PerformanceWarning, match="times as long"):
        found = grid_of(X, Machine(16))
    assert np.diff(found.row_bounds).max() <= 4_000_030 / 15


def test_chunks_that_are_streamed_are_judged_as_streamed() -> None:
    """In memory they would be too small: a warning of that would be an error."""
    X = da.zeros((39_325, 12_800), chunks=(275, -1), dtype="f4")
    machine = Machine(1, 1, memory=640 * 2**20)
    work = Work(X.shape, X.size, 3, "dense", X.dtype.itemsize, chunk=275 * 12_800)
    found = layout_for(X, work, machine)
    assert found.work.streamed
    assert found.grid.shape == (143, 1)
    with pytest.warns(PerformanceWarning, match="143 × 1 chunks, with which"):
        layout_for(X, work, machine, stream=False)


def test_weights_take_room_too() -> None:
    plain = Work((1000, 1000), 10**6, 4, "dense")
    assert plain.entry_bytes == 5
    assert Work((1000, 1000), 10**6, 4, "dense", weighted=True).entry_bytes == 9


@pytest.mark.parametrize("lost_in", [3, 20])
def test_the_plan_outlives_the_workers_that_it_was_made_for(
    lost_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss there may be fewer: strips must fit the blocks all the same."""

    machines = [Machine(5, 5)]
    fetches: list[int] = []

    class Shrinking(Threads):
        remote = True
        losing = False

        def machine(self) -> Machine:
            return machines[-1]

        def fetch(self, leaves: Any) -> Any:
            fetches.append(1)
            if len(fetches) == lost_in and self.losing:
                machines.append(Machine(4, 4))
                msg = "gone"
                raise WorkersLost(msg)
            return leaves

    def ranking(work: Work, machine: Machine) -> list[tuple[int, int]]:
        return [(4, 2) if machine.threads > 4 else (2, 1)]

    monkeypatch.setattr(grid, "ranked_grids", ranking)
    monkeypatch.setattr("dmf._candidates.choose_runner", lambda *given: Shrinking())
    X = power_law(400, 300, 20_000, 4)
    fits = []
    for losing in (False, True):
        Shrinking.losing = losing
        fetches.clear()
        fits.append(dmf.factorize(X, 5, max_rounds=25, tol=0))
    assert len(machines) == 2
    np.testing.assert_array_equal(fits[0].W, fits[1].W)
    np.testing.assert_array_equal(fits[0].H, fits[1].H)


def test_arrays_in_memory_are_cut_by_the_plan() -> None:
    X = power_law(6000, 3000, 800_000, 4)
    data = load(X, None, 16, Threads())
    work = Work(X.shape, X.nnz, 16, "sparse")
    assert data.grid.shape == ranked_grids(work, Threads().machine())[0]


def test_strips_of_the_longer_factor_are_dealt_out_whole() -> None:
    tall = Grid((0, 5, 10), (0, 2, 4))
    wide = Grid(tall.column_bounds, tall.row_bounds)
    assert tall.places() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert wide.places() == [(0, 0), (1, 0), (0, 1), (1, 1)]
