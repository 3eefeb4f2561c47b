"""Ensemble: several fits of one matrix, their mean, and how far they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dmf._candidates import Candidate, fit_candidates
from dmf._predict import predict
from dmf._settings import (
    check_compatible,
    check_options,
    check_penalty,
    check_settings,
)
from dmf.containers import unwrap_like, unwrap_pair
from dmf.result import Factorization
from dmf.validation import check_integer, check_matrix, check_rank

Array = Any


class Prediction(NamedTuple):
    """Means and standard deviations over the fits of an ensemble, in units of X."""

    mean: Array
    std: Array


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several fits of one matrix from different starts.

    Their mean predicts better than one fit; where they disagree, the data say little.
    The standard deviation is that of the fits, not of X around them: it leaves out the
    noise of the data.

    Parameters
    ----------
    fits : sequence of Factorization
        Of matrices of the same shape.

    Raises
    ------
    ValueError
        There is no fit, or their shapes differ.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
    >>> X[0, 1] = np.nan
    >>> ensemble = dmf.Ensemble.fit(X, rank=1, restarts=3)
    >>> mean, std = ensemble.predict(0, 1)
    >>> bool(abs(mean - 2.0) < 0.1), bool(std < 0.1)
    (True, True)
    """

    fits: Sequence[Factorization]

    def __post_init__(self) -> None:
        if not isinstance(self.fits, Sequence) or not all(
            isinstance(fit, Factorization) for fit in self.fits
        ):
            msg = f"an ensemble needs a list of dmf.Factorization, got {self.fits!r}"
            raise TypeError(msg)
        object.__setattr__(self, "fits", tuple(self.fits))
        shapes = {fit.shape for fit in self.fits}
        if len(shapes) != 1:
            msg = f"an ensemble needs fits of one shape, got {sorted(shapes)}"
            raise ValueError(msg)

    @classmethod
    def fit(cls, X: Array, rank: int, *, restarts: int = 4, **options: Any) -> Ensemble:
        """Fit a matrix from several random starts, all in one pass over the data.

        Parameters
        ----------
        X : array, shape (m, n)
        rank : int
        restarts : int, default 4
            At least 2.
        **options
            As in `factorize`: mask, offsets, penalty, offset_penalty,
            unobserved_weight, validation, patience, solver, max_rounds, tol,
            check_every, seed, client, callbacks, progress, device, precision.

        Raises
        ------
        ValueError, TypeError
            As in `factorize`.
        """
        X, mask, labels = unwrap_pair(X, options.pop("mask", None))
        if "validation" in options:
            validation = unwrap_like(options["validation"], labels, "validation")
            options["validation"] = validation
        shape = check_matrix("X", X)
        rank = check_rank(rank, shape)
        restarts = check_integer("restarts", restarts, at_least=2)
        pair = check_penalty(options.pop("penalty", "auto"))
        check_options(options, "Ensemble.fit")
        settings = check_settings(X, labels=labels, mask=mask, **options)
        check_compatible(shape, [pair], settings.solver)
        candidates = [Candidate(rank, pair, number) for number in range(restarts)]
        found = fit_candidates(X, candidates, settings)
        objectives = tuple(one.outcome.objective for one in found)
        return cls(
            [
                replace(one.factorization, labels=labels, objectives=objectives)
                for one in found
                if one.factorization is not None
            ]
        )

    def predict(self, rows: Array, columns: Array) -> Prediction:
        """Return the mean and the standard deviation for pairs of row and column.

        Parameters
        ----------
        rows, columns : int or array of int
            Positions, of equal shape or broadcastable.

        Returns
        -------
        Prediction
            ``mean`` and ``std``, NumPy arrays of the broadcast shape.
        """
        each = np.stack([predict(fit, rows, columns) for fit in self.fits])
        return Prediction(each.mean(axis=0), each.std(axis=0))

    def __len__(self) -> int:
        return len(self.fits)
