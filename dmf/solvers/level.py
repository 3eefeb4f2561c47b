"""μ alone: one number for all rows of H's column of offsets."""

from __future__ import annotations

from functools import partial
from typing import Any

from array_api_compat import array_namespace

from dmf.solvers.base import HalfStep
from dmf.solvers.loss import Loss

Array = Any


def lift(half: HalfStep, weight: float) -> None:
    """Let a half-step begin with μ at its minimum, the factors as they are.

    Parameters
    ----------
    half : HalfStep
        Its `moving` becomes the factor with the new μ.
    weight : float
        Σ M: the curvature of the loss along μ.
    """
    column = half.side.offset
    assert column is not None
    slopes = half.per_strip(
        "level", partial(_slope, column=column), Loss(half).gradient(half.moving)
    )
    half.moving = half.per_strip(
        "level",
        partial(_lifted, column=column, weight=weight * half.side.unit**2),
        half.moving,
        half.sum_over_all(slopes),
    )


def _slope(summed: tuple[Array, Array], *, column: int) -> Array:
    gradient, _ = summed
    xp = array_namespace(gradient)
    return xp.sum(xp.astype(gradient[:, :, column], xp.float64), axis=0)


def _lifted(moving: Array, slope: Array, *, column: int, weight: float) -> Array:
    xp = array_namespace(moving)
    lifted = xp.asarray(moving, copy=True)
    lifted[:, :, column] -= xp.astype(slope / weight, moving.dtype)
    return lifted
