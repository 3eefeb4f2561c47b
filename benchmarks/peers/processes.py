"""One system a process: its environment, its threads, its time limit."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers.catalog import CATALOG, Variant
from benchmarks.peers.environments import ROOT, python_for
from benchmarks.peers.fit import Point, Request

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "LK_NUM_THREADS",
    "LK_NUM_BACKEND_THREADS",
)
# Where these are set, OpenBLAS uses an older, slower kernel than the machine has.
SLOW_BLAS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
HUNG = "it hung, or was far slower than its time limit"
ATTEMPTS = 2  # LIBMF has been seen to hang, once in a great many fits


class FailedError(Exception):
    """A system that made no fit; the message is the reason, in one line."""


@dataclass(frozen=True)
class Place:
    """How the processes run.

    Parameters
    ----------
    threads : int
    lock : Path or None
        A file to lock while something is measured, where several benchmarks share a
        machine and would disturb each other.
    """

    threads: int = 2
    lock: Path | None = None

    def environment(self) -> dict[str, str]:
        variables = {k: v for k, v in os.environ.items() if k not in SLOW_BLAS}
        return variables | dict.fromkeys(THREAD_VARIABLES, str(self.threads))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock: for a system's curve, or for a turn of all of them."""
        if self.lock is None:
            yield
            return
        # Imported here because Windows has no such module.
        import fcntl

        with self.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def fit(
    name: str,
    data: Path,
    rank: int,
    own: Variant,
    counts: list[int],
    place: Place,
    *,
    patience: int,
    seconds: float,
) -> list[Point]:
    """Fit a system in a process of its own, once for each number of iterations.

    Raises
    ------
    UnavailableError
        It can't run on this machine.
    FailedError
        It ended, or hung, before its first fit.
    """
    system = CATALOG[name]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.jsonl")
        results.touch()
        request = Request(
            name,
            system.package,
            str(data),
            rank,
            place.threads,
            own,
            counts,
            patience,
            seconds,
            str(results),
        )
        asked = Path(folder, "request.json")
        asked.write_text(json.dumps(asdict(request)))
        command = [
            python_for(system.environment),
            "-m",
            "benchmarks.peers.fit",
            str(asked),
        ]
        # A session of Spark takes seconds to start, and the last fit may be a long one.
        limit = 2 * seconds + 120
        for _ in range(ATTEMPTS):
            reason = run(command, place, limit)
            lines = results.read_text().splitlines()
            if lines:
                return [Point(**json.loads(line)) for line in lines]
            if reason != HUNG:
                break
    raise FailedError(reason)


def run(command: list[str], place: Place, limit: float) -> str:
    """Run a process to its end or its time limit; return the last that it said."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=place.environment(),
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return HUNG
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return said[-1].strip() if said else f"exit status {done.returncode}"
