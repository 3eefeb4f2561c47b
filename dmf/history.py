"""How a fit went: one record a round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from dmf.solvers.base import Report


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
    zeros_W, zeros_H : float
        The share of the factor's entries that are exactly 0.
    validation_rmse, validation_mae : float
        Root mean square and mean absolute error on the held-out entries, in units of X;
        NaN without any, and in rounds between two checks.
    candidate : int
        Which of the restarts, or of the settings of a sweep.
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
    zeros_W: float = 0.0
    zeros_H: float = 0.0
    validation_rmse: float = math.nan
    validation_mae: float = math.nan
    candidate: int = 0

    @classmethod
    def of_round(
        cls,
        round: int,
        W: Report,
        H: Report,
        *,
        weight: float,
        constant: float,
        rank: int,
        seconds: float,
        candidate: int,
    ) -> Record:
        """Return the record of a round from the reports of its half-steps.

        `weight` is the sum of the weights of the entries; `constant` is what the loss
        of the reports lacks.
        """
        # Rounding may take a loss of nothing below 0.
        loss = max(H.loss + constant, 0.0)
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
            zeros_W=W.zeros / (W.rows * rank),
            zeros_H=H.zeros / (H.rows * rank),
            candidate=candidate,
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
        return {name: column.tolist() for name, column in as_columns(self).items()}

    @classmethod
    def from_dict(
        cls, columns: dict[str, list[Any]], initial_objective: float
    ) -> History:
        """The inverse of `to_dict`."""
        return cls(from_columns(columns), initial_objective)


COLUMNS = tuple(f.name for f in fields(Record))
DEFAULTS = {f.name for f in fields(Record) if f.default is not MISSING}


def as_columns(records: Iterable[Record]) -> dict[str, NDArray[Any]]:
    """Return the columns of records as arrays; a long history is small so."""
    rows = map(attrgetter(*COLUMNS), records)
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return {name: np.array(one) for name, one in zip(COLUMNS, columns, strict=True)}


def from_columns(columns: Mapping[str, ArrayLike]) -> list[Record]:
    """The inverse of `as_columns`."""
    # A model of an older version lacks the columns that came later.
    names = [name for name in COLUMNS if name in columns or name not in DEFAULTS]
    rows = zip(*(np.asarray(columns[name]).tolist() for name in names), strict=True)
    return [Record(**dict(zip(names, row, strict=True))) for row in rows]
