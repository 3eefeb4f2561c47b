"""What the kernels take: time, rate and memory, beside C and beside BLAS.

    python -m benchmarks.kernels

Sparse kernels are compared with the same loops in C (`yardstick.c`, compiled with -O3
-march=native, with and without -ffast-math), dense ones with the two matrix products
that they can't do without. C goes through plain rows, dmf through the panels that a fit
would put the entries in. All ratios are medians over repetitions that take turns.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import in_turns, power_law, print_machine
from dmf.engine.grid import balanced_bounds
from dmf.kernels import dense, sparse
from dmf.kernels.dense import DenseBlock, cuts
from dmf.kernels.sparse import SparseBlock
from dmf.observed import observe

SOURCE = Path(__file__).with_name("yardstick.c")
PLAIN = ("-O3", "-march=native")
FLAGS = {"C": PLAIN, "C, fast-math": (*PLAIN, "-ffast-math")}
THREADS = 2


def compiled(flags: tuple[str, ...], folder: Path) -> Any:
    """Return the yardstick, compiled; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    target = folder / f"yardstick{len(flags)}.so"
    command = [compiler, *flags, "-shared", "-fPIC", str(SOURCE), "-o", str(target)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    library.gradient.restype = ctypes.c_double
    return library


def pointer(array: Any) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def round_in_c(library: Any, block: SparseBlock, W: Any, H: Any) -> None:
    """Do gradient and curvature of both halves, as `round_of_kernels` does."""
    integer = ctypes.c_int64
    p, rank = integer(block.shape[0]), integer(W.shape[2])
    data = [pointer(a) for a in (block.starts, block.columns)]
    for axis, (moving, fixed) in enumerate(((W, H), (H, W))):
        result = np.zeros_like(moving)
        factors = pointer(moving), pointer(fixed)
        tail = rank, integer(axis)
        library.gradient(
            p, *data, pointer(block.values), *factors, *tail, pointer(result)
        )
        sums = np.zeros((len(moving), 3))
        library.curvature(p, *data, factors[0], *factors, *tail, pointer(sums))


def round_of_kernels(block: SparseBlock, W: Any, H: Any) -> None:
    for axis, (moving, fixed) in enumerate(((W, H), (H, W))):
        sparse.gradient(block, moving, fixed, axis)
        sparse.curvature(block, (moving, moving), fixed, axis)


def strips_of(X: Any, parts: int, row_bytes: int) -> list[tuple[SparseBlock, slice]]:
    """Cut X into strips of rows that store about as much, with where they are."""
    bounds = balanced_bounds(np.diff(X.indptr), parts)
    return [
        (observe(X[rows], None, X.dtype, row_bytes=row_bytes).block, rows)
        for rows in map(slice, bounds[:-1], bounds[1:])
    ]


def on_cores_of_their_own() -> ThreadPoolExecutor:
    """Return threads that stay on different cores, where that can be had.

    Left to itself, Linux lets two threads that are woken for a few milliseconds share a
    core for all of them.
    """
    cores = count()

    def settle() -> None:
        if hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {allowed[next(cores) % len(allowed)]})

    return ThreadPoolExecutor(THREADS, initializer=settle)


def side_by_side(
    pool: ThreadPoolExecutor, strips: list[tuple[SparseBlock, slice]], W: Any, H: Any
) -> None:
    list(pool.map(lambda strip: round_of_kernels(strip[0], W[strip[1]], H), strips))


def report_sparse(X: Any, libraries: dict[str, Any]) -> None:
    m, n = X.shape
    print(f"\nsparse, {m} × {n}, {X.nnz / 1e6:.2f} M stored, float32: a round")
    print(f"  {'':10}{'1 thread':>10}{'2 threads':>11}{'M entries·r/s':>15}", end="")
    print("".join(f"{'/ ' + name:>16}" for name in libraries))
    rng = np.random.default_rng(0)
    ((plain, _),) = strips_of(X, 1, 0)
    for rank in (8, 16, 18, 32, 64, 128):
        W, H = (rng.standard_normal((k, 1, rank), dtype=np.float32) for k in X.shape)
        ((one, _),), halves = (strips_of(X, k, 4 * rank) for k in (1, THREADS))
        with on_cores_of_their_own() as pool:
            calls: dict[str, Callable[[], Any]] = {
                "one": partial(round_of_kernels, one, W, H),
                "two": partial(side_by_side, pool, halves, W, H),
            }
            for name, library in libraries.items():
                calls[name] = partial(round_in_c, library, plain, W, H)
            times = in_turns(calls)
        ms = {name: 1e3 * float(np.median(took)) for name, took in times.items()}
        rate = 4 * X.nnz * rank / ms["one"] / 1e3
        ratios = [np.median(times["one"] / times[name]) for name in libraries]
        print(
            f"  r = {rank:<6}{ms['one']:7.1f} ms{ms['two']:8.1f} ms{rate:15.0f}"
            + "".join(f"{ratio:16.2f}" for ratio in ratios)
        )


def products_of_gradient(
    block: DenseBlock, moving: Any, fixed: Any, axis: int, tile: tuple[int, int]
) -> None:
    """Do the matrix products of `dense.gradient`, tile by tile, and nothing else."""
    W, H = (moving[:, 0], fixed[:, 0]) if axis == 0 else (fixed[:, 0], moving[:, 0])
    result = np.zeros_like(moving[:, 0])
    for rows, columns, out in tiles_of(block, tile):
        np.matmul(W[rows], H[columns].T, out=out)
        if axis == 0:
            result[rows] += out @ H[columns]
        else:
            result[columns] += out.T @ W[rows]


def products_of_curvature(
    block: DenseBlock,
    moves: tuple[Any, ...],
    fixed: Any,
    axis: int,
    tile: tuple[int, int],
) -> None:
    """Do the matrix products of `dense.curvature`, likewise."""
    for rows, columns, out in tiles_of(block, tile):
        for move in moves:
            pair = (move, fixed) if axis == 0 else (fixed, move)
            np.matmul(pair[0][rows, 0], pair[1][columns, 0].T, out=out)


def tiles_of(
    block: DenseBlock, tile: tuple[int, int]
) -> Iterator[tuple[slice, slice, Any]]:
    """Cut a block into tiles: yield rows, columns, and memory for their product."""
    scratch = np.empty(tile[0] * tile[1], dtype=block.values.dtype)
    p, q = block.shape
    for columns, rows in product(cuts(q, tile[1]), cuts(p, tile[0])):
        shape = rows.stop - rows.start, columns.stop - columns.start
        yield rows, columns, scratch[: shape[0] * shape[1]].reshape(shape)


def report_dense(size: int = 8000, observed: float = 0.6) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((size, size), dtype=np.float32)
    block = DenseBlock(values, rng.random((size, size), dtype=np.float32) < observed)
    print(f"\ndense, {size} × {size}, float32, {observed:.0%} observed, one thread")
    heads = f"{'time':>11}{'GFLOP/s':>9}{'/ products':>12}{'memory':>10}"
    print(f"  {'':10}{'':20}{'axis':>5}{heads}")
    for rank, axis in product((16, 32, 64, 128), (0, 1)):
        moving, fixed, move = (
            rng.standard_normal((size, 1, rank), dtype=np.float32) for _ in range(3)
        )
        gradient = block, moving, fixed, axis
        curvature = block, (moving, move), fixed, axis
        report_dense_kernel(
            "gradient", dense.gradient, products_of_gradient, gradient, moving.nbytes
        )
        report_dense_kernel(
            "curvature of a plane",
            dense.curvature,
            products_of_curvature,
            curvature,
            3 * 8 * size,
        )


def report_dense_kernel(
    name: str,
    kernel: Callable[..., Any],
    products: Callable[..., None],
    arguments: tuple[Any, ...],
    result_bytes: int,
) -> None:
    """Print what a kernel takes beside its two matrix products alone."""
    _, _, fixed, axis = arguments
    size, rank = fixed.shape[0], fixed.shape[2]
    calls = {
        "kernel": partial(kernel, *arguments),
        "tiles": partial(products, *arguments, (240, 1920)),
        "rows": partial(products, *arguments, (64, size)),
    }
    times = in_turns(calls, repeat=5)
    took = float(np.median(times["kernel"]))
    # Which shape suits BLAS depends on the rank: the better one is the yardstick.
    best = np.minimum(times["tiles"], times["rows"])
    share = np.median(best / times["kernel"])
    tracemalloc.start()
    kernel(*arguments)
    peak = tracemalloc.get_traced_memory()[1] - result_bytes
    tracemalloc.stop()
    rate = 4 * size**2 * rank / took / 1e9
    print(
        f"  r = {rank:<6}{name:<20}{axis:>5}{1e3 * took:8.0f} ms{rate:9.0f}"
        f"{share:11.0%}{peak / 1e6:7.1f} MB"
    )


def main() -> None:
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        libraries = {
            name: library
            for name, flags in FLAGS.items()
            if (library := compiled(flags, Path(folder))) is not None
        }
        if not libraries:
            print("no C compiler here: the yardstick is left out")
        report_sparse(power_law(6000, 3000, 935_000, 16), libraries)
        report_sparse(power_law(60_000, 20_000, 3_450_000, 16), libraries)
    with threadpool_limits(limits=1, user_api="blas"):
        report_dense()


if __name__ == "__main__":
    main()
