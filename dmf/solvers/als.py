"""Alternating least squares: the exact minimiser of each half-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from array_api_compat import array_namespace

from dmf.kernels.strips import row_dots
from dmf.objective import Side, Terms
from dmf.penalties import Penalty
from dmf.solvers.base import HalfStep, Moved, Value, moved
from dmf.solvers.loss import Loss

Array = Any

# What the r × r systems of a tile of rows may take.
TILE_BYTES = 8 * 2**20
# Columns whose curvatures differ by less than this need no common unit.
ALIKE = 30.0
# Sweeps of coordinate descent at most, where a penalty isn't a square.
SWEEPS = 100_000


@dataclass(frozen=True)
class AlternatingLeastSquares:
    """Solve for each row of W, then for each column of H, exactly.

    The oracle of dmf's tests, the way in which new rows are folded in, and a baseline.
    It builds one r × r system for each row: a half-step holds r² numbers for each row
    of the moving factor, and costs r times as much as a gradient. With `Lasso` or
    `NonNegative` the minimiser comes from coordinate descent on that system.

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
        return minimise(half, SWEEPS)

    def check(self, penalty: Penalty) -> None:
        if penalty.smooth:
            msg = (
                "AlternatingLeastSquares solves for each row on its own, but Smooth "
                "ties neighbouring rows; use dmf.NormalizedGradient()"
            )
            raise ValueError(msg)


def minimise(half: HalfStep, sweeps: int, stretch: float = 1.0) -> Value:
    """Describe the exact half-step: exact but for the sweeps where there are any.

    Above 1, `stretch` takes rows beyond their minimum where sweeps were made, as long
    as half of the gain is left: the other factor then has less of the way to go.
    """
    summed, hessian = Loss(half).normal_equations(half.moving)
    return half.per_strip(
        "update",
        partial(
            solve,
            side=half.side,
            descend=partial(half.kernels.descend_coordinates, sweeps=sweeps),
            stretch=stretch,
        ),
        half.moving,
        summed,
        hessian,
        half.counts,
        half.centre,
    )


def solve(
    moving: Array,
    summed: tuple[Array, Array],
    hessian: Array,
    counts: Array,
    centre: Array,
    *,
    side: Side,
    descend: Callable[..., Array],
    stretch: float = 1.0,
) -> Moved:
    """Move every row of a strip to the minimum of the objective."""
    xp = array_namespace(moving)
    loss_gradient, loss = summed
    length, _, width = moving.shape
    terms = side.terms(moving, counts, centre)
    # The systems' scratch is many times as large as the factor: a tile of rows each.
    step = max(1, TILE_BYTES // (8 * width * width * moving.shape[1]))
    move, factor = xp.empty_like(moving), xp.empty_like(moving)
    change = xp.zeros(moving.shape[1], dtype=xp.float64)
    gradients = xp.zeros_like(change)
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        system = hessian[rows, ...] if hessian.shape[0] > 1 else hessian
        system = xp.astype(system, xp.float64)
        before = moving[rows, ...]
        of_tile = terms.rows(rows)
        slope = xp.astype(loss_gradient[rows, ...], xp.float64)
        right = of_tile.still(slope + xp.astype(of_tile.gradient(before), xp.float64))
        if terms.quadratic:
            epsilon = float(xp.finfo(moving.dtype).eps)
            exact = solve_systems(system, of_tile, right, epsilon, side.offset)
            move[rows, ...] = xp.astype(exact, moving.dtype)
            factor[rows, ...] = before + move[rows, ...]
        else:
            parts = (of_tile.ridge, of_tile.lasso, of_tile.lower, of_tile.free)
            exact = descend(before, system, right, *parts)
            if stretch > 1:
                exact = _stretched(before, exact, system, right, of_tile, stretch)
            factor[rows, ...] = xp.astype(exact, moving.dtype)
            move[rows, ...] = factor[rows, ...] - before
        taken = xp.astype(move[rows, ...], xp.float64)
        curved = (system @ taken[..., None])[..., 0]
        change += xp.sum(taken * (slope + 0.5 * curved), axis=(0, 2))
        gradients += of_tile.stationarity(before, xp.astype(right, moving.dtype))
    return moved(
        moving,
        move,
        side=side,
        terms=terms,
        counts=counts,
        loss_before=loss,
        change=change,
        gradient=gradients,
        factor=factor,
    )


def _stretched(
    before: Array,
    exact: Array,
    hessian: Array,
    gradient: Array,
    terms: Terms,
    stretch: float,
) -> Array:
    """Return the rows taken beyond where they were led, if that keeps half the gain.

    Entries that became 0 stay there.
    """
    xp = array_namespace(exact)
    before = xp.astype(before, xp.float64)
    beyond = before + stretch * (exact - before)
    if terms.lower is not None:
        beyond = xp.where(beyond > terms.lower, beyond, terms.lower)
    beyond = xp.where(exact == 0, exact, beyond)

    def gain(rows: Array) -> Array:
        move = rows - before
        curved = (hessian @ move[..., None])[..., 0] + terms.ridge * move
        change = row_dots(xp, move, gradient + 0.5 * curved)
        if terms.lasso is not None:
            sizes = xp.abs(rows) - xp.abs(before)
            change = change + xp.sum(terms.lasso * sizes, axis=-1)
        return change

    kept = gain(beyond) <= 0.5 * gain(exact)
    return xp.where(kept[..., None], beyond, exact)


def solve_systems(
    hessian: Array,
    terms: Terms,
    gradient: Array,
    epsilon: float,
    offset: int | None = None,
) -> Array:
    """Return −(A_i + λ_i I)⁻¹ g_i for each row i.

    Parameters
    ----------
    hessian : array of float64, shape (p or 1, K, c, c)
        Of the loss.
    terms : Terms
        Their ridge is added, and the columns that never move are left out.
    gradient : array of float64, shape (p, K, c)
    epsilon : float
        The rounding of `hessian`.
    offset : int, optional
        The column of the offsets, whose size goes with another unit.

    Returns
    -------
    array of float64, shape (p, K, c)
        Where a system is singular, the shortest of the minimisers.
    """
    xp = array_namespace(hessian)
    width = hessian.shape[-1]
    identity = xp.eye(width, dtype=xp.float64)
    ridge = xp.astype(terms.ridge, xp.float64)[..., None] * identity
    penalized = hessian + ridge
    if terms.free is not None:
        free = xp.astype(terms.free, xp.float64)
        penalized = penalized * free * free[:, None]
    unit = xp.ones_like(gradient)
    if offset is not None:
        diagonal = xp.linalg.diagonal(penalized)
        others = (xp.sum(diagonal, axis=-1) - diagonal[..., offset]) / width
        regular = (others > 0) & (diagonal[..., offset] > 0)
        ratio = others / xp.where(regular, diagonal[..., offset], xp.ones_like(others))
        # Sizes that are alike are left alone, for the sake of the shortest minimiser.
        apart = regular & ((ratio > ALIKE) | (ratio < 1 / ALIKE))
        unit[..., offset] = xp.where(apart, xp.sqrt(ratio), xp.ones_like(ratio))
        penalized = unit[..., None] * penalized * unit[..., None, :]
        gradient = unit * gradient
    # Rows with fewer entries than the rank leave directions without curvature, and
    # without slope. A ridge far above rounding makes the systems regular; the second
    # solve takes back what it did to the other directions.
    trace = xp.linalg.trace(penalized)[..., None, None] / width
    trace = xp.where(trace > 0, trace, xp.ones_like(trace))
    system = penalized + epsilon**0.5 * trace * identity
    right = gradient[..., None]
    exact = -xp.linalg.solve(system, right)
    exact = exact - xp.linalg.solve(system, right + penalized @ exact)
    return unit * exact[..., 0]
