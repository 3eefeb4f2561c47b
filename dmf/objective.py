"""What is minimised: loss, penalties and offsets, for one factor and for both.

E(W, H) = ½ Σ M (X − μ − b − c − W H)² + α/2 Σ_unobserved (μ + b + c + W H)² + Ω_W + Ω_H

A *side* is what the objective says about one factor, besides the loss. For a strip it
becomes `Terms`, strengths for its rows and columns, so that each formula stands here
once, whatever penalties were added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from dmf.kernels.strips import row_dots
from dmf.offsets import Role, column_of
from dmf.penalties import Penalty, Ridge

Array = Any


NO_RIDGE = Ridge(0.0)


class Terms(NamedTuple):
    """The penalty of a strip of shape (p, K, c).

    Parameters
    ----------
    strengths : array, shape (p, K or 1, 1 or 2)
        λ of ½ λ (w − centre)²: in the factor's own columns and, if there are others, in
        that of the offsets.
    columns : array, shape (2, c), or None
        1 for the columns that each of two strengths is for, 0 for the others. Columns
        for which there is none never move.
    centre : array, shape (K, c), or None
        None: 0.
    lasso : array, shape (p, K or 1, c or 1), or None
        λ of λ |w|.
    lower : array, shape (K, c), or None
        0 where entries must not be negative, −∞ where they may.
    """

    strengths: Array
    columns: Array | None
    centre: Array | None
    lasso: Array | None
    lower: Array | None

    @property
    def ridge(self) -> Array:
        """Return λ of each entry, shape (p, K or 1, c or 1)."""
        if self.columns is None:
            return self.strengths
        xp = array_namespace(self.strengths)
        return xp.tensordot(self.strengths, self.columns, axes=1)

    @property
    def free(self) -> Array | None:
        """Return 1 for columns that move, 0 for those that never do; None: all move."""
        if self.columns is None:
            return None
        return self.columns[0, ...] + self.columns[1, ...]

    @property
    def quadratic(self) -> bool:
        return self.lasso is None and self.lower is None

    def value(self, factor: Array) -> Array:
        """Return Ω of each candidate, float64, shape (K,)."""
        xp = array_namespace(factor)
        centred = self._centred(factor)
        total = 0.5 * self.curvature(centred, centred)
        if self.lasso is not None:
            total = total + xp.sum(self.lasso * xp.abs(factor), axis=-1)
        return xp.sum(xp.astype(total, xp.float64), axis=0)

    def gradient(self, factor: Array) -> Array:
        """Return the gradient of the quadratic part, shape (p, K, c)."""
        return self.ridge * self._centred(factor)

    def curvature(self, first: Array, second: Array) -> Array:
        """Return ⟨d_i, ∇²Ω s_i⟩ for each row, float64, shape (p, K)."""
        xp = array_namespace(first)
        if self.columns is None:
            dots = row_dots(xp, first, second)
            return xp.astype(self.strengths[..., 0], xp.float64) * dots
        return row_dots(xp, self.ridge * first, second)

    def still(self, gradient: Array) -> Array:
        """Return a gradient without the columns that never move."""
        return gradient if self.free is None else gradient * self.free

    def stationarity(self, factor: Array, gradient: Array) -> Array:
        """Return the squared norm of the proximal gradient w − prox(w − g), (K,).

        `gradient` is that of the loss and of the squares. Without a lasso or a bound
        this is its squared norm: 0 at a stationary point and nowhere else.
        """
        xp = array_namespace(factor)
        if not self.quadratic:
            gradient = factor - self.prox(factor - gradient, 1.0)
        wide = xp.astype(gradient, xp.float64)
        return xp.sum(row_dots(xp, wide, wide), axis=0)

    def prox(self, point: Array, step: Array | float) -> Array:
        """Return what minimises ½ (w − point)² / step + λ |w| above the bound."""
        xp = array_namespace(point)
        if self.lasso is not None:
            size = xp.abs(point) - step * self.lasso
            size = xp.where(size > 0, size, xp.zeros_like(size))
            point = xp.sign(point) * size
        if self.lower is not None:
            point = xp.where(point > self.lower, point, self.lower)
        return point

    def rows(self, rows: slice) -> Terms:
        """Return the terms of some rows of the strip."""
        lasso = None if self.lasso is None else self.lasso[rows, ...]
        return self._replace(strengths=self.strengths[rows, ...], lasso=lasso)

    def _centred(self, factor: Array) -> Array:
        return factor if self.centre is None else factor - self.centre


@dataclass(frozen=True)
class Side:
    """What the objective says about one factor, for all candidates of a fit.

    Parameters
    ----------
    penalties : tuple of Penalty
        One for each candidate.
    ranks : tuple of int
        One for each candidate.
    rank : int
        The columns of the factor proper: the largest of all ranks. Smaller candidates
        are filled up with columns of zeros, in both factors, which no gradient moves.
    roles : tuple of {"offset", "one", "tied"}
        The columns beside those of the factor.
    offset_penalty : Ridge
        On the offsets, around their centre.
    unit : float
        What the columns of ones hold; offsets are divided by it. With it, the columns
        of a factor are about as large as each other, whatever the unit of X is: a move
        along one gradient suits them all.
    """

    penalties: tuple[Penalty, ...]
    ranks: tuple[int, ...]
    rank: int
    roles: tuple[Role, ...] = ()
    offset_penalty: Ridge = NO_RIDGE
    unit: float = 1.0

    @property
    def width(self) -> int:
        """All columns."""
        return self.rank + len(self.roles)

    @property
    def offset(self) -> int | None:
        """Which column holds the offsets."""
        return column_of(self.roles, self.rank)

    @property
    def quadratic(self) -> bool:
        return all(penalty.quadratic for penalty in self.penalties)

    def scaled(self, strip: Array) -> Array:
        """Return a strip in natural units, with the columns beside it in `unit`."""
        for role, column in zip(self.roles, range(self.rank, self.width), strict=True):
            strip[..., column] *= self.unit if role == "one" else 1 / self.unit
        return strip

    @property
    def smooth(self) -> bool:
        """Whether rows are tied to their neighbours."""
        return any(penalty.smooth for penalty in self.penalties)

    def select(self, kept: Sequence[int]) -> Side:
        """Return the side of some of the candidates."""
        return replace(
            self,
            penalties=tuple(self.penalties[k] for k in kept),
            ranks=tuple(self.ranks[k] for k in kept),
        )

    def terms(self, like: Array, counts: Array, centre: Array) -> Terms:
        """Return the terms of a strip.

        Parameters
        ----------
        like : array, shape (p, K, c)
            The strip, for its namespace and dtype.
        counts : array of float64, shape (p,)
            n_i: the observed entries of its rows.
        centre : array of float64, shape (K,)
            What the offsets are pulled towards.
        """
        xp = array_namespace(like)
        dtype = like.dtype

        def spread(strengths: list[Array]) -> Array:
            return xp.astype(xp.stack(strengths, axis=1), dtype)[:, :, None]

        distinct = self._distinct()
        strengths = spread([penalty.ridge(counts) for penalty in distinct])
        lasso = None
        thresholds = [penalty.lasso(counts) for penalty in distinct]
        if any(one is not None for one in thresholds):
            nothing = xp.zeros_like(counts)
            lasso = spread([nothing if one is None else one for one in thresholds])
        lower = None
        if any(penalty.nonnegative for penalty in self.penalties):
            bounds = np.full((len(self.penalties), self.width), -np.inf)
            for k, penalty in enumerate(self.penalties):
                if penalty.nonnegative:
                    bounds[k, : self.rank] = 0
            lower = xp.asarray(bounds, dtype=dtype)
        columns = middle = None
        if self.roles:
            offset = spread([self._offset_strengths(xp, counts)])
            offset = xp.broadcast_to(offset, strengths.shape)
            strengths = xp.concat([strengths, offset], axis=2)
            own = [1.0] * self.rank + [0.0] * len(self.roles)
            beside = [0.0] * self.rank + [float(r == "offset") for r in self.roles]
            columns = xp.asarray([own, beside], dtype=dtype)
            if lasso is not None:
                lasso = lasso * columns[0, ...]
            if self.offset is not None:
                wide = xp.astype(columns[1, ...], xp.float64)
                middle = xp.astype(centre[:, None] * wide, dtype)
        return Terms(strengths, columns, middle, lasso, lower)

    def level(self, factor: Array, counts: Array) -> tuple[Array, Array]:
        """Return sums of weight and offset: their quotient is the next centre."""
        xp = array_namespace(factor)
        if self.offset is None:
            nothing = xp.zeros(factor.shape[1], dtype=xp.float64)
            return nothing, nothing
        weight = self._offset_strengths(xp, counts)
        if "tied" in self.roles or self.offset_penalty.strength == 0:
            weight = xp.ones_like(counts)
        weight = xp.where(counts > 0, weight, xp.zeros_like(weight))[:, None]
        offsets = xp.astype(factor[:, :, self.offset], xp.float64)
        weights = xp.broadcast_to(weight, offsets.shape)
        return xp.sum(weights * offsets, axis=0), xp.sum(weights, axis=0)

    def _distinct(self) -> tuple[Penalty, ...]:
        """Return the penalties; one if they are all the same, as for restarts."""
        first = self.penalties[0]
        same = all(penalty is first for penalty in self.penalties)
        return (first,) if same else self.penalties

    def _offset_strengths(self, xp: Any, counts: Array) -> Array:
        if "offset" not in self.roles:
            return xp.zeros_like(counts)
        # Where nothing is observed, the offset is the centre, at no cost.
        seen = xp.astype(counts > 0, xp.float64)
        return self.unit**2 * self.offset_penalty.ridge(counts) * seen


@dataclass(frozen=True)
class Objective:
    """Both sides, and what the unobserved entries mean.

    Parameters
    ----------
    sides : (Side of W, Side of H)
    unobserved : float
        α: the weight of what isn't observed, taken as zeros.
    """

    sides: tuple[Side, Side]
    unobserved: float = 0.0

    def select(self, kept: Sequence[int]) -> Objective:
        """Return the objective of some of the candidates."""
        W, H = self.sides
        return replace(self, sides=(W.select(kept), H.select(kept)))
