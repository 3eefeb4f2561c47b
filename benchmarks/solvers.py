"""Solvers against each other: the objective that each reaches, and when.

    python -m benchmarks.solvers

Synthetic matrices of low rank with noise, observed uniformly or by a power law (a few
rows and columns have most of the entries, as ratings have). All solvers begin at the
same start and run the same time; the yardstick is alternating least squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import dmf
from benchmarks.common import power_law, print_machine

SOLVERS = {
    "ALS": dmf.AlternatingLeastSquares(),
    "global, exact": dmf.NormalizedGradient("global", dmf.Exact()),
    "global, plane": dmf.NormalizedGradient("global", dmf.Plane()),
    "row, exact": dmf.NormalizedGradient("row", dmf.Exact()),
    "row, plane": dmf.NormalizedGradient(),
}


def path(X: Any, rank: int, penalty: Any, solver: Any, seconds: float) -> Any:
    """Return (seconds, objective) after each round, for a bounded time."""
    fit = dmf.factorize(
        X,
        rank,
        penalty=penalty,
        solver=solver,
        max_rounds=10_000,
        tol=0,
        callbacks=[lambda record: record.seconds > seconds],
    )
    return fit.history.seconds, fit.history.objective


def report(X: Any, rank: int, penalty: Any, budget: float) -> None:
    m, n = X.shape
    print(f"\n{m} × {n}, {X.nnz / 1e6:.2f} M observed, rank {rank}, {penalty}")
    paths = {}
    for name, solver in SOLVERS.items():
        dmf.factorize(X, rank, solver=solver, max_rounds=1)  # compiles the kernels
        paths[name] = path(X, rank, penalty, solver, budget)
    best = min(objective.min() for _, objective in paths.values())
    marks = [budget / 8, budget / 4, budget / 2, budget]
    print(
        "  objective after     " + "".join(f"{mark:>11.2f} s" for mark in marks), end=""
    )
    print("    to 1% of the best")
    for name, (seconds, objective) in paths.items():
        row = []
        for mark in marks:
            done = np.searchsorted(seconds, mark, side="right")
            row.append(f"{objective[done - 1]:13.0f}" if done else f"{'-':>13}")
        near = np.flatnonzero(objective <= 1.01 * best)
        when = f"{seconds[near[0]]:.2f} s" if len(near) else "not reached"
        print(f"  {name:<18}" + "".join(row) + f"{when:>21}")


def main() -> None:
    print_machine()
    small = power_law(6000, 3000, 339_000, 10)
    report(small, 10, dmf.Ridge(0.1), 2.0)
    report(small, 10, dmf.Ridge(0.02, by_count=True), 2.0)
    report(power_law(60_000, 20_000, 3_450_000, 16), 16, dmf.Ridge(0.1), 12.0)


if __name__ == "__main__":
    main()
