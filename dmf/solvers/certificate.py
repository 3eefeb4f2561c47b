"""How stationary a factor is, where it stands."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from dmf.objective import Side
from dmf.solvers.base import HalfStep, Halo, Value
from dmf.solvers.loss import Loss
from dmf.solvers.smooth import pull_of, reach_of

Array = Any


class Stationarity(NamedTuple):
    """How far a factor is from being stationary; sums over its rows, shape (K,)."""

    loss: Array
    penalty: Array
    gradient: Array  # squared norm of the proximal gradient


def stationarity(half: HalfStep) -> Value:
    """Describe the measurement of the moving factor: a half-step without a move."""
    operands = [
        Loss(half).gradient(half.moving),
        half.moving,
        half.counts,
        half.centre,
    ]
    if half.side.smooth:
        operands.append(half.neighbours(half.moving, reach_of(half.side)))
    measure = partial(_measure, side=half.side)
    return half.per_strip("stationarity", measure, *operands)


def _measure(
    summed: tuple[Array, Array],
    moving: Array,
    counts: Array,
    centre: Array,
    halo: Halo | None = None,
    *,
    side: Side,
) -> Stationarity:
    gradient, loss = summed
    terms = side.terms(moving, counts, centre)
    gradient = gradient + terms.gradient(moving)
    penalty = terms.value(moving)
    if halo is not None:
        roughness, pull = pull_of(moving, halo, side)
        gradient, penalty = gradient + pull, penalty + roughness
    size = terms.stationarity(moving, terms.still(gradient))
    return Stationarity(loss, penalty, size)
