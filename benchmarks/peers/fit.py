"""Fit one system, in the process and the environment that are its own.

    python -m benchmarks.peers.fit REQUEST

REQUEST is a JSON file: the fields of `Request`. For every number of iterations a whole
fit is made, and a line of JSON, the fields of `Point`, is written at once, so that what
is done is not lost when a later fit hangs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak_of
from benchmarks.peers.systems import SYSTEMS, Options, Ratings, spark_session

Array = Any


@dataclass(frozen=True)
class Request:
    """What to fit.

    Parameters
    ----------
    system : str
        A name in `SYSTEMS`.
    package : str
        The package whose version is reported.
    data : str
        An .npz file with a training and a held-out part.
    rank, threads : int
    own : dict
        The system's own parameters.
    counts : list of int
        Numbers of iterations: a whole fit for each.
    patience : int
        Stop after so many fits in a row that didn't lower the held-out RMSE by 0.01%.
    seconds : float
        Don't begin a fit that would, going by the last one, end after so many seconds.
    results : str
        The file to write to.
    """

    system: str
    package: str
    data: str
    rank: int
    threads: int
    own: dict[str, Any]
    counts: list[int]
    patience: int
    seconds: float
    results: str


@dataclass(frozen=True)
class Point:
    """A whole fit. `peak_mb` is the process's peak of memory up to its end."""

    iterations: int
    seconds: float
    rmse: float
    peak_mb: float
    version: str


def load(path: str) -> tuple[Ratings, Array]:
    """Return what a system sees, and the held-out values."""
    file = np.load(path)
    m, n = map(int, file["shape"])
    names = ("train_rows", "train_columns", "train_values", "test_rows", "test_columns")
    return Ratings((m, n), *(file[name] for name in names)), file["test_values"]


def tiny() -> Ratings:
    """Return ratings to warm up with: for what is compiled or started at first use."""
    m, n = 300, 200
    rng = np.random.default_rng(0)
    places = rng.choice(m * n, 6000, replace=False)
    rows, columns = (part.astype(np.int32) for part in divmod(places, n))
    values = rng.integers(1, 6, len(places)).astype(np.float32)
    return Ratings((m, n), rows, columns, values, rows[:100], columns[:100])


def points(request: Request) -> Iterator[Point]:
    ratings, held_out = load(request.data)
    fit = SYSTEMS[request.system]

    def options(iterations: int) -> Options:
        return Options(request.rank, iterations, request.threads, request.own)

    fit(tiny(), options(3))()
    best, since, spent, last = np.inf, 0, 0.0, 0.0
    for count in request.counts:
        if spent + last > request.seconds or since >= request.patience:
            return
        began = time.perf_counter()
        predict = fit(ratings, options(count))
        last = time.perf_counter() - began
        peak = peak_mb(request)
        spent += last
        error = predict().astype(np.float64) - held_out
        rmse = float(np.sqrt(np.mean(error**2)))
        since = 0 if rmse < best * (1 - 1e-4) else since + 1
        best = min(best, rmse)
        yield Point(count, last, rmse, peak, version(request.package))


def peak_mb(request: Request) -> float:
    """Return the peak resident memory, in MB; for Spark with the Java process's."""
    peak = peak_of()
    if request.system == "Spark ALS":
        context = spark_session(request.threads).sparkContext
        peak += peak_of(str(context._gateway.proc.pid))
    return peak


def main() -> None:
    request = Request(**json.loads(Path(sys.argv[1]).read_text()))
    with Path(request.results).open("w") as file:
        for point in points(request):
            print(json.dumps(asdict(point)), file=file, flush=True)


if __name__ == "__main__":
    main()
