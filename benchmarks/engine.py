"""What the engine costs: tasks a round, time to build them, and time a round.

The bare kernels are the yardstick: for both halves gradient and curvature of each
block, directions and advance of each strip, on two threads with nothing around them.
What a ratio has above 1 is the engine: tasks, partial sums, lengths of steps, reports.

    python -m benchmarks.engine [--large]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import dask
import numpy as np

import dmf
from benchmarks.common import in_turns, median_ms, power_law, print_machine
from dmf.engine.data import Data
from dmf.engine.endings import Rules
from dmf.engine.loading import load
from dmf.engine.loop import Loop
from dmf.engine.rounds import build_rounds, start_state
from dmf.engine.runner import Cluster, Runner, Threads
from dmf.engine.state import State
from dmf.init import RandomStart
from dmf.objective import Objective, Side

ROUNDS = 8  # that are timed at once
# Between processes H travels: it has many columns, or as few as in the Netflix Prize.
LARGE = ((300_000, 60_000), (480_000, 17_770))
RIDGE = dmf.Ridge(0.1)
SOLVERS = {
    "row, plane": dmf.NormalizedGradient(),
    "global, plane": dmf.NormalizedGradient("global", dmf.Plane()),
}


def strips_of(state: State) -> list[list[tuple[Any, Any]]]:
    """Return the strips of both factors, each with another array as a last move."""
    return [
        [
            (strip, strip[::-1].copy())
            for strip in (state.leaves[k].factor for k in keys)
        ]
        for keys in state.strips
    ]


def bare_kernels(
    data: Data, strips: Any, objective: Objective, pool: ThreadPoolExecutor
) -> None:
    """Run the kernels of a round of the row-plane solver, and nothing else."""
    kernels = data.kernels
    places = list(product(*map(range, data.grid.shape)))

    def passes(kernel: str, axis: int, place: tuple[int, int]) -> None:
        i, j = place
        block = data.leaves[data.block(0).key(i, j)].block
        moving, last = strips[axis][place[axis]]
        fixed, _ = strips[1 - axis][place[1 - axis]]
        if kernel == "gradient":
            kernels.gradient(block, moving, fixed, axis)
        else:
            kernels.curvature(block, (moving, last), fixed, axis)

    def strip(axis: int, i: int) -> None:
        moving, last = strips[axis][i]
        counts = data.leaves[data.counts(axis).key(i, 0)]
        side = objective.sides[axis]
        terms = side.terms(moving, counts, np.zeros(moving.shape[1]))
        found = kernels.directions(moving, moving, last, terms, moves=2)
        kernels.advance(moving, found.units, found.norms, terms, rank=side.rank)

    for axis in (0, 1):
        list(pool.map(partial(passes, "gradient", axis), places))
        list(pool.map(partial(passes, "curvature", axis), places))
        list(pool.map(partial(strip, axis), range(data.grid.shape[axis])))


def run_bare(*arguments: Any) -> float:
    """Return the median seconds of the bare kernels."""
    return median_ms(partial(bare_kernels, *arguments), ROUNDS) / 1e3


def _own_seconds(call: Callable[[], float]) -> float:
    """Return what a call says of itself: rounds are timed inside a fit."""
    return call()


def objective_of(rank: int) -> Objective:
    side = Side((RIDGE,), (rank,), rank)
    return Objective((side, side))


def start_of(rank: int) -> Any:
    """Return the function that makes the state to begin with."""
    start = RandomStart(0, (0,), 1.0)
    return partial(start_state, start=start, objective=objective_of(rank))


def run_rounds(data: Data, rank: int, solver: Any, runner: Runner) -> float:
    """Return the median seconds of a round."""
    times: list[float] = []

    def watch(record: dmf.Record) -> bool:
        times.append(record.seconds)
        return False

    with runner.session():
        Loop(
            data,
            lambda: data,
            start_of(rank),
            solver,
            objective_of(rank),
            runner,
            Rules(max_rounds=ROUNDS, tol=0.0),
            watch,
        ).run()
    return float(np.median(np.diff(times)[1:]))


def report(X: Any, rank: int, client: Any, repeat: int = 5) -> None:
    """Print what a round takes, in turns with the bare kernels on the same data."""
    runners: dict[str, Runner] = {"threads": Threads(), "2 processes": Cluster(client)}
    loaded = {name: load(X, None, rank, runner) for name, runner in runners.items()}
    data = loaded["threads"]
    state = start_of(rank)(data, runners["threads"])
    P, Q = data.grid.shape
    m, n = X.shape
    print(f"\n{m} × {n}, {X.nnz / 1e6:.2f} M observed, rank {rank}: {P} × {Q} blocks")
    for name, solver in SOLVERS.items():
        build = partial(build_rounds, data, state, solver, objective_of(rank), 1)
        tasks = len(build()[0]) - len(data.leaves) - len(state.leaves)
        print(
            f"  {name}: {tasks} tasks a round (bound "
            f"{2 * (2 * P * Q + 2 * (P + Q))}), built in {median_ms(build):.2f} ms"
        )
    with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(1) as one:
        calls = {
            f"bare kernels, {count} thread(s)": partial(
                run_bare, data, strips_of(state), objective_of(rank), pool
            )
            for count, pool in ((2, two), (1, one))
        }
        for place, runner in runners.items():
            for name, solver in SOLVERS.items():
                calls[f"{name}, {place}"] = partial(
                    run_rounds, loaded[place], rank, solver, runner
                )
        times = in_turns(calls, repeat, clock=_own_seconds)
    bare = next(iter(times.values()))
    for name, took in times.items():
        ratio = np.median(took / bare)
        print(f"    {name:<28}{1e3 * np.median(took):9.1f} ms  {ratio:5.2f} × bare")
    for name in SOLVERS:
        ratio = np.median(times[f"{name}, 2 processes"] / times[f"{name}, threads"])
        print(f"    {name}: 2 processes / threads {ratio:.2f}")


def printed_by(code: str, times: int) -> list[float]:
    """Return the numbers that a process prints, each time a new one, in order."""
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True) for _ in range(times)]
    return sorted(float(run.stdout) for run in runs)


def report_import() -> None:
    code = (
        "import time; t = time.perf_counter(); import dmf; "
        "print(round(time.perf_counter() - t, 3))"
    )
    times = printed_by(code, 7)
    print(f"import dmf: median {times[3]:.3f} s, lowest {times[0]:.3f} s")


def report_small() -> None:
    """Print what a fit of 40 rounds takes on a problem of MovieLens 100K's size."""
    code = (
        "import time, dmf; from benchmarks.common import power_law\n"
        "X = power_law(943, 1682, 80_000, 16); t = time.perf_counter()\n"
        "dmf.factorize(X, 16, tol=0, max_rounds=40, progress=False)\n"
        "print(time.perf_counter() - t)"
    )
    first = printed_by(code, 3)
    X = power_law(943, 1682, 80_000, 16)
    fit = partial(dmf.factorize, X, 16, tol=0, max_rounds=40, progress=False)
    print(
        f"943 × 1682, {X.nnz} observed, rank 16, 40 rounds: {median_ms(fit):.0f} ms; "
        f"the first call of a process {1e3 * first[1]:.0f} ms"
    )


def main() -> None:
    from distributed import default_client

    from dmf.engine.cluster import started

    print_machine()
    report_import()
    report_small()
    # The cluster is Dask's default now, but threads are measured as well.
    with started(2), dask.config.set(scheduler=None):
        client = default_client()
        if "--large" in sys.argv[1:]:
            for shape in LARGE:
                report(power_law(*shape, 31_000_000, 32), 32, client, repeat=3)
            return
        report(power_law(900, 1600, 80_000, 16), 16, client)
        report(power_law(6000, 3000, 800_000, 16), 16, client)
        report(power_law(60_000, 20_000, 3_450_000, 16), 16, client)
        report(power_law(60_000, 20_000, 3_450_000, 16), 32, client)


if __name__ == "__main__":
    main()
