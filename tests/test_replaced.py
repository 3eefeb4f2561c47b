"""Jobs of workers that end early are started again, and no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dmf.engine.replaced import LOOKS, Replacements


class Cluster:
    """What `Replacements` needs of a cluster of jobs with two workers each."""

    def __init__(self, jobs: int) -> None:
        self.worker_spec: dict[str, Any] = {}
        self.observed: set[str] = set()
        self.scale(jobs)

    def scale(self, jobs: int) -> None:
        number = 0
        while len(self.worker_spec) < jobs:
            self.worker_spec.setdefault(f"job-{number}", {"group": ["-0", "-1"]})
            number += 1

    async def scale_down(self, jobs: list[str]) -> None:
        for job in jobs:
            del self.worker_spec[job]


def look(replacements: Replacements, times: int = 1) -> None:
    for _ in range(times):
        asyncio.run(replacements.look())


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(2)


@pytest.fixture
def replacements(cluster: Cluster) -> Replacements:
    return Replacements(cluster, 2)


def names(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what will have been scaled down."""
    seen: list[list[str]] = []
    scale_down = cluster.scale_down

    async def spy(jobs: list[str]) -> None:
        seen.append(list(jobs))
        await scale_down(jobs)

    monkeypatch.setattr(cluster, "scale_down", spy)
    return seen


def test_a_job_without_workers_is_replaced(
    cluster: Cluster, replacements: Replacements, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = names(cluster, monkeypatch)
    cluster.observed = {"job-0-0", "job-0-1", "job-1-0"}
    look(replacements)
    cluster.observed = {"job-0-1"}
    look(replacements, LOOKS - 1)
    assert given_up == []
    look(replacements)
    assert given_up == [["job-1"]]
    assert len(cluster.worker_spec) == 2
    # The new one hasn't begun yet, however long that takes.
    look(replacements, 3 * LOOKS)
    assert given_up == [["job-1"]]


def test_a_worker_that_comes_back_keeps_its_job(
    cluster: Cluster, replacements: Replacements, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = names(cluster, monkeypatch)
    for _ in range(3):
        cluster.observed = {"job-0-0", "job-1-0"}
        look(replacements)
        cluster.observed = {"job-0-0"}
        look(replacements, LOOKS - 1)
    assert given_up == []
