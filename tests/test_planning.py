"""dmf.plan: what a fit will take, against what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

import dmf
from dmf import _candidates
from dmf.cli import main
from dmf.engine.data import Data
from dmf.engine.loading import load
from dmf.engine.runner import Cluster
from tests.problems import low_rank


def forms() -> dict[str, Any]:
    problem = low_rank(60, 40, 3)
    X = problem.nan
    lazy = da.from_array(X, chunks=(20, 40))
    sparse = problem.sparse()
    return {
        "numpy": X,
        "sparse": sparse,
        "dask": lazy,
        "dask-sparse": da.from_array(np.nan_to_num(X), chunks=(20, 40)).map_blocks(
            sp.csr_array, meta=sp.csr_array((0, 0))
        ),
        "frame": pd.DataFrame(X),
    }


@pytest.mark.parametrize("name", forms())
def test_a_plan_is_what_a_fit_does(name: str) -> None:
    X = forms()[name]
    found = dmf.plan(X, 3, calibrate=False)
    seen: list[Data] = []

    def noted(*given: Any, **options: Any) -> Data:
        seen.append(load(*given, **options))
        return seen[-1]

    with mock.patch.object(_candidates, "load", noted):
        dmf.factorize(X, 3, max_rounds=2)
    assert found.grid == seen[0].grid.shape
    assert found.kind == seen[0].kind
    assert found.shape == (60, 40)
    dense = found.kind == "dense"
    assert found.stored == (2400 if dense else seen[0].totals.entries)
    assert found.refusal is None
    assert not found.streamed


def test_a_plan_of_what_would_not_fit() -> None:
    X = da.zeros((40_000, 20_000), chunks=(500, 20_000), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", da.PerformanceWarning)
        kept = dmf.plan(X, 16, calibrate=False, memory_limit="32 GiB")
        streamed = dmf.plan(X, 16, calibrate=False, memory_limit="2 GiB")
        refused = dmf.plan(X, 16, calibrate=False, memory_limit=1e8)
    assert not kept.streamed
    assert kept.data >= 40_000 * 20_000 * 5
    assert streamed.streamed
    assert streamed.bytes < 2 * 2**30
    assert streamed.seconds > kept.seconds
    assert "read anew in each pass" in str(streamed)
    assert refused.refusal is not None
    assert str(refused).endswith(refused.refusal)


def test_a_plan_may_be_told_more() -> None:
    X = low_rank(60, 40, 3).nan
    plain = dmf.plan(X, 3, calibrate=False)
    more = dmf.plan(X, 3, restarts=4, validation=0.1, calibrate=False)
    assert more.factors > 4 * plain.factors
    assert more.data > plain.data


def test_calibration_measures_this_place() -> None:
    X = sp.random_array((3000, 500), density=0.05, rng=np.random.default_rng(0))
    assert dmf.plan(X, 8).seconds > 0
    X = da.from_array(low_rank(60, 40, 3).nan, chunks=(20, 40))
    assert dmf.plan(X, 3, stream=True).seconds > 0


@pytest.mark.parametrize("limit", ["plenty", -3, 0, "", float("nan")], ids=str)
def test_memory_limits_are_bytes(limit: Any) -> None:
    with pytest.raises(ValueError, match="memory_limit must be a number of bytes"):
        dmf.plan(np.eye(3), 2, memory_limit=limit)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dense", "sparse, rank 64"])
def test_the_peak_of_memory_is_predicted(case: str) -> None:
    """Within a quarter of what the kernel counts, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan", "--case", case],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        timeout=240,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.75 < found["bytes"] / found["peak"] < 1.25


@pytest.mark.cluster
def test_a_plan_for_a_cluster(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is calibrated where the fit will run: by rounds of two fits there."""
    X = low_rank(60, 40, 3).nan
    run, names = Cluster.run, []

    def watch(self: Cluster, graph: Any, keys: list[Any]) -> Any:
        names.extend(key[0] for key in keys)
        return run(self, graph, keys)

    monkeypatch.setattr(Cluster, "run", watch)
    dmf.plan(X, 3, calibrate=False)
    assert names == []
    found = dmf.plan(X, 3)
    updates = {name for name in names if name.startswith("update-W-")}
    assert len(updates) == 2
    assert found.workers == 2
    assert found.seconds > 0
    assert found.process > 5e7
    assert "2 workers, 2 threads in all" in str(found)


# From the shell.


def test_plan_from_the_shell(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", low_rank(60, 40, 3).nan)
    command = ["plan", str(tmp_path / "X.npy"), "--rank", "3"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:2])
    assert lines == {"matrix": "60 × 40, dense", "rank": "3"}
    refused = CliRunner().invoke(main, [*command, "--memory-limit", "50MB"])
    assert refused.exit_code == 1
    assert refused.stdout.splitlines()[0] == "matrix         60 × 40, dense"
    (line,) = refused.stderr.splitlines()
    assert line.startswith("Error: the fit would take ")
    assert "this machine has 50 MB, of which it may use 90%;" in line
