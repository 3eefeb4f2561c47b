"""Penalties on the factors: what the objective adds to the loss.

A penalty Ω is a sum over the rows of a factor (for H: over its columns, which dmf keeps
as rows). It offers its value, its gradient, its curvature between two moves, and its
strength on each row for the normal equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from array_api_compat import array_namespace

from dmf.validation import check_real

Array = Any


class Penalty(Protocol):
    """What the solvers ask of a penalty, for one strip of a factor.

    `factor` and moves have shape (p, r), `counts`, the numbers of observed entries of
    the strip's rows, shape (p,).
    """

    def strengths(self, counts: Array, dtype: Any) -> Array: ...

    def value(self, factor: Array, counts: Array) -> float: ...

    def gradient(self, factor: Array, counts: Array) -> Array: ...

    def curvature(self, first: Array, second: Array, counts: Array) -> Array: ...


@dataclass(frozen=True)
class Ridge:
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

    strength: float
    by_count: bool = False

    def __post_init__(self) -> None:
        check_real("Ridge's strength", self.strength, at_least=0.0)

    def strengths(self, counts: Array, dtype: Any) -> Array:
        """Return λ n_i^s for each row.

        Parameters
        ----------
        counts : array of float64, shape (p,)
            Observed entries of each row.
        dtype : dtype of the result
        """
        xp = array_namespace(counts)
        scale = counts if self.by_count else xp.ones_like(counts)
        return xp.astype(self.strength * scale, dtype)

    def value(self, factor: Array, counts: Array) -> float:
        """Return Ω of a strip of a factor, shape (p, r)."""
        xp = array_namespace(factor)
        squares = xp.astype(xp.vecdot(factor, factor), xp.float64)
        return 0.5 * float(xp.sum(self.strengths(counts, xp.float64) * squares))

    def gradient(self, factor: Array, counts: Array) -> Array:
        """Return ∇Ω, shape (p, r)."""
        return self.strengths(counts, factor.dtype)[:, None] * factor

    def curvature(self, first: Array, second: Array, counts: Array) -> Array:
        """Return ⟨d_i, ∇²Ω s_i⟩ for each row, float64, shape (p,)."""
        xp = array_namespace(first)
        products = xp.astype(xp.vecdot(first, second), xp.float64)
        return self.strengths(counts, xp.float64) * products
