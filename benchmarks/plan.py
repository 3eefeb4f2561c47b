"""What `dmf.plan` predicts, beside what happens: bytes at the peak, seconds a round.

    python -m benchmarks.plan

Each fit has a process of its own; on a cluster, its workers have. Bytes are the peak of
resident memory, as the kernel counted it, of the fullest process that does the work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import power_law, print_machine
from benchmarks.memory import forget_peak, peak_of

ROUNDS = 6


def dense(m: int, n: int) -> Any:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((m, n), dtype=np.float32)
    X[rng.random(X.shape, dtype=np.float32) < 0.4] = np.nan
    return X


def stored(m: int, n: int, chunk: int) -> Any:
    """Return a Zarr array on disk, as a Dask array."""
    import zarr

    from dmf.io.matrices import open_matrix

    place = Path(tempfile.gettempdir()) / f"dmf-plan-{m}-{n}-{chunk}.zarr"
    if not place.exists():
        target = zarr.create_array(
            place, shape=(m, n), dtype="float32", chunks=(chunk, n)
        )
        for i in range(0, m, chunk):
            target[i : i + chunk] = dense(min(chunk, m - i), n)
    return open_matrix(place)


# (name, the matrix, rank, worker processes or 0, memory limit, options)
CASES: dict[str, tuple[Callable[[], Any], int, int, str, dict[str, Any]]] = {
    "dense": (lambda: dense(8000, 8000), 16, 0, "", {}),
    "dense, validation": (lambda: dense(8000, 8000), 32, 0, "", {"validation": 0.1}),
    "dense, wide factors": (lambda: dense(8000, 8000), 512, 0, "", {}),
    "sparse": (lambda: power_law(160_000, 3000, 10_000_000, 16), 16, 0, "", {}),
    "sparse, rank 64": (
        lambda: power_law(160_000, 3000, 10_000_000, 16),
        64,
        0,
        "",
        {"restarts": 2},
    ),
    "Zarr, kept": (lambda: stored(16000, 16000, 500), 32, 0, "", {}),
    "Zarr, streamed": (lambda: stored(16000, 16000, 500), 32, 0, "", {"stream": True}),
    "cluster, Zarr": (lambda: stored(16000, 16000, 500), 32, 2, "2GiB", {}),
    "cluster, streamed": (lambda: stored(16000, 16000, 500), 32, 1, "512MiB", {}),
    "cluster, sparse": (
        lambda: power_law(160_000, 3000, 10_000_000, 16),
        32,
        2,
        "2GiB",
        {},
    ),
}


def measure(name: str) -> dict[str, Any]:
    """Plan and fit in this process, or from it."""
    import dmf

    make, rank, workers, limit, options = CASES[name]
    X = make()
    warnings.simplefilter("ignore")
    dmf.factorize(dense(60, 50), 2, max_rounds=2, progress=False)  # imports, compiles
    if not workers:
        return compare(dmf, X, rank, options, ["self"])
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        dmf.factorize(dense(60, 50), 2, max_rounds=2, progress=False)
        pids = [str(pid) for pid in client.run(_pid).values()]
        return compare(dmf, X, rank, options, pids)


def _pid() -> int:
    import os

    return os.getpid()


def compare(
    dmf: Any, X: Any, rank: int, options: dict[str, Any], pids: list[str]
) -> dict[str, Any]:
    plan = dmf.plan(X, rank, **options)
    if pids == ["self"]:
        forget_peak()
    fit = dmf.factorize(
        X, rank, max_rounds=ROUNDS, tol=0, progress=False, drop=False, **options
    )
    return {
        "bytes": plan.bytes,
        "peak": max(peak_of(pid) for pid in pids) * 2**20,
        "seconds": plan.seconds,
        "measured": float(np.median(np.diff(fit.history.seconds[1:]))),
        "grid": plan.grid,
        "streamed": plan.streamed,
    }


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2])))
        return
    print_machine()
    print("                        memory                    a round")
    print(
        "                        predicted  peak   ratio   predicted  measured  ratio"
    )
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.plan", "--case", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        one = json.loads(done.stdout.splitlines()[-1])
        P, Q = one["grid"]
        print(
            f"  {name:<22}{one['bytes'] / 1e9:6.2f} GB {one['peak'] / 1e9:6.2f}"
            f"{one['bytes'] / one['peak']:8.2f}{1e3 * one['seconds']:9.0f} ms"
            f"{1e3 * one['measured']:9.0f}{one['seconds'] / one['measured']:8.2f}"
            f"   {P} × {Q}{', streamed' if one['streamed'] else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
