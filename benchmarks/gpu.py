"""What a GPU gives: rounds a second, beside its bandwidth, its products, and the CPU.

    python -m benchmarks.gpu

The bytes of a sparse round are those that it must move: for each entry and pass, a row
of the fixed factor, its number and, in the gradient, the value. They are set against a
copy within the device's memory; the operations of a dense gradient against its two
matrix products alone. Copy and products are measured in the same run. The CPU path runs
the same fits on all threads. Whole fits are timed twice in each of two processes: the
first one compiles. Without a GPU it says so, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from scipy.sparse import load_npz, save_npz

import dmf
from benchmarks.common import power_law, print_machine
from dmf.device import Gpu, to_device
from dmf.kernels import dense
from dmf.kernels.dense import DenseBlock

RANKS = (16, 64, 128)
FIT_RANK = 32
ENTRIES = 20_000_000
ROUNDS = 12
COPIED = 2**30


def device_seconds(call: Callable[[], Any], repeat: int = 9) -> float:
    """Return the median seconds of a call on the device, after one to warm up."""
    import cupy

    call()
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(repeat):
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return float(np.median(times))


def copy_rate() -> float:
    """Return the bytes a second that a copy within the device reads and writes."""
    import cupy

    source = cupy.zeros(COPIED, dtype=cupy.uint8)
    target = cupy.empty_like(source)
    return 2 * COPIED / device_seconds(partial(cupy.copyto, target, source))


def round_seconds(X: Any, rank: int, device: str) -> float:
    """Return the median seconds of a round of a fit."""
    fit = dmf.factorize(
        X, rank, max_rounds=ROUNDS, tol=0, progress=False, device=device, penalty=None
    )
    return float(np.median(np.diff(fit.history.seconds[1:])))


def moved_bytes(entries: int, rank: int) -> int:
    """Return the bytes that a sparse round must move, in float32."""
    row = 4 * rank
    gradient, curvature = row + 4 + 4, row + 4
    return 2 * entries * (gradient + curvature)


def report_fits(X: Any) -> None:
    """Time whole fits in processes of their own: nothing is compiled for the first."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "X.npz"
        save_npz(path, X, compressed=False)
        for which in ("compiles", "finds what is compiled"):
            print(f"\nwhole fits in a process that {which}", flush=True)
            command = [sys.executable, "-m", "benchmarks.gpu", str(path)]
            cache = {"NUMBA_CACHE_DIR": folder, "CUPY_CACHE_DIR": folder}
            subprocess.run(command, check=True, env=os.environ | cache)


def time_fits(X: Any) -> None:
    """Time two whole fits, from the memory of the host and back."""
    for which in ("first", "second"):
        start = perf_counter()
        fit = dmf.factorize(X, FIT_RANK, device="gpu", progress=False)
        print(
            f"  {which}: {X.nnz / 1e6:.1f} M stored, r = {FIT_RANK}: "
            f"{perf_counter() - start:.1f} s, {fit.history.round[-1]} rounds"
        )


def report_sparse(X: Any, rate: float) -> None:
    m, n = X.shape
    print(f"\nsparse, {m} × {n}, {X.nnz / 1e6:.1f} M stored, float32")
    print(f"  {'':8}{'rounds/s':>10}{'GB/s':>9}{'/ copy':>9}{'/ CPU':>9}")
    for rank in RANKS:
        there, here = (round_seconds(X, rank, device) for device in ("gpu", "cpu"))
        achieved = moved_bytes(X.nnz, rank) / there
        print(
            f"  r = {rank:<4}{1 / there:10.1f}{achieved / 1e9:9.0f}"
            f"{achieved / rate:9.0%}{here / there:9.1f}"
        )


def report_dense(size: int = 16_000, observed: float = 0.6) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((size, size), dtype=np.float32)
    mask = rng.random((size, size), dtype=np.float32) < observed
    X = np.where(mask, values, np.float32(np.nan))
    block = to_device(DenseBlock(values, mask))
    print(f"\ndense, {size} × {size}, float32, {observed:.0%} observed")
    heads = (
        f"{'rounds/s':>10}{'/ CPU':>9}{'gradient':>12}{'TFLOP/s':>9}{'/ products':>12}"
    )
    print(f"  {'':8}{heads}")
    for rank in RANKS:
        there, here = (round_seconds(X, rank, device) for device in ("gpu", "cpu"))
        W, H = to_device(
            tuple(rng.standard_normal((size, 1, rank), dtype=np.float32) for _ in "WH")
        )
        took = device_seconds(partial(dense.gradient, block, W, H, 0))
        bare = device_seconds(partial(two_products, block.values, W[:, 0], H[:, 0]))
        work = 4 * size**2 * rank
        print(
            f"  r = {rank:<4}{1 / there:10.1f}{here / there:9.1f}{1e3 * took:9.2f} ms"
            f"{work / took / 1e12:9.1f}{bare / took:12.0%}"
        )


def two_products(X: Any, W: Any, H: Any) -> None:
    """Do the matrix products of a gradient, on whole blocks, and nothing else."""
    W @ H.T
    X @ H


def main() -> None:
    if len(sys.argv) > 1:
        time_fits(load_npz(sys.argv[1]))
        return
    try:
        room = Gpu().memory()
    except (ImportError, ValueError) as error:
        sys.exit(f"nothing was measured: {error}")
    import cupy

    print_machine()
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    rate = copy_rate()
    print(f"{name}, {room / 1e9:.0f} GB, copies {rate / 1e9:.0f} GB/s")
    X = power_law(300_000, 100_000, ENTRIES, 16)
    report_fits(X)
    report_sparse(X, rate)
    report_dense()


if __name__ == "__main__":
    main()
