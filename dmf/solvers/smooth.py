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

from dmf.device import to_host
from dmf.kernels.strips import advance, change_along, row_dots
from dmf.objective import Side, Terms
from dmf.smoothness import Ties, differences_of, solve
from dmf.solvers.base import HalfStep, Halo, Moved, Value, report_of
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
    penalty: Array  # (K,): of the rows as they are
    gradient: Array  # (K,): ‖g‖²


def glide(half: HalfStep) -> Value:
    """Describe the half-step."""
    reach = reach_of(half.side)
    loss = Loss(half)
    gram = loss.gram
    if gram is None:
        gram = half.sum_over_all(half.per_fixed("gram", gram_of, half.fixed_strip))
    # Neighbours first: what follows is then one task.
    halo = half.neighbours(half.moving, reach)
    summed = loss.gradient(half.moving)
    terms = half.per_strip(
        "terms", half.side.terms, half.moving, half.counts, half.centre
    )
    course = half.per_strip(
        "direction",
        partial(find_course, side=half.side, fixed_rows=half.fixed_rows),
        summed,
        half.moving,
        half.memory,
        halo,
        gram,
        terms,
        half.counts,
    )
    moves = course["moves"]
    model = half.per_strip(
        "model",
        partial(build_model, side=half.side),
        course,
        loss.curvature(moves),
        half.neighbours(moves, reach),
        terms,
    )
    return half.per_strip(
        "update",
        partial(update, side=half.side),
        half.moving,
        course,
        model,
        half.sum_over_all(model),
        terms,
        half.counts,
    )


def find_course(
    summed: tuple[Array, Array],
    moving: Array,
    memory: tuple[Array] | None,
    halo: Halo,
    gram: Array,
    terms: Terms,
    counts: Array,
    *,
    side: Side,
    fixed_rows: int,
) -> Course:
    """Return the moves of a strip, and the objective's slopes along them."""
    xp = array_namespace(moving)
    loss_gradient, loss = summed
    ties = _ties(side, moving, halo)
    roughness, pull = ties.pull(_padded(moving, *halo[:2]))
    penalty_gradient = terms.gradient(moving) + xp.astype(pull, moving.dtype)
    gradient = terms.still(loss_gradient + penalty_gradient)
    descent = -_preconditioned(gradient, terms, gram / fixed_rows, counts, ties)
    moves = (descent, xp.zeros_like(moving) if memory is None else memory[0])

    def slopes(of: Array) -> Array:
        sums = [xp.sum(row_dots(xp, of, move), axis=0) for move in moves]
        return xp.stack(sums, axis=-1)

    return Course(
        moves,
        slopes(loss_gradient),
        slopes(penalty_gradient),
        loss,
        terms.value(moving) + roughness,
        xp.sum(row_dots(xp, gradient, gradient), axis=0),
    )


def build_model(
    course: Course, curvature: Array, halo: Halo, terms: Terms, *, side: Side
) -> Quadratic:
    """Return a strip's share of the quadratic model of the whole factor."""
    xp = array_namespace(curvature)
    D, S = course.moves
    pairs = ((D, D), (D, S), (S, S))
    ridge = xp.stack([xp.sum(terms.curvature(a, b), axis=0) for a, b in pairs], axis=-1)
    before, after = ((None, None) if edge is None else edge for edge in halo[:2])
    moves = [_padded(*parts) for parts in zip((D, S), before, after, strict=True)]
    rough = _ties(side, D, halo).products(*moves)
    return Quadratic(
        course.loss_slopes,
        course.penalty_slopes,
        xp.sum(curvature, axis=0),
        ridge + rough,
        course.gradient,
    )


def update(
    moving: Array,
    course: Course,
    model: Quadratic,
    whole: Quadratic,
    terms: Terms,
    counts: Array,
    *,
    side: Side,
) -> Moved:
    """Move a strip by the lengths that are best for the whole factor."""
    xp = array_namespace(moving)
    tolerance = 100 * float(xp.finfo(moving.dtype).eps)
    lengths = Plane().lengths(whole, 1, tolerance)
    strides = xp.broadcast_to(lengths, (moving.shape[0], *lengths.shape))
    after = advance(moving, course.moves, strides, terms, rank=side.rank)
    change = change_along(model.penalty_slopes, model.penalty_curvature, lengths)
    report = report_of(
        after.factor,
        side=side,
        counts=counts,
        loss_before=course.loss,
        change=change_along(model.loss_slopes, model.loss_curvature, lengths),
        penalties=(course.penalty, course.penalty + change),
        gradient=course.gradient,
        sizes=(after.move_square, after.factor_square, after.zeros),
        in_plane=xp.full(lengths.shape[:1], float(moving.shape[0])),
    )
    return Moved(after.factor, (after.move,), report)


def reach_of(side: Side) -> int:
    """Return how many rows of a neighbouring strip a strip has to know."""
    return max(s.order for penalty in side.penalties for s in penalty.smooth)


def pull_of(moving: Array, halo: Halo, side: Side) -> tuple[Array, Array]:
    """Return the smooth penalty's value, (K,), and its gradient."""
    xp = array_namespace(moving)
    value, gradient = _ties(side, moving, halo).pull(_padded(moving, *halo[:2]))
    return value, xp.astype(gradient, moving.dtype)


def _preconditioned(
    gradient: Array, terms: Terms, gram: Array, counts: Array, ties: Ties
) -> Array:
    """Return an approximation of the inverse Hessian times the gradient."""
    # Systems are few or small, and the array API can't solve them: on NumPy arrays.
    like = gradient
    gradient, ridge, gram, counts = to_host((gradient, terms.ridge, gram, counts))
    strengths = np.broadcast_to(ridge, gradient.shape)
    result = np.empty_like(gradient)
    for k in range(gradient.shape[1]):
        own = slice(ties.rank)
        bands = ties.banded(k)
        bands[0] += strengths[:, k, 0]
        sigma, vectors = np.linalg.eigh(gram[k, own, own])
        sigma = np.maximum(sigma, LEAST_CURVATURE * max(sigma[-1], 0.0))
        turned = gradient[:, k, own].astype(np.float64) @ vectors
        solve(bands, sigma, counts, LEAST_CURVATURE, turned)
        result[:, k, own] = turned @ vectors.T
        for column in range(ties.rank, gradient.shape[2]):
            # A column beside the factor isn't smooth: its curvature is a number a row.
            curvature = gram[k, column, column] * counts + strengths[:, k, column]
            safe = np.where(curvature > 0, curvature, 1.0)
            result[:, k, column] = gradient[:, k, column] / safe
    return array_namespace(like).asarray(result)


def _ties(side: Side, strip: Array, halo: Halo) -> Ties:
    """Return what ties the rows of a strip."""
    parts = tuple(
        differences_of(smooth, halo.start, strip.shape[0], halo.total, candidate=k)
        for k, penalty in enumerate(side.penalties)
        for smooth in penalty.smooth
    )
    edge = halo.before[0] if isinstance(halo.before, tuple) else halo.before
    return Ties(parts, side.rank, strip.shape[0], 0 if edge is None else edge.shape[0])


def _padded(strip: Array, before: Array | None, after: Array | None) -> Array:
    """Return a strip between the rows that border on it."""
    parts = [part for part in (before, strip, after) if part is not None]
    return strip if len(parts) == 1 else array_namespace(strip).concat(parts)
