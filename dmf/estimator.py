"""MatrixFactorization: `factorize` and `impute` as a scikit-learn estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_is_fitted, validate_data

from dmf._factorize import OnePenalty, factorize
from dmf.engine.arrays import concatenated
from dmf.engine.kinds import is_dask, is_there
from dmf.penalties import Ridge
from dmf.solvers import Solver
from dmf.validation import check_mask, check_matrix

if TYPE_CHECKING:
    from distributed import Client

Array = Any


class MatrixFactorization(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Masked matrix factorization, scikit-learn style.

    Rows are samples, columns are features: `transform` returns the factors W of rows,
    `components_` are H.

    Parameters
    ----------
    rank : int, default 10
        The number of components, at most the smaller side of X.
    offsets, penalty, offset_penalty, unobserved_weight, solver, restarts, max_rounds, \
tol, seed, client, progress, device, precision
        As in `factorize`. With offsets of rows, `transform` returns them as one column
        more, after the factors.

    Attributes
    ----------
    components_ : array, shape (rank, n_features)
        H.
    factorization_ : Factorization
        The whole result of the fit: history, status, penalties.
    n_iter_ : int
        The number of rounds.
    n_features_in_ : int
        The number of columns of X.

    See Also
    --------
    factorize, impute : what this class calls.

    Examples
    --------
    >>> import numpy as np
    >>> from dmf import MatrixFactorization
    >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
    >>> X[0, 1] = np.nan
    >>> model = MatrixFactorization(rank=1).fit(X)
    >>> W = model.transform(X)
    >>> W.shape, model.inverse_transform(W).shape
    ((4, 1), (4, 3))
    """

    def __init__(
        self,
        rank: int = 10,
        *,
        offsets: str = "none",
        penalty: OnePenalty | tuple[OnePenalty, OnePenalty] = "auto",
        offset_penalty: Ridge | str | None = "auto",
        unobserved_weight: float = 0.0,
        solver: Solver | None = None,
        restarts: int = 1,
        max_rounds: int = 200,
        tol: float = 1e-4,
        seed: int = 0,
        client: Client | None = None,
        progress: bool | None = False,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.rank = rank
        self.offsets = offsets
        self.penalty = penalty
        self.offset_penalty = offset_penalty
        self.unobserved_weight = unobserved_weight
        self.solver = solver
        self.restarts = restarts
        self.max_rounds = max_rounds
        self.tol = tol
        self.seed = seed
        self.client = client
        self.progress = progress
        self.device = device
        self.precision = precision

    def fit(self, X: Array, y: None = None, *, mask: Array | None = None) -> Self:
        """Factorize X.

        Parameters
        ----------
        X : array-like or sparse, shape (n_samples, n_features)
            NumPy, scipy.sparse, Dask or CuPy; a data frame is taken as an array. NaN,
            or not being stored, means missing.
        y : ignored
        mask : array, shape (n_samples, n_features), optional
            As in `factorize`.

        Raises
        ------
        ValueError, TypeError
            As in `factorize`.
        """
        X = self._checked(X, reset=True)
        self.factorization_ = factorize(
            X,
            self.rank,
            mask=mask,
            offsets=self.offsets,
            penalty=self.penalty,
            offset_penalty=self.offset_penalty,
            unobserved_weight=self.unobserved_weight,
            solver=self.solver,
            restarts=self.restarts,
            max_rounds=self.max_rounds,
            tol=self.tol,
            seed=self.seed,
            client=self.client,
            progress=self.progress,
            device=self.device,
            precision=self.precision,
        )
        self.components_ = self.factorization_.H
        self.n_iter_ = len(self.factorization_.history)
        return self

    def transform(self, X: Array, *, mask: Array | None = None) -> Array:
        """Return the factors of rows, each the exact minimiser against the fitted H.

        Parameters
        ----------
        X : array-like or sparse, shape (n_samples, n_features)
            The rows that were fitted, or new ones; missing as in `fit`.
        mask : array, shape (n_samples, n_features), optional

        Returns
        -------
        array, shape (n_samples, rank) or (n_samples, rank + 1)
            A Dask or CuPy array if X is one, else NumPy. A row without observed entries
            is 0. With offsets of rows, theirs are the last column.
        """
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        if mask is not None:
            check_mask(X, mask)
        new = self.factorization_.fold_in(rows=X, mask=mask, client=self.client)
        if new.row_offsets is None:
            return new.W
        return concatenated([new.W, new.row_offsets[:, None]], 1)

    def fit_transform(
        self, X: Array, y: None = None, *, mask: Array | None = None
    ) -> Array:
        """Fit, and return the factors of the rows: ``fit(X).transform(X)``."""
        return self.fit(X, mask=mask).transform(X, mask=mask)

    def inverse_transform(self, W: Array) -> Array:
        """Return μ + b + c + W H, the approximation of the rows that W belongs to.

        Parameters
        ----------
        W : array, shape (n_samples, rank) or (n_samples, rank + 1)
            What `transform` returns.

        Returns
        -------
        array, shape (n_samples, n_features)
            Predictions for all entries, observed or not; use `impute` to keep what is
            observed.
        """
        check_is_fitted(self)
        fit, width = self.factorization_, self._n_features_out
        if len(W.shape) != 2 or W.shape[1] != width:
            msg = (
                f"W has shape {tuple(W.shape)}, but transform returns {width} columns; "
                "pass what it returns"
            )
            raise ValueError(msg)
        product = W[:, : fit.rank] @ self.components_ + fit.offset
        if fit.row_offsets is not None:
            product = product + W[:, fit.rank :]
        if fit.column_offsets is not None:
            product = product + fit.column_offsets
        return product

    @property
    def _n_features_out(self) -> int:
        has_offset = self.factorization_.row_offsets is not None
        return int(self.components_.shape[0]) + has_offset

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags

    def _checked(self, X: Array, *, reset: bool) -> Array:
        """Check the number (and names) of the features; dmf checks the rest."""
        if isinstance(X, np.ma.MaskedArray):
            check_matrix("X", X)  # scikit-learn would drop the mask without a word
        if not is_dask(X) and not is_there(X):
            return validate_data(
                self,
                X,
                reset=reset,
                accept_sparse=True,
                dtype="numeric",  # objects that are numbers, as scikit-learn takes them
                ensure_all_finite=False,
            )
        rows, columns = check_matrix("X", X)
        if rows == 0:
            msg = "X has no rows; pass at least one"
            raise ValueError(msg)
        if reset:
            self.n_features_in_ = columns
        elif columns != self.n_features_in_:
            msg = (
                f"X has {columns} columns, but the model was fitted on "
                f"{self.n_features_in_}; transform rows of the same columns"
            )
            raise ValueError(msg)
        return X
