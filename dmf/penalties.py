"""Penalties on the factors: what the objective adds to the loss.

A penalty Ω is a sum over the rows of a factor (for H: over its columns, which dmf keeps
as rows). It is made of few parts: a ridge, a lasso, a lower bound of 0, and the ties of
neighbouring rows. A penalty says how much of each it brings, and penalties add up with
``+``; the formulas themselves stand once, in `dmf.objective`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from dmf.validation import check_bool, check_integer, check_real

Array = Any


class Penalty:
    """What a penalty brings; by itself, nothing.

    `counts` are the numbers n_i of observed entries of some rows, float64, shape (p,).
    """

    @property
    def nonnegative(self) -> bool:
        """Return whether entries must not be below 0."""
        return False

    @property
    def smooth(self) -> tuple[Smooth, ...]:
        """Return the ties of neighbouring rows."""
        return ()

    def ridge(self, counts: Array) -> Array:
        """Return the λ_i of ½ Σ λ_i ‖w_i‖², shape (p,)."""
        return 0.0 * counts

    def lasso(self, counts: Array) -> Array | None:
        """Return the λ_i of Σ λ_i ‖w_i‖₁, shape (p,); None if there is no lasso."""
        return None

    @property
    def quadratic(self) -> bool:
        """Whether the penalty is nothing but squares of the factor's entries."""
        return not self.nonnegative and self.lasso(np.ones(1)) is None

    def __add__(self, other: Penalty) -> Penalty:
        if not isinstance(other, Penalty):
            return NotImplemented
        return Sum((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class _Strength(Penalty):
    strength: float
    by_count: bool = False

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}'s strength"
        strength = check_real(name, self.strength, at_least=0.0)
        object.__setattr__(self, "strength", strength)
        check_bool(f"{type(self).__name__}'s by_count", self.by_count)

    def _strengths(self, counts: Array) -> Array:
        xp = array_namespace(counts)
        return self.strength * (counts if self.by_count else xp.ones_like(counts))


@dataclass(frozen=True)
class Ridge(_Strength):
    """The squared length of the factor's rows: ½ λ Σ_i n_i^s ‖w_i‖².

    Parameters
    ----------
    strength : float
        λ ≥ 0, in units of X (both sides of the objective are squares of X when W and H
        share its scale evenly).
    by_count : bool, default False
        False: s = 0, every row is penalised alike. True: s = 1, the strength of row i
        is scaled by n_i, the number of observed entries of row i of X (of column j, for
        H). That is the usual choice for ratings, where some rows have thousands of
        entries and others three: it keeps the balance of loss and penalty the same.
        The sum ``Ridge(λ, by_count=True) + Ridge(30 * λ)``, as if every row had 30
        entries more, is often better yet: rows with few entries need it most.

    Raises
    ------
    ValueError
        `strength` is negative, infinite or NaN.
    TypeError
        `strength` isn't a number.

    References
    ----------
    .. [1] Y. Zhou, D. Wilkinson, R. Schreiber, R. Pan, "Large-scale parallel
       collaborative filtering for the Netflix prize", AAIM 2008 (scaling by counts).

    Examples
    --------
    >>> from dmf import Ridge
    >>> Ridge(0.1)
    Ridge(strength=0.1, by_count=False)
    """

    def ridge(self, counts: Array) -> Array:
        return self._strengths(counts)


@dataclass(frozen=True)
class Lasso(_Strength):
    """The sum of the absolute entries of the factor: λ Σ_i n_i^s ‖w_i‖₁.

    It makes entries exactly 0: sparse coding, with a dictionary in the other factor,
    which then needs a penalty of its own (a `Ridge`), or it would grow without end
    while this one shrinks.

    Parameters
    ----------
    strength : float
        λ ≥ 0.
    by_count : bool, default False
        Whether row i's strength is scaled by n_i, as for `Ridge`.

    Raises
    ------
    ValueError
        `strength` is negative, infinite or NaN.
    TypeError
        `strength` isn't a number.

    References
    ----------
    .. [1] B. A. Olshausen, D. J. Field, "Sparse coding with an overcomplete basis set",
       Vision Research 37 (1997), 3311-3325.

    Examples
    --------
    >>> from dmf import Lasso, NonNegative
    >>> Lasso(0.1) + NonNegative()
    Lasso(strength=0.1, by_count=False) + NonNegative()
    """

    def lasso(self, counts: Array) -> Array:
        return self._strengths(counts)


@dataclass(frozen=True)
class NonNegative(Penalty):
    """No entry of the factor may be below 0; entries at the bound are exactly 0.

    On both factors: non-negative matrix factorization, whose components are parts that
    only add up. Offsets may still be negative.

    References
    ----------
    .. [1] D. D. Lee, H. S. Seung, "Learning the parts of objects by non-negative matrix
       factorization", Nature 401 (1999), 788-791.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])
    >>> fit = dmf.factorize(X, rank=1, penalty=dmf.NonNegative())
    >>> bool((fit.W >= 0).all() and (fit.H >= 0).all())
    True
    """

    @property
    def nonnegative(self) -> bool:
        return True


@dataclass(frozen=True)
class Smooth(Penalty):
    """The roughness of the factor along an ordered axis: ½ λ Σ ‖Δ^order h_j‖².

    For the factor of a time axis (or of any axis whose neighbours resemble each other):
    a gap in the data is then bridged by what came before and after it.

    Parameters
    ----------
    strength : float
        λ ≥ 0.
    order : {1, 2}, default 1
        1 penalises changes from row to row, 2 changes of the slope.
    step : float or sequence of floats, default 1.0
        The distance between neighbours: one number, or one for each gap (its length is
        one less than that of the axis). Differences are divided by it, so that a change
        over a long gap counts less than the same change over a short one.

    Notes
    -----
    The sum is close to the integral of the squared derivative, so that it hardly
    matters how finely the axis is sampled: for order 1 it is Σ g (Δh / g)² over the
    gaps g. W H doesn't change when W grows and H shrinks, so a smooth factor needs a
    `Ridge` (or `Lasso`) on the other one, and only the product of the two strengths
    matters: on both, let `sweep` try from half to eight standard deviations of what
    offsets leave of X, for a few hundred rounds. A factor that never changes is as smooth as can be: a light `Ridge` beside `Smooth`,
    and offsets, settle how large it is. The smooth factor moves as a whole; the pieces
    in which different chunks of X put it change the way to the minimum, not where it is.

    Raises
    ------
    ValueError
        `strength` is negative, infinite or NaN; `order` isn't 1 or 2; a step isn't
        above 0.
    TypeError
        They aren't numbers.

    References
    ----------
    .. [1] E. T. Whittaker, "On a new method of graduation", Proc. Edinburgh Math. Soc.
       41 (1922), 63-75.

    Examples
    --------
    >>> from dmf import Ridge, Smooth
    >>> days = [0.0, 1.0, 2.0, 5.0]
    >>> penalty = Smooth(10.0, step=[b - a for a, b in zip(days, days[1:])])
    >>> penalty + Ridge(0.1)
    Smooth(strength=10.0, order=1, step=(1.0, 1.0, 3.0)) + Ridge(strength=0.1, by_count=False)
    """  # noqa: E501

    strength: float
    order: int = 1
    step: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        strength = check_real("Smooth's strength", self.strength, at_least=0.0)
        object.__setattr__(self, "strength", strength)
        if check_integer("Smooth's order", self.order, at_least=1) > 2:
            msg = f"Smooth's order must be 1 or 2, got {self.order}"
            raise ValueError(msg)
        if isinstance(self.step, Iterable):
            steps = tuple(
                check_real("Smooth's step", s, positive=True) for s in self.step
            )
            object.__setattr__(self, "step", steps)
        else:
            check_real("Smooth's step", self.step, positive=True)

    @property
    def smooth(self) -> tuple[Smooth, ...]:
        return (self,) if self.strength > 0 else ()


@dataclass(frozen=True)
class Sum(Penalty):
    """Several penalties on one factor; made by ``+``."""

    parts: tuple[Penalty, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))

    @property
    def nonnegative(self) -> bool:
        return any(part.nonnegative for part in self.parts)

    @property
    def smooth(self) -> tuple[Smooth, ...]:
        return tuple(one for part in self.parts for one in part.smooth)

    def ridge(self, counts: Array) -> Array:
        return sum((part.ridge(counts) for part in self.parts), 0.0 * counts)

    def lasso(self, counts: Array) -> Array | None:
        given = (part.lasso(counts) for part in self.parts)
        found: list[Array] = [one for one in given if one is not None]
        return sum(found[1:], found[0]) if found else None

    def __repr__(self) -> str:
        return " + ".join(repr(part) for part in self.parts) or "Sum()"


def _parts(penalty: Penalty) -> tuple[Penalty, ...]:
    return penalty.parts if isinstance(penalty, Sum) else (penalty,)
