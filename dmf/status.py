"""Why a fit ended, and how stationary its factors are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Code = Literal[
    "converged",
    "max_rounds",
    "early_stopped",
    "stopped",
    "dropped",
    "folded_in",
    "interrupted",
    "diverged",
]

_SENTENCES: dict[str, str] = {
    "converged": (
        "converged in round {round}: the objective changed by less than tol={tol:g} of "
        "itself; a smaller tol goes on"
    ),
    "max_rounds": (
        "stopped after max_rounds={round} rounds, not yet converged; raise max_rounds, "
        "or tol, if the history shows that the objective still falls"
    ),
    "early_stopped": (
        "stopped early in round {round}: for {patience} checks the error on the "
        "held-out entries hasn't fallen below its least; a larger patience waits longer"
    ),
    "stopped": "stopped by a callback after round {round}",
    "dropped": (
        "dropped in round {round}, because other candidates were better; drop=False "
        "keeps all of them"
    ),
    "folded_in": "folded in: the minimiser against the factors of another fit",
    "interrupted": (
        "interrupted after round {round}; these are the factors so far, fit again to "
        "get better ones"
    ),
    "diverged": (
        "diverged after round {round}, whose factors these are: then the objective was "
        "no longer finite; lower the learning rate, or use dmf.NormalizedGradient(), "
        "which needs none"
    ),
}


@dataclass(frozen=True)
class Status:
    """Why a fit ended; as a string, a sentence that says what to do.

    Parameters
    ----------
    code : {"converged", "max_rounds", "early_stopped", "stopped", "dropped", \
"folded_in", "interrupted", "diverged"}
    round : int
        The round in which it ended.
    tol : float
        The tolerance that was met, if it was.
    patience : int
        The checks without a lower error after which it would have stopped early.
    factors_of : int, optional
        The round whose factors were kept: the best on the held-out entries, if there
        are any. Default: the last one.
    """

    code: Code
    round: int
    tol: float = 0.0
    patience: int = 0
    factors_of: int | None = None

    @property
    def converged(self) -> bool:
        return self.code == "converged"

    def __str__(self) -> str:
        sentence = _SENTENCES[self.code].format(**asdict(self))
        if self.factors_of not in (None, self.round):
            sentence += (
                f"; the factors are those of round {self.factors_of}, the best on the "
                "held-out entries"
            )
        return sentence


@dataclass(frozen=True)
class Certificate:
    """How stationary the factors are: measured anew, at the end.

    At a stationary point the proximal gradients w − prox(w − ∂E/∂w) vanish; without
    `Lasso` and `NonNegative` they are the gradients themselves.

    Parameters
    ----------
    objective : float
        E(W, H), computed from the data once more and not carried along.
    gradient_norm_W, gradient_norm_H : float
        The Frobenius norms of the proximal gradients.
    start_W, start_H : float
        The same in the first round: for W at the start, for H after W's first move.
    """

    objective: float
    gradient_norm_W: float
    gradient_norm_H: float
    start_W: float
    start_H: float

    @property
    def relative_W(self) -> float:
        """‖∇_W‖ relative to the start: 0 where W is stationary."""
        return self.gradient_norm_W / self.start_W if self.start_W > 0 else 0.0

    @property
    def relative_H(self) -> float:
        """‖∇_H‖ relative to the start: 0 where H is stationary."""
        return self.gradient_norm_H / self.start_H if self.start_H > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"objective {self.objective:.6g}; gradient of W {self.relative_W:.2g} and "
            f"of H {self.relative_H:.2g} of what they were at the start"
        )
