"""People's containers: data frames, labelled arrays and tables of triplets.

What has labels is taken apart before a fit, into a plain matrix and its `Labels`, and
results are put together again with them. Nothing below the public functions sees them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmf.engine.kinds import is_dask
from dmf.labels import ArrayLabels, Index, Labels, shown

Array = Any


@dataclass(frozen=True, eq=False)
class Triplets:
    """A sparse matrix with the ids of its rows and columns: see `from_triplets`.

    Parameters
    ----------
    X : scipy.sparse.csr_array, or Dask array of them in chunks of rows, shape (m, n)
        What isn't stored is missing.
    mask : array like X, or None
        The weights, at the same places.
    rows : pandas.Index, length m
    columns : pandas.Index, length n
    """

    X: Array
    mask: Array | None
    rows: Index
    columns: Index

    @property
    def labels(self) -> Labels:
        """The ids, to find their positions and to label results with."""
        return Labels(self.rows, self.columns, {})

    def __repr__(self) -> str:
        stored = "lazy" if is_dask(self.X) else f"{self.X.nnz} entries"
        weighted = "" if self.mask is None else ", weighted"
        return f"Triplets({len(self.rows)} × {len(self.columns)}, {stored}{weighted})"


class TableLabels(Labels):
    """The labels of a `Table`: what is lazy comes back as one."""

    def wrap_matrix(self, array: Array) -> Any:
        """Return a matrix of shape (m, n) as a `Table`, or as a frame if in memory."""
        return Table(array, self) if is_dask(array) else super().wrap_matrix(array)

    def part(self, start: int, stop: int) -> Labels:
        """Return the labels of some rows."""
        return Labels(self.rows[start:stop], self.columns, self.dtypes)


@dataclass(frozen=True, eq=False)
class Table:
    """A data frame whose numbers aren't in memory, such as a file in parts.

    Parameters
    ----------
    X : Dask array, shape (m, n)
        Missing is NaN.
    labels : TableLabels
    """

    X: Array
    labels: TableLabels

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows and columns there are."""
        m, n = self.X.shape
        return int(m), int(n)


def unwrap(X: Any, name: str = "X") -> tuple[Any, Labels | None]:
    """Take a container apart: into its matrix, and the labels of that.

    Parameters
    ----------
    X : pandas.DataFrame, Table, 2-D xarray.DataArray, or anything else
        Missing is NaN, pandas.NA or None.
    name : str
        What messages call it.

    Returns
    -------
    array : array, shape (m, n)
        Of a data frame: NumPy, bool if all of its columns are, of the widest float if
        all are floats, else float64. Of a DataArray or Table: its data, lazy if they
        are.
        Anything else: X itself, whether or not it's a matrix.
    labels : Labels or None
        None if X has no labels.

    Raises
    ------
    TypeError
        A column of a data frame doesn't hold numbers.
    ValueError
        A DataArray isn't 2-D; sparse columns don't say what is missing.
    """
    if is_from("pandas", "DataFrame", X):
        return frame_numbers(X, name), Labels(X.index, X.columns, float_dtypes(X))
    if isinstance(X, Table):
        return X.X, X.labels
    if is_from("xarray", "DataArray", X):
        return X.data, _array_labels(X, name)
    return X, None


def unwrap_like(other: Any, labels: Labels | None, name: str = "mask") -> Any:
    """Return the matrix of what is given beside X, such as a mask.

    If it has labels, they must be those of X, `labels`, in the same order.
    """
    known = isinstance(other, Triplets)
    array, its = (other.X, other.labels) if known else unwrap(other, name)
    difference = labels.difference(its) if labels is not None and its else None
    if difference is not None:
        msg = (
            f"the labels of {name} aren't those of X: {difference}; align them first, "
            f"for example with {name}.reindex_like(X)"
        )
        raise ValueError(msg)
    return array


def check_same_labels(
    labels: Labels | None, fitted: Labels | None, axes: tuple[int, ...] = (0, 1)
) -> None:
    """Refuse an X whose labels aren't those of the X that was factorized.

    Without labels, on either side, X goes by position.
    """
    if labels is None or fitted is None:
        return
    difference = fitted.difference(labels, axes)
    if difference is not None:
        msg = (
            f"the labels of X aren't those that were factorized: {difference}; put its "
            "rows and columns into that order with X.reindex, or factorize this X"
        )
        raise ValueError(msg)


def unwrap_pair(X: Any, mask: Any | None) -> tuple[Any, Any | None, Labels | None]:
    """Take X, which may be `Triplets`, and its mask apart; return the labels too."""
    if not isinstance(X, Triplets):
        array, labels = unwrap(X)
        return array, unwrap_like(mask, labels), labels
    if mask is None:
        return X.X, X.mask, X.labels
    if X.mask is not None:
        msg = (
            "the triplets have weights of their own, and mask= gives others; leave out "
            "mask=, or weight= in from_triplets"
        )
        raise ValueError(msg)
    return X.X, unwrap_like(mask, X.labels), X.labels


def check_continues(labels: Labels | None, fitted: Labels | None, name: str) -> None:
    """Refuse labels that don't begin with those of the fit that is gone on from."""
    if labels is None or fitted is None:
        return
    difference = fitted.difference(labels, first=True)
    if difference is not None:
        msg = (
            f"the labels of {name} don't go on from those that were factorized: "
            f"{difference}; put what is known first, in its order, with X.reindex"
        )
        raise ValueError(msg)


def is_from(library: str, kind: str, X: Any) -> bool:
    """Return whether X is a library's container, without importing the library."""
    # Whoever has one of its containers has imported the library.
    module = sys.modules.get(library)
    return module is not None and isinstance(X, getattr(module, kind))


def _array_labels(X: Any, name: str) -> ArrayLabels:
    if X.ndim != 2:
        msg = (
            f"{name} must have two dimensions, got {X.dims}; stack some of them first, "
            f"for example with {name}.stack(column=[…])"
        )
        raise ValueError(msg)
    rows, columns = (X.get_index(dim) for dim in X.dims)
    frame = X.coords.to_dataset().assign_attrs(X.attrs)
    return ArrayLabels(rows, columns, {}, X.dims, X.name, frame)


def frame_numbers(frame: Any, name: str) -> Array:
    """Return a data frame as an array of bools or floats."""
    for j, dtype in enumerate(frame.dtypes):
        _check_column(frame, j, dtype, name)
    dtypes = [plain_dtype(dtype) for dtype in frame.dtypes]
    target = frame_dtype(frame.dtypes)
    if {dtype.kind for dtype in dtypes} == {"b"} and not frame.isna().any(axis=None):
        target = np.dtype(np.bool)
    if all(dtype is own for dtype, own in zip(dtypes, frame.dtypes, strict=True)):
        # pandas keeps columns together, but blocks are walked row by row.
        return np.ascontiguousarray(frame.to_numpy(dtype=target))
    result = np.empty(frame.shape, dtype=target)
    for j in range(frame.shape[1]):
        result[:, j] = frame.iloc[:, j].to_numpy(dtype=target, na_value=np.nan)
    return result


def frame_dtype(dtypes: Any) -> np.dtype[Any]:
    """Return the dtype that holds all columns: the widest float, or float64."""
    plain = [plain_dtype(dtype) for dtype in dtypes]
    floats = {dtype.kind for dtype in plain} == {"f"}
    return np.result_type(*plain) if floats else np.dtype(np.float64)


def _check_column(frame: Any, j: int, dtype: Any, name: str) -> None:
    """Refuse a column whose numbers, or missing entries, aren't clear."""
    import pandas as pd

    column = shown(frame.columns, j)
    if isinstance(dtype, pd.SparseDtype) and not pd.isna(dtype.fill_value):
        msg = (
            f"column {column} of {name} is sparse, with {dtype.fill_value!r} where "
            f"nothing is stored; pass {name}.sparse.to_dense() if that was observed, "
            f"or scipy.sparse.csr_array({name}.sparse.to_coo()) if it is missing"
        )
        raise ValueError(msg)
    found = not_numbers(frame.iloc[:, j])
    if found is not None:
        msg = (
            f"column {column} of {name} holds {found}, not numbers; drop it with "
            f"{name}.drop(columns={column}), or convert it, for example with "
            "pandas.to_numeric; a table with one observation a line goes through "
            "dmf.from_triplets"
        )
        raise TypeError(msg)


NUMBERS = {"boolean", "decimal", "empty", "floating", "integer", "mixed-integer-float"}


def not_numbers(column: Any) -> str | None:
    """Return what a pandas.Series holds, or None if that is real numbers."""
    from pandas.api.types import infer_dtype

    if column.dtype != np.dtype(object):
        return None if column.dtype.kind in "biuf" else str(column.dtype)
    kind = infer_dtype(column, skipna=True)
    return None if kind in NUMBERS else f"objects ({kind})"


def plain_dtype(dtype: Any) -> np.dtype[Any]:
    """Return NumPy's dtype for the numbers in a column of any dtype of pandas.

    float64 for Python's own numbers, and for what holds none.
    """
    if dtype.kind not in "biuf":
        return np.dtype(np.float64)
    if isinstance(dtype, np.dtype):
        return dtype
    # Of nullable and Arrow dtypes, or of sparse ones.
    masked = hasattr(dtype, "numpy_dtype")
    plain: np.dtype[Any] = dtype.numpy_dtype if masked else dtype.subtype
    return plain


def float_dtypes(frame: Any) -> dict[int, Any]:
    """Return the dtypes of the columns that can hold any number, by position."""
    import pandas as pd

    return {
        # A filled column has nothing left to be sparse about.
        j: dtype.subtype if isinstance(dtype, pd.SparseDtype) else dtype
        for j, dtype in enumerate(frame.dtypes)
        if dtype.kind == "f"
    }
