"""How far to go along the negative gradient −g and the previous move s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from dmf.kernels.strips import line_minimum, plane_lengths
from dmf.solvers.descent import Quadratic
from dmf.validation import check_real

Array = Any


@dataclass(frozen=True)
class Constant:
    """A move of the same length in every round: η along −g/‖g‖.

    With it, the factors can't settle closer to a minimum than about η.

    Parameters
    ----------
    learning_rate : float
        η > 0, in units of the factors.

    Examples
    --------
    >>> from dmf import Constant, NormalizedGradient
    >>> solver = NormalizedGradient(scope="global", step=Constant(0.05))
    """

    learning_rate: float
    moves: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_real("learning_rate", self.learning_rate, positive=True)

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        return _normalized(model, self.learning_rate)


@dataclass(frozen=True)
class Decay:
    """A move that gets shorter: η / k^power along −g/‖g‖ in round k.

    Parameters
    ----------
    learning_rate : float
        η > 0, the length of the first move, in units of the factors.
    power : float, default 0.5
        Above 0. Up to 1 the lengths add up to infinity, so that any point can be
        reached; above 1/2 their squares don't, so that the factors settle.

    Examples
    --------
    >>> from dmf import Decay, NormalizedGradient
    >>> solver = NormalizedGradient(scope="global", step=Decay(0.5, power=0.75))
    """

    learning_rate: float
    power: float = 0.5
    moves: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_real("learning_rate", self.learning_rate, positive=True)
        check_real("power", self.power, positive=True)

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        return _normalized(model, self.learning_rate * float(round) ** -self.power)


@dataclass(frozen=True)
class Exact:
    """The exact minimiser along −g: t = −⟨∇E, D⟩ / ⟨D, ∇²E D⟩, no parameter to tune.

    The objective is quadratic in each factor, so that the minimiser is known and the
    objective never rises.

    Examples
    --------
    >>> from dmf import Exact, NormalizedGradient
    >>> solver = NormalizedGradient(scope="global", step=Exact())
    """

    moves: ClassVar[int] = 1

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        slopes = model.loss_slopes + model.penalty_slopes
        curvature = model.loss_curvature + model.penalty_curvature
        return line_minimum(slopes, curvature)


@dataclass(frozen=True)
class Plane:
    """The exact minimiser in the plane of −g and of the previous move s.

    Both lengths come from a 2 × 2 system. If it is degenerate (in the first round,
    or when s is parallel to g), the gradient is followed alone.

    References
    ----------
    .. [1] A. Miele, J. W. Cantrell, "Study on a memory gradient method for the
       minimization of functions", J. Optim. Theory Appl. 3 (1969), 459-470.

    Examples
    --------
    >>> from dmf import NormalizedGradient, Plane
    >>> NormalizedGradient(scope="row", step=Plane()) == NormalizedGradient()
    True
    """

    moves: ClassVar[int] = 2

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        slopes = model.loss_slopes, model.penalty_slopes
        curvatures = model.loss_curvature, model.penalty_curvature
        return plane_lengths(slopes, curvatures, tolerance)


@dataclass(frozen=True)
class Plain:
    """A move of η g for each row, however long its gradient g is.

    The step of `GradientDescent`.
    """

    learning_rate: float
    moves: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_real("learning_rate", self.learning_rate, positive=True)

    def lengths(self, model: Quadratic, round: int, tolerance: float) -> Array:
        # Along −g / ‖g‖ the slope is −‖g‖.
        return -self.learning_rate * (model.loss_slopes + model.penalty_slopes)


# What NormalizedGradient takes.
STEPS = (Constant, Decay, Exact, Plane)


def _normalized(model: Quadratic, length: float) -> Array:
    """Return how far along the first move this length is; 0 where that vanishes."""
    xp = array_namespace(model.first)
    norm = xp.sqrt(model.first)
    safe = xp.where(norm > 0, norm, xp.ones_like(norm))
    return xp.where(norm > 0, length / safe, xp.zeros_like(norm))[..., None]
