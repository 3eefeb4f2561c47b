"""Solvers: each is the description of one half-step, `half_step` in `base`."""

from dmf.solvers.als import AlternatingLeastSquares
from dmf.solvers.base import Solver
from dmf.solvers.gradient_descent import GradientDescent
from dmf.solvers.normalized_gradient import NormalizedGradient
from dmf.solvers.steps import Constant, Decay, Exact, Plane

__all__ = [
    "AlternatingLeastSquares",
    "Constant",
    "Decay",
    "Exact",
    "GradientDescent",
    "NormalizedGradient",
    "Plane",
    "Solver",
]
