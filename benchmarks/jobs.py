"""How long runs of a job take: a first one, none, a warm and a full one after growth.

    python -m benchmarks.jobs --scale 3

Each run is a process of its own, as a scheduler starts it. Rows are appended to ratings
with power laws; "run" is what the job itself takes, "process" also starting Python.
Loading libraries and compiled kernels takes about a second of both, whatever the scale.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.common import power_law, print_machine

ROWS, COLUMNS, STORED, RANK, GROWTH = 200_000, 5000, 22_000_000, 32, 0.01
JOB = f"""
[input]
path = "X.npz"
[model]
rank = {RANK}
offsets = "both"
validation = 0.05
[output]
model = "model.zarr"
[guards]
missing = 1.0
"""


def run(folder: Path, *given: str) -> dict[str, Any]:
    """Run the job; return its times and its result."""
    options = [part for one in given for part in ("--set", one)]
    command = [sys.executable, "-m", "dmf.cli", "run", "job.toml", *options]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--set", "log.format=json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - begun
    last = json.loads(done.stderr.splitlines()[-1])
    manifest = json.loads((folder / "model.zarr.manifest.json").read_text())
    return {**manifest["result"], "process": seconds, "run": last["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="times as many rows")
    scale = parser.parse_args().scale
    print_machine()
    noise = np.random.default_rng(1)
    rows = scale * ROWS
    X = power_law(round(rows * (1 + GROWTH)), COLUMNS, scale * STORED, RANK)
    X.data += noise.standard_normal(len(X.data)).astype(X.dtype)
    results = {}
    for mode in ("warm", "full"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "job.toml").write_text(JOB)
            sp.save_npz(folder / "X.npz", X[:rows], compressed=False)
            results["first"] = run(folder)
            results["nothing to do"] = run(folder)
            sp.save_npz(folder / "X.npz", X, compressed=False)
            results[mode] = run(folder, f"job.mode={mode}")
    print(f"\n{X.nnz} entries, rank {RANK}, {GROWTH:.0%} more rows\n")
    print("run             process       run   rounds   held-out RMSE")
    for name, told in results.items():
        print(
            f"{name:<14}{told['process']:>8.2f} s{told['run']:>8.2f} s"
            f"{told['rounds']:>9}{told['rmse']:>16.5f}"
        )
    warm, full = results["warm"], results["full"]
    print(
        f"\nwarm / full: {warm['run'] / full['run']:.2f} of the time, "
        f"{warm['rmse'] / full['rmse']:.4f} of the RMSE"
    )


if __name__ == "__main__":
    main()
