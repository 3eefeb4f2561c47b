"""What a fit returns: the factors, how it went, and why it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dmf.history import History
from dmf.status import Certificate, Status

if TYPE_CHECKING:
    from distributed import Client

    from dmf._predict import Score
    from dmf.labels import Labels
    from dmf.penalties import Penalty, Ridge
    from dmf.solvers import Solver

Array = Any


@dataclass(frozen=True, eq=False)  # arrays don't compare to one bool
class Factorization:
    """X ≈ μ + b + c + W H on the observed entries.

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
    penalty : (Penalty, Penalty)
        The penalties on W and on H, as they were used.
    solver : Solver
    seed : int
    objectives : tuple of float
        The final objective of each restart; the best one's factors are kept.
    offsets : {"none", "global", "rows", "columns", "both"}
        Which offsets there are.
    offset : float
        μ; 0 without offsets.
    row_offsets : array, shape (m,), or None
        b; None if rows have none. 0 for rows without observed entries.
    column_offsets : array, shape (n,), or None
        c, likewise.
    offset_penalty : Ridge or None
        The penalty on the offsets, as it was used.
    unobserved_weight : float
        α: the weight with which unobserved entries counted as zeros.
    certificate : Certificate or None
        How stationary the factors are. None if the fit was interrupted or diverged.
    labels : Labels or None
        What the rows and columns of X are called, if X said so: ``row_positions(ids)``
        and ``column_positions(ids)`` find them, ``wrap_W(W)`` and ``wrap_H(H)`` write
        them beside the factors.

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
    offsets: str = "none"
    offset: float = 0.0
    row_offsets: Array | None = None
    column_offsets: Array | None = None
    offset_penalty: Ridge | None = None
    unobserved_weight: float = 0.0
    certificate: Certificate | None = None
    labels: Labels | None = None

    @property
    def rank(self) -> int:
        return int(self.W.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of X."""
        return int(self.W.shape[0]), int(self.H.shape[1])

    @property
    def validation_rmse(self) -> float:
        """The RMSE of these factors on the held-out entries; NaN if there are none."""
        if not len(self.history):
            return math.nan
        kept = self.status.factors_of or len(self.history)
        return self.history[kept - 1].validation_rmse

    @property
    def objective(self) -> float:
        """The objective of these factors."""
        kept = self.status.factors_of
        kept = len(self.history) if kept is None else kept
        if not kept:
            return self.history.initial_objective
        return self.history[kept - 1].objective

    def predict(self, rows: Array, columns: Array) -> Array:
        """Return μ + b + c + W H for pairs of a row and a column.

        Of Dask factors only the rows and columns asked for are computed, some pairs at
        a time.

        Parameters
        ----------
        rows, columns : int, or arrays of int
            Positions, counted from 0; or ids, if X had labels that aren't integers.
            Their shapes are broadcast against each other: ``predict(rows[:, None],
            columns)`` is a part of the matrix.

        Returns
        -------
        NumPy array, of the broadcast shape
            In the dtype of the factors. A row (or column) that had no observed entry is
            predicted from the offsets alone, or as 0 without offsets.

        Raises
        ------
        ValueError
            A position is negative or beyond the matrix; the shapes don't broadcast.
        TypeError
            Positions aren't integers.

        Examples
        --------
        >>> import numpy as np, dmf
        >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
        >>> X[3, 1] = np.nan
        >>> fit = dmf.factorize(X, rank=1, penalty=None)
        >>> fit.predict([0, 3], [0, 1]).round(4).tolist()
        [1.0, 8.0]
        """
        from dmf._predict import predict

        return predict(self, rows, columns)

    def reconstruct(self) -> Array:
        """Return μ + b + c + W H as a lazy Dask array.

        Nothing is computed before you ask; slices compute what they need and no more.

        Returns
        -------
        Dask array, shape (m, n)
            Its chunks are those of Dask factors, cut where a block would be larger than
            128 MiB; else about 32 MiB each. In the dtype of the factors.

        Examples
        --------
        >>> import numpy as np, dmf
        >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
        >>> lazy = dmf.factorize(X, rank=1, penalty=None).reconstruct()
        >>> lazy.shape, lazy[3].compute().round(4).tolist()
        ((4, 3), [4.0, 8.0, 4.0])
        """
        from dmf._predict import reconstruct

        return reconstruct(self)

    def recommend(
        self, rows: Array, n: int, exclude: Array | None = None
    ) -> tuple[Array, Array]:
        """Return, for each of some rows, the n columns with the largest predictions.

        The predictions are made tile by tile; there is never more than a tile of them
        (and, of a Dask `exclude`, a few chunks).

        Parameters
        ----------
        rows : array of int, shape (k,)
            Positions, counted from 0; or ids, if X had labels that aren't integers.
        n : int
        exclude : array, shape (m, n), optional
            Entries that shall not be recommended: those that a scipy.sparse matrix
            stores (stored zeros too), those that aren't NaN in an array of floats, or
            those where an array of bools is True; so the X that was fitted excludes
            what is known. Of a Dask array of either, only the chunks with the given
            rows are computed.

        Returns
        -------
        columns : NumPy array of int64, shape (k, n)
            The best first. Of equal predictions, the smaller column comes first. Where
            fewer than n columns are left, the last ones are -1.
        scores : NumPy array, shape (k, n)
            Their predictions; NaN where the column is -1. Columns predicted as NaN or
            −∞ are never recommended.

        Raises
        ------
        ValueError
            A row is negative or beyond the matrix; `exclude` has another shape; n < 1.
        TypeError
            Positions or n aren't integers; `exclude` is a dense array of integers.

        Examples
        --------
        >>> import numpy as np, dmf
        >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0])
        >>> X[0, 2] = X[1, 1:] = np.nan
        >>> fit = dmf.factorize(X, rank=1, penalty=None)
        >>> columns, scores = fit.recommend([0, 1], 2, exclude=X)
        >>> columns.tolist(), scores.round(4).tolist()
        ([[2, -1], [1, 2]], [[2.0, nan], [6.0, 4.0]])
        """
        from dmf._predict import recommend

        return recommend(self, rows, n, exclude)

    def score(
        self, X: Array, mask: Array | None = None, client: Client | None = None
    ) -> Score:
        """Return the errors of the predictions on the observed entries of a matrix.

        It is read block by block, where the tasks run, and stays sparse if it is.

        Parameters
        ----------
        X : array, shape (m, n)
            As in `factorize`: NaN, the mask, or not being stored (sparse) mean missing.
            Of held-out entries, for example.
        mask : array, shape (m, n), optional
            As in `factorize`; bool, or weights ≥ 0.
        client : distributed.Client, optional
            As in `factorize`.

        Returns
        -------
        Score
            The named numbers ``rmse``, ``mae``, ``r2`` and ``entries``.

        Raises
        ------
        ValueError
            The shapes don't agree; X has no observed entry, or an infinite one; bad
            weights.
        TypeError
            X isn't a real matrix.

        Examples
        --------
        >>> import numpy as np, dmf
        >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
        >>> fit = dmf.factorize(X, rank=1, penalty=None)
        >>> found = fit.score(X + 1)
        >>> round(found.rmse, 4), round(found.mae, 4), found.entries
        (1.0, 1.0, 12)
        """
        from dmf._predict import score

        return score(self, X, mask, client)

    def fold_in(
        self,
        *,
        rows: Array | None = None,
        columns: Array | None = None,
        mask: Array | None = None,
        client: Client | None = None,
    ) -> Factorization:
        """Return the model of new rows (or columns) against the fitted H (or W).

        Each new row gets the exact minimiser of the objective, its offset with it; H, μ
        and the offsets of the columns stay as they are.

        Parameters
        ----------
        rows : array, shape (p, n), optional
            New rows of X; missing as in `factorize`.
        columns : array, shape (m, q), optional
            Or new columns.
        mask : array, of the same shape, optional
        client : distributed.Client, optional
            As in `factorize`.

        Returns
        -------
        Factorization
            Of the new rows alone, shape (p, n): its `W` are their factors, and
            `impute` fills them. Rows without observed entries have factors of 0.

        Raises
        ------
        ValueError
            The shapes don't fit; `Smooth` ties the rows to their neighbours.
        TypeError
            Not exactly one of `rows` and `columns` is given.

        Examples
        --------
        >>> import numpy as np, dmf
        >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
        >>> fit = dmf.factorize(X, rank=1, penalty=None)
        >>> new = fit.fold_in(rows=np.array([[5.0, np.nan, 5.0]]))
        >>> bool(abs((new.W @ new.H)[0, 1] - 10.0) < 1e-6)
        True
        """
        from dmf._fold import fold_in

        return fold_in(self, rows=rows, columns=columns, mask=mask, client=client)

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
