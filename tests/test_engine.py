"""The engine: plans, tasks, sums, and the same bits whatever runs them."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.callbacks import Callback
from dask.sizeof import sizeof

import dmf
from benchmarks.common import power_law
from dmf.engine import grid
from dmf.engine.loading import load
from dmf.engine.lower import Lowering, Place
from dmf.engine.rounds import build_rounds, start_state
from dmf.engine.runner import Tasks, Threads
from dmf.engine.stages import Stage
from dmf.engine.state import State
from dmf.engine.trace import Trace, add_up
from dmf.holdout import Share
from dmf.init import RandomStart
from dmf.objective import Objective
from dmf.observed import observe
from dmf.solvers.base import Moved
from tests.problems import SOLVERS, low_rank, objective_of

RIDGE = dmf.Ridge(0.1)


def refuse(*args: Any, **kwargs: Any) -> Any:
    msg = "something was computed"
    raise AssertionError(msg)


def prepared(P: int, Q: int, K: int = 1) -> tuple[Any, State, Objective]:
    """Return data on a grid of P × Q blocks, a start of K candidates, and what they
    minimise."""
    problem = low_rank(m=4 * P, n=3 * Q, rank=2)
    X = da.from_array(problem.nan, chunks=(4, 3))
    runner = Threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmf.engine.grid.KEEP_CHUNKS", 10**9)
        data = load(X, None, 2, runner)
    assert data.grid.shape == (P, Q)
    objective = objective_of([RIDGE] * K, rank=2)
    start = RandomStart(0, tuple(range(K)), data.totals.mean_square)
    state = start_state(data, runner, start=start, objective=objective)
    return data, state, objective


# ---------------------------------------------------------------- tasks


def test_building_rounds_computes_nothing() -> None:
    data, state, objective = prepared(3, 2)
    with dask.config.set(scheduler=refuse):
        for solver in (dmf.NormalizedGradient(), dmf.AlternatingLeastSquares()):
            graph, _, _ = build_rounds(data, state, solver, objective, 2)
            assert len(graph) > 20


SMOOTH = dmf.Smooth(0.5, order=2) + RIDGE


@pytest.mark.parametrize(
    ("scope", "penalty"), [("row", RIDGE), ("global", RIDGE), ("row", SMOOTH)], ids=str
)
def test_on_a_single_block_a_half_step_is_one_task(scope: Any, penalty: Any) -> None:
    """And one more task picks its report."""
    data, state, _ = prepared(1, 1)
    solver = dmf.NormalizedGradient(scope)
    objective = objective_of([penalty], rank=2)
    graph, _, _ = build_rounds(data, state, solver, objective, 3)
    assert len(graph) - len(data.leaves) - len(state.leaves) == 3 * 2 * 2


@pytest.mark.parametrize("grid", [(1, 4), (4, 1), (3, 3)], ids=str)
def test_edges_of_strips_are_the_same_near_and_far(grid: tuple[int, int]) -> None:
    """Where results travel, edges are tasks of their own: with the same numbers."""
    data, state, _ = prepared(*grid)
    objective = objective_of([SMOOTH], rank=2)
    found, sizes = [], []
    for far in (False, True):
        graph, after, _ = build_rounds(
            replace(data, remote=far), state, dmf.NormalizedGradient(), objective, 2
        )
        leaves = Threads().run(graph, after.keys)
        found.append([leaves[key].factor.tobytes() for key in sum(after.strips, ())])
        sizes.append(len(graph))
    assert found[0] == found[1]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    "solver",
    [
        dmf.NormalizedGradient(),
        dmf.NormalizedGradient("global", dmf.Plane()),
        dmf.GradientDescent(1e-3),
        dmf.AlternatingLeastSquares(),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("P", "Q"), [(1, 1), (2, 1), (1, 3), (2, 2), (4, 3), (16, 1), (16, 16), (5, 12)]
)
@pytest.mark.parametrize("K", [1, 3])
def test_tasks_a_round_are_few(solver: Any, P: int, Q: int, K: int) -> None:
    """However many candidates there are."""
    data, state, objective = prepared(P, Q, K)
    graph, _, _ = build_rounds(data, state, solver, objective, 1)
    tasks = len(graph) - len(data.leaves) - len(state.leaves)
    assert tasks <= 2 * (2 * P * Q + 2 * (P + Q)) + 6


def test_a_strip_with_one_block_is_one_task_a_half_step() -> None:
    data, state, objective = prepared(4, 1)
    graph, _, _ = build_rounds(data, state, dmf.NormalizedGradient(), objective, 1)
    names = [key[0].rsplit("-", 1)[0] for key in graph if key not in state.leaves]
    assert names.count("update-W") == 4
    assert "gradient-W" not in names
    assert names.count("gradient-H") == 4
    assert names.count("curvature-H") == 4
    assert names.count("update-H") == 1


def test_tasks_have_names_that_people_can_read() -> None:
    from dask.utils import key_split

    data, state, objective = prepared(2, 2)
    data = replace(data, together=(False, False))
    graph, _, _ = build_rounds(data, state, dmf.NormalizedGradient(), objective, 1)
    names = {key_split(key) for key in graph}
    assert {"gradient-W", "direction-W", "curvature-W", "update-W"} <= names
    assert {"gradient-H", "direction-H", "curvature-H", "update-H"} <= names


@pytest.mark.parametrize("fan_in", [2, 3, 16])
@pytest.mark.parametrize(("P", "Q"), [(1, 1), (5, 1), (1, 7), (4, 9)])
@pytest.mark.parametrize("where", ["near", "far", "apart", "together"])
def test_sums_are_trees(P: int, Q: int, fan_in: int, where: str) -> None:
    """No task adds up more than the fan-in, and the totals are right."""
    trace = Trace()
    block = trace.input("block")
    pair = trace.per_block("pair", lambda x: (x, np.array([x, 1.0])), block)
    summed = trace.sum_over_strip(pair)
    first, second = trace.sum_over_strip(pair[0]), trace.sum_over_strip(pair[1])
    # One stage sums the same value in three ways.
    strip = trace.per_strip(
        "mix", lambda s, a, b: (a, np.array([s[0], b[1]])), summed, first, second
    )
    total = trace.sum_over_all(strip[1])
    lowering = Lowering(
        trace,
        {block: Place(lambda i, j: ("block", i, j))},
        (strip, total),
        (P, Q),
        "test",
        (),
        fan_in=fan_in,
        near=where in ("near", "together"),
        apart=where == "apart",
        together=where == "together",
    )
    if where == "together":
        assert {key[0] for key in lowering.graph} == {"mix-test", "sum-all-test"}
    for task in lowering.graph.values():
        lists = [part for part in task[1:] if isinstance(part, list)]
        assert all(len(part) <= fan_in for part in lists)
    values = {("block", i, j): float(10 * i + j) for i in range(P) for j in range(Q)}
    keys = [lowering.find(total).key(0, 0), lowering.find(strip).key(P - 1, 0)]
    tasks = Tasks(lowering.graph | values, keys)
    found, last = dask.compute(tasks, scheduler="sync")[0]
    np.testing.assert_array_equal(found, [sum(values.values()), P * Q])
    assert last[0] == sum(values["block", P - 1, j] for j in range(Q))


@pytest.mark.parametrize(
    "solver", [dmf.NormalizedGradient(), dmf.AlternatingLeastSquares()], ids=str
)
@pytest.mark.parametrize(("P", "Q"), [(17, 1), (1, 17), (2, 17), (18, 3)])
def test_many_strips_give_what_one_does(
    solver: Any, P: int, Q: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than one task adds up."""
    found = []
    for shape in ((1, 1), (P, Q)):
        chunks = tuple(
            -(-size // parts) for size, parts in zip((72, 68), shape, strict=True)
        )
        X = da.from_array(low_rank(72, 68, 3).nan, chunks=chunks)
        with monkeypatch.context() as patched:
            patched.setattr(grid, "KEEP_CHUNKS", np.inf)
            fit = dmf.factorize(X, 3, solver=solver, max_rounds=5, tol=0)
        found.append(np.asarray(fit.W) @ np.asarray(fit.H))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("solver", "penalty"),
    [
        *((solver, RIDGE) for solver in SOLVERS),
        (dmf.NormalizedGradient(), dmf.Smooth(2.0) + RIDGE),
        (dmf.NormalizedGradient(), dmf.NonNegative() + dmf.Lasso(0.1)),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("keep_chunks")
def test_blocks_together_give_the_same_bits(solver: Any, penalty: Any) -> None:
    """Two threads have a strip of each factor to themselves; three share blocks."""
    X = da.from_array(low_rank(60, 40, 3).nan, chunks=(30, 20))
    fits, tasks = [], []
    for threads in (2, 3):
        ran: list[Any] = []
        with (
            dask.config.set(num_workers=threads),
            Callback(pretask=lambda key, *_, ran=ran: ran.append(key)),
        ):
            options: dict[str, Any] = {"offsets": "both", "max_rounds": 4, "tol": 0}
            fit = dmf.factorize(X, 3, solver=solver, penalty=penalty, **options)
            fits.append(fit)
        tasks.append(len(ran))
    assert tasks[0] < tasks[1]
    for name in ("W", "H", "row_offsets", "column_offsets"):
        one, other = (np.asarray(getattr(fit, name)) for fit in fits)
        np.testing.assert_array_equal(one, other)
    assert fits[0].history.objective.tolist() == fits[1].history.objective.tolist()


def test_what_a_later_stage_wants_of_blocks_keeps_them_apart() -> None:
    trace = Trace()
    block = trace.input("block")
    twice = trace.per_block("twice", lambda x: 2 * x, block)
    total = trace.sum_over_all(trace.sum_over_strip(twice))
    mixed = trace.per_block("mixed", lambda x, t: x * t, twice, total)
    summed = trace.sum_over_strip(mixed)
    inputs = {block: Place(lambda i, j: ("block", i, j))}
    lowering = Lowering(
        trace, inputs, (summed,), (2, 3), "test", (), near=True, together=True
    )
    names = {key[0] for key in lowering.graph}
    assert names == {"twice-test", "sum-test", "sum-all-test", "mixed-test"}
    values = {("block", i, j): float(3 * i + j) for i in range(2) for j in range(3)}
    tasks = Tasks(lowering.graph | values, [lowering.find(summed).key(1, 0)])
    (found,) = dask.compute(tasks, scheduler="sync")[0]
    assert found == 2 * (3 + 4 + 5) * 2 * sum(range(6))


def test_a_stage_lets_go_of_what_it_needs_no_more() -> None:
    """Also of parts: of a gradient with its loss, the loss is wanted longer."""
    made: list[Any] = []

    def pair(number: float) -> tuple[Any, float]:
        array = np.full(3, number)
        made.append(weakref.ref(array))
        return array, number

    def gone(number: float) -> tuple[float, bool]:
        return number, made[-1]() is None

    steps = (
        (pair, ((0, ()),)),
        (np.sum, ((1, (0,)),)),
        (gone, ((1, (1,)),)),
    )
    assert Stage(steps, (2, 3))(2.0) == (6.0, (2.0, True))
    assert not Stage(steps, (1, 3))(2.0)[1][1]  # it is to be returned


def test_sums_leave_parts_alone_that_are_not_their_own() -> None:
    parts = [np.ones(3) for _ in range(4)]
    np.testing.assert_array_equal(add_up(parts), 4 * np.ones(3))
    for part in parts:
        np.testing.assert_array_equal(part, np.ones(3))
    assert add_up(parts, own=True) is parts[0]
    np.testing.assert_array_equal(parts[0], 4 * np.ones(3))


def test_previous_rounds_are_forgotten() -> None:
    """The graph of a round doesn't grow with the rounds before it."""
    data, state, objective = prepared(2, 2)
    solver, runner = dmf.NormalizedGradient(), Threads()
    sizes = []
    for _ in range(4):
        graph, after, _ = build_rounds(data, state, solver, objective, 1)
        sizes.append(len(graph))
        new = [key for key in after.keys if key not in state.leaves]
        leaves = state.leaves | runner.run(graph, new)
        state = replace(after, leaves={key: leaves[key] for key in after.keys})
    assert sizes[1] == sizes[2] == sizes[3]


# ---------------------------------------------------------------- the same bits


def factors(X: Any, **settings: Any) -> tuple[Any, Any]:
    fit = dmf.factorize(X, 4, penalty=RIDGE, max_rounds=6, tol=0, **settings)
    return np.asarray(fit.W), np.asarray(fit.H)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_bitwise_the_same_for_any_number_of_threads(
    kind: str, threads: int, monkeypatch: pytest.MonkeyPatch, keep_chunks: None
) -> None:
    if kind == "sparse":
        X = power_law(3000, 2000, 400_000, rank=3)
        monkeypatch.setattr(grid, "ranked_grids", lambda work, machine: [(4, 4)])
    problem = low_rank(m=300, n=200, dtype=np.float32)
    X = X if kind == "sparse" else da.from_array(problem.nan, chunks=(70, 60))
    with dask.config.set(scheduler="synchronous"):
        W, H = factors(X)
    with ThreadPoolExecutor(threads) as pool, dask.config.set(pool=pool):
        for _ in range(2):
            again = factors(X)
            np.testing.assert_array_equal(again[0], W)
            np.testing.assert_array_equal(again[1], H)


def test_the_seed_decides() -> None:
    problem = low_rank()
    first, again, other = (
        dmf.factorize(problem.nan, 3, seed=seed, max_rounds=3) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.W, again.W)
    assert not np.array_equal(first.W, other.W)


def test_blas_gets_one_thread_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    seen = []

    def look(record: Any) -> None:
        seen.extend(
            i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"
        )

    before = threadpool_info()
    dmf.factorize(low_rank().nan, 2, max_rounds=2, callbacks=[look])
    assert seen
    assert set(seen) == {1}
    assert threadpool_info() == before


def test_fits_that_overlap_give_blas_its_threads_back() -> None:
    from contextlib import ExitStack

    from threadpoolctl import threadpool_info

    before = threadpool_info()
    first, second = ExitStack(), ExitStack()
    first.enter_context(Threads().session())
    second.enter_context(Threads().session())
    first.close()
    during = [i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"]
    assert set(during) == {1}
    second.close()
    assert threadpool_info() == before


@pytest.mark.usefixtures("keep_chunks")
def test_chunks_without_rows() -> None:
    """As `X[condition].compute_chunk_sizes()` leaves them."""
    problem = low_rank()
    X = da.concatenate(
        [
            da.from_array(problem.nan[:12]),
            da.zeros((0, 20)),
            da.from_array(problem.nan[12:]),
        ]
    )
    for rank in (3, 9):  # of one vector or less, and of several
        found = dmf.factorize(X, rank, max_rounds=5)
        expected = dmf.factorize(problem.nan, rank, max_rounds=5)
        np.testing.assert_allclose(np.asarray(found.W), expected.W, rtol=1e-7)


def test_dask_input_is_read_once() -> None:
    """X is loaded when the fit begins; the rounds work on its blocks."""
    problem = low_rank()
    reads = []

    def read(part: Any) -> Any:
        reads.append(part.shape)
        return part

    X = da.from_array(problem.nan, chunks=(10, 20))
    X = X.map_blocks(read, dtype=X.dtype, meta=np.empty((0, 0)))
    with dask.config.set(scheduler="synchronous"):
        dmf.factorize(X, 3, max_rounds=5, restarts=2, tol=0)
    assert len(reads) == 3


def test_partial_keys_are_picklable() -> None:
    """Tasks travel to workers: stages must survive a round trip."""
    import pickle

    data, state, objective = prepared(2, 2)
    graph, _, _ = build_rounds(
        data, state, dmf.NormalizedGradient("global"), objective, 1
    )
    for task in graph.values():
        if isinstance(task, tuple) and callable(task[0]):
            assert callable(pickle.loads(pickle.dumps(task[0])))


def test_dask_knows_how_large_blocks_and_factors_are() -> None:
    """It would send them around, if it took them for nothing."""
    X = low_rank(60, 40, 3)
    dense = observe(X.nan, None, np.float64)
    assert sizeof(dense) > 60 * 40 * (8 + 1)
    sparse = observe(X.sparse().tocsr(), None, np.float64, validation=Share(0.1, 0))
    assert sizeof(sparse) > X.mask.sum() * (8 + 4)
    factor = np.ones((60, 1, 3))
    assert sizeof(Moved(factor, (factor, factor), None)) > 3 * factor.nbytes
