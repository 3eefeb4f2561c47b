"""A matrix put into the order of the model that a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dmf.containers import Triplets, is_from, unwrap_pair
from dmf.labels import Index, Labels
from dmf.result import Factorization

Array = Any


class OtherMatrixError(ValueError):
    """The model is of a matrix that this one hasn't grown from."""


@dataclass(frozen=True)
class Aligned:
    """X in the order of a model, which is cut to the rows and columns that X has.

    Parameters
    ----------
    X, mask : as they were read, in the model's order
    last : Factorization
    order : (rows, columns) or None
        Positions in X as it was read of the rows and columns here; None: as read.
    """

    X: Any
    mask: Any
    last: Factorization
    order: tuple[Array, Array] | None = None

    def as_read(self, filled: Any) -> Any:
        """Return a matrix of this order in that of the input, if that is a table.

        Triplets have no order of their own: theirs is the model's, so that rows stay
        where they are from run to run.
        """
        if self.order is None or isinstance(self.X, Triplets):
            return filled
        rows, columns = (np.argsort(positions) for positions in self.order)
        return _taken(filled, rows, columns)


def align(X: Any, mask: Any, last: Factorization) -> Aligned:
    """Put a matrix into the order of the model that it has grown from.

    What the model knows comes first, in its order, then what is new, as it comes. What
    X no longer has leaves the model.

    Parameters
    ----------
    X : array or container
    mask : array, container or None
    last : Factorization

    Raises
    ------
    OtherMatrixError
        They can't be brought together.
    """
    array, _, labels = unwrap_pair(X, mask)
    if labels is None or last.labels is None:
        _check_shape(array.shape, last)
        return Aligned(X, mask, last)
    if last.labels.difference(labels, first=True) is None:
        return Aligned(X, mask, last)
    known = (
        _kept(last.labels.rows, labels.rows),
        _kept(last.labels.columns, labels.columns),
    )
    rows, columns = (
        _order(own, its, kept)
        for own, its, kept in (
            (labels.rows, last.labels.rows, known[0]),
            (labels.columns, last.labels.columns, known[1]),
        )
    )
    if not (len(known[0]) and len(known[1])):
        msg = "it has no row, or no column, that the last model knows"
        raise OtherMatrixError(msg)
    return Aligned(
        _container(X, rows, columns),
        None if mask is None else _taken(mask, rows, columns),
        _cut(last, known[0], known[1]),
        (rows, columns),
    )


def _check_shape(shape: tuple[int, int], last: Factorization) -> None:
    if shape[0] < last.shape[0] or shape[1] < last.shape[1]:
        msg = (
            f"it has shape {tuple(shape)} and no labels, but the last model is of a "
            f"matrix of shape {last.shape}"
        )
        raise OtherMatrixError(msg)


def _kept(known: Index, now: Index) -> Array:
    """Return the positions of the known labels that are still there."""
    if not (known.is_unique and now.is_unique):
        msg = "its labels, or those of the last model, aren't unique"
        raise OtherMatrixError(msg)
    return np.flatnonzero(known.isin(now))


def _order(now: Index, known: Index, kept: Array) -> Array:
    """Return the positions of labels: the known ones first, in their order."""
    first = now.get_indexer(known[kept])
    new = np.flatnonzero(~now.isin(known))
    return np.concatenate([first, new])


def _cut(last: Factorization, rows: Array, columns: Array) -> Factorization:
    """Return a model of some of the rows and columns."""
    labels = last.labels
    assert labels is not None
    row_offsets, column_offsets = last.row_offsets, last.column_offsets
    return replace(
        last,
        W=last.W[rows],
        H=last.H[:, columns],
        row_offsets=None if row_offsets is None else row_offsets[rows],
        column_offsets=None if column_offsets is None else column_offsets[columns],
        labels=Labels(labels.rows[rows], labels.columns[columns], {}),
    )


def _container(X: Any, rows: Array, columns: Array) -> Any:
    if not isinstance(X, Triplets):
        return _taken(X, rows, columns)
    mask = None if X.mask is None else _taken(X.mask, rows, columns)
    return Triplets(_taken(X.X, rows, columns), mask, X.rows[rows], X.columns[columns])


def _taken(matrix: Any, rows: Array, columns: Array) -> Any:
    """Return rows and columns of a matrix of any kind, by their positions."""
    if is_from("pandas", "DataFrame", matrix):
        return matrix.iloc[rows, columns]
    if isinstance(matrix, Triplets):
        return _container(matrix, rows, columns)
    return matrix[rows][:, columns]
