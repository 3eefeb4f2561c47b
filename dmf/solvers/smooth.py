"""A half-step with a smooth axis: the plane step of the whole factor, preconditioned.

`Smooth` ties each row to its neighbours, so the factor moves as a whole. Its gradient
is taken through an approximate inverse of the Hessian: the mean Gram matrix of the
fixed factor, times the entries of each row, plus the banded matrix of the penalty. In
the eigenvectors of the Gram matrix that is one banded system for each component. Each
strip solves its own; the exact step makes up for what that leaves out.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from dmf.kernels.strips import change_along
from dmf.objective import Side
from dmf.penalties import Smooth
from dmf.smoothness import Differences, differences_of
from dmf.solvers.base import HalfStep, Halo, Moved, Value, moved, row_dots
from dmf.solvers.descent import Quadratic
from dmf.solvers.loss import Loss, gram_of
from dmf.solvers.steps import Plane

Array = Any

# Components that the fixed factor hardly has keep this share of the largest one's
# curvature in the preconditioner: without it they would leap.
LEAST_CURVATURE = 1e-8


class Course(NamedTuple):
    """Where a strip may go with the others, and how the objective begins to change."""

    moves: tuple[Array, Array]  # preconditioned descent, previous move: (p, K, c)
    loss_slopes: Array  # (K, 2), sums over the strip's rows
    penalty_slopes: Array  # (K, 2)
    loss: Array  # (K,)
    roughness: Array  # (K,): the strip's share of the smooth penalty
    gradient: Array  # (K,): ‖g‖²


def glide(half: HalfStep) -> Value:
    """Describe the half-step."""
    reach = reach_of(half.side)
    loss = Loss(half)
    gram = loss.gram
    if gram is None:
        gram = half.sum_over_all(half.per_fixed("gram", gram_of, half.fixed_strip))
    course = half.per_strip(
        "direction",
        partial(find_course, side=half.side, fixed_rows=half.fixed_rows),
        loss.gradient(half.moving),
        half.moving,
        half.memory,
        half.neighbours(half.moving, reach),
        gram,
        half.counts,
        half.centre,
    )
    moves = course[Course._fields.index("moves")]
    model = half.per_strip(
        "model",
        partial(build_model, side=half.side),
        course,
        loss.curvature(moves),
        half.neighbours(moves, reach),
        half.counts,
        half.centre,
    )
    return half.per_strip(
        "update",
        partial(update, side=half.side),
        half.moving,
        course,
        model,
        half.sum_over_all(model),
        half.counts,
        half.centre,
    )


def find_course(
    summed: tuple[Array, Array],
    moving: Array,
    memory: tuple[Array] | None,
    halo: Halo,
    gram: Array,
    counts: Array,
    centre: Array,
    *,
    side: Side,
    fixed_rows: int,
) -> Course:
    """Return the moves of a strip, and the objective's slopes along them."""
    xp = array_namespace(moving)
    loss_gradient, loss = summed
    terms = side.terms(moving, counts, centre)
    roughness, pull = pull_of(moving, halo, side)
    penalty_gradient = terms.gradient(moving) + pull
    gradient = terms.still(loss_gradient + penalty_gradient)
    descent = -_preconditioned(
        gradient, terms.ridge, gram / fixed_rows, counts, halo, side
    )
    moves = (descent, xp.zeros_like(moving) if memory is None else memory[0])

    def slopes(of: Array) -> Array:
        sums = [xp.sum(row_dots(xp, of, move), axis=0) for move in moves]
        return xp.stack(sums, axis=-1)

    return Course(
        moves,
        slopes(loss_gradient),
        slopes(penalty_gradient),
        loss,
        roughness,
        xp.sum(row_dots(xp, gradient, gradient), axis=0),
    )


def build_model(
    course: Course,
    curvature: Array,
    halo: Halo,
    counts: Array,
    centre: Array,
    *,
    side: Side,
) -> Quadratic:
    """Return a strip's share of the quadratic model of the whole factor."""
    xp = array_namespace(curvature)
    D, S = course.moves
    terms = side.terms(D, counts, centre)
    pairs = ((D, D), (D, S), (S, S))
    ridge = xp.stack([xp.sum(terms.curvature(a, b), axis=0) for a, b in pairs], axis=-1)
    rough = np.zeros(ridge.shape)
    padded = [_padded(move, halo, number) for number, move in enumerate((D, S))]
    for k, differences in _differences(side, D.shape[0], halo):
        before = padded[0].shape[0] - D.shape[0] - _rows(halo.after)
        for pair, (a, b) in enumerate(((0, 0), (0, 1), (1, 1))):
            one, other = (padded[n][:, k, : side.rank] for n in (a, b))
            rough[k, pair] += differences.value(one, other, before)
    return Quadratic(
        course.loss_slopes,
        course.penalty_slopes,
        xp.sum(curvature, axis=0),
        ridge + xp.asarray(rough),
        course.gradient,
    )


def update(
    moving: Array,
    course: Course,
    model: Quadratic,
    whole: Quadratic,
    counts: Array,
    centre: Array,
    *,
    side: Side,
) -> Moved:
    """Move a strip by the lengths that are best for the whole factor."""
    xp = array_namespace(moving)
    tolerance = 100 * float(xp.finfo(moving.dtype).eps)
    lengths = Plane().lengths(whole, 1, tolerance)
    strides = xp.astype(lengths, moving.dtype)
    D, S = course.moves
    move = strides[:, 0, None] * D + strides[:, 1, None] * S
    terms = side.terms(moving, counts, centre)
    result = moved(
        moving,
        move,
        side=side,
        terms=terms,
        counts=counts,
        loss_before=course.loss,
        change=change_along(model.loss_slopes, model.loss_curvature, lengths),
        gradient=course.gradient,
        in_plane=xp.full(lengths.shape[:1], float(moving.shape[0])),
        memory=(move,),
    )
    report = result.report
    assert report is not None
    smooth_before = report.penalty_before + course.roughness
    change = change_along(model.penalty_slopes, model.penalty_curvature, lengths)
    report = report._replace(
        penalty_before=smooth_before, penalty=smooth_before + change
    )
    return result._replace(report=report)


def reach_of(side: Side) -> int:
    """Return how many rows of a neighbouring strip a strip has to know."""
    return max(s.order for penalty in side.penalties for s in penalty.smooth)


def pull_of(moving: Array, halo: Halo, side: Side) -> tuple[Array, Array]:
    """Return the smooth penalty's value, (K,), and its gradient."""
    xp = array_namespace(moving)
    padded = _padded(moving, halo, None)
    before = _rows(halo.before)
    value = np.zeros(moving.shape[1])
    gradient = np.zeros(moving.shape)
    for k, differences in _differences(side, moving.shape[0], halo):
        own = padded[:, k, : side.rank]
        value[k] += 0.5 * differences.value(own, own, before)
        gradient[:, k, : side.rank] += differences.gradient(own, before)
    return xp.asarray(value), xp.asarray(gradient, dtype=moving.dtype)


def _preconditioned(
    gradient: Array, ridge: Array, gram: Array, counts: Array, halo: Halo, side: Side
) -> Array:
    """Return an approximation of the inverse Hessian times the gradient."""
    from scipy.linalg import solveh_banded

    p, _, width = gradient.shape
    strengths = np.broadcast_to(ridge, gradient.shape)
    result = np.zeros(gradient.shape)
    for k, penalty in enumerate(side.penalties):
        order = min(max((s.order for s in penalty.smooth), default=0), p - 1)
        bands = np.zeros((order + 1, p))
        for other, differences in _differences(side, p, halo):
            if other == k:
                bands += differences.banded(order)
        bands[0] += strengths[:, k, 0]
        sigma, vectors = np.linalg.eigh(gram[k, : side.rank, : side.rank])
        sigma = np.maximum(sigma, LEAST_CURVATURE * max(sigma[-1], 0.0))
        turned = np.asarray(gradient[:, k, : side.rank], dtype=np.float64) @ vectors
        for component, curvature in enumerate(sigma):
            system = bands.copy()
            system[0] += curvature * counts
            system[0] += LEAST_CURVATURE * max(system[0].max(), 1e-300)
            turned[:, component] = solveh_banded(
                system, turned[:, component], lower=True, check_finite=False
            )
        result[:, k, : side.rank] = turned @ vectors.T
        for column in range(side.rank, width):
            # A column beside the factor isn't smooth: its curvature is a number a row.
            curvature = gram[k, column, column] * counts + strengths[:, k, column]
            safe = np.where(curvature > 0, curvature, 1.0)
            result[:, k, column] = gradient[:, k, column] / safe
    return result.astype(gradient.dtype)


def _differences(side: Side, length: int, halo: Halo) -> list[tuple[int, Differences]]:
    """Return the differences of each candidate's smooth penalties."""

    def of(smooth: Smooth) -> Differences:
        return differences_of(smooth, halo.start, length, halo.total)

    pairs = enumerate(side.penalties)
    return [(k, of(smooth)) for k, penalty in pairs for smooth in penalty.smooth]


def _padded(strip: Array, halo: Halo, number: int | None) -> Array:
    """Return a strip between the rows that border on it, in float64.

    `number` tells which array of the halo belongs to it, if there are several.
    """
    parts = [halo.before, strip, halo.after]
    if number is not None:
        parts = [
            None if edge is None else edge if k == 1 else edge[number]
            for k, edge in enumerate(parts)
        ]
    given = [np.asarray(part, dtype=np.float64) for part in parts if part is not None]
    return np.concatenate(given)


def _rows(edge: Any) -> int:
    if edge is None:
        return 0
    return len(edge[0]) if isinstance(edge, tuple) else len(edge)
