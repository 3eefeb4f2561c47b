"""The textbook method."""

from __future__ import annotations

from dataclasses import dataclass

from dmf.penalties import Penalty
from dmf.solvers.base import HalfStep, Value
from dmf.solvers.descent import descend
from dmf.solvers.steps import Plain
from dmf.validation import check_real


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent with a fixed learning rate: W ← W − η ∂E/∂W, then H.

    The baseline. The gradient of a squared loss grows with the size of the data: with
    η too large the factors explode (the fit then stops and says so), with η too small
    they crawl. `NormalizedGradient` needs no such choice.

    Parameters
    ----------
    learning_rate : float
        η > 0.

    Raises
    ------
    ValueError
        `learning_rate` isn't finite and above 0.

    Notes
    -----
    A step needs the gradient only. The curvature along it is computed all the same:
    with it the history holds the objective after the step, not before it.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])
    >>> solver = dmf.GradientDescent(learning_rate=0.05)
    >>> fit = dmf.factorize(X, rank=1, solver=solver, penalty=None)
    >>> bool(fit.history.objective[-1] < 0.01)
    True
    """

    learning_rate: float

    def __post_init__(self) -> None:
        check_real("learning_rate", self.learning_rate, positive=True)

    def half_step(self, half: HalfStep) -> Value:
        # Row by row is the same step as at once, and waits for no global sum.
        return descend(half, "row", Plain(self.learning_rate))

    def check(self, penalty: Penalty) -> None:
        if not penalty.quadratic or penalty.smooth:
            msg = (
                f"GradientDescent works with Ridge only, got the penalty {penalty!r}; "
                "use dmf.NormalizedGradient()"
            )
            raise ValueError(msg)
