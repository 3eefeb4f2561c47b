"""split_observed: entries to fit, and entries to judge the fit by."""

from __future__ import annotations

from typing import Any

from dmf.containers import unwrap_pair
from dmf.engine.arrays import blank_lazily, split_lazily
from dmf.engine.kinds import is_dask
from dmf.entries import is_sparse
from dmf.holdout import Share, blank, part_of
from dmf.labels import numbers_of
from dmf.validation import check_integer, check_matrix, check_real

Array = Any


def split_observed(X: Array, fraction: float, seed: int = 0) -> tuple[Array, Array]:
    """Split the observed entries of X at random into two matrices.

    An entry's lot depends on the seed, its row and its column alone: it is the same for
    any chunking, whether X is dense or sparse, and when X has grown.

    Parameters
    ----------
    X : array, shape (m, n)
        As in `factorize`: NumPy, scipy.sparse, or a Dask array of either.
    fraction : float
        The share to hold out, above 0 and below 1.
    seed : int, default 0

    Returns
    -------
    train, held_out : arrays of the kind of X, shape (m, n)
        What isn't in one is missing there: NaN, or not stored. Integers become float64
        in dense arrays. Lazy for Dask arrays. ``factorize(train, …,
        validation=held_out)`` takes them as they are.

    Raises
    ------
    ValueError
        `fraction` isn't between 0 and 1; X isn't a matrix.
    TypeError
        X holds no real numbers.

    See Also
    --------
    factorize : its `validation=0.1` does the same on the way.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> train, held_out = dmf.split_observed(np.ones((50, 40)), 0.1)
    >>> int(np.isfinite(train).sum() + np.isfinite(held_out).sum())
    2000
    """
    X, mask, labels = unwrap_pair(X, None)
    check_matrix("X", X)
    if check_real("fraction", fraction, positive=True) >= 1:
        msg = f"fraction must be below 1, got {fraction}; 0.1 holds out a tenth"
        raise ValueError(msg)
    seed = check_integer("seed", seed, at_least=0)
    share = Share(float(fraction), seed, numbers_of(labels))
    if mask is not None:
        msg = (
            "the triplets have weights, which split_observed can't split; leave out "
            "weight= in from_triplets"
        )
        raise ValueError(msg)

    def part(held_out: bool) -> Array:
        matrix = _part(X, share, held_out)
        # Sparse parts go by position: a data frame would store what is missing.
        if labels is None or is_sparse(X) or is_dask(X):
            return matrix
        return labels.wrap_matrix(matrix)

    return part(False), part(True)


def part_without_held_out(X: Array, validation: Any, cut: tuple[slice, slice]) -> Array:
    """Return a part of X without the entries that a fit must not see.

    Parameters
    ----------
    X : array, shape (m, n)
    validation : Share, array or None
        As `dmf.observed.observe` takes it.
    cut : (rows, columns)
        Slices of the whole matrix, without steps.
    """
    if isinstance(validation, Share):
        if is_dask(X):
            return part_at(split_lazily(X, validation, False, same_pattern=True), cut)
        # Of the part alone: the whole of X would take as long as a few rounds.
        rows, columns = (range(n)[own] for n, own in zip(X.shape, cut, strict=True))
        share, origin = validation.cut(rows, columns), (rows.start, columns.start)
        return part_of(part_at(X, cut), share, origin, False, same_pattern=True)
    X = part_at(X, cut)
    if validation is None or validation.dtype != bool:
        return X
    held_out = part_at(validation, cut)
    return blank_lazily(X, held_out) if is_dask(X) else blank(X, held_out)


def part_at(X: Array, cut: tuple[slice, slice]) -> Array:
    """Return a part of a matrix of any kind, by slices."""
    return X.tocsr()[cut] if hasattr(X, "tocsr") else X[cut]


def held_out_of(X: Array, share: Share) -> Array:
    """Return X with nothing but what is held out; a mask of X still fits it."""
    return _part(X, share, held_out=True, same_pattern=True)


def _part(X: Array, share: Share, held_out: bool, same_pattern: bool = False) -> Array:
    if is_dask(X):
        return split_lazily(X, share, held_out, same_pattern)
    return part_of(X, share, (0, 0), held_out, same_pattern)
