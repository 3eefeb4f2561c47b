"""What a fit returns: the factors, how it went, and why it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmf.penalties import Penalty
    from dmf.solvers import Solver
    from dmf.solvers.base import Report

Array = Any


@dataclass(frozen=True)
class Record:
    """One round of a fit.

    Parameters
    ----------
    round : int
        1 for the first.
    objective : float
        E(W, H) after the round: half the weighted squares of the residual, plus the
        penalties.
    rmse : float
        Root mean square of the residual on the observed entries after the round,
        weighted if the mask has weights; in units of X.
    gradient_norm_W, gradient_norm_H : float
        ‖∂E/∂W‖ and ‖∂E/∂H‖ (Frobenius), each as its half-step has met it: for W before
        the round, for H after W has moved.
    step_W, step_H : float
        ‖ΔW‖ / ‖W‖ and ‖ΔH‖ / ‖H‖: how far the round has moved each factor.
    plane_W, plane_H : float
        The share of the rows of W (columns of H) that moved in the plane of two
        directions; the others moved along their gradient. 0 for other solvers.
    seconds : float
        Since the fit's first round began.
    """

    round: int
    objective: float
    rmse: float
    gradient_norm_W: float
    gradient_norm_H: float
    step_W: float
    step_H: float
    plane_W: float
    plane_H: float
    seconds: float

    @classmethod
    def of_round(
        cls, round: int, W: Report, H: Report, weight: float, seconds: float
    ) -> Record:
        """Return the record of a round from the reports of its half-steps.

        `weight` is the sum of the weights of the observed entries.
        """
        loss = max(H.loss, 0.0)  # rounding may take a loss of nothing below 0
        return cls(
            round=round,
            objective=loss + W.penalty + H.penalty,
            rmse=math.sqrt(2 * loss / weight),
            gradient_norm_W=math.sqrt(W.gradient),
            gradient_norm_H=math.sqrt(H.gradient),
            step_W=_share(W.move, W.factor),
            step_H=_share(H.move, H.factor),
            plane_W=W.in_plane / W.rows,
            plane_H=H.in_plane / H.rows,
            seconds=seconds,
        )


def _share(move: float, factor: float) -> float:
    return math.sqrt(move / factor) if factor > 0 else 0.0


class History(Sequence[Record]):
    """The records of a fit, one a round, and their columns as arrays.

    ``history[-1].rmse`` is the last round's, ``history.rmse`` all of them, as an array
    of shape (rounds,). The columns are the fields of `Record`.

    Parameters
    ----------
    records : iterable of Record
    initial_objective : float
        The objective of the start.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> fit = dmf.factorize(np.eye(4), rank=2, max_rounds=3, tol=0)
    >>> len(fit.history), fit.history[0].round, fit.history.objective.shape
    (3, 1, (3,))
    """

    def __init__(
        self, records: Sequence[Record], initial_objective: float = float("nan")
    ) -> None:
        self._records = tuple(records)
        self.initial_objective = initial_objective

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __getattr__(self, name: str) -> NDArray[np.float64]:
        if name not in COLUMNS:
            msg = f"History has no column {name!r}; it has {', '.join(COLUMNS)}"
            raise AttributeError(msg)
        return np.array([getattr(record, name) for record in self._records])

    def __repr__(self) -> str:
        if not self._records:
            return "History(0 rounds)"
        last = self._records[-1]
        return (
            f"History({len(self)} rounds, objective {self.initial_objective:.6g} -> "
            f"{last.objective:.6g}, rmse {last.rmse:.6g})"
        )

    def to_dict(self) -> dict[str, list[float]]:
        """Return the columns as lists, for JSON or a data frame."""
        rows = [asdict(record) for record in self._records]
        return {name: [row[name] for row in rows] for name in COLUMNS}

    @classmethod
    def from_dict(
        cls, columns: dict[str, list[Any]], initial_objective: float
    ) -> History:
        """The inverse of `to_dict`."""
        rows = zip(*(columns[name] for name in COLUMNS), strict=True)
        records = [Record(**dict(zip(COLUMNS, row, strict=True))) for row in rows]
        return cls(records, initial_objective)


COLUMNS = tuple(f.name for f in fields(Record))

Code = Literal["converged", "max_rounds", "stopped", "interrupted", "diverged"]

_SENTENCES: dict[str, str] = {
    "converged": (
        "converged in round {round}: the objective changed by less than tol={tol:g} of "
        "itself; a smaller tol goes on"
    ),
    "max_rounds": (
        "stopped after max_rounds={round} rounds, not yet converged; raise max_rounds, "
        "or tol, if the history shows that the objective still falls"
    ),
    "stopped": "stopped by a callback after round {round}",
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
    code : {"converged", "max_rounds", "stopped", "interrupted", "diverged"}
    round : int
        The round in which it ended.
    tol : float
        The tolerance that was met, if it was.
    """

    code: Code
    round: int
    tol: float = 0.0

    @property
    def converged(self) -> bool:
        return self.code == "converged"

    def __str__(self) -> str:
        return _SENTENCES[self.code].format(round=self.round, tol=self.tol)


@dataclass(frozen=True, eq=False)  # arrays don't compare to one bool
class Factorization:
    """X ≈ W H on the observed entries.

    Parameters
    ----------
    W : array, shape (m, rank)
    H : array, shape (rank, n)
        Dask arrays if X was one, else NumPy; float32 if X was, else float64. Rows of W
        and columns of H without a single observed entry are 0.
    history : History
        One record a round.
    status : Status
        Why the fit ended.
    penalty : (Ridge, Ridge)
        The penalties on W and on H, as they were used.
    solver : Solver
    seed : int
    objectives : tuple of float
        The final objective of each restart; the best one's factors are kept.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])
    >>> fit = dmf.factorize(X, rank=1)
    >>> fit.W.shape, fit.H.shape, fit.rank
    ((3, 1), (1, 3), 1)
    """

    W: Array
    H: Array
    history: History
    status: Status
    penalty: tuple[Penalty, Penalty]
    solver: Solver
    seed: int
    objectives: tuple[float, ...] = field(default=())

    @property
    def rank(self) -> int:
        return int(self.W.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of X."""
        return int(self.W.shape[0]), int(self.H.shape[1])

    @property
    def objective(self) -> float:
        """The objective of these factors."""
        if not len(self.history):
            return self.history.initial_objective
        return self.history[-1].objective

    def save(self, url: str, overwrite: bool = False) -> None:
        """Write the model as a Zarr group with JSON attributes.

        Parameters
        ----------
        url : str
            A path, or a URL that fsspec knows.
        overwrite : bool, default False
            Replace a model that is there.

        Raises
        ------
        FileExistsError
            Something is there, and isn't a model or shall not be replaced.
        """
        from dmf.io.model import save

        save(self, url, overwrite)

    def __repr__(self) -> str:
        m, n = self.shape
        return (
            f"Factorization({m} × {n}, rank {self.rank}, {self.history!r}, "
            f"status={self.status.code!r})"
        )
