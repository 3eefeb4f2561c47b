"""The same fits on a GPU, where there is one: skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import dmf
from dmf.device import Gpu, to_device, to_host
from dmf.kernels import cuda, dense, sparse
from dmf.offsets import COLUMNS
from tests.blocks import MASKS, block_of, narrow_panels
from tests.devices import assert_close
from tests.problems import (
    CHUNKS,
    SOLVERS,
    form_of,
    low_rank,
    mask_for,
    sparse_chunks,
    stacked_start,
)

pytestmark = pytest.mark.gpu
PENALTIES = [
    None,
    "auto",
    dmf.Ridge(0.3),
    dmf.Lasso(0.2) + dmf.Ridge(0.1),
    dmf.NonNegative() + dmf.Lasso(0.1) + dmf.Ridge(0.2),
    (dmf.Ridge(0.1), dmf.Smooth(2.0)),
]
PROBLEM = low_rank(m=60, n=40, dtype=np.float32)
each_form = pytest.mark.parametrize("form", ["numpy", "sparse"])


@pytest.fixture(scope="session", autouse=True)
def device() -> float:
    """The bytes of the GPU."""
    try:
        return Gpu().memory()
    except (ImportError, ValueError) as error:
        pytest.skip(f"there is no GPU to test on: {error}")


def both(X: Any, **options: Any) -> tuple[Any, Any]:
    options = {"max_rounds": 5, "tol": 0, **options}
    there = dmf.factorize(X, 3, device="gpu", **options)
    return there, dmf.factorize(X, 3, device="cpu", **options)


@each_form
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver(solver: Any, form: str) -> None:
    X = form_of(PROBLEM, form)
    options = {"penalty": dmf.Ridge(0.1), "restarts": 2, "drop": False}
    assert_close(*both(X, solver=solver, **options))


@each_form
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_every_penalty(penalty: Any, form: str) -> None:
    assert_close(*both(form_of(PROBLEM, form), penalty=penalty))


@each_form
@pytest.mark.parametrize("offsets", COLUMNS)
def test_every_kind_of_offsets(offsets: str, form: str) -> None:
    assert_close(*both(form_of(PROBLEM, form), offsets=offsets))


@each_form
@pytest.mark.parametrize(
    ("weighted", "alpha", "validation"),
    list(product([False, True], [0.0, 0.3, 1.0], [None, 0.2])),
)
def test_weights_zeros_and_what_is_held_out(
    form: str, weighted: bool, alpha: float, validation: float | None
) -> None:
    mask = mask_for(PROBLEM.weights, PROBLEM.mask, form) if weighted else None
    X = form_of(PROBLEM, form)
    options = {"mask": mask, "unobserved_weight": alpha, "validation": validation}
    assert_close(*both(X, **options))


def compare_kernels(
    kernels: Any,
    expected_of: Any,
    block: Any,
    factors: Any,
    axis: int,
    gram: bool = False,
) -> None:
    """Hold kernels on a block that is brought there against those of the processor."""
    there = to_device(block)
    W, H = factors
    moving, fixed = (W, H) if axis == 0 else (H, W)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("gradient", (moving, fixed, axis)),
        ("curvature", ((moving,), fixed, axis)),
        ("curvature", ((moving, 2 * moving - 1), fixed, axis)),
        ("errors", (W, H)),
    ]
    if gram:
        calls.append(("gram", (fixed, axis)))
    limit = 1e-4 if W.dtype == np.float32 else 1e-10
    for name, arguments in calls:
        found = to_host(getattr(kernels, name)(there, *to_device(arguments)))
        expected = getattr(expected_of, name)(block, *arguments)
        pairs = zip(found, expected, strict=True) if name == "gradient" else None
        for one, other in pairs or [(found, expected)]:
            size = float(np.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=limit, atol=0.1 * limit * size)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("mask", ["none", "weights"])
@pytest.mark.parametrize("rank", [1, 3, 33, 100])
def test_sparse_kernels(mask: str, alpha: float, axis: int, rank: int) -> None:
    """With rows of several segments, too."""
    problem = low_rank(m=5, n=2000, rank=rank, observed=0.8, dtype=np.float32)
    block, _ = block_of(problem, "sparse", mask, alpha)
    compare_kernels(cuda, sparse, block, stacked_start(problem, 2), axis, gram=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_kernels(
    dtype: Any, mask: str, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several tiles, and rows and columns of several parts."""
    monkeypatch.setattr(dense, "DEVICE_TILE_BYTES", 2**22)
    problem = low_rank(m=1100, n=1300, rank=5, observed=0.8, dtype=dtype)
    block, _ = block_of(problem, "dense", mask)
    compare_kernels(dense, dense, block, stacked_start(problem, 2), axis)


@pytest.mark.parametrize("lazy", [False, True])
@each_form
def test_arrays_that_are_there(form: str, lazy: bool) -> None:
    """CuPy's arrays, cupyx's matrices and Dask arrays of them, in and out."""
    import cupy
    import cupyx.scipy.sparse as csp

    X: Any = form_of(PROBLEM, form)
    if lazy and form == "sparse":
        stored = np.where(PROBLEM.mask, PROBLEM.truth, 0)
        meta = csp.csr_matrix((0, 0), dtype=stored.dtype)
        there = sparse_chunks(stored).map_blocks(csp.csr_matrix, meta=meta)
    elif lazy:
        there = da.from_array(X, chunks=CHUNKS).map_blocks(cupy.asarray)
    else:
        there = cupy.asarray(X) if form == "numpy" else csp.csr_matrix(X)
    fit = dmf.factorize(there, 3, max_rounds=5, tol=0, offsets="both")
    host = dmf.factorize(X, 3, max_rounds=5, tol=0, offsets="both")
    W = fit.W.compute() if lazy else fit.W
    assert isinstance(W, cupy.ndarray)
    np.testing.assert_allclose(W.get(), host.W, rtol=1e-3, atol=1e-4)
    filled = dmf.impute(there, fit)
    filled = filled.compute() if lazy else filled
    assert isinstance(filled, cupy.ndarray)
    np.testing.assert_allclose(filled.get(), dmf.impute(X, host), rtol=1e-3, atol=1e-4)
    if form == "numpy":
        rows = dmf.MatrixFactorization(3, max_rounds=5).fit_transform(there)
        assert isinstance(rows.compute() if lazy else rows, cupy.ndarray)
    excluded = fit.recommend([0, 7], 4, exclude=there)
    expected = host.recommend([0, 7], 4, exclude=X)
    np.testing.assert_array_equal(excluded[0], expected[0])


@each_form
def test_blocks_that_stay_on_the_host(form: str) -> None:
    """In memory that isn't moved; each pass brings them, ahead of the work on them."""
    options: dict[str, Any] = {"max_rounds": 5, "tol": 0}
    X = form_of(PROBLEM, form)
    there = dmf.factorize(X, 3, device="gpu", stream=True, **options)
    assert_close(there, dmf.factorize(X, 3, **options))


def test_several_blocks() -> None:
    filled = np.where(PROBLEM.mask, PROBLEM.truth, 0)
    there, here = both(sparse_chunks(filled), offsets="both")
    np.testing.assert_allclose(np.asarray(there.W), np.asarray(here.W), rtol=1e-3)


@pytest.mark.cluster
@each_form
def test_on_a_worker_that_offers_it(form: str) -> None:
    """The client of a cluster needs no GPU; results are as in one process."""
    from distributed import Client, LocalCluster

    X = form_of(PROBLEM, form)
    here = dmf.factorize(X, 3, max_rounds=5, tol=0)
    options = {"dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}}
    with LocalCluster(1, threads_per_worker=1, **options) as cluster, Client(cluster):
        there = dmf.factorize(X, 3, max_rounds=5, tol=0, device="gpu")
        assert_close(there, here)


def test_rows_are_plain_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels are for the cache of a processor."""
    narrow_panels(monkeypatch)
    for X in (PROBLEM.sparse(), sparse_chunks(PROBLEM.sparse())):
        there, here = both(X)
        np.testing.assert_allclose(np.asarray(there.W), np.asarray(here.W), rtol=1e-3)


def test_data_that_are_read_anew() -> None:
    X = da.from_array(PROBLEM.nan, chunks=CHUNKS)
    there, here = both(X, stream=True)
    np.testing.assert_allclose(np.asarray(there.W), np.asarray(here.W), rtol=1e-3)


def test_tf32_is_close_and_says_what_it_is() -> None:
    """In a process of its own: the precision is settled once."""
    code = (
        "import numpy as np, dmf\n"
        "rng = np.random.default_rng(0)\n"
        "X = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 200))\n"
        "X[rng.random(X.shape) < 0.3] = np.nan\n"
        "X = X.astype(np.float32)\n"
        "options = dict(max_rounds=10, tol=0)\n"
        "one = dmf.factorize(X, 8, device='gpu', precision='tf32', **options)\n"
        "other = dmf.factorize(X, 8, **options)\n"
        "print(abs(one.history.rmse[-1] - other.history.rmse[-1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1e-2


def test_a_second_process_finds_the_kernels(tmp_path: Path) -> None:
    """What one has compiled is on disk for all that follow."""
    code = (
        "import numpy as np, scipy.sparse as sp, dmf\n"
        "from dmf.kernels import cuda_rows, warps\n"
        "from dmf.kernels.lanes import layout_for\n"
        "X = sp.random_array((60, 40), density=0.3, rng=np.random.default_rng(0))\n"
        "dmf.factorize(X.astype(np.float32), 3, device='gpu', max_rounds=2, tol=0)\n"
        "which = layout_for(3), np.dtype(np.float32)\n"
        "passes, rows = warps.kernels_of(*which), cuda_rows.kernels_of(*which)\n"
        "used = passes.gradient, rows.advance\n"
        "print([sum(kernel.stats.cache_hits.values()) for kernel in used])\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        ).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["[0, 0]", "[1, 1]"]
