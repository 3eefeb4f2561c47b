"""How time and memory grow with the data.

    python -m benchmarks.growth

Ten times the entries should take ten times as long a round: rows grow with the entries,
columns and rank stay. The memory that a fit adds to its process is compared with what
its data and four copies of its factors take. Each fit has a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import psutil

from benchmarks.common import power_law, print_machine
from benchmarks.memory import forget_peak, peak_of

RANK, ROUNDS, REPEATS = 16, 12, 3
COLUMNS = 3000
SIZES = (330_000, 1_000_000, 3_300_000, 10_000_000)


def measure(stored: int) -> dict[str, float]:
    """Fit in this process; return seconds a round, and bytes of memory added."""
    import dmf

    X = power_law(stored // 60, COLUMNS, stored, RANK)
    dmf.factorize(power_law(200, 100, 5000, 4), RANK, max_rounds=2, tol=0)  # compiles
    before = psutil.Process().memory_info().rss
    forget_peak()  # making the matrix took more than the fit will
    fit = dmf.factorize(X, RANK, max_rounds=ROUNDS, tol=0)
    return {
        "stored": X.nnz,
        "seconds": float(np.median(np.diff(fit.history.seconds[1:]))),
        "added": 2**20 * peak_of() - before,
        "data": X.nnz * 8,
        "factors": sum(X.shape) * RANK * 4,
    }


def in_process(stored: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.growth", str(stored)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    print_machine()
    print(f"\nrank {RANK}, {COLUMNS} columns, float32, threads")
    print(
        "  stored     a round   ns an entry   memory added   data + 4 factors   ratio"
    )
    runs = [[in_process(stored) for stored in SIZES] for _ in range(REPEATS)]
    for k in range(len(SIZES)):
        same = [run[k] for run in runs]
        seconds, added = (
            float(np.median([one[name] for one in same]))
            for name in ("seconds", "added")
        )
        one = same[0]
        room = one["data"] + 4 * one["factors"]
        print(
            f"  {one['stored'] / 1e6:5.2f} M{1e3 * seconds:9.1f} ms"
            f"{1e9 * seconds / one['stored']:14.1f}{added / 1e6:12.0f} MB"
            f"{room / 1e6:16.0f} MB{added / room:8.2f}"
        )
    ratios = [run[-1]["seconds"] / run[-3]["seconds"] for run in runs]
    print(f"  ten times the entries take {np.median(ratios):.1f} times as long")


if __name__ == "__main__":
    main()
