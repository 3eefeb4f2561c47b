"""A half-step against the gradient: what all gradient methods here have in common.

The objective is quadratic in each factor. So the gradient, and the curvature along the
one or two directions in which a row may go, tell exactly where any step leads: how far
to go is all that a method has to say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from array_api_compat import array_namespace

from dmf.kernels.strips import Directions, Metric, change_along
from dmf.objective import Side, Terms
from dmf.solvers.base import HalfStep, Moved, Value, report_of
from dmf.solvers.loss import Loss

Array = Any


class Quadratic(NamedTuple):
    """The objective along the moves: exact, because it is quadratic there.

    The first move goes along −g, or along the scaled gradient; the second along s. Each
    row of a strip has moves of its own, of length one; the whole factor goes along −g
    and s as they are, and its model is the sum over everything.
    """

    loss_slopes: Array  # (..., K, k)
    penalty_slopes: Array  # (..., K, k)
    loss_curvature: Array  # (..., K, k(k+1)/2): ⟨gg⟩ or ⟨gg⟩, ⟨gs⟩, ⟨ss⟩
    penalty_curvature: Array
    first: Array  # (..., K): squared length of the first move, 1 for a row's


class Step(Protocol):
    """How far to go: lengths along the first move (and along s, if `moves` is 2)."""

    @property
    def moves(self) -> int: ...

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        """Return the lengths along the moves, shape (..., K, moves), float64.

        Parameters
        ----------
        model : Quadratic
            Of each row, shape (p, K), or of the whole factor, shape (K,).
        round : int
            1 for the first.
        tolerance : float
            A system whose determinant is below this share is degenerate.
        """


def descend(half: HalfStep, scope: str, step: Step, scaled: bool = False) -> Value:
    """Describe a half-step that goes against the gradient.

    Parameters
    ----------
    half : HalfStep
    scope : {"row", "global"}
        "row": each row has a length of its own, so that nothing waits for the sum over
        everything. "global": one length for the whole factor.
    step : Step
    scaled : bool, default False
        Go first along −g divided by `metric_of` each row, not along −g.
    """
    loss = Loss(half)
    summed = loss.gradient(half.moving)
    terms = half.per_strip(
        "terms", half.side.terms, half.moving, half.counts, half.centre
    )
    operands = [summed, half.moving, half.memory, terms]
    if scaled:
        metric = half.per_strip(
            "metric",
            partial(metric_of, fixed_rows=half.fixed_rows, unobserved=half.unobserved),
            half.moving,
            terms,
            half.counts,
            loss.gram,
        )
        operands.append(metric)
    directions = half.per_strip(
        "direction",
        partial(find_directions, find=half.kernels.directions, moves=step.moves),
        *operands,
    )
    model = half.per_strip(
        "model",
        partial(build_model, scope=scope),
        directions,
        loss.curvature(directions["units"]),
    )
    whole = half.sum_over_all(model) if scope == "global" else model
    return half.per_strip(
        "update",
        partial(
            update,
            advance=half.kernels.advance,
            scope=scope,
            side=half.side,
            step=step,
            round=half.round,
        ),
        half.moving,
        summed[1],
        directions,
        model,
        whole,
        terms,
        half.counts,
    )


def find_directions(
    summed: tuple[Array, Array],
    moving: Array,
    memory: tuple[Array] | None,
    terms: Terms,
    metric: Metric | None = None,
    *,
    find: Callable[..., Directions],
    moves: int,
) -> Directions:
    """Return the directions of a strip, with the kernel that finds them."""
    last = None if memory is None else memory[0]
    return find(summed[0], moving, last, terms, metric, moves=moves)


def metric_of(
    moving: Array,
    terms: Terms,
    counts: Array,
    gram: Array,
    *,
    fixed_rows: int,
    unobserved: float,
) -> Metric:
    """Return w_i FᵀF + q λ_i, by which the gradients of a strip are divided.

    Of the q rows of the fixed factor F, row i meets those of its n_i observed entries:
    w_i = n_i, and α for each of the others. Were they the average of all, this would
    lead to the row's minimum. How long the result is doesn't matter.
    """
    xp = array_namespace(moving)
    if terms.free is not None:
        free = xp.astype(terms.free, gram.dtype)
        gram = gram * free * free[:, None]
    # What has exploded ends the fit, not the search for eigenvectors.
    gram = xp.where(xp.isfinite(gram), gram, xp.zeros_like(gram))
    values, vectors = xp.linalg.eigh(gram)
    # In units of the largest: float32 has room for what is left.
    top = values[:, -1:]
    top = xp.where(top > 0, top, xp.ones_like(top))
    # The offsets' own ridge is left out: all columns of a row share the eigenvectors.
    ridge = xp.astype(terms.strengths[..., 0], xp.float64) * (fixed_rows / top[:, 0])
    weight = counts + unobserved * (fixed_rows - counts)
    vectors, values, weight, ridge = (
        xp.astype(part, moving.dtype) for part in (vectors, values / top, weight, ridge)
    )
    least = float(xp.finfo(moving.dtype).eps) ** 0.5
    return Metric(vectors, values, weight, ridge, least)


def build_model(directions: Directions, curvature: Array, *, scope: str) -> Quadratic:
    """Return the quadratic model of each row or, for the global scope, their sum."""
    xp = array_namespace(curvature)
    norms = directions.norms
    slopes = directions.loss_slopes, directions.penalty_slopes
    curvatures = curvature, directions.penalty_curvature
    if scope == "row":
        return Quadratic(*slopes, *curvatures, xp.ones_like(norms[..., 0]))
    columns = [norms[..., k] for k in range(norms.shape[-1])]
    scales = xp.stack(
        [a * b for k, a in enumerate(columns) for b in columns[k:]], axis=-1
    )
    parts = [norms * slope for slope in slopes] + [scales * c for c in curvatures]
    return Quadratic(*(xp.sum(part, axis=0) for part in (*parts, columns[0] ** 2)))


def update(
    moving: Array,
    loss: Array,
    directions: Directions,
    model: Quadratic,
    whole: Quadratic,
    terms: Terms,
    counts: Array,
    *,
    advance: Callable[..., Any],
    scope: str,
    side: Side,
    step: Step,
    round: int,
) -> Moved:
    """Move a strip, and report what that did to the objective.

    `whole` is the model that decides about the lengths, `model` the strip's share.
    """
    xp = array_namespace(moving)
    # Below this, the 2 × 2 system is noise: its entries carry the rounding of `moving`.
    tolerance = 100 * float(xp.finfo(moving.dtype).eps)
    lengths = step.lengths(whole, round, tolerance)
    strides = lengths if scope == "row" else lengths * directions.norms
    after = advance(moving, directions.units, strides, terms, rank=side.rank)
    change = change_along(model.loss_slopes, model.loss_curvature, lengths)
    # A row whose gradient has left float64 stands still: the objective has exploded.
    change = change + 0 * directions.gradient
    in_plane = None
    if step.moves == 2:
        in_plane = xp.count_nonzero(strides[..., 1], axis=0)
        in_plane = xp.astype(in_plane, xp.float64)
    report = report_of(
        after.factor,
        side=side,
        counts=counts,
        loss_before=loss,
        change=change,
        penalties=(directions.penalty, after.penalty),
        gradient=directions.gradient,
        sizes=(after.move_square, after.factor_square, after.zeros),
        in_plane=in_plane,
    )
    return Moved(after.factor, (after.move,) if step.moves == 2 else None, report)
