"""Whether a long fit on a cluster gets slower, or takes more and more memory.

    python -m benchmarks.longrun [ROUNDS]

A small problem runs for 2000 rounds on two worker processes, with a checkpoint every
50: there the graph is rooted anew, so that the scheduler can forget what led to it. The
first 100 rounds are for warming up.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import dmf
from benchmarks.common import power_law, print_machine

EVERY = 50  # rounds between two checkpoints
SPAN = 100  # rounds that are compared


def resident() -> float:
    """Return the bytes that this process has in memory."""
    return float(psutil.Process().memory_info().rss)


def held(client: Any) -> dict[str, float]:
    """Return what scheduler, client and workers hold now."""
    tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    workers = client.run(resident).values()
    return {
        "tasks": tasks,
        "client and scheduler": resident(),
        "fullest worker": max(workers),
    }


def main() -> None:
    from distributed import default_client

    from dmf.engine.cluster import started

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    looks = {2 * SPAN, *range(rounds // 4, rounds + 1, rounds // 4)}
    print_machine()
    X = power_law(900, 1600, 80_000, 16)
    seen: dict[int, dict[str, float]] = {}
    ends: list[float] = []
    with started(2), tempfile.TemporaryDirectory() as folder:
        client = default_client()

        def look(record: dmf.Record) -> None:
            ends.append(time.perf_counter())
            if record.round in looks:
                seen[record.round] = held(client)

        dmf.factorize(
            X,
            16,
            tol=0,
            max_rounds=rounds,
            checkpoint=str(Path(folder) / "saved"),
            checkpoint_every=EVERY,
            callbacks=[look],
            progress=False,
        )
    print(f"\n{X.shape[0]} × {X.shape[1]}, rank 16, two processes")
    for number, found in sorted(seen.items()):
        client_mb, worker_mb = (
            found[name] / 2**20 for name in ("client and scheduler", "fullest worker")
        )
        print(
            f"  after {number:5} rounds: {found['tasks']:5.0f} tasks held, "
            f"{client_mb:6.1f} MiB client and scheduler, {worker_mb:6.1f} MiB worker"
        )
    first, last = (
        (ends[end - 1] - ends[end - 1 - SPAN]) / SPAN for end in (2 * SPAN, rounds)
    )
    print(
        f"  a round: {1e3 * first:.2f} ms in rounds {SPAN} to {2 * SPAN}, "
        f"{1e3 * last:.2f} ms in the last {SPAN}: ratio {last / first:.2f}"
    )


if __name__ == "__main__":
    main()
