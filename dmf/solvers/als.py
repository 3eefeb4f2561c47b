"""Alternating least squares: the exact minimiser of each half-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from array_api_compat import array_namespace

from dmf.penalties import Penalty
from dmf.solvers.base import HalfStep, Report, Value, moved

Array = Any

# What the r × r systems of a tile of rows may take.
TILE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class AlternatingLeastSquares:
    """Solve for each row of W, then for each column of H, exactly.

    The oracle of dmf's tests, the way in which new rows are folded in, and a baseline.
    It builds one r × r system for each row: a half-step holds r² numbers for each row
    of the moving factor, and costs r times as much as a gradient.

    References
    ----------
    .. [1] Y. Zhou, D. Wilkinson, R. Schreiber, R. Pan, "Large-scale parallel
       collaborative filtering for the Netflix prize", AAIM 2008.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])
    >>> fit = dmf.factorize(X, rank=1, solver=dmf.AlternatingLeastSquares())
    """

    def half_step(self, half: HalfStep) -> Value:
        normal = half.per_block(
            "normal-equations",
            partial(
                normal_equations,
                gradient=half.kernels.gradient,
                gram=half.kernels.gram,
                axis=half.axis,
            ),
            half.block,
            half.moving,
            half.fixed,
        )
        return half.per_strip(
            "update",
            partial(solve, penalty=half.penalty),
            half.moving,
            half.sum_over_strip(normal),
            half.counts,
        )


def normal_equations(
    block: Any,
    moving: Array,
    fixed: Array,
    *,
    gradient: Callable[..., tuple[Array, float]],
    gram: Callable[..., Array],
    axis: int,
) -> tuple[Array, Array, float]:
    """Return a block's share of the systems' matrices and right sides, and its loss."""
    right, loss = gradient(block, moving, fixed, axis)
    return gram(block, fixed, axis), right, loss


def solve(
    moving: Array,
    summed: tuple[Array, Array, float],
    counts: Array,
    *,
    penalty: Penalty,
) -> tuple[Array, Report]:
    """Move every row of a strip to the minimum of the objective."""
    xp = array_namespace(moving)
    matrices, loss_gradient, loss = summed
    length, rank = moving.shape
    loss_gradient = xp.astype(loss_gradient, xp.float64)
    penalty_gradient = xp.astype(penalty.gradient(moving, counts), xp.float64)
    right = loss_gradient + penalty_gradient
    strengths = penalty.strengths(counts, xp.float64)
    # The systems' scratch is many times as large as the factor: a tile of rows each.
    step = max(1, TILE_BYTES // (8 * rank * rank))
    move = xp.empty_like(moving)
    change = 0.0
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        system = xp.astype(matrices[rows, :, :], xp.float64)
        exact = solve_systems(
            system, strengths[rows], right[rows, :], float(xp.finfo(moving.dtype).eps)
        )
        move[rows, :] = xp.astype(exact, moving.dtype)
        taken = xp.astype(move[rows, :], xp.float64)
        curved = (system @ taken[:, :, None])[:, :, 0]
        change += float(xp.sum(taken * (loss_gradient[rows, :] + 0.5 * curved)))
    return moved(
        moving,
        move,
        penalty=penalty,
        counts=counts,
        loss_before=loss,
        change=change,
        penalty_before=penalty.value(moving, counts),
        gradient=float(xp.sum(right * right)),
    )


def solve_systems(
    matrices: Array, strengths: Array, gradient: Array, epsilon: float
) -> Array:
    """Return −(A_i + λ_i I)⁻¹ g_i for each row i.

    Parameters
    ----------
    matrices : array of float64, shape (p, r, r)
    strengths : array of float64, shape (p,)
    gradient : array of float64, shape (p, r)
    epsilon : float
        The rounding of `matrices`.

    Returns
    -------
    array of float64, shape (p, r)
        Where a system is singular, the shortest of the minimisers.
    """
    xp = array_namespace(matrices)
    rank = matrices.shape[-1]
    identity = xp.eye(rank, dtype=xp.float64)[None, :, :]
    penalized = matrices + strengths[:, None, None] * identity
    # Rows with fewer entries than the rank leave directions without curvature, and
    # without slope. A ridge far above rounding makes the systems regular; the second
    # solve takes back what it did to the other directions.
    trace = xp.linalg.trace(penalized)[:, None, None] / rank
    trace = xp.where(trace > 0, trace, xp.ones_like(trace))
    system = penalized + epsilon**0.5 * trace * identity
    right = gradient[:, :, None]
    exact = -xp.linalg.solve(system, right)
    return (exact - xp.linalg.solve(system, right + penalized @ exact))[:, :, 0]
