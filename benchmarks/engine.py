"""What the engine costs: tasks a round, time to build them, and time a round.

The bare kernels are the yardstick: for both halves gradient and curvature of each
block, directions and advance of each strip, on two threads with nothing around them.
What a ratio has above 1 is the engine: tasks, partial sums, lengths of steps, reports.

    python -m benchmarks.engine
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

import dmf
from benchmarks.common import median_ms, power_law, print_machine
from dmf.engine.data import Data, load
from dmf.engine.endings import Rules
from dmf.engine.loop import Loop
from dmf.engine.rounds import State, build_rounds, start_state
from dmf.engine.runner import Cluster, Runner, Threads
from dmf.init import RandomStart
from dmf.objective import Objective, Side

RIDGE = dmf.Ridge(0.1)
SOLVERS = {
    "row, plane": dmf.NormalizedGradient(),
    "global, plane": dmf.NormalizedGradient("global", dmf.Plane()),
}


def bare_kernels(
    data: Data, state: State, objective: Objective, pool: ThreadPoolExecutor
) -> None:
    """Run the kernels of a round of the row-plane solver, and nothing else."""
    kernels = data.kernels
    factors = [[state.leaves[key].factor for key in keys] for keys in state.strips]
    places = list(product(*map(range, data.grid.shape)))

    def passes(kernel: str, axis: int, place: tuple[int, int]) -> None:
        i, j = place
        block = data.leaves[data.block(0).key(i, j)].block
        moving, fixed = factors[axis][place[axis]], factors[1 - axis][place[1 - axis]]
        if kernel == "gradient":
            kernels.gradient(block, moving, fixed, axis)
        else:
            kernels.curvature(block, (moving, moving), fixed, axis)

    def strip(axis: int, i: int) -> None:
        moving = factors[axis][i]
        counts = data.leaves[data.counts(axis).key(i, 0)]
        side = objective.sides[axis]
        terms = side.terms(moving, counts, np.zeros(moving.shape[1]))
        found = kernels.directions(moving, moving, moving, terms, moves=2)
        kernels.advance(moving, found.units, found.norms, terms, rank=side.rank)

    for axis in (0, 1):
        list(pool.map(partial(passes, "gradient", axis), places))
        list(pool.map(partial(passes, "curvature", axis), places))
        list(pool.map(partial(strip, axis), range(data.grid.shape[axis])))


def objective_of(rank: int) -> Objective:
    side = Side((RIDGE,), (rank,), rank)
    return Objective((side, side))


def start_of(rank: int) -> Any:
    """Return the function that makes the state to begin with."""
    start = RandomStart(0, (0,), 1.0)
    return partial(start_state, start=start, objective=objective_of(rank))


def time_rounds(
    X: Any, rank: int, solver: Any, runner: Runner, rounds: int = 12
) -> float:
    """Return the median milliseconds of a round."""
    times: list[float] = []

    def watch(record: dmf.Record) -> bool:
        times.append(record.seconds)
        return False

    data = load(X, None, rank, runner)
    with runner.session():
        Loop(
            data,
            lambda: data,
            start_of(rank),
            solver,
            objective_of(rank),
            runner,
            Rules(max_rounds=rounds, tol=0.0),
            watch,
        ).run()
    steps = sorted(b - a for a, b in pairwise(times[1:]))
    return 1e3 * steps[len(steps) // 2]


def report(X: Any, rank: int, client: Any) -> None:
    threads = Threads()
    data = load(X, None, rank, threads)
    state = start_of(rank)(data, threads)
    P, Q = data.grid.shape
    m, n = X.shape
    print(f"\n{m} × {n}, {X.nnz / 1e6:.2f} M observed, rank {rank}: {P} × {Q} blocks")
    for count in (1, 2):
        with ThreadPoolExecutor(count) as pool:
            run = partial(bare_kernels, data, state, objective_of(rank), pool)
            bare = median_ms(run, 7)
        print(f"  bare kernels, {count} thread(s)         {bare:8.1f} ms")
    for name, solver in SOLVERS.items():

        def build(solver: Any = solver) -> Any:
            return build_rounds(data, state, solver, objective_of(rank), 1)

        tasks = len(build()[0]) - len(data.leaves) - len(state.leaves)
        print(
            f"  {name}: {tasks} tasks a round (bound "
            f"{2 * (2 * P * Q + 2 * (P + Q))}), built in {median_ms(build):.2f} ms"
        )
        for place, runner in (("threads", threads), ("2 processes", Cluster(client))):
            took = time_rounds(X, rank, solver, runner)
            print(
                f"    a round on {place:<12} {took:19.1f} ms  {took / bare:5.2f} × bare"
            )


def report_import() -> None:
    code = (
        "import time; t = time.perf_counter(); import dmf; "
        "print(round(time.perf_counter() - t, 3))"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
        for _ in range(7)
    ]
    print(f"import dmf: median {sorted(times)[3]:.3f} s, lowest {min(times):.3f} s")


def main() -> None:
    from distributed import Client, LocalCluster

    print_machine()
    report_import()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        report(power_law(900, 1600, 80_000, 16), 16, client)
        report(power_law(6000, 3000, 800_000, 16), 16, client)
        report(power_law(60_000, 20_000, 3_450_000, 16), 16, client)
        report(power_law(60_000, 20_000, 3_450_000, 16), 32, client)


if __name__ == "__main__":
    main()
