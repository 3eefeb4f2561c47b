"""Normalised alternating gradients: what this library stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dmf.penalties import Penalty
from dmf.solvers.als import minimise
from dmf.solvers.base import HalfStep, Value
from dmf.solvers.descent import Step, descend
from dmf.solvers.proximal import proximal
from dmf.solvers.smooth import glide
from dmf.solvers.steps import STEPS, Plane

Scope = Literal["row", "global"]

# How large random factors are at first, where gradients are scaled. On ratings, with
# rank 16 and 32, a tenth takes twice the rounds; a thousandth takes longer to grow.
SMALL = 0.01
# Sweeps of coordinate descent in a half-step on complete data.
SWEEPS = 3
# How far beyond its minimum a row goes there: over-relaxation. On digits and on parts
# drawn at random, 1.5 needs half to two thirds of the rounds of 1; 1.7 is no better.
STRETCH = 1.5


@dataclass(frozen=True)
class NormalizedGradient:
    """Alternating steps along the direction of the gradient, whatever its length.

    Gradients of a squared loss explode or vanish with the scale of the data; their
    direction does neither. The length of the step is the business of `step`.

    Parameters
    ----------
    scope : {"row", "global"}, default "row"
        "row": every row of W (column of H) moves on its own, with its own gradient and
        its own length. The objective is a sum over the rows of the moving factor, so
        nothing is lost, and rows with three entries aren't held back by rows with
        thousands. "global": one direction and one length for the whole factor, the
        gradient's Frobenius norm from a sum over all blocks.
    step : Constant, Decay, Exact or Plane, default Plane()
        How far to go.
    scaled : bool, default False
        Divide the gradient of each row by the curvature that it would have if its
        entries were the average of all: −g_i (n_i FᵀF/q + λ_i)⁻¹, where F is the fixed
        factor, of q rows [1]_. And start a hundred times smaller: the first rounds then
        find the directions of X that matter most, one after the other [2]_. On ratings
        this takes a third of the rounds or fewer, at one product with an r × r matrix
        more for each row. It needs penalties as strong as the noise asks for, such as
        `Ridge(…, by_count=True)`: directions that plain gradients reach late, if at
        all, grow at once, so that with weak penalties it follows noise sooner, and with
        a rank too large it may stay in a poorer minimum.

    Raises
    ------
    ValueError
        Unknown scope.
    TypeError
        `step` isn't one of dmf's steps.

    Notes
    -----
    The default moves each row i to the minimum of the objective in the plane of its
    gradient g_i and of its previous move s_i. It needs no parameter, the scale of a
    row doesn't matter to it, and the objective never rises. It costs two passes over
    the data for each half-step: gradient and curvature.

    References
    ----------
    .. [1] T. Tong, C. Ma, Y. Chi, "Accelerating ill-conditioned low-rank matrix
       estimation via scaled gradient descent", JMLR 22 (2021), 1-63.
    .. [2] D. Stöger, M. Soltanolkotabi, "Small random initialization is akin to
       spectral learning", NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])
    >>> X[0, 1] = np.nan
    >>> fit = dmf.factorize(X, rank=1, penalty=None)
    >>> bool(abs(fit.W @ fit.H - np.outer([1, 2, 3], [1, 2, 1])).max() < 1e-3)
    True
    """

    scope: Scope = "row"
    step: Step = field(default_factory=Plane)
    scaled: bool = False

    @property
    def start_scale(self) -> float:
        return SMALL if self.scaled else 1.0

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            msg = f'scope must be "row" or "global", got {self.scope!r}'
            raise ValueError(msg)
        if not isinstance(self.step, STEPS):
            names = ", ".join(f"{step.__name__}(…)" for step in STEPS)
            msg = f"step must be one of {names}; got {self.step!r}"
            raise TypeError(msg)

    def half_step(self, half: HalfStep) -> Value:
        if half.side.smooth:
            return glide(half)
        if half.side.quadratic:
            return descend(half, self.scope, self.step, self.scaled)
        if half.masked:
            return proximal(half)
        # The fixed factor's Gram matrix is at hand: sweeps over it cost no pass.
        return minimise(half, SWEEPS, STRETCH)

    def check(self, penalty: Penalty) -> None:
        special = penalty.smooth or not penalty.quadratic
        if special and self != NormalizedGradient():
            msg = (
                f"{self!r} works with Ridge only, got the penalty {penalty!r}; use "
                "dmf.NormalizedGradient(), which has steps for the others"
            )
            raise ValueError(msg)
