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

from dmf.penalties import Penalty
from dmf.solvers.base import HalfStep, Report, Value, moved, row_dots

Array = Any


class Directions(NamedTuple):
    """Where the rows of a strip may go, and how the objective begins to change there.

    The moves are the negative gradient −g and, for a plane, the previous move s, each
    row scaled to length one: however large or small the gradients are, kernels see
    numbers near one. `norms` holds the lengths that were divided out.
    """

    units: tuple[Array, ...]  # k arrays (p, r)
    norms: Array  # (p, k), float64
    loss_slopes: Array  # (p, k): derivatives of the loss along −g and s
    penalty_slopes: Array  # (p, k)
    penalty_curvature: Array  # (p, k(k+1)/2)
    loss: float
    penalty: float


class Model(NamedTuple):
    """The objective along −g (and s): exact, because it is quadratic there.

    For every row of a strip or, summed over everything, for the whole factor.
    """

    loss_slopes: Array  # (..., k)
    penalty_slopes: Array  # (..., k)
    loss_curvature: Array  # (..., k(k+1)/2): ⟨gg⟩ or ⟨gg⟩, ⟨gs⟩, ⟨ss⟩
    penalty_curvature: Array
    gradient: Array  # (...,): ‖g‖²


class Step(Protocol):
    """How far to go: lengths along −g (and along s, if `moves` is 2)."""

    @property
    def moves(self) -> int: ...

    def lengths(self, model: Model, round: int, tolerance: float) -> Array:
        """Return the lengths along −g (and s), shape (..., moves), float64.

        Parameters
        ----------
        model : Model
            Of each row, shape (p,), or of the whole factor, shape ().
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
    gradient = half.per_block(
        "gradient",
        partial(half.kernels.gradient, axis=half.axis),
        half.block,
        half.moving,
        half.fixed,
    )
    directions = half.per_strip(
        "direction",
        partial(find_directions, penalty=half.penalty, moves=step.moves),
        half.sum_over_strip(gradient),
        half.moving,
        half.previous,
        half.counts,
    )
    curvature = half.per_block(
        "curvature",
        partial(plane_curvature, kernel=half.kernels.curvature, axis=half.axis),
        half.block,
        directions,
        half.fixed,
    )
    model = half.per_strip(
        "model",
        partial(build_model, scope=scope),
        directions,
        half.sum_over_strip(curvature),
    )
    whole = half.sum_over_all(model) if scope == "global" else model
    return half.per_strip(
        "update",
        partial(update, penalty=half.penalty, step=step, round=half.round),
        half.moving,
        directions,
        model,
        whole,
        half.counts,
    )


def find_directions(
    summed: tuple[Array, float],
    moving: Array,
    previous: Array,
    counts: Array,
    *,
    penalty: Penalty,
    moves: int,
) -> Directions:
    """Return the directions of a strip from its gradient and its previous move."""
    xp = array_namespace(moving)
    loss_gradient, loss = summed
    penalty_gradient = penalty.gradient(moving, counts)
    candidates = [-(loss_gradient + penalty_gradient), moving - previous][:moves]
    units, norms = zip(*(_unit_rows(xp, move) for move in candidates), strict=True)
    pairs = [(a, b) for k, a in enumerate(units) for b in units[k:]]
    lengths = [(a, b) for k, a in enumerate(norms) for b in norms[k:]]
    return Directions(
        units,
        xp.stack(norms, axis=-1),
        xp.stack(
            [
                n * row_dots(xp, loss_gradient, u)
                for u, n in zip(units, norms, strict=True)
            ],
            axis=-1,
        ),
        xp.stack(
            [
                n * row_dots(xp, penalty_gradient, u)
                for u, n in zip(units, norms, strict=True)
            ],
            axis=-1,
        ),
        xp.stack(
            [
                m * n * penalty.curvature(a, b, counts)
                for (a, b), (m, n) in zip(pairs, lengths, strict=True)
            ],
            axis=-1,
        ),
        loss,
        penalty.value(moving, counts),
    )


def plane_curvature(
    block: Any,
    directions: Directions,
    fixed: Array,
    *,
    kernel: Callable[..., Array],
    axis: int,
) -> Array:
    """Return the curvature of a block's loss along the unit directions."""
    return kernel(block, directions.units, fixed, axis)


def build_model(directions: Directions, curvature: Array, *, scope: str) -> Model:
    """Return the quadratic model of each row or, for the global scope, their sum."""
    xp = array_namespace(curvature)
    norms = directions.norms
    columns = [norms[:, k] for k in range(norms.shape[1])]
    scales = [a * b for k, a in enumerate(columns) for b in columns[k:]]
    model = Model(
        directions.loss_slopes,
        directions.penalty_slopes,
        xp.stack(scales, axis=-1) * curvature,
        directions.penalty_curvature,
        columns[0] ** 2,
    )
    if scope == "row":
        return model
    return Model(*(xp.sum(part, axis=0) for part in model))


def update(
    moving: Array,
    directions: Directions,
    model: Model,
    whole: Model,
    counts: Array,
    *,
    penalty: Penalty,
    step: Step,
    round: int,
) -> tuple[Array, Report]:
    """Move a strip, and report what that did to the objective.

    `whole` is the model that decides about the lengths, `model` the strip's share.
    """
    xp = array_namespace(moving)
    # Below this, the 2 × 2 system is noise: its entries carry the rounding of `moving`.
    tolerance = 100 * float(xp.finfo(moving.dtype).eps)
    lengths = step.lengths(whole, round, tolerance)
    strides = xp.astype(lengths * directions.norms, moving.dtype)
    move = sum(strides[:, k][:, None] * unit for k, unit in enumerate(directions.units))
    change = float(xp.sum(along(model.loss_slopes, model.loss_curvature, lengths)))
    in_plane = 0.0
    if lengths.shape[-1] == 2:
        used = (lengths[..., 1] != 0) & (directions.norms[:, 1] > 0)
        in_plane = float(xp.count_nonzero(used))
    return moved(
        moving,
        move,
        penalty=penalty,
        counts=counts,
        loss_before=directions.loss,
        change=change,
        penalty_before=directions.penalty,
        gradient=float(xp.sum(directions.norms[:, 0] ** 2)),
        in_plane=in_plane,
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


def _unit_rows(xp: Any, move: Array) -> tuple[Array, Array]:
    """Scale rows to length one; rows of zeros stay. Return them and their lengths."""
    # In float64: the squares of tiny or huge entries would leave float32.
    wide = xp.astype(move, xp.float64, copy=False)
    length = xp.sqrt(xp.vecdot(wide, wide))
    safe = xp.where(length > 0, length, xp.ones_like(length))
    return move / xp.astype(safe, move.dtype)[:, None], length
