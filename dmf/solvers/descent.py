"""A half-step against the gradient: what all gradient methods here have in common.

The objective is quadratic in each factor. So the gradient, and the curvature along the
one or two directions in which a row may go, tell exactly where any step leads: how far
to go is all that a method has to say.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

from array_api_compat import array_namespace

from dmf.objective import Side
from dmf.solvers.base import HalfStep, Moved, Value, moved, row_dots
from dmf.solvers.loss import Loss

Array = Any


class Directions(NamedTuple):
    """Where the rows of a strip may go, and how the objective begins to change there.

    The moves are the negative gradient −g and, for a plane, the previous move s, each
    row scaled to length one: however large or small the gradients are, kernels see
    numbers near one. `norms` holds the lengths that were divided out.
    """

    units: tuple[Array, ...]  # k arrays (p, K, c)
    norms: Array  # (p, K, k), float64
    loss_slopes: Array  # (p, K, k): derivatives of the loss along −g and s
    penalty_slopes: Array  # (p, K, k)
    penalty_curvature: Array  # (p, K, k(k+1)/2)
    loss: Array  # (K,)


class Quadratic(NamedTuple):
    """The objective along −g (and s): exact, because it is quadratic there.

    For every row of a strip or, summed over everything, for the whole factor.
    """

    loss_slopes: Array  # (..., K, k)
    penalty_slopes: Array  # (..., K, k)
    loss_curvature: Array  # (..., K, k(k+1)/2): ⟨gg⟩ or ⟨gg⟩, ⟨gs⟩, ⟨ss⟩
    penalty_curvature: Array
    gradient: Array  # (..., K): ‖g‖²


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


def descend(half: HalfStep, scope: str, step: Step) -> Value:
    """Describe a half-step that goes against the gradient.

    Parameters
    ----------
    half : HalfStep
    scope : {"row", "global"}
        "row": each row has a length of its own, so that nothing waits for the sum over
        everything. "global": one length for the whole factor.
    step : Step
    """
    loss = Loss(half)
    directions = half.per_strip(
        "direction",
        partial(find_directions, side=half.side, moves=step.moves),
        loss.gradient(half.moving),
        half.moving,
        half.memory,
        half.counts,
        half.centre,
    )
    model = half.per_strip(
        "model",
        partial(build_model, scope=scope),
        directions,
        loss.curvature(directions[0]),
    )
    whole = half.sum_over_all(model) if scope == "global" else model
    return half.per_strip(
        "update",
        partial(update, side=half.side, step=step, round=half.round),
        half.moving,
        directions,
        model,
        whole,
        half.counts,
        half.centre,
    )


def find_directions(
    summed: tuple[Array, Array],
    moving: Array,
    memory: tuple[Array] | None,
    counts: Array,
    centre: Array,
    *,
    side: Side,
    moves: int,
) -> Directions:
    """Return the directions of a strip: its gradient's, and that of its last move."""
    xp = array_namespace(moving)
    loss_gradient, loss = summed
    terms = side.terms(moving, counts, centre)
    penalty_gradient = terms.gradient(moving)
    last = xp.zeros_like(moving) if memory is None else memory[0]
    candidates = [-terms.still(loss_gradient + penalty_gradient), last][:moves]
    units, norms = zip(*(unit_rows(xp, move) for move in candidates), strict=True)
    pairs = [(a, b) for k, a in enumerate(units) for b in units[k:]]
    lengths = [(a, b) for k, a in enumerate(norms) for b in norms[k:]]

    def slopes(gradient: Array) -> Array:
        along = [
            n * row_dots(xp, gradient, u) for u, n in zip(units, norms, strict=True)
        ]
        return xp.stack(along, axis=-1)

    return Directions(
        units,
        xp.stack(norms, axis=-1),
        slopes(loss_gradient),
        slopes(penalty_gradient),
        xp.stack(
            [
                m * n * terms.curvature(a, b)
                for (a, b), (m, n) in zip(pairs, lengths, strict=True)
            ],
            axis=-1,
        ),
        loss,
    )


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
    directions: Directions,
    model: Quadratic,
    whole: Quadratic,
    counts: Array,
    centre: Array,
    *,
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
    strides = xp.astype(lengths * directions.norms, moving.dtype)
    move = sum(strides[..., k, None] * unit for k, unit in enumerate(directions.units))
    change = along(model.loss_slopes, model.loss_curvature, lengths)
    in_plane = None
    if lengths.shape[-1] == 2:
        used = (lengths[..., 1] != 0) & (directions.norms[..., 1] > 0)
        in_plane = xp.sum(xp.astype(used, xp.float64), axis=0)
    return moved(
        moving,
        move,
        side=side,
        terms=side.terms(moving, counts, centre),
        counts=counts,
        loss_before=directions.loss,
        change=xp.sum(change, axis=0) if change.ndim == 2 else change,
        gradient=xp.sum(directions.norms[..., 0] ** 2, axis=0),
        in_plane=in_plane,
        memory=(move,) if lengths.shape[-1] == 2 else None,
    )


def along(slopes: Array, curvature: Array, lengths: Array) -> Array:
    """Return the change of a quadratic: ⟨b, t⟩ + ½ ⟨t, C t⟩, with C by its pairs."""
    first = slopes[..., 0] * lengths[..., 0]
    second = curvature[..., 0] * lengths[..., 0] ** 2
    if lengths.shape[-1] == 2:
        first = first + slopes[..., 1] * lengths[..., 1]
        second = second + curvature[..., 2] * lengths[..., 1] ** 2
        second = second + 2 * curvature[..., 1] * lengths[..., 0] * lengths[..., 1]
    return first + 0.5 * second


def unit_rows(xp: Any, move: Array) -> tuple[Array, Array]:
    """Scale rows to length one; rows of zeros stay. Return them and their lengths."""
    # In float64: the squares of tiny or huge entries would leave float32.
    wide = xp.astype(move, xp.float64, copy=False)
    length = xp.sqrt(xp.vecdot(wide, wide))
    safe = xp.where(length > 0, length, xp.ones_like(length))
    return move / xp.astype(safe, move.dtype)[..., None], length
