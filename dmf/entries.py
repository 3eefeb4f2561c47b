"""Matrices as users give them: which entries are observed, and with what weights.

An entry is observed if it isn't NaN, if the mask (where there is one) is positive
there, and, in a sparse matrix, if it is stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from dmf.device import to_host
from dmf.kernels import dense
from dmf.kernels.dense import DenseBlock

Array = Any

# Beyond, squares of float32 residuals times a weight could overflow.
LARGEST_WEIGHT = 1e12


def is_sparse(X: Any) -> bool:
    """Return whether X is a sparse matrix or array, of scipy or on a GPU."""
    return type(X).__module__.startswith(("scipy.sparse", "cupyx.scipy.sparse"))


def observed_entries(X: Array, mask: Array | None) -> Array:
    """Return where a dense X is observed, as a bool array of its shape."""
    xp = array_namespace(X)
    is_float = xp.isdtype(X.dtype, "real floating")
    observed = ~xp.isnan(X) if is_float else xp.ones(X.shape, dtype=xp.bool)
    if mask is None:
        return observed
    return observed & (mask if mask.dtype == xp.bool else mask > 0)


def is_pattern(mask: Array) -> bool:
    """Return whether a mask says only what is observed, and gives no weights."""
    xp = array_namespace(mask)
    return mask.dtype == xp.bool or bool(to_host(xp.all((mask == 0) | (mask == 1))))


def count_observed(X: Array, mask: Array | None) -> int:
    """Return how many entries of a matrix in memory are observed."""
    if is_sparse(X):
        X, mask = same_pattern(X, mask)
        X = X.data
    observed = observed_entries(X, mask)
    return int(to_host(array_namespace(observed).count_nonzero(observed)))


def row_numbers(starts: Array) -> Array:
    """Return the row of each stored entry of compressed rows, from where they start."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def canonical_csr(X: Any) -> Any:
    """Return a sparse X in compressed rows, sorted, duplicates added up.

    Entries that are given twice are added, as everywhere in scipy.sparse.
    """
    result = X.tocsr()
    columns = result.indices
    if result.nnz and not 0 <= columns.min() <= columns.max() < X.shape[1]:
        # Compiled kernels trust the columns.
        msg = (
            f"a sparse matrix of shape {X.shape} stores entries in the columns "
            f"{columns.min()} to {columns.max()}; build it anew from rows, columns and "
            "values"
        )
        raise ValueError(msg)
    # Kernels go through all that is stored: room that isn't used goes, too.
    if len(columns) > result.nnz or not result.has_canonical_format:
        result = result.copy() if result is X else result
        result.sum_duplicates()
        result.prune()
    return result


def check_weights(mask: Array) -> None:
    """Refuse weights that are negative, infinite or NaN, or too large for float32.

    Parameters
    ----------
    mask : array or scipy.sparse array, of bools or numbers
    """
    if is_sparse(mask):
        mask = canonical_csr(mask).data
    xp = array_namespace(mask)
    if mask.dtype == xp.bool or mask.size == 0:
        return
    if xp.isdtype(mask.dtype, "real floating") and to_host(xp.any(xp.isnan(mask))):
        msg = (
            "mask has NaN; use 0 (or False) for what is unobserved and a positive "
            "weight (or True) for what is observed"
        )
        raise ValueError(msg)
    smallest, largest = map(float, to_host((xp.min(mask), xp.max(mask))))
    if smallest < 0 or largest > LARGEST_WEIGHT:
        bad = smallest if smallest < 0 else largest
        msg = (
            f"mask has the weight {bad:g}; weights must be at least 0 (for what is "
            f"unobserved) and at most {LARGEST_WEIGHT:g}"
        )
        raise ValueError(msg)


def same_pattern(X: Any, mask: Any | None) -> tuple[Any, Array | None]:
    """Return a sparse X in compressed rows, and the weights of its stored entries."""
    X = canonical_csr(X)
    if mask is None:
        return X, None
    mask = canonical_csr(mask)
    check_weights(mask.data)
    same = np.array_equal(X.indptr, mask.indptr)
    if not same or not np.array_equal(X.indices, mask.indices):
        msg = (
            "the mask of a sparse X must store the same entries as X "
            f"(it stores {mask.nnz}, X stores {X.nnz}); leave what is unobserved "
            "out of X, and give weights for the entries that X stores"
        )
        raise ValueError(msg)
    return X, mask.data


def filled_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of an imputed X: its own if that can hold any real number."""
    return np.dtype(dtype if np.dtype(dtype).kind == "f" else "float64")


def place_observed(X: Any, mask: Any | None, product: Array, dtype: Any) -> Array:
    """Return a dense part of a sparse X: the product, but for what is observed."""
    X, weights = same_pattern(X, mask)
    observed = observed_entries(X.data, weights)
    owners = row_numbers(X.indptr)
    result: Array = product.astype(dtype, copy=False)
    result[owners[observed], X.indices[observed]] = X.data[observed]
    return result


def fill_block(X: Array, mask: Array | None, W: Array, H: Array, dtype: Any) -> Array:
    """Return a dense part of X with W H wherever nothing is observed.

    Parameters
    ----------
    X : array or scipy.sparse array, shape (p, q)
    mask : array or scipy.sparse array, shape (p, q), or None
    W : array, shape (p, r)
    H : array, shape (q, r)
        Kept transposed, as everywhere inside dmf.
    dtype : dtype of the result
    """
    if is_sparse(X):
        return place_observed(X, mask, W @ H.T, dtype)
    xp = array_namespace(X)
    X = xp.astype(X, dtype, copy=False)
    if mask is not None:
        check_weights(mask)
    observed = observed_entries(X, mask)
    result = xp.empty_like(X)
    for rows in dense.tiles(DenseBlock(X, None)):
        product = xp.astype(W[rows, :] @ H.T, dtype)
        result[rows, :] = xp.where(observed[rows, :], X[rows, :], product)
    return result
