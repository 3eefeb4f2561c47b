"""What the benchmarks share: the machine, a clock, real data, and a problem."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parent.parent
# Entries that are made at once: so many rows of both factors fit into any memory.
PART = 2**20
# The folder of real data.
DATA = Path(os.environ.get("DMF_DATA", ROOT.parent / "shared" / "data"))


def print_machine() -> None:
    """Print what the numbers were measured on."""
    # BLAS is loaded, and its kernel chosen, by the first product.
    np.ones((2, 2)) @ np.ones((2, 2))
    kernels = {
        info.get("architecture")
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, NumPy {np.__version__}, BLAS kernel "
        f"{', '.join(sorted(map(str, kernels)))}"
    )


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def median_ms(function: Callable[[], Any], repeat: int = 15) -> float:
    """Return the median time of a call in milliseconds, after one to warm up."""
    function()
    return 1e3 * float(np.median([seconds_of(function) for _ in range(repeat)]))


def in_turns(
    calls: dict[str, Callable[[], Any]],
    repeat: int = 9,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, Any]:
    """Return the seconds of each call, repeated in turns, after one to warm up.

    On a machine with other users, times that were taken side by side can be divided.
    """
    for call in calls.values():
        call()
    times = [[clock(call) for call in calls.values()] for _ in range(repeat)]
    return dict(zip(calls, np.array(times).T, strict=True))


def power_law_places(
    rng: np.random.Generator, shape: tuple[int, int], stored: int
) -> tuple[Any, Any]:
    """Draw the rows and columns of distinct entries, both by a power law."""

    def draw(length: int) -> Any:
        share = np.arange(1, length + 1.0) ** -0.8
        chosen = rng.choice(length, int(1.4 * stored), p=share / share.sum())
        return rng.permutation(length)[chosen]

    m, n = shape
    places = np.unique(draw(m).astype(np.int64) * n + draw(n))
    places = rng.permutation(places)[:stored]
    return places // n, places % n


def power_law(m: int, n: int, stored: int, rank: int, seed: int = 0) -> Any:
    """Return a float32 matrix of low rank, observed unevenly, with noise 0.1."""
    rng = np.random.default_rng(seed)
    rows, columns = power_law_places(rng, (m, n), stored)
    W = rng.standard_normal((m, rank), dtype=np.float32)
    H = rng.standard_normal((n, rank), dtype=np.float32)
    values = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), PART):
        part = slice(start, start + PART)
        values[part] = np.einsum("ij,ij->i", W[rows[part]], H[columns[part]])
    values += 0.1 * rng.standard_normal(len(rows), dtype=np.float32)
    return sp.csr_array((values.astype(np.float32), (rows, columns)), shape=(m, n))
