"""Blocks for the kernels' tests, and all that kernels make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dmf.kernels import kernels_for, panels
from dmf.kernels.strips import Metric
from dmf.observed import observe
from tests.problems import Problem, stacked_start

Array = Any

KINDS = ["dense", "sparse"]
MASKS = ["none", "bool", "weights"]
# What stands beside a kind: the weight of what a sparse block doesn't store.
CASES = [("dense", 0.0), ("sparse", 0.0), ("sparse", 0.3)]
CANDIDATES = [1, 3]

each_axis = pytest.mark.parametrize("axis", [0, 1])
each_kind = pytest.mark.parametrize("kind", KINDS)
each_mask = pytest.mark.parametrize("mask", MASKS)
each_case = pytest.mark.parametrize(("kind", "alpha"), CASES)
each_count = pytest.mark.parametrize("K", CANDIDATES)


def block_of(
    problem: Problem, kind: str, mask: str, alpha: float = 0.0
) -> tuple[Any, Any]:
    """Return a block, and the mask M that it stands for as a plain array."""
    weights = {
        "none": None,
        "bool": problem.mask,
        "weights": problem.weights,
    }[mask]
    dtype = problem.truth.dtype
    if kind == "dense":
        X = problem.truth if mask == "none" else problem.nan
        M = np.ones_like(problem.truth) if weights is None else weights
        return observe(X, weights, dtype).block, M.astype(dtype)
    X, M = problem.sparse(), problem.mask.astype(dtype)
    if mask == "weights":
        weights, M = problem.sparse(problem.weights), problem.weights
    else:
        weights = None
    return observe(X, weights, dtype, unobserved=alpha).block, M


def metric_of(like: Array, seed: int) -> Metric:
    """Return a metric, in which a candidate's last column doesn't curve."""
    rng = np.random.default_rng(seed)
    p, K, c = like.shape
    vectors, _ = np.linalg.qr(rng.standard_normal((K, c, c)))
    values, weight, ridge = rng.random((K, c)), rng.random(p), rng.random((p, K))
    values[0, -1] = weight[0] = ridge[0] = 0
    parts = (vectors, values, weight, ridge)
    return Metric(*(part.astype(like.dtype) for part in parts), 0.03)


def narrow_panels(monkeypatch: pytest.MonkeyPatch, panel_bytes: int = 100) -> None:
    """Let panels be as narrow as a few columns of a small problem."""
    monkeypatch.setattr(panels, "PANEL_BYTES", panel_bytes)
    monkeypatch.setattr(panels, "LEAST_ENTRIES", 0)


def sides(problem: Problem, axis: int, K: int) -> tuple[Any, Any]:
    """Return the moving and the fixed factor of K candidates."""
    W, H = stacked_start(problem, K)
    return (W, H) if axis == 0 else (H, W)


def every_kernel(
    kind: str, mask: str, block: Any, W: Array, H: Array, axis: int
) -> dict[str, Array]:
    """Return what each kernel makes of a block; the candidates' axis comes first."""
    kernels = kernels_for(kind)
    moving, fixed = (W, H) if axis == 0 else (H, W)
    gradient, loss = kernels.gradient(block, moving, fixed, axis)
    found = {
        "gradient": gradient,
        "line": kernels.curvature(block, (moving,), fixed, axis),
        "plane": kernels.curvature(block, (moving, 2 * moving - 1), fixed, axis),
        "gram": kernels.gram(block, fixed, axis),
    }
    if mask == "none":
        found["product"] = kernels.product(block, fixed, axis)
    found = {name: np.moveaxis(part, 1, 0) for name, part in found.items()}
    return found | {"loss": loss, "errors": kernels.errors(block, W, H)}
