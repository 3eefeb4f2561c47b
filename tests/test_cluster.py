"""The same fit on a real cluster of worker processes, through the loss of workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import default_client, wait

import dmf
from benchmarks.common import power_law
from dmf import _candidates
from dmf.engine.cluster import started
from dmf.engine.loop import Loop
from dmf.engine.losses import MAX_LOSSES, ClusterError, WorkersLost
from dmf.engine.runner import Cluster
from tests.problems import low_rank

pytestmark = pytest.mark.cluster

SETTINGS: dict[str, Any] = {"penalty": dmf.Ridge(0.1), "max_rounds": 15, "tol": 0}


def on_threads(X: Any, rank: int, **settings: Any) -> Any:
    """Fit on this process's threads, also while a client is active."""
    with dask.config.set(scheduler="threads"):
        return dmf.factorize(X, rank, **SETTINGS | settings)


def assert_same_bits(first: Any, second: Any) -> None:
    np.testing.assert_array_equal(np.asarray(first.W), np.asarray(second.W))
    np.testing.assert_array_equal(np.asarray(first.H), np.asarray(second.H))


@pytest.fixture(scope="module")
def uneven() -> Any:
    """A sparse matrix of several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmf.engine.grid.ranked_grids", lambda work, machine: [(3, 2)])
        yield power_law(2000, 1000, 120_000, rank=5)


@pytest.mark.parametrize(
    "solver",
    [
        dmf.NormalizedGradient(),
        dmf.NormalizedGradient("global", dmf.Plane()),
        dmf.AlternatingLeastSquares(),
    ],
    ids=str,
)
def test_workers_give_the_bits_of_threads(
    client: Any, uneven: Any, solver: Any
) -> None:
    expected = on_threads(uneven, 5, solver=solver)
    found = dmf.factorize(uneven, 5, solver=solver, **SETTINGS)
    assert isinstance(found.W, np.ndarray)
    assert_same_bits(found, expected)
    assert found.objective == expected.objective


@pytest.mark.usefixtures("keep_chunks")
def test_dask_arrays_in_and_out(client: Any) -> None:
    problem = low_rank(m=60, n=40)
    X = da.from_array(problem.nan, chunks=(20, 20))
    expected = on_threads(X, 3)
    found = dmf.factorize(X, 3, **SETTINGS)
    assert isinstance(found.W, da.Array)
    assert found.W.shape == (60, 3)
    assert found.H.shape == (3, 40)
    assert_same_bits(found, expected)
    filled = dmf.impute(X, found)
    assert isinstance(filled, da.Array)
    filled = filled.compute()
    mask = problem.mask
    np.testing.assert_array_equal(filled[mask], problem.truth[mask])
    product = np.asarray(found.W) @ np.asarray(found.H)
    np.testing.assert_allclose(filled[~mask], product[~mask])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_bits_do_not_depend_on_the_number_of_workers(uneven: Any, workers: int) -> None:
    from distributed import Client, LocalCluster

    expected = on_threads(uneven, 5)
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        # Not active, but passed.
        found = dmf.factorize(uneven, 5, client=client, **SETTINGS)
    assert_same_bits(found, expected)


@pytest.mark.parametrize(
    "solver", [dmf.NormalizedGradient(), dmf.AlternatingLeastSquares()], ids=str
)
def test_large_strips_travel_in_parts_and_change_no_bit(
    client: Any, uneven: Any, solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    run = Cluster.run

    def spy(self: Any, graph: Any, *arguments: Any, **options: Any) -> Any:
        names.update(key[0].rsplit("-", 1)[0] for key in graph)
        return run(self, graph, *arguments, **options)

    monkeypatch.setattr(Cluster, "run", spy)
    monkeypatch.setattr("dmf.engine.rounds.LARGE", 0)
    found = dmf.factorize(uneven, 5, solver=solver, **SETTINGS)
    assert {"part-update-W", "part-update-H"} <= names
    assert_same_bits(found, on_threads(uneven, 5, solver=solver))


@pytest.mark.parametrize("count", [1, 5, 8])
def test_what_is_in_order_meets_on_workers(client: Any, count: int) -> None:
    """Neighbours are dealt to one worker, by its threads."""
    runner = Cluster(client)
    leaves = runner.put(list(range(count)), in_order=True)
    assert runner.fetch(leaves) == list(range(count))
    wait(leaves)
    where = client.who_has(leaves)
    homes = [where[leaf.key][0] for leaf in leaves]
    half = [home == homes[-1] for home in homes]
    assert sum(half) == (count + 1) // 2  # of two workers with a thread each
    assert half == sorted(half)


def test_an_active_client_is_used_and_a_configured_scheduler_respected(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    run = Cluster.run

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        ran.append(1)
        return run(self, *arguments, **options)

    monkeypatch.setattr(Cluster, "run", spy)
    X = low_rank().nan
    dmf.factorize(X, 2, max_rounds=2)
    assert ran
    ran.clear()
    with dask.config.set(scheduler="threads"):
        dmf.factorize(X, 2, max_rounds=2)
    assert not ran


def test_several_rounds_in_one_graph_give_the_same(client: Any, uneven: Any) -> None:
    expected = on_threads(uneven, 5)
    found = dmf.factorize(uneven, 5, check_every=4, **SETTINGS)
    assert_same_bits(found, expected)
    np.testing.assert_array_equal(found.history.objective, expected.history.objective)


def test_restarts_share_the_data_and_their_tasks(client: Any, uneven: Any) -> None:
    expected = on_threads(uneven, 5, restarts=3)
    found = dmf.factorize(uneven, 5, restarts=3, **SETTINGS)
    assert found.objectives == expected.objectives
    assert len(set(found.objectives)) == 3
    assert_same_bits(found, expected)


def kill_a_worker(client: Any) -> None:
    """Kill one worker process; its nanny starts another."""
    pid = client.run(os.getpid).popitem()[1]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.parametrize("rounds", [(7,), (12,), (15,), (3, 11)], ids=str)
def test_killed_workers_change_nothing(
    client: Any, uneven: Any, rounds: tuple[int, ...]
) -> None:
    """X came from this process: it's brought back, and the rounds run again."""
    expected = on_threads(uneven, 5)
    seen = []

    def kill(record: dmf.Record) -> None:
        seen.append(record.round)
        if record.round in rounds:
            kill_a_worker(client)

    found = dmf.factorize(uneven, 5, callbacks=[kill], **SETTINGS)
    assert_same_bits(found, expected)
    # No record is missing, none comes twice.
    assert seen == list(range(1, 16))
    np.testing.assert_array_equal(found.history.objective, expected.history.objective)


@pytest.mark.faults
@pytest.mark.usefixtures("keep_chunks")
def test_killed_workers_change_nothing_for_dask_input(client: Any) -> None:
    """X is a Dask array: the scheduler computes again what was lost."""
    problem = low_rank(m=60, n=40)
    X = da.from_array(problem.nan, chunks=(20, 20))
    expected = on_threads(X, 3)

    def kill(record: dmf.Record) -> None:
        if record.round == 8:
            kill_a_worker(client)

    found = dmf.factorize(X, 3, callbacks=[kill], **SETTINGS)
    assert_same_bits(found, expected)


@pytest.mark.faults
@pytest.mark.parametrize("round", [5, 9, 12])
def test_a_worker_killed_while_restarts_run_together(
    client: Any, uneven: Any, round: int
) -> None:
    """Before the worse half of them is dropped, and after that."""
    expected = on_threads(uneven, 5, restarts=3)
    seen: list[tuple[int, int]] = []

    def kill(record: dmf.Record) -> None:
        if record.round == round and all(r < round for r, _ in seen):
            kill_a_worker(client)
        seen.append((record.round, record.candidate))

    found = dmf.factorize(uneven, 5, restarts=3, callbacks=[kill], **SETTINGS)
    assert found.objectives == expected.objectives
    assert_same_bits(found, expected)
    # No record is missing, none comes twice; one of three is dropped after 8 rounds.
    assert len(seen) == len(set(seen)) == 3 * 8 + 2 * 7


class Leaving:
    """A client whose scheduler goes just now."""

    status = "running"

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {}

    def nthreads(self) -> dict[str, int]:
        raise OSError


@pytest.mark.parametrize(
    "ask",
    [Cluster.machine, Cluster.used, lambda runner: runner.share([])],
    ids=["machine", "used", "share"],
)
def test_a_scheduler_that_goes_while_it_is_asked(ask: Any) -> None:
    runner = Cluster(Leaving())  # type: ignore[arg-type]
    with pytest.raises(
        ClusterError, match=r"^the connection to the scheduler was lost \(the client is"
    ):
        ask(runner)


def loses(times: int, work: Any) -> Any:
    """Return what loses workers so often before it works."""
    left = [times]

    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            msg = "gone"
            raise WorkersLost(msg)
        return work(*arguments, **options)

    return call


@pytest.mark.faults
def test_workers_lost_while_X_is_loaded(
    client: Any, uneven: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = on_threads(uneven, 5)
    for k, name in enumerate(("load", "fingerprint")):
        with monkeypatch.context() as patch:
            work = getattr(_candidates, name)
            patch.setattr(_candidates, name, loses(MAX_LOSSES, work))
            place = tmp_path / str(k)
            found = dmf.factorize(uneven, 5, checkpoint=place, **SETTINGS)
            assert_same_bits(found, expected)
            patch.setattr(_candidates, name, loses(MAX_LOSSES + 1, work))
            with pytest.raises(
                RuntimeError, match=r"^workers were lost 6 times while X was loaded; lo"
            ):
                dmf.factorize(uneven, 5, checkpoint=tmp_path / f"{k}-2", **SETTINGS)


@pytest.mark.faults
@pytest.mark.parametrize(("every", "back"), [(4, 12), (8, 10), (20, 10)])
def test_after_a_loss_a_fit_goes_on_from_what_is_latest(
    client: Any,
    uneven: Any,
    every: int,
    back: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The checkpoint, or what this process has kept after round 10."""
    expected = on_threads(uneven, 5)
    collect, begin = Loop._collect, Loop._begin
    lost, begun = [], []

    def lose(self: Any, batch: Any) -> Any:
        if batch.before.round == 14 and not lost:
            lost.append(1)
            msg = "gone"
            raise WorkersLost(msg)
        return collect(self, batch)

    def note(self: Any) -> Any:
        state = begin(self)
        begun.append(state.round)
        return state

    monkeypatch.setattr(Loop, "_collect", lose)
    monkeypatch.setattr(Loop, "_begin", note)
    place = tmp_path / "saved"
    found = dmf.factorize(
        uneven, 5, checkpoint=place, checkpoint_every=every, **SETTINGS
    )
    assert begun == [0, back]
    assert_same_bits(found, expected)


@pytest.mark.faults
def test_a_cluster_that_keeps_losing_workers_is_given_up(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*arguments: Any) -> Any:
        msg = "gone"
        raise WorkersLost(msg)

    tries = []
    monkeypatch.setattr(Loop, "_collect", lambda *arguments: tries.append(1) or lose())
    with pytest.raises(RuntimeError, match=r"workers were lost 6 times in one round"):
        dmf.factorize(low_rank().nan, 2)
    assert len(tries) == MAX_LOSSES + 1


def test_nothing_large_is_sent_in_a_graph(client: Any) -> None:
    """That would warn, and warnings are errors."""
    X = np.random.default_rng(0).standard_normal((1500, 1200))
    assert X.nbytes > 10 * 2**20
    mask = np.ones((5000, 4000), dtype=bool)
    fit = dmf.factorize(X, 2, max_rounds=2)
    assert len(fit.history) == 2
    lazy = da.ones((5000, 4000), chunks=(2500, 4000))
    fit = dmf.factorize(lazy, 2, mask=mask, max_rounds=2)
    filled = dmf.impute(lazy, fit, mask=mask)
    assert float(filled.sum().compute()) == 5000 * 4000


def test_a_client_that_is_passed_serves_dask_arrays_too(cluster: Any) -> None:
    from distributed import Client

    problem = low_rank(m=60, n=40)
    X = da.from_array(problem.nan, chunks=(30, 40))
    expected = on_threads(X, 3)
    with Client(cluster, set_as_default=False) as client:
        fit = dmf.factorize(X, 3, client=client, **SETTINGS)
        model = dmf.MatrixFactorization(3, client=client, max_rounds=3)
        W = model.fit_transform(X)
        with client.as_current():
            assert_same_bits(fit, expected)
            assert np.isfinite(W.compute()).all()


@pytest.mark.faults
def test_dask_input_when_even_the_scheduler_has_forgotten_it(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the cluster: the fit begins anew, with the same bits."""
    problem = low_rank(m=60, n=40)
    X = da.from_array(problem.nan, chunks=(30, 40))
    expected = on_threads(X, 3)
    collect = Loop._collect
    lost, seen = [], []

    def lose(self: Any, batch: Any) -> Any:
        if batch.before.round == 13 and not lost:
            lost.append(1)
            msg = "gone"
            raise WorkersLost(msg)
        return collect(self, batch)

    monkeypatch.setattr(Loop, "_collect", lose)
    found = dmf.factorize(
        X, 3, callbacks=[lambda record: seen.append(record.round)], **SETTINGS
    )
    assert lost
    assert seen == list(range(1, 16))
    assert_same_bits(found, expected)


@pytest.mark.faults
def test_an_interrupt_while_workers_are_replaced(
    client: Any, uneven: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factors of the last snapshot are all there is, and they are returned."""
    expected = on_threads(uneven, 5, max_rounds=10)
    collect = Loop._collect

    def lose(self: Any, batch: Any) -> Any:
        if batch.before.round == 12:
            self.reload = interrupt
            msg = "gone"
            raise WorkersLost(msg)
        return collect(self, batch)

    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_collect", lose)
    found = dmf.factorize(uneven, 5, **SETTINGS)
    assert (found.status.code, found.status.round) == ("interrupted", 10)
    assert len(found.history) == 10
    assert_same_bits(found, expected)


def test_imputing_dask_arrays_with_large_numpy_factors(client: Any) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40_000, 50))
    fit = dmf.factorize(X, 40, max_rounds=1)
    assert isinstance(fit.W, np.ndarray)
    assert fit.W.nbytes > 10 * 2**20
    lazy = da.random.default_rng(0).standard_normal((40_000, 50), chunks=(10_000, 50))
    lazy = da.where(lazy > 0, lazy, np.nan)
    filled = dmf.impute(lazy, fit)
    assert not da.isnan(filled).any().compute()


def test_transform_on_a_cluster(client: Any) -> None:
    problem = low_rank()
    model = dmf.MatrixFactorization(rank=3, max_rounds=5)
    found = model.fit_transform(problem.nan)
    with dask.config.set(scheduler="threads"):
        expected = model.fit_transform(problem.nan)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_without_any_worker_a_fit_ends(form: str) -> None:
    """What was sent there waits no longer, nor what can be computed again."""
    problem = low_rank()
    X = da.from_array(problem.nan, chunks=(20, 20)) if form == "dask" else problem.nan

    def leave(record: dmf.Record) -> None:
        default_client().cluster.scale(0)

    said = pytest.raises(ClusterError, match="has had no worker for 1 s; look why")
    with started(1, timeout=1), said:
        dmf.factorize(X, 2, callbacks=[leave], **SETTINGS)
