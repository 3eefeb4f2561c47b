"""A half-step against the gradient: what all gradient methods here have in common.

The objective is quadratic in each factor. So the gradient, and the curvature along the
one or two directions in which a row may go, tell exactly where any step leads: how far
to go is all that a method has to say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from array_api_compat import array_namespace, is_numpy_namespace

from dmf.kernels.strips import Directions, change_along
from dmf.objective import Side, Terms
from dmf.solvers.base import HalfStep, Moved, Value, report_of
from dmf.solvers.loss import Loss, through

Array = Any

# Rows of a strip whose gradients are scaled at once.
TILE_ROWS = 1024


class Quadratic(NamedTuple):
    """The objective along the moves: exact, because it is quadratic there.

    The first move goes along −g, or along the scaled gradient; the second along s.

    For every row of a strip or, summed over everything, for the whole factor.
    """

    loss_slopes: Array  # (..., K, k)
    penalty_slopes: Array  # (..., K, k)
    loss_curvature: Array  # (..., K, k(k+1)/2): ⟨gg⟩ or ⟨gg⟩, ⟨gs⟩, ⟨ss⟩
    penalty_curvature: Array
    first: Array  # (..., K): squared length of the first move


class Step(Protocol):
    """How far to go: lengths along −g (and along s, if `moves` is 2)."""

    @property
    def moves(self) -> int: ...

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        """Return the lengths along −g (and s), shape (..., K, moves), float64.

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
        Go first along `scaled_descent`, not along −g.
    """
    loss = Loss(half)
    summed = loss.gradient(half.moving)
    terms = half.per_strip(
        "terms", half.side.terms, half.moving, half.counts, half.centre
    )
    operands = [summed, half.moving, half.memory, terms]
    if scaled:
        first = half.per_strip(
            "scaled",
            partial(
                scaled_descent, fixed_rows=half.fixed_rows, unobserved=half.unobserved
            ),
            summed,
            half.moving,
            terms,
            half.counts,
            loss.gram,
        )
        operands.append(first)
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
    first: Array | None = None,
    *,
    find: Callable[..., Directions],
    moves: int,
) -> Directions:
    """Return the directions of a strip, with the kernel that finds them."""
    last = None if memory is None else memory[0]
    return find(summed[0], moving, last, terms, first, moves=moves)


def scaled_descent(
    summed: tuple[Array, Array],
    moving: Array,
    terms: Terms,
    counts: Array,
    gram: Array,
    *,
    fixed_rows: int,
    unobserved: float,
) -> Array:
    """Return −(w_i FᵀF + q λ_i)⁻¹ g_i for each row of a strip, shape (p, K, c).

    Of the q rows of the fixed factor F, row i meets those of its n_i observed entries:
    w_i = n_i, and α for each of the others. Were they the average of all, this would
    lead to the row's minimum. How long it is doesn't matter.
    """
    xp = array_namespace(moving)
    if terms.free is not None:
        free = xp.astype(terms.free, gram.dtype)
        gram = gram * free * free[:, None]
    values, vectors = xp.linalg.eigh(gram)
    # In units of the largest: float32 has room for what is left.
    top = values[:, -1:]
    top = xp.where(top > 0, top, xp.ones_like(top))
    # The offsets' own ridge is left out: all columns of a row share the eigenvectors.
    ridge = xp.astype(terms.ridge[..., :1], xp.float64) * (fixed_rows / top)
    weight = (counts + unobserved * (fixed_rows - counts))[:, None, None]
    # Where next to nothing curves, the slope is rounding: it shall not grow.
    least = float(xp.finfo(moving.dtype).eps) ** 0.5 * (weight + ridge)
    least = xp.where(least > 0, least, xp.ones_like(least))
    values, vectors, weight, ridge, least = (
        xp.astype(part, moving.dtype)
        for part in (values / top, vectors, weight, ridge, least)
    )
    back = xp.matrix_transpose(vectors)
    result = xp.empty_like(moving)
    # Some rows at a time: what is made on the way stays in the cache of a processor.
    length = moving.shape[0]
    step = TILE_ROWS if is_numpy_namespace(xp) else max(1, length)
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        pull = terms.rows(rows).gradient(moving[rows, ...])
        slope = terms.still(summed[0][rows, ...] + pull)
        curvature = weight[rows, ...] * values + ridge[rows, ...]
        curvature = xp.maximum(curvature, least[rows, ...])
        down = -through(through(slope, vectors) / curvature, back)
        # Columns that never move, and those beyond a candidate's rank, have no slope.
        result[rows, ...] = xp.where(slope == 0, xp.zeros_like(down), down)
    return result


def build_model(directions: Directions, curvature: Array, *, scope: str) -> Quadratic:
    """Return the quadratic model of each row or, for the global scope, their sum."""
    xp = array_namespace(curvature)
    norms = directions.norms
    columns = [norms[..., k] for k in range(norms.shape[-1])]
    scales = [a * b for k, a in enumerate(columns) for b in columns[k:]]
    model = Quadratic(
        directions.loss_slopes,
        directions.penalty_slopes,
        xp.stack(scales, axis=-1) * curvature,
        directions.penalty_curvature,
        columns[0] ** 2,
    )
    if scope == "row":
        return model
    return Quadratic(*(xp.sum(part, axis=0) for part in model))


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
    norms = directions.norms
    after = advance(moving, directions.units, lengths * norms, terms, rank=side.rank)
    change = change_along(model.loss_slopes, model.loss_curvature, lengths)
    in_plane = None
    if lengths.shape[-1] == 2:
        used = (lengths[..., 1] != 0) & (norms[..., 1] > 0)
        in_plane = xp.sum(xp.astype(used, xp.float64), axis=0)
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
