"""Workers that die while a model is used: what is done again, and with which result."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner

import dmf
from dmf import cli
from dmf._fold import grown
from dmf.engine.arrays import number_observed
from dmf.engine.losses import MAX_LOSSES, ClusterError, WorkersLost, insisting
from dmf.engine.runner import Cluster, Threads
from dmf.io.matrices import open_matrix, write_made, write_matrix
from dmf.jobs.findings import find
from tests.problems import low_rank

PROBLEM = low_rank(60, 40, noise=0.3)


# --------------------------------------------------------------------------- insisting


def losing(times: int) -> Callable[[], int]:
    """Return work that loses workers so often, and then says how often it was tried."""
    tries = 0

    def work() -> int:
        nonlocal tries
        tries += 1
        if tries <= times:
            msg = "gone"
            raise WorkersLost(msg)
        return tries

    return work


@pytest.mark.parametrize("times", [0, 1, MAX_LOSSES])
def test_what_workers_take_along_is_done_again(times: int) -> None:
    assert insisting(Threads().session, losing(times), "at work") == times + 1


def test_work_that_loses_workers_again_and_again_is_given_up() -> None:
    work = losing(MAX_LOSSES + 1)
    with pytest.raises(ClusterError, match=r"^workers were lost 6 times at work; look"):
        insisting(Threads().session, work, "at work")
    assert work() == MAX_LOSSES + 2  # it was tried so often, less this time


def test_a_further_try_writes_over_what_the_one_before_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind a URL chunks appear one by one; what was there before is still refused."""
    place, write = "memory://losses/filled.zarr", write_matrix

    def dying(array: Any, path: Any, overwrite: bool) -> None:
        monkeypatch.setattr("dmf.io.matrices.write_matrix", write)
        write(np.zeros((1, 1)), path, overwrite)
        msg = "gone"
        raise WorkersLost(msg)

    monkeypatch.setattr("dmf.io.matrices.write_matrix", dying)
    write_made(lambda: PROBLEM.truth, place)
    np.testing.assert_array_equal(np.asarray(open_matrix(place)), PROBLEM.truth)
    made: list[int] = []
    with pytest.raises(FileExistsError, match="exists"):
        write_made(lambda: made.append(1), place)
    assert not made


# --------------------------------------------------------- what is done with a model


@pytest.fixture(scope="module")
def model() -> dmf.Factorization:
    with dask.config.set(scheduler="threads"):
        return dmf.factorize(PROBLEM.nan[:50], 3, max_rounds=8, offsets="both")


def of_fit(folded: dmf.Factorization) -> list[Any]:
    return [np.asarray(folded.W), np.asarray(folded.H), folded.row_offsets]


def lazily(X: Any) -> Any:
    return da.from_array(X, chunks=(25, 20))


def fold_in(model: dmf.Factorization, folder: Path) -> Any:
    return of_fit(model.fold_in(rows=PROBLEM.nan[50:]))


def grow(model: dmf.Factorization, folder: Path) -> Any:
    held_out = np.random.default_rng(0).random(PROBLEM.nan.shape) < 0.1
    return of_fit(grown(model, PROBLEM.nan, None, held_out))


def score(model: dmf.Factorization, folder: Path) -> Any:
    return list(model.score(PROBLEM.nan[:50]))


def count(model: dmf.Factorization, folder: Path) -> Any:
    return [number_observed(lazily(PROBLEM.truth), PROBLEM.mask)]


def look(model: dmf.Factorization, folder: Path) -> Any:
    found = find(lazily(PROBLEM.nan[:50]), None, model)
    return [found["picture"], found["residuals"]["counts"]]


def impute(model: dmf.Factorization, folder: Path) -> Any:
    """As a command: X in a file, the model from one, factors in memory."""
    np.save(folder / "X.npy", PROBLEM.nan[:50])
    model.save(folder / "model.zarr")
    paths = [str(folder / name) for name in ("X.npy", "model.zarr", "filled.npy")]
    arguments = ["impute", paths[0], "--model", paths[1], "-o", paths[2]]
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [np.load(folder / "filled.npy")]


USES = [fold_in, grow, score, count, look, impute]


class Killer:
    """Kills the worker that holds most before the k-th thing asked of a cluster."""

    def __init__(self, client: Any, event: int, patch: pytest.MonkeyPatch) -> None:
        self.client, self.event = client, event
        self.asked: list[str] = []
        for name in ("put", "run", "fetch"):
            patch.setattr(Cluster, name, self.watched(name, getattr(Cluster, name)))
        patch.setattr("distributed.Client.get", self.watched("get", type(client).get))

    def watched(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.asked.append(name)
            if len(self.asked) == self.event:
                pids = self.client.run(os.getpid, on_error="ignore")
                held = self.client.has_what()
                os.kill(pids[max(pids, key=lambda one: len(held[one]))], signal.SIGKILL)
            return work(*arguments, **options)

        return call


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.usefixtures("keep_chunks")
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_workers_killed_at_any_step_change_nothing(
    client: Any, model: Any, use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmf.engine.grid.ranked_grids", lambda work, machine: [(2, 2)])

    def at(event: int) -> tuple[Any, list[str]]:
        client.wait_for_workers(2, timeout=240)
        folder = tmp_path / f"{event}"
        folder.mkdir()
        with monkeypatch.context() as patch:
            killer = Killer(client, event, patch)
            return use(model, folder), killer.asked

    with dask.config.set(scheduler="threads"):
        expected = use(model, tmp_path)
    calm, asked = at(0)
    np.testing.assert_equal(calm, expected)
    # What was put there is lost before it's used; two other events are drawn.
    put = len(asked) - asked[::-1].index("put")
    drawn = random.Random(use.__name__).sample(range(1, len(asked) + 1), 2)
    for event in {put + 1, *drawn}:
        found, more = at(event)
        np.testing.assert_equal(found, expected)
        assert event != put + 1 or more.count("put") > asked.count("put")
