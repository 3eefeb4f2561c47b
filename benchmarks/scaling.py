"""The cost model against measured rounds, and what it predicts for a large cluster.

    python -m benchmarks.scaling [--quick]

Rounds are timed over two decades of sizes, on threads and on clusters of 1 to 8 worker
processes, with grids that the plan wouldn't all choose. What the model says is linear
in the constants of `dmf.engine.cost.Speed`, so that non-negative least squares find
those of this machine; half of the measurements are kept for the check. `SCALING.md`
tells what came out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest.mock import patch

import dask
import numpy as np
from scipy.optimize import nnls

import dmf
from benchmarks.common import power_law, print_machine
from benchmarks.engine import run_rounds
from dmf.engine.cost import (
    SPARSE,
    Cost,
    Machine,
    Speed,
    Work,
    cost_of,
    on_cluster,
    tasks_of,
)
from dmf.engine.grid import ranked_grids
from dmf.engine.loading import load
from dmf.engine.runner import Cluster, Runner, Threads

CORES = 2
# Of the constants, those that differ between threads and a cluster.
REMOTE = ("byte", "task", "stage")
LOCAL = ("entry", "product", "row", "line", "number", "added")
SIZES = [
    (6000, 3000, 300_000),
    (20_000, 7000, 1_000_000),
    (60_000, 20_000, 3_450_000),
    (60_000, 20_000, 10_000_000),
    (150_000, 50_000, 30_000_000),
]
GRIDS = [(1, 1), (2, 1), (4, 1), (2, 2), (4, 4)]


@dataclass(frozen=True)
class Measured:
    work: Work
    grid: tuple[int, int]
    machine: Machine
    seconds: float

    def features(self, names: tuple[str, ...]) -> list[float]:
        """Return the predicted seconds for each constant that alone is 1."""
        nothing = Speed(**{f.name: 0.0 for f in fields(Speed) if f.name != "cache"})
        return [
            cost_of(
                self.work,
                self.grid,
                self.machine,
                speed=replace(nothing, **{name: 1.0}),
            ).seconds
            for name in names
        ]

    def predicted(self, speed: Speed) -> Cost:
        return cost_of(self.work, self.grid, self.machine, speed=speed)


@contextmanager
def on_grid(grid: tuple[int, int]) -> Iterator[None]:
    """Let a fit use this grid."""
    with patch("dmf.engine.grid.ranked_grids", return_value=[grid]):
        yield


def measure(X: Any, rank: int, runner: Runner, workers: int) -> list[Measured]:
    found = []
    for grid in GRIDS:
        if workers == 0 and grid == (4, 4) and X.nnz < 1_000_000:
            continue
        with on_grid(grid):
            data = load(X, None, rank, runner)
        seconds = run_rounds(data, rank, dmf.NormalizedGradient(), runner)
        work = Work(X.shape, X.nnz, rank, "sparse")
        machine = Machine(min(workers or CORES, CORES), workers)
        found.append(Measured(work, grid, machine, seconds))
    return found


def fitted(measured: list[Measured], names: tuple[str, ...], base: Speed) -> Speed:
    """Return the constants that come closest to what was measured, relative to it."""
    known = np.array(
        [
            m.predicted(replace(base, **dict.fromkeys(names, 0.0))).seconds
            for m in measured
        ]
    )
    seconds = np.array([m.seconds for m in measured])
    features = np.array([m.features(names) for m in measured])
    size = np.maximum(features.max(axis=0), 1e-30)
    solution, _ = nnls(
        features / size / seconds[:, None], np.maximum(1 - known / seconds, 0)
    )
    return replace(base, **dict(zip(names, map(float, solution / size), strict=True)))


def report(title: str, measured: list[Measured], speed: Speed) -> None:
    print(f"\n{title}")
    print(
        "  stored   rank  grid   workers  measured  predicted   ratio   "
        "arithmetic  memory  messages  tasks"
    )
    ratios = []
    for m in measured:
        cost = m.predicted(speed)
        ratios.append(cost.seconds / m.seconds)
        parts = "".join(f"{1e3 * part:9.1f}" for part in cost)
        print(
            f"  {m.work.stored / 1e6:5.1f} M{m.work.width:6}  {m.grid[0]} × {m.grid[1]}"
            f"{m.machine.workers:8}{1e3 * m.seconds:10.1f}{1e3 * cost.seconds:11.1f}"
            f"{ratios[-1]:8.2f}   {parts}"
        )
    off = np.exp(np.abs(np.log(ratios)))
    print(
        f"  off by a factor of {np.median(off):.2f} in the median, "
        f"{off.max():.2f} at most"
    )


def predict_large(speed: Speed) -> None:
    """Print a round on 30 billion entries, and what it is made of."""
    print(
        "\n30 billion entries, 100 M × 3 M, rank 64, on 64 to 4096 cores (16 a worker)"
    )
    print("  cores  grid            arithmetic   memory  messages    tasks    round")
    work = Work((100_000_000, 3_000_000), 30_000_000_000, 64, "sparse")
    for cores in (64, 256, 1024, 4096):
        machine = Machine(cores, cores // 16, 64e9)
        grid = ranked_grids(work, machine)[0]
        cost = cost_of(work, grid, machine, speed=speed)
        parts = "".join(f"{part:9.2f} s" for part in (*cost, cost.seconds))
        print(
            f"  {cores:5}  {grid[0]:4} × {grid[1]:<4}    {parts}"
            f"  {tasks_of(work, grid, machine)} tasks"
        )


def main() -> None:
    from distributed import default_client

    from dmf.engine.cluster import started

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small sizes only")
    sizes = SIZES[:3] if parser.parse_args().quick else SIZES
    print_machine()
    matrices = [power_law(*size, 16) for size in sizes]
    local: list[Measured] = []
    with dask.config.set(num_workers=CORES):
        for X in matrices:
            for rank in (16, 64):
                local += measure(X, rank, Threads(), 0)
    remote: list[Measured] = []
    for workers in (1, 2, 4, 8):
        with started(workers):
            for X in matrices[:: max(1, len(matrices) // 3)]:
                remote += measure(X, 32, Cluster(default_client()), workers)
    threads = fitted(local[::2], (*LOCAL, "task", "stage"), SPARSE)
    cluster_speed = fitted(remote[::2], REMOTE, on_cluster(threads))
    for name, speed in (("threads", threads), ("cluster", cluster_speed)):
        print(
            f"\n{name}: "
            + ", ".join(f"{f.name} {getattr(speed, f.name):.2g}" for f in fields(speed))
        )
    report("threads: measurements that weren't fitted to", local[1::2], threads)
    report("cluster: measurements that weren't fitted to", remote[1::2], cluster_speed)
    predict_large(cluster_speed)


if __name__ == "__main__":
    main()
