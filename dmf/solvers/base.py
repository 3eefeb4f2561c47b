"""What a solver is: the description of one half-step.

A half-step updates one factor, the *moving* one, while the other stays *fixed*. A
solver writes it down with four verbs that the engine offers, *per block*, *per strip*,
*sum over the blocks of a strip* and *sum over everything*, and with pure functions on
arrays. It never sees a task, a grid or a scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from array_api_compat import array_namespace

from dmf.penalties import Penalty

Array = Any
Value = Any  # the engine's handle on something that will be computed


class HalfStep(Protocol):
    """What the engine offers to a solver for one half-step.

    Attributes
    ----------
    block, moving, fixed, previous, counts : Value
        Per block: the block of X, and the strip of the fixed factor beside it. Per
        strip: the moving factor, the moving factor before its last half-step, and the
        numbers of observed entries of its rows.
    axis : {0, 1}
        0 when W moves, 1 when H moves.
    kernels : module
        The kernels for the kind of blocks at hand.
    penalty : Penalty
        The penalty on the moving factor.
    round : int
        1 for the first round.
    """

    block: Value
    moving: Value
    fixed: Value
    previous: Value
    counts: Value
    axis: int
    kernels: ModuleType
    penalty: Penalty
    round: int

    def per_block(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value: ...

    def per_strip(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value: ...

    def sum_over_strip(self, value: Value) -> Value: ...

    def sum_over_all(self, value: Value) -> Value: ...


class Solver(Protocol):
    """Anything with a half-step: it returns the handle of what `moved` has made."""

    def half_step(self, half: HalfStep) -> Value: ...


class Report(NamedTuple):
    """What a half-step tells of itself: sums over the rows of the moving factor."""

    loss_before: float
    loss: float
    penalty_before: float
    penalty: float
    gradient: float  # squared norm of the gradient before the move
    move: float  # squared norm of the move
    factor: float  # squared norm of the factor after it
    in_plane: float  # rows that moved in a plane, not along a line
    rows: float


def moved(
    moving: Array,
    move: Array,
    *,
    penalty: Penalty,
    counts: Array,
    loss_before: float,
    change: float,
    penalty_before: float,
    gradient: float,
    in_plane: float = 0.0,
) -> tuple[Array, Report]:
    """Return the strip after its move, with the report: what each half-step ends on."""
    xp = array_namespace(moving)
    factor = moving + move
    report = Report(
        loss_before=loss_before,
        loss=loss_before + change,
        penalty_before=penalty_before,
        penalty=penalty.value(factor, counts),
        gradient=gradient,
        move=float(xp.sum(row_dots(xp, move, move))),
        factor=float(xp.sum(row_dots(xp, factor, factor))),
        in_plane=in_plane,
        rows=float(moving.shape[0]),
    )
    return factor, report


def row_dots(xp: Any, a: Array, b: Array) -> Array:
    """Return ⟨a_i, b_i⟩ for each row, in float64."""
    return xp.astype(xp.vecdot(a, b), xp.float64)
