"""MatrixFactorizationImputer: fill tables, as scikit-learn's imputers do."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils.validation import check_is_fitted, validate_data

from dmf._factorize import OnePenalty, factorize
from dmf._impute import impute
from dmf._settings import check_penalty
from dmf.engine.kinds import is_dask
from dmf.penalties import Penalty, Ridge
from dmf.validation import check_bool, check_integer

Array = Any


# OneToOneFeatureMixin is the public way to the checked names of the input.
class MatrixFactorizationImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill what is missing in a table by masked matrix factorization.

    Rows are samples, columns are features. `fit` learns the columns' factors H from the
    training rows; `transform` gives each row its exact factors against them and fills
    it with their product. Observed entries stay as they are, bit by bit.

    Parameters
    ----------
    rank : int, default 10
        The number of components. What exceeds the rows or the columns of a table is of
        no use, so that it is cut there, as `KNNImputer` cuts its number of neighbours;
        `rank_` says what was used.
    missing_values : NaN, None, pandas.NA or a number, default NaN
        What stands for missing. NaN, None and pandas.NA mean the same, and any of them
        may be in X. With a number (0 or -1, say), X may hold none of them.
    standardize : bool, default True
        Fit columns of mean 0 and standard deviation 1 (over the observed entries), and
        go back afterwards: what is filled then doesn't depend on the columns' units,
        and penalties are in units of a standard deviation. A column whose observed
        entries are all equal is then filled with that number and tells nothing about
        the others. False for columns of one unit, such as ratings, and for
        `NonNegative`.
    offsets : {"none", "global", "rows", "columns", "both"}, default "both"
        As in `factorize`; around the columns' means, if `standardize`.
    penalty, offset_penalty, restarts, max_rounds, tol, seed
        As in `factorize`.
    add_indicator : bool, default False
        Append the columns of `sklearn.impute.MissingIndicator`: one for each feature
        with something missing in `fit`, 1 where it is missing.
    keep_empty_features : bool, default False
        What to do with features of which nothing is observed in `fit`: drop them, or
        (True) keep them and fill them with 0.

    Attributes
    ----------
    factorization_ : Factorization or None
        The fit of the standardized columns that aren't empty (or constant, if
        `standardize`): history, status, penalties. None if there is no such column.
    rank_ : int
        The number of components used; 0 if nothing was fitted.
    n_iter_ : int
        The number of rounds; 0 if nothing was fitted.
    mean_, scale_ : array, shape (n_features,)
        What was taken off the columns, and what they were divided by: 0 and 1 without
        `standardize`. A scale of 0: the column isn't in the fit, and filled with its
        mean (empty ones: 0).
    indicator_ : sklearn.impute.MissingIndicator or None
        None without `add_indicator`.
    n_features_in_ : int
        The number of columns of X.
    feature_names_in_ : array of str, shape (n_features_in_,)
        Their names, if X had any.

    See Also
    --------
    factorize, impute : what this class calls; for sparse matrices and Dask arrays too.
    MatrixFactorization : the factors of rows, instead of their missing entries.

    Notes
    -----
    A row without a single observed entry is filled with the level of each column: its
    mean and the offset that was learned.

    Examples
    --------
    >>> import numpy as np
    >>> from dmf import MatrixFactorizationImputer
    >>> height, weight = np.array([150.0, 160, 170, 180, 190]), np.arange(50.0, 91, 10)
    >>> X = np.column_stack([height, weight, height / 2.54])
    >>> X[1, 2] = np.nan
    >>> filled = MatrixFactorizationImputer(rank=1).fit_transform(X)
    >>> bool(abs(filled[1, 2] - 160 / 2.54) < 2)
    True
    """

    def __init__(
        self,
        rank: int = 10,
        *,
        missing_values: Any = np.nan,
        standardize: bool = True,
        offsets: str = "both",
        penalty: OnePenalty | tuple[OnePenalty, OnePenalty] = "auto",
        offset_penalty: Ridge | str | None = "auto",
        restarts: int = 1,
        max_rounds: int = 200,
        tol: float = 1e-4,
        seed: int = 0,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
    ) -> None:
        self.rank = rank
        self.missing_values = missing_values
        self.standardize = standardize
        self.offsets = offsets
        self.penalty = penalty
        self.offset_penalty = offset_penalty
        self.restarts = restarts
        self.max_rounds = max_rounds
        self.tol = tol
        self.seed = seed
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features

    def fit(self, X: Array, y: None = None) -> Self:
        """Learn the columns from training rows.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            A NumPy array, a data frame of numbers, or lists; what is missing is
            `missing_values`.
        y : ignored

        Raises
        ------
        ValueError
            X isn't a table of finite numbers; a parameter is out of its range.
        TypeError
            X is sparse, masked or a Dask array; a parameter is of the wrong type.
        """
        rank = check_integer("rank", self.rank, at_least=1)
        check_bool("standardize", self.standardize)
        check_bool("add_indicator", self.add_indicator)
        check_bool("keep_empty_features", self.keep_empty_features)
        _check_rows_apart(self.penalty)
        X = self._checked(X, reset=True)
        self.indicator_ = None
        if self.add_indicator:
            # Features may miss something for the first time in `transform`.
            self.indicator_ = MissingIndicator(error_on_new=False).fit(X)
        self._empty = np.isnan(X).all(axis=0)
        self.mean_, self.scale_ = self._levels(X)
        self.factorization_ = None
        self.rank_ = self.n_iter_ = 0
        fitted = self._fitted()
        if len(fitted):
            Z = self._standardized(X[:, fitted], fitted)
            self.rank_ = min(rank, *Z.shape)
            self.factorization_ = factorize(
                Z,
                self.rank_,
                offsets=self.offsets,
                penalty=self.penalty,
                offset_penalty=self.offset_penalty,
                restarts=self.restarts,
                max_rounds=self.max_rounds,
                tol=self.tol,
                seed=self.seed,
                progress=False,
            )
            self.n_iter_ = len(self.factorization_.history)
        return self

    def transform(self, X: Array) -> Array:
        """Return rows with everything missing filled in.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            The rows that were fitted, or new ones; missing as in `fit`.

        Returns
        -------
        array, shape (n_samples, n_features_out)
            Without NaN, and a copy: X stays as it is. float32 for float32, else
            float64; a data frame after ``set_output(transform="pandas")``.
        """
        check_is_fitted(self, "factorization_")
        X = self._checked(X, reset=False)
        missing = np.isnan(X)
        filled = np.where(missing, self.mean_.astype(X.dtype), X)
        fitted = self._fitted()
        rows = np.flatnonzero(missing[:, fitted].any(axis=1))
        if self.factorization_ is not None and len(rows):
            part = np.ix_(rows, fitted)
            Z = self._standardized(X[part], fitted)
            Z = impute(Z, self.factorization_.fold_in(rows=Z))
            guess = self.mean_[fitted] + self.scale_[fitted] * Z
            filled[part] = np.where(missing[part], guess, X[part])
        if not self.keep_empty_features:
            filled = filled[:, ~self._empty]
        if self.indicator_ is None:
            return filled
        return np.hstack([filled, self.indicator_.transform(X)])

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the columns that `transform` returns.

        Parameters
        ----------
        input_features : sequence of str, optional
            Names of the features of X; default: those of `fit`, or x0, x1, ...

        Returns
        -------
        array of str, shape (n_features_out,)
        """
        check_is_fitted(self, "factorization_")
        given = super().get_feature_names_out(input_features)
        names = given if self.keep_empty_features else given[~self._empty]
        if self.indicator_ is None:
            return names
        flags = self.indicator_.get_feature_names_out(given)
        return np.concatenate([names, flags])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = _is_nan(self.missing_values)
        # What is observed doesn't change.
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _levels(self, X: Array) -> tuple[Array, Array]:
        """Return the mean and the scale of each column, shape (n_features,) both."""
        mean, scale = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        if not self.standardize:
            return mean, np.where(self._empty, 0.0, 1.0)
        X = X[:, ~self._empty]
        # Squares of very large or small numbers don't exist; those of shares do. And
        # the shares of a constant column are ±1: no rounding, a deviation of 0.
        unit = np.nanmax(np.abs(X), axis=0).astype(float)
        shares = X / np.where(unit > 0, unit, 1.0)
        mean[~self._empty] = unit * np.nanmean(shares, axis=0)
        scale[~self._empty] = unit * np.nanstd(shares, axis=0)
        return mean, scale

    def _fitted(self) -> Array:
        """Return which columns the factorization is of."""
        return np.flatnonzero(self.scale_)

    def _standardized(self, X: Array, columns: Array) -> Array:
        Z = (X - self.mean_[columns]) / self.scale_[columns]
        # By rows, as most arrays are: the bits of a fit depend on the order in memory.
        return Z.astype(X.dtype, order="C", copy=False)

    def _checked(self, X: Array, *, reset: bool) -> Array:
        """Return X as floats, with NaN for what is missing; refuse what isn't a table.

        The result may be X itself: don't write into it.
        """
        missing_values = _check_missing_values(self.missing_values)
        _check_container(X)
        X = validate_data(
            self,
            _without_na(X),
            reset=reset,
            accept_sparse=False,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
        )
        if missing_values is None:
            return X
        if np.isnan(X).any():
            row, column = np.argwhere(np.isnan(X))[0]
            msg = (
                f"X contains NaN in row {row}, column {column}, but missing_values is "
                f"{missing_values:g}; replace NaN by it, or leave missing_values out"
            )
            raise ValueError(msg)
        return np.where(missing_values == X, np.nan, X)


def _is_nan(value: Any) -> bool:
    """Return whether a value is None, pandas.NA or NaN."""
    # pandas.NA by its name: pandas needn't be there.
    if value is None or type(value).__name__ == "NAType":
        return True
    return isinstance(value, numbers.Real) and math.isnan(value)


def _check_missing_values(value: Any) -> float | None:
    """Return the number that stands for missing, None for NaN; refuse the rest."""
    if _is_nan(value):
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or math.isinf(value)
    ):
        msg = (
            "missing_values must be NaN, None, pandas.NA or a finite number, got "
            f"{value!r}"
        )
        raise ValueError(msg)
    return float(value)


def _check_rows_apart(penalty: Any) -> None:
    """Refuse a penalty that new rows can't be filled with, before the fit."""
    on_rows, _ = check_penalty(penalty)
    if isinstance(on_rows, Penalty) and on_rows.smooth:
        msg = (
            "an imputer fills rows one by one, but Smooth on W ties them to their "
            "neighbours; give a pair with Smooth on H alone, or use dmf.factorize and "
            "dmf.impute"
        )
        raise ValueError(msg)


def _check_container(X: Any) -> None:
    """Refuse what scikit-learn would refuse without a way out, or get wrong."""
    if issparse(X):
        msg = (
            "X is a sparse matrix, whose unstored entries an imputer would have to "
            "take for zeros; give it to dmf.factorize and dmf.impute, for which they "
            "are missing"
        )
        raise TypeError(msg)
    if is_dask(X):
        msg = (
            "X is a Dask array, but an imputer works in memory; give it to "
            "dmf.factorize and dmf.impute, which work block by block, or pass "
            "X.compute()"
        )
        raise TypeError(msg)
    if isinstance(X, np.ma.MaskedArray):
        msg = (
            "X is a masked array, whose mask scikit-learn would drop; pass "
            "X.astype(float).filled(numpy.nan)"
        )
        raise TypeError(msg)


def _without_na(X: Any) -> Any:
    """Return X with NaN for pandas.NA, which NumPy can't convert, among objects."""
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return X
    if isinstance(X, pandas.DataFrame) and any(t.kind == "O" for t in X.dtypes):
        values = np.where(X.isna(), np.nan, X.to_numpy(dtype=object))
        return pandas.DataFrame(values, index=X.index, columns=X.columns)
    if isinstance(X, np.ndarray) and X.dtype == object:
        return np.where(pandas.isna(X), np.nan, X)
    return X
