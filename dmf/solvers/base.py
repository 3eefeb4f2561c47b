"""What a solver is: the description of one half-step.

A half-step updates one factor, the *moving* one, while the other stays *fixed*. A
solver writes it down with verbs that the engine offers, *per block*, *per strip*, *per
fixed strip*, *sum over the blocks of a strip*, *sum over everything* and *neighbouring
strips*, and with pure functions on arrays. It never sees a task, a grid or a scheduler.

Factors carry a stack of K candidates (restarts, or settings to compare): a strip has
shape (p, K, c), and what is said of a candidate as a whole has shape (K,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from array_api_compat import array_namespace

from dmf.kernels.strips import sizes
from dmf.objective import Side, Terms
from dmf.penalties import Penalty
from dmf.sizes import Sized

Array = Any
Value = Any  # the engine's handle on something that will be computed


class HalfStep(Protocol):
    """What the engine offers to a solver for one half-step.

    Attributes
    ----------
    block, fixed : Value
        Per block: the block of X, and the strip of the fixed factor beside it.
    fixed_strip : Value
        Per strip of the fixed factor: that strip.
    moving, memory, counts : Value
        Per strip: the moving factor; what the solver kept of its last half-step, None
        in the first; the numbers of observed entries of its rows.
    centre : Value
        For the whole factor: what its offsets are pulled towards, shape (K,).
    axis : {0, 1}
        0 when W moves, 1 when H moves.
    kernels : module
        The kernels for the kind of blocks at hand.
    side : Side
        What the objective says about the moving factor.
    unobserved : float
        The weight α of what sparse blocks don't store. 1 if everything is observed.
    masked : bool
        False if every entry counts with weight 1.
    fixed_rows : int
        The rows of the fixed factor.
    round : int
        1 for the first round.
    """

    block: Value
    fixed: Value
    fixed_strip: Value
    moving: Value
    memory: Value
    counts: Value
    centre: Value
    axis: int
    kernels: ModuleType
    side: Side
    unobserved: float
    masked: bool
    fixed_rows: int
    round: int

    def per_block(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value: ...

    def per_strip(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value: ...

    def per_fixed(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value: ...

    def sum_over_strip(self, value: Value) -> Value: ...

    def sum_over_all(self, value: Value) -> Value: ...

    def neighbours(self, value: Value, reach: int) -> Value: ...


class Solver(Protocol):
    """Anything with a half-step: it returns the handle of what `moved` has made.

    It may have a `start_scale`: how large random factors shall be at first, as a share
    of their usual size.
    """

    def half_step(self, half: HalfStep) -> Value: ...

    def check(self, penalty: Penalty) -> None:
        """Refuse a penalty that the solver can't work with, with a ValueError."""


class Halo(NamedTuple):
    """What borders on a strip: rows of its neighbours, and where it is."""

    before: Any  # arrays of the last rows of the strip before; None if there is none
    after: Any
    start: int
    total: int


@dataclass(frozen=True)
class Moved(Sized):
    """A strip after a half-step; no tuple, which Dask would look through for keys.

    Parameters
    ----------
    factor : array, shape (p, K, c)
    memory : tuple of arrays, shape (p, K, …), or None
        What the solver wants to see again in the factor's next half-step.
    report : Report or None
    """

    factor: Array
    memory: Any
    report: Report | None


class Report(NamedTuple):
    """What a half-step tells of itself: sums over the rows of the moving factor.

    All are arrays of float64, shape (K,).
    """

    loss_before: Array
    loss: Array
    penalty_before: Array
    penalty: Array
    gradient: Array  # squared norm of the (proximal) gradient before the move
    move: Array  # squared norm of the move
    factor: Array  # squared norm of the factor after it
    in_plane: Array  # rows that moved in a plane, not along a line
    zeros: Array  # entries of the factor that are exactly 0
    rows: Array
    offset: Array  # weighted sum of the offsets
    offset_weight: Array


def moved(
    moving: Array,
    move: Array,
    *,
    side: Side,
    terms: Terms,
    counts: Array,
    loss_before: Array,
    change: Array,
    gradient: Array,
    in_plane: Array | None = None,
    factor: Array | None = None,
    memory: Any = None,
) -> Moved:
    """Return the strip after its move, with the report: what each half-step ends on.

    `factor` is where the move leads, if rounding shall not decide what is exactly 0.
    """
    factor = moving + move if factor is None else factor
    report = report_of(
        factor,
        side=side,
        counts=counts,
        loss_before=loss_before,
        change=change,
        penalties=(terms.value(moving), terms.value(factor)),
        gradient=gradient,
        sizes=sizes(factor, move, side.rank),
        in_plane=in_plane,
    )
    return Moved(factor, memory, report)


def report_of(
    factor: Array,
    *,
    side: Side,
    counts: Array,
    loss_before: Array,
    change: Array,
    penalties: tuple[Array, Array],
    gradient: Array,
    sizes: tuple[Array, Array, Array],
    in_plane: Array | None,
) -> Report:
    """Return the report on a strip that a half-step has moved to `factor`.

    `penalties` are those before and after it, `sizes` what `dmf.kernels.strips.sizes`
    returns.
    """
    xp = array_namespace(factor)
    length = factor.shape[0]
    move, own, zeros = sizes
    padding = xp.asarray([float(length * (side.rank - r)) for r in side.ranks])
    offset, offset_weight = side.level(factor, counts)
    rows = xp.full(factor.shape[1:2], float(length), dtype=xp.float64)
    return Report(
        loss_before=loss_before,
        loss=loss_before + change,
        penalty_before=penalties[0],
        penalty=penalties[1],
        gradient=gradient,
        move=move,
        factor=own,
        in_plane=xp.zeros_like(rows) if in_plane is None else in_plane,
        zeros=zeros - xp.astype(padding, xp.float64),
        rows=rows,
        offset=offset,
        offset_weight=offset_weight,
    )
