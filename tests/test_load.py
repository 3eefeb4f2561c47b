"""Many clients on one cluster, and workers that come and go while a fit runs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

import dmf
from benchmarks.common import power_law
from dmf.engine.loop import Loop
from tests.problems import low_rank, same_factors

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.slow]

SETTINGS: dict[str, Any] = {"penalty": dmf.Ridge(0.1), "max_rounds": 12, "tol": 0}


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut X into several blocks, however small it is."""
    monkeypatch.setattr("dmf.engine.grid.ranked_grids", lambda work, machine: [(4, 2)])


def alone(X: Any, rank: int, **settings: Any) -> dmf.Factorization:
    """Fit on this process's threads, also while a client is active."""
    with dask.config.set(scheduler="threads"):
        return dmf.factorize(X, rank, **SETTINGS | settings)


@pytest.mark.usefixtures("blocks", "client")
def test_four_clients_at_once_get_what_each_gets_alone(cluster: Any) -> None:
    problems = [low_rank(60 + 10 * k, 40 + 5 * k, seed=k) for k in range(4)]
    forms = [
        problem.nan if k % 2 else problem.sparse() for k, problem in enumerate(problems)
    ]

    def fit(k: int) -> dmf.Factorization:
        with Client(cluster, set_as_default=False) as client:
            return dmf.factorize(forms[k], 2 + k, seed=k, client=client, **SETTINGS)

    expected = [alone(X, 2 + k, seed=k) for k, X in enumerate(forms)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, range(4)))
    assert all(map(same_factors, found, expected))


def test_a_plan_that_does_not_fit_kills_no_worker() -> None:
    X = da.ones((20_000, 20_000), chunks=(2000, 2000))
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit="600 MiB",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        workers = client.run(os.getpid)
        with pytest.raises(
            ValueError, match=r"^the fit would take \d\.\d+ GB of memory "
        ):
            dmf.factorize(X, 8, client=client, max_rounds=1, stream=False)
        assert client.run(os.getpid) == workers


class Witness(SchedulerPlugin):  # type: ignore[misc]
    """Notes which workers ran tasks of which rounds, and when one has gone."""

    name = "witness"

    def __init__(self) -> None:
        self.workers: dict[int, set[str]] = defaultdict(set)
        self.gone = Event()

    def remove_worker(self, scheduler: Any, worker: str, **options: Any) -> None:
        self.gone.set()

    def transition(
        self, key: Any, start: str, finish: str, *arguments: Any, **options: Any
    ) -> None:
        if finish != "memory" or not isinstance(key, tuple) or "worker" not in options:
            return
        if key[0].startswith(("gradient", "curvature", "direction")):
            _, _, round, *_ = key
            self.workers[round].add(options["worker"])


@pytest.fixture
def lone() -> Iterator[Any]:
    """A cluster of one worker, which may have others."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture(params=["in memory", "dask"])
def X(request: Any, blocks: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "in memory":
        return power_law(2000, 1000, 120_000, rank=5)
    monkeypatch.setattr("dmf.engine.grid.KEEP_CHUNKS", 10**9)
    return da.from_array(low_rank(400, 300).nan, chunks=(100, 150))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What grows whenever a fit begins, at its start or again after a loss."""
    times: list[int] = []
    begin = Loop._begin
    monkeypatch.setattr(Loop, "_begin", lambda self: times.append(1) or begin(self))
    return times


def assert_same(found: dmf.Factorization, expected: Any, client: Client) -> None:
    with client.as_current():
        W, H = np.asarray(found.W), np.asarray(found.H)
    np.testing.assert_array_equal(W, np.asarray(expected.W))
    np.testing.assert_array_equal(H, np.asarray(expected.H))


def test_workers_that_join_are_used_and_those_that_leave_change_nothing(
    lone: Any, X: Any, begun: list[int]
) -> None:
    expected = alone(X, 5)
    begun.clear()
    witness = Witness()
    lone.scheduler.add_plugin(witness)
    with Client(lone, set_as_default=False) as client:
        (first,) = client.nthreads()

        def come_and_go(record: dmf.Record) -> None:
            if record.round == 4:
                lone.scale(2)
                client.wait_for_workers(2)
            if record.round == 9:
                lone.sync(lone.scale_down, [1])

        found = dmf.factorize(X, 5, client=client, callbacks=[come_and_go], **SETTINGS)
        assert_same(found, expected, client)
    # One joins while round 4 is told, when round 5 is sent already.
    assert all(witness.workers[k] == {first} for k in range(1, 5))
    (other,) = witness.workers[6] - {first}
    assert all(witness.workers[k] == {first, other} for k in (6, 7, 8, 9))
    assert witness.workers[12] == {first}
    # LocalCluster.scale_down stops a worker without retiring it. Dask itself computes
    # again what it had; where X came from this process, the fit goes on from what was
    # kept here.
    assert len(begun) <= 2


def hold(number: int) -> None:
    """Keep a thread of a worker until it is told to go on."""
    distributed.Event("enough").wait()


def test_a_cluster_that_adapts_to_its_load(lone: Any, X: Any, begun: list[int]) -> None:
    """Work of others makes it grow, and when it's idle it retires a worker."""
    expected = alone(X, 5)
    begun.clear()
    witness = Witness()
    lone.scheduler.add_plugin(witness)
    grows = {"interval": "50ms", "wait_count": 2, "target_duration": "100ms"}
    with Client(lone, set_as_default=False) as client:

        def load_and_rest(record: dmf.Record) -> None:
            if record.round == 4:
                held = client.map(hold, range(3), pure=False)
                lone.adapt(minimum=1, maximum=2, **grows)
                client.wait_for_workers(2)
                # Not to have it retire the one or the other between two rounds.
                lone.adapt(minimum=2, maximum=2, **grows)
                distributed.Event("enough", client).set()
                client.gather(held)
            if record.round == 9:
                lone.adapt(minimum=1, maximum=2, **grows)
                witness.gone.wait()

        found = dmf.factorize(
            X, 5, client=client, callbacks=[load_and_rest], **SETTINGS
        )
        assert_same(found, expected, client)
    assert len(witness.workers[1]) == len(witness.workers[12]) == 1
    assert all(len(witness.workers[k]) == 2 for k in (6, 7, 8, 9))
    # What a worker holds that is retired goes to the other one: nothing is lost.
    assert begun == [1]


def test_workers_that_are_retired_amid_a_round_cost_nothing(
    X: Any, begun: list[int]
) -> None:
    expected = alone(X, 5)
    begun.clear()
    with (
        LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        retired = []

        def retire(record: dmf.Record) -> None:
            if record.round in (3, 7):
                worker = sorted(client.nthreads())[len(retired)]
                retired.append(pool.submit(client.retire_workers, [worker]))

        found = dmf.factorize(X, 5, client=client, callbacks=[retire], **SETTINGS)
        assert all(one.result() for one in retired)
        assert_same(found, expected, client)
        assert len(client.nthreads()) == 1
    assert begun == [1]
