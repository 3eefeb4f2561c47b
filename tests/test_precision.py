"""What the two precisions of a GPU lose; TF32 is emulated, as it rounds products."""

from __future__ import annotations

from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import dmf
from dmf.kernels import dense
from tests.devices import stand_in
from tests.problems import Problem, low_rank, stacked_start

Array = Any
PRECISIONS = ["float32", "tf32"]


def in_tf32(array: Array) -> Array:
    """Return float32 numbers with 10 bits behind the leading one, to nearest even."""
    mantissa, exponent = np.frexp(np.asarray(array))
    return strict.asarray(np.ldexp(np.rint(mantissa * 2**11), exponent - 11))


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let array-api-strict multiply float32 matrices as a GPU would.

    CuPy rounds the factors of products of two matrices alone; those of stacks of them
    stay as they are. Sums are in float32 either way.
    """
    stand_in(monkeypatch, strict.asarray)
    kind = type(strict.asarray(0))
    multiplied = kind.__matmul__

    def matmul(self: Array, other: Array) -> Array:
        if self.dtype == strict.float32 and self.ndim == other.ndim == 2:
            self, other = in_tf32(self), in_tf32(other)
        return multiplied(self, other)

    if request.param == "tf32":
        monkeypatch.setattr(kind, "__matmul__", matmul)
    return str(request.param)


def problem_with(noise: float) -> Problem:
    return low_rank(m=200, n=150, rank=8, observed=0.7, noise=noise, dtype=np.float32)


def test_a_number_in_tf32() -> None:
    ulp = 2.0**-10
    given = np.float32(
        [0, 1, 1 + ulp / 2, 1 + ulp, 1 + 1.5 * ulp, -3e-5, 1 + 0.6 * ulp]
    )
    found = np.asarray(in_tf32(strict.asarray(given)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:5], [0, 1, 1, 1 + ulp, 1 + 2 * ulp])
    assert found[6] == 1 + ulp
    assert abs(found[5] / given[5] - 1) <= ulp / 2


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients(precision: str, axis: int) -> None:
    problem = problem_with(0.1)
    W, H = stacked_start(problem, 1)
    X = np.where(problem.mask, problem.truth, 0)
    wide = [part.astype(float) for part in (X, W, H)]
    residual = problem.mask * (wide[1][:, 0] @ wide[2][:, 0].T - wide[0])
    exact = residual @ wide[2][:, 0] if axis == 0 else residual.T @ wide[1][:, 0]
    block = dense.DenseBlock(strict.asarray(X), strict.asarray(problem.mask))
    both = strict.asarray(W), strict.asarray(H)
    found, loss = dense.gradient(block, both[axis], both[1 - axis], axis)
    lost = np.linalg.norm(np.asarray(found)[:, 0] - exact) / np.linalg.norm(exact)
    loss_lost = abs(float(loss[0]) / (0.5 * np.sum(residual**2)) - 1)
    if precision == "float32":
        assert lost < 1e-6
        assert loss_lost < 1e-6
    else:
        assert 1e-4 < lost < 5e-4
        assert loss_lost < 1e-4


@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_fits(precision: str, noise: float) -> None:
    """With noise, RMSEs agree; without, those in TF32 end where its rounding begins."""
    problem = problem_with(noise)
    options: dict[str, Any] = {"max_rounds": 100, "tol": 0, "penalty": None}
    exact = dmf.factorize(problem.nan.astype(float), 8, **options)
    found = dmf.factorize(problem.nan, 8, device="gpu", **options)
    told = found.history.rmse[-1]
    X = problem.truth.astype(float)[problem.mask]
    residual = X - (found.W.astype(float) @ found.H)[problem.mask]
    true = float(np.sqrt(np.mean(residual**2)))
    assert exact.history.rmse[-1] == pytest.approx(noise, rel=0.1, abs=1e-6)
    if noise:
        limit = 1e-6 if precision == "float32" else 1e-4
        assert true == pytest.approx(exact.history.rmse[-1], rel=limit)
        assert told == pytest.approx(true, rel=limit)
    elif precision == "float32":
        assert true < 1e-6 * X.std()
    else:
        assert 1e-4 * X.std() < true < 5e-4 * X.std()
        assert told == pytest.approx(true, rel=0.1)
