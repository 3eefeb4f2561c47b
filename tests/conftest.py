"""Fixtures: real data, a cluster for the whole session, Hypothesis profiles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import settings

# On the simulated device, which has a session of its own: `make test-cuda`.
collect_ignore = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["cuda"]

# What a change is judged by must not depend on luck: new examples are for other runs.
settings.register_profile(
    "default", max_examples=40, deadline=None, derandomize=bool(os.environ.get("CI"))
)
settings.register_profile("thorough", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def real_data() -> Any:
    """Return a function that loads a file of the real data sets by its name."""
    root = Path(__file__).parent.parent
    folder = Path(os.environ.get("DMF_DATA", root.parent / "shared" / "data"))

    def load(name: str) -> dict[str, Any]:
        path = folder / name
        if not path.exists():
            if os.environ.get("CI"):
                pytest.fail(f"{name} is missing: CI must have the real data")
            pytest.skip(f"{path} isn't there; set DMF_DATA to the folder with the data")
        with np.load(path) as archive:
            return dict(archive)

    return load


def refuse(*arguments: Any, **options: Any) -> Any:
    """A scheduler that runs nothing."""
    msg = "a task was about to run"
    raise AssertionError(msg)


@pytest.fixture
def no_tasks() -> Iterator[None]:
    with dask.config.set(scheduler=refuse):
        yield


@pytest.fixture
def keep_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one block of each chunk, however many and small the chunks are."""
    monkeypatch.setattr("dmf.engine.grid.KEEP_CHUNKS", 10**9)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A LocalCluster with two worker processes of one thread each."""
    from distributed import LocalCluster

    with (
        # By default, a worker that was killed must be back after 15 s, or never.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "240 s"}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    """A client of the session's cluster, active while the test runs."""
    from distributed import Client

    with Client(cluster) as client:
        # A test before this one may have killed some, and their nannies start others.
        client.wait_for_workers(2, timeout=240)
        yield client


@pytest.fixture(scope="session")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("there is no chromium to look at the page with")
    return found
