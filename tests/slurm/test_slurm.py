"""The job of deploy/slurm on a real Slurm, through all that happens to jobs there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from dmf.engine.cost import Machine
from dmf.engine.runner import Threads
from dmf.io.checkpoints import CheckpointStore
from tests.jobs import job_file
from tests.problems import low_rank
from tests.slurm.service import CPUS, Slurm, install, started

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "slurm" / "dmf.sbatch"
# Long enough for a walltime of a minute, the least there is, to run out meanwhile.
ROUNDS = 3000
WORKERS = "dask-worker"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    install()
    with started(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


def prepared(folder: Path) -> tuple[Path, Path, Any]:
    """Return the script of a job, its log, and X."""
    problem = low_rank(1500, 1000, 8, observed=0.3)
    X = sp.csr_array(
        (problem.truth[problem.mask], np.nonzero(problem.mask)), shape=(1500, 1000)
    )
    sp.save_npz(folder / "X.npz", X)
    path = job_file(
        folder,
        input={"path": "X.npz"},
        model={"rank": 8, "validation": None},
        output={"matrix": None, "mask": None},
        solver={"tol": 0, "max_rounds": ROUNDS},
        checkpoint={"every": 200},
        cluster={
            "kind": "slurm",
            "jobs": 2,
            "cores": 1,
            "memory": "2GB",
            "interface": "lo",
            "walltime": "01:00:00",
            "local_directory": str(folder),
            "log_directory": str(folder),
        },
        log={"level": "debug"},
    )
    script = SCRIPT.read_text()
    for shown, used in (
        ("/srv/dmf/bin/dmf", f"{sys.executable} -m dmf.cli"),
        ("/srv/dmf/jobs/job.toml", str(path)),
        ("dmf-%j.log", str(folder / "dmf.log")),
    ):
        assert shown in script
        script = script.replace(shown, used)
    place = folder / "dmf.sbatch"
    place.write_text(script)
    return place, folder / "dmf.log", X


def events(log: Path) -> list[dict[str, Any]]:
    """Return the events in the log of all of a job's starts."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.startswith('{"')]


def rounds(log: Path) -> list[int]:
    return [one["round"] for one in events(log) if one["event"] == "round"]


def reached(log: Path) -> int:
    return max(rounds(log), default=0)


def test_a_job_through_all_that_slurm_does(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, log, X = prepared(tmp_path)
    job = slurm.submit(str(script))

    def goes_on() -> None:
        """Wait until the fit has done some more rounds."""
        before = reached(log)
        slurm.until(lambda: reached(log) >= before + 10, "ten more rounds")

    slurm.until(lambda: len(slurm.running(WORKERS)) == 2, "two jobs of workers")
    goes_on()
    # Somebody cancels a worker's job; another one takes its place.
    old, other = slurm.running(WORKERS)
    slurm("scancel", old)
    goes_on()
    slurm.until(lambda: len(slurm.running(WORKERS)) == 2, "another job of workers")
    assert old not in slurm.running(WORKERS)
    # The walltime of the other one runs out.
    slurm("scontrol", "update", f"JobId={other}", "TimeLimit=1")
    slurm.until(lambda: slurm.state(other) == "TIMEOUT", "the walltime is over")
    slurm.until(lambda: len(slurm.running(WORKERS)) == 2, "another job of workers")
    goes_on()
    # A more urgent job needs the whole machine.
    assert slurm.running("dmf") == [job]
    urgent = slurm.submit(
        "--partition=urgent",
        f"--cpus-per-task={CPUS}",
        f"--output={tmp_path}/urgent.log",
        "--wrap=sleep infinity",
    )
    slurm.until(lambda: slurm.state(urgent) == "RUNNING", "the urgent job runs")
    assert slurm.state(job) == "PENDING"
    *_, last = events(log)
    assert last["code"] == 130
    assert last["event"].endswith("; the next run goes on from its checkpoint")
    done = int(last["event"].split()[3].strip(";"))
    assert 0 < done < ROUNDS
    store = CheckpointStore.at(tmp_path / "model.zarr.checkpoint")
    told, _ = store.manifest(store.versions()[0])
    # A round that isn't settled is done again.
    assert told["reached"]["round"] in (done - 1, done)
    assert slurm.running(WORKERS) == []
    slurm("scancel", urgent)
    waits = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
    slurm.until(lambda: slurm.state(job) not in waits, "the job is done", 300)
    assert slurm.state(job) == "COMPLETED"
    assert events(log)[-1]["code"] == 0
    assert sorted(set(rounds(log))) == list(range(1, ROUNDS + 1))
    # Between the two starts, no more than the round that wasn't settled ran twice.
    assert len(rounds(log)) - ROUNDS <= 1
    fit = dmf.load(tmp_path / "model.zarr")
    # Undisturbed, on threads of this process, but by the plan for that cluster.
    planned_for = Machine(**told["about"]["machine"])
    monkeypatch.setattr(Threads, "machine", lambda self: planned_for)
    expected = dmf.factorize(X, 8, tol=0, max_rounds=ROUNDS)
    np.testing.assert_array_equal(fit.W, expected.W)
    np.testing.assert_array_equal(fit.H, expected.H)


def test_a_job_that_is_cancelled_stays_so(slurm: Slurm, tmp_path: Path) -> None:
    script, log, _ = prepared(tmp_path)
    job = slurm.submit(str(script))
    slurm.until(lambda: reached(log) > 0, "a round")
    slurm("scancel", job)
    slurm.until(lambda: not slurm("squeue", "--noheader"), "the queue is empty")
    assert slurm.state(job) == "CANCELLED"
