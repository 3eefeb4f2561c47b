"""Whole fits on sparse blocks in the simulator, against those of the processor."""

from __future__ import annotations

from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from dmf import device
from dmf.kernels import cuda, lanes
from dmf.offsets import COLUMNS
from tests.devices import DeviceArray, assert_close, kinds_told_apart
from tests.problems import SOLVERS, low_rank, mask_for, sparse_chunks

PENALTIES = [
    None,
    dmf.Ridge(0.02, by_count=True),
    dmf.Lasso(0.2) + dmf.Ridge(0.1),
    dmf.NonNegative() + dmf.Lasso(0.1) + dmf.Ridge(0.2),
    (dmf.Ridge(0.1), dmf.Smooth(2.0)),
]
PROBLEM = low_rank(m=10, n=8, rank=2, dtype=np.float32)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warp of four lanes, and rows of more than four entries are long: a simulated
    thread is a Python thread."""
    monkeypatch.setattr(lanes, "WARP", 4)
    monkeypatch.setattr(cuda, "SEGMENT", 4)


def both(X: Any = None, **options: Any) -> tuple[Any, Any]:
    """Return the fit on the simulated device, and the same one on the processor."""
    X = PROBLEM.sparse() if X is None else X
    options = {"max_rounds": 3, "tol": 0, **options}
    there = dmf.factorize(X, 2, device="gpu", **options)
    return there, dmf.factorize(X, 2, **options)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver(solver: Any) -> None:
    assert_close(*both(solver=solver, penalty=dmf.Ridge(0.1)))


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_every_penalty(penalty: Any) -> None:
    assert_close(*both(penalty=penalty))


@pytest.mark.parametrize("offsets", COLUMNS)
def test_every_kind_of_offsets(offsets: str) -> None:
    assert_close(*both(offsets=offsets))


@pytest.mark.parametrize(
    ("weighted", "alpha", "validation"),
    list(product([False, True], [0.0, 0.3, 1.0], [None, 0.2])),
)
def test_weights_zeros_and_what_is_held_out(
    weighted: bool, alpha: float, validation: float | None
) -> None:
    mask = None
    if weighted:
        mask = mask_for(PROBLEM.weights, PROBLEM.mask, "sparse")
    there, here = both(mask=mask, unobserved_weight=alpha, validation=validation)
    assert_close(there, here)
    if validation is not None:
        found, expected = there.history.validation_rmse, here.history.validation_rmse
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_restarts_and_several_blocks() -> None:
    dense = np.where(PROBLEM.mask, PROBLEM.truth, 0)
    options = {"restarts": 2, "drop": False, "offsets": "both"}
    there, here = both(sparse_chunks(dense, (5, 4)), **options)
    assert isinstance(there.W, da.Array)
    np.testing.assert_allclose(np.asarray(there.W), np.asarray(here.W), rtol=1e-3)
    assert there.objectives == pytest.approx(here.objectives, rel=1e-4)


def test_blocks_that_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large for the device, they are brought there in each pass."""
    work = 24 * PROBLEM.sparse().nnz  # twice a value, a column and a weight
    monkeypatch.setattr("dmf.engine.memory.PROCESS", 0.0)
    monkeypatch.setattr("dmf.device.Gpu.memory", lambda self: 3.0 * work)
    streamed = dmf.plan(PROBLEM.sparse(), 2, device="gpu", stream=True)
    assert streamed.streamed
    there = dmf.factorize(
        PROBLEM.sparse(), 2, device="gpu", max_rounds=3, tol=0, stream=True
    )
    here = dmf.factorize(PROBLEM.sparse(), 2, max_rounds=3, tol=0)
    assert_close(there, here)


class DeviceMatrix(sp.csr_matrix):
    """Stands for the sparse matrices of a device."""

    def get(self) -> Any:
        return sp.csr_matrix(self)


@pytest.mark.parametrize("lazy", [False, True])
def test_results_are_of_the_kind_that_was_given(
    lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what isn't sorted, or was given twice, too."""
    host = PROBLEM.sparse()
    rows, columns = host.nonzero()
    twice = np.tile(np.lexsort((-columns, rows)), 2)
    halves = host.data[twice] / 2, (rows[twice], columns[twice])
    there: Any = DeviceMatrix(sp.coo_matrix(halves, shape=host.shape))
    kinds_told_apart(monkeypatch)
    monkeypatch.setattr(DeviceMatrix, "__module__", "cupyx.scipy.sparse")
    monkeypatch.setattr(device, "MODULES", (*device.MODULES, "cupyx."))
    if lazy:
        dense = da.from_array(host.toarray(), chunks=(5, 8))
        there = dense.map_blocks(DeviceMatrix, meta=DeviceMatrix((0, 0)))
    options: dict[str, Any] = {"max_rounds": 3, "tol": 0, "offsets": "both"}
    fit, expected = (dmf.factorize(X, 2, **options) for X in (there, host))
    for name in ("W", "H", "row_offsets", "column_offsets"):
        found = getattr(fit, name)
        assert isinstance(found, da.Array) == lazy
        found = found.blocks[0].compute() if lazy else found
        assert isinstance(found, DeviceArray)
        other = getattr(expected, name)[: len(found)]
        np.testing.assert_allclose(found, other, rtol=1e-3, atol=1e-5)
    filled = dmf.impute(there, fit)
    assert isinstance(filled.blocks[0, 0].compute() if lazy else filled, DeviceArray)
    assert type(dmf.factorize(host, 2, device="gpu", **options).W) is np.ndarray
