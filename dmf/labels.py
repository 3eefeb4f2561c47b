"""What the rows and columns of X are called, for results to be called the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmf.engine.kinds import is_dask

Array = Any
Index = Any  # of pandas

COMPONENT = "component"  # the dimension that W and H share


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """What the rows and columns of X are called; gives results back by these names.

    Parameters
    ----------
    rows : pandas.Index, length m
    columns : pandas.Index, length n
    dtypes : dict of int to dtype
        The columns, by position, of a data frame that hold floats, and which.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from dmf.containers import unwrap
    >>> X = pd.DataFrame(np.eye(2), index=["ann", "bob"], columns=["x", "y"])
    >>> array, labels = unwrap(X)
    >>> labels.row_positions(["bob"])
    array([1])
    >>> labels.wrap_matrix(array).loc["bob", "y"].item()
    1.0
    """

    rows: Index
    columns: Index
    dtypes: dict[int, Any]

    def row_positions(self, ids: Iterable[Hashable]) -> Array:
        """Return where the rows with these ids are, as an array of int.

        Raises
        ------
        ValueError
            No row, or more than one, has such an id.
        """
        return _positions("row", self.rows, ids)

    def column_positions(self, ids: Iterable[Hashable]) -> Array:
        """Return where the columns with these ids are; see `row_positions`."""
        return _positions("column", self.columns, ids)

    def wrap_matrix(self, array: Array) -> Any:
        """Return a matrix of shape (m, n) in X's container.

        Parameters
        ----------
        array : array, shape (m, n)
            It becomes the container's own. A Dask array stays one: pandas would load
            it.
        """
        if is_dask(array):
            return array
        import pandas as pd

        # Without names at first: a name may stand for several columns.
        frame = pd.DataFrame(array, index=self.rows, copy=False)
        back = {j: dtype for j, dtype in self.dtypes.items() if dtype != array.dtype}
        return frame.astype(back).set_axis(self.columns, axis=1)

    def wrap_W(self, W: Array) -> Any:
        """Return W, shape (m, r), with the labels of the rows."""
        if is_dask(W):
            return W
        import pandas as pd

        return pd.DataFrame(W, index=self.rows, copy=True)

    def wrap_H(self, H: Array) -> Any:
        """Return H, shape (r, n), with the labels of the columns."""
        if is_dask(H):
            return H
        import pandas as pd

        return pd.DataFrame(H, columns=self.columns, copy=True)

    def difference(
        self, other: Labels, axes: tuple[int, ...] = (0, 1), *, first: bool = False
    ) -> str | None:
        """Return how other labels, or their order, differ from these; None if not.

        `first` compares only as many of the others as there are here.
        """
        own, its = (self.rows, self.columns), (other.rows, other.columns)
        for axis in axes:
            theirs = its[axis][: len(own[axis])] if first else its[axis]
            named = self.named(axis) and other.named(axis)
            if named and not own[axis].equals(theirs):
                return _difference(("row", "column")[axis], own[axis], theirs)
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} × {len(self.columns)})"

    def named(self, axis: int) -> bool:
        """Return whether the rows (axis 0) or columns have names of their own."""
        return True


@dataclass(frozen=True, eq=False, repr=False)
class ArrayLabels(Labels):
    """The labels of an xarray.DataArray, whose rows and columns are its dimensions.

    `frame` is a Dataset with the coordinates and attributes, but without the data, so
    that X can be forgotten.
    """

    dims: tuple[Hashable, Hashable]
    name: Hashable | None
    frame: Any

    def wrap_matrix(self, array: Array) -> Any:
        """Return a matrix of shape (m, n) as a DataArray, lazy if it's a Dask array."""
        import xarray as xr

        return xr.DataArray(
            array,
            coords=self.frame.coords,
            dims=self.dims,
            name=self.name,
            attrs=dict(self.frame.attrs),
        )

    def wrap_W(self, W: Array) -> Any:
        """Return W, shape (m, r), as a DataArray."""
        return self._wrap_factor(W, "W", 0)

    def wrap_H(self, H: Array) -> Any:
        """Return H, shape (r, n), as a DataArray."""
        return self._wrap_factor(H, "H", 1)

    def _wrap_factor(self, factor: Array, name: str, axis: int) -> Any:
        import xarray as xr

        coords = self.frame.drop_dims(self.dims[1 - axis], errors="ignore").coords
        component = COMPONENT
        while component in self.dims or component in coords:
            component += "_"
        dims = (self.dims[0], component) if axis == 0 else (component, self.dims[1])
        return xr.DataArray(factor, coords=coords, dims=dims, name=name)

    def difference(
        self, other: Labels, axes: tuple[int, ...] = (0, 1), *, first: bool = False
    ) -> str | None:
        """Return how other labels differ from these, also their dimensions' names."""
        if isinstance(other, ArrayLabels) and other.dims != self.dims:
            return f"its dimensions are {other.dims}, not {self.dims}"
        return super().difference(other, axes, first=first)

    def named(self, axis: int) -> bool:
        """Return whether a dimension has labels; any fit it if not, as in xarray."""
        return self.dims[axis] in self.frame.indexes


def _positions(axis: str, index: Index, ids: Iterable[Hashable]) -> Array:
    import pandas as pd

    if isinstance(ids, str) or not isinstance(ids, Iterable):
        msg = f"give a list of ids of {axis}s, got {ids!r}; for one of them, [{ids!r}]"
        raise TypeError(msg)
    wanted = list(ids)
    if not index.is_unique:
        twice = shown(index, int(index.duplicated().argmax()))
        msg = (
            f"several {axis}s have the id {twice}; make the ids unique, or ask by "
            "position"
        )
        raise ValueError(msg)
    # Tuples are ids, unless the index has levels.
    target = wanted if index.nlevels > 1 else pd.Index(wanted, tupleize_cols=False)
    positions = index.get_indexer(target)
    if np.any(positions < 0):
        unknown = np.flatnonzero(positions < 0)
        msg = (
            f"no {axis} has the id {wanted[unknown[0]]!r} ({len(unknown)} of "
            f"{len(wanted)} ids are unknown); the {len(index)} ids are in "
            f"labels.{axis}s"
        )
        raise ValueError(msg)
    return positions


def _difference(axis: str, own: Index, its: Index) -> str:
    """Return how the labels of an axis differ first."""
    if len(own) != len(its):
        return f"it has {len(its)} {axis}s, not {len(own)}"
    # One by one, missing labels wouldn't be equal.
    same = range(1, len(own) + 1)
    k = bisect_left(same, True, key=lambda end: not own[:end].equals(its[:end]))
    return f"its {axis} {k} is {shown(its, k)}, not {shown(own, k)}"


def shown(index: Index, k: int) -> str:
    """Return a label as Python writes it, without NumPy's names of types."""
    return repr(index[k : k + 1].tolist()[0])


def numbers_of(labels: Labels | None) -> tuple[Array, Array] | None:
    """Return numbers, of uint64, that stand for the labels of rows and of columns.

    Whole numbers stand for themselves; where there are no names, positions do.
    """
    if labels is None:
        return None
    rows, columns = (
        _hashed(index) if labels.named(axis) else np.arange(len(index))
        for axis, index in enumerate((labels.rows, labels.columns))
    )
    return rows.astype(np.uint64), columns.astype(np.uint64)


def _hashed(index: Index) -> Array:
    if getattr(index.dtype, "kind", "O") in "iu":
        return index.to_numpy()
    import pandas as pd

    return pd.util.hash_pandas_object(index, index=False).to_numpy()
