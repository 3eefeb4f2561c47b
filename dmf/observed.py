"""What counts as observed: NaN, masks, weights and the pattern of sparse matrices.

Everything later works on blocks that this module has made, so the rules stand here
once: an entry is observed if it isn't NaN, if the mask (where there is one) is positive
there, and, in a sparse matrix, if it is stored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from dmf.kernels import dense
from dmf.kernels.dense import DenseBlock

if TYPE_CHECKING:
    from dmf.kernels.sparse import SparseBlock

Array = Any

# Beyond, squares of float32 residuals times a weight could overflow.
LARGEST_WEIGHT = 1e12


class Totals(NamedTuple):
    """Sums over the observed entries of a block, or of many."""

    entries: int
    weight: float
    sum: float
    sum_of_squares: float

    @property
    def mean_square(self) -> float:
        """The weighted mean square of the observed entries; 0 if there are none."""
        return self.sum_of_squares / self.weight if self.weight > 0 else 0.0

    @property
    def deviation(self) -> float:
        """The weighted standard deviation of the observed entries; 0 without any."""
        mean = self.sum / self.weight if self.weight > 0 else 0.0
        return math.sqrt(max(self.mean_square - mean * mean, 0.0))


def is_sparse(X: Any) -> bool:
    """Return whether X is a scipy.sparse matrix or array."""
    return type(X).__module__.startswith("scipy.sparse")


def observe(
    X: Array, mask: Array | None, dtype: Any, origin: tuple[int, int] = (0, 0)
) -> DenseBlock | SparseBlock:
    """Turn a part of X and of its mask into a block.

    Parameters
    ----------
    X : array or scipy.sparse array, shape (p, q)
    mask : array or scipy.sparse array, shape (p, q), or None
        Bool, or weights ≥ 0. With a sparse X, sparse and of the same pattern.
    dtype : float32 or float64
    origin : (row, column)
        Where the part begins in the whole matrix; messages name places in the whole.

    Raises
    ------
    ValueError
        An observed entry is infinite; a weight is negative, infinite or NaN; the
        pattern of a sparse mask isn't that of X.
    """
    if is_sparse(X):
        return _observe_sparse(X, mask, dtype, origin)
    return _observe_dense(X, mask, dtype, origin)


def observed_entries(X: Array, mask: Array | None) -> Array:
    """Return where a dense X is observed, as a bool array of its shape."""
    xp = array_namespace(X)
    is_float = xp.isdtype(X.dtype, "real floating")
    observed = ~xp.isnan(X) if is_float else xp.ones(X.shape, dtype=xp.bool)
    if mask is None:
        return observed
    return observed & (mask if mask.dtype == xp.bool else mask > 0)


def totals(block: DenseBlock | SparseBlock) -> Totals:
    """Return the number of observed entries, their weight and weighted squares."""
    values, weights = block.values, block.weights
    if not isinstance(block, DenseBlock):
        return _sums(values, weights)
    total = Totals(0, 0.0, 0.0, 0.0)
    for rows in dense.tiles(block):
        part = _sums(values[rows, :], None if weights is None else weights[rows, :])
        total = Totals._make(a + b for a, b in zip(total, part, strict=True))
    return total


def _sums(values: Array, weights: Array | None) -> Totals:
    xp = array_namespace(values)
    values = xp.astype(values, xp.float64)  # squares may leave float32
    if weights is None or weights.dtype == xp.bool:
        stored = int(np.prod(values.shape))
        count = stored if weights is None else int(xp.count_nonzero(weights))
        # Where nothing is observed, the value is 0.
        sums = float(xp.sum(values)), float(xp.sum(values * values))
        return Totals(count, float(count), *sums)
    weighted = weights * values
    return Totals(
        int(xp.count_nonzero(weights)),
        float(xp.sum(weights, dtype=xp.float64)),
        float(xp.sum(weighted)),
        float(xp.sum(weighted * values)),
    )


def is_empty(block: DenseBlock | SparseBlock) -> bool:
    """Return whether nothing is observed in a block."""
    if block.weights is None:
        return not np.prod(block.values.shape)
    xp = array_namespace(block.values)
    return not bool(xp.any(block.weights != 0))


def counts(block: DenseBlock | SparseBlock, axis: int) -> Array:
    """Return the number of observed entries of each row (axis 0) or column (axis 1).

    Returns
    -------
    array of float64, shape (p,) or (q,)
    """
    weights = block.weights
    if isinstance(block, DenseBlock):
        xp = array_namespace(block.values)
        if weights is None:
            other = float(block.shape[1 - axis])
            return xp.full((block.shape[axis],), other, dtype=xp.float64)
        positive = weights if weights.dtype == xp.bool else weights > 0
        return xp.astype(xp.count_nonzero(positive, axis=1 - axis), xp.float64)
    positive = np.ones(block.values.shape) if weights is None else weights > 0
    if axis == 1:
        index = block.columns
    else:
        index = np.repeat(np.arange(block.shape[0]), np.diff(block.starts))
    return np.bincount(index, positive, minlength=block.shape[axis]).astype(np.float64)


def filled_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of an imputed X: its own if that can hold any real number."""
    return np.dtype(dtype if np.dtype(dtype).kind == "f" else "float64")


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
        X, weights = _same_pattern(X, mask)
        observed = observed_entries(X.data, weights)
        owners = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
        result = (W @ H.T).astype(dtype, copy=False)
        result[owners[observed], X.indices[observed]] = X.data[observed]
        return result
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


def _observe_dense(
    X: Array, mask: Array | None, dtype: Any, origin: tuple[int, int]
) -> DenseBlock:
    xp = array_namespace(X)
    if mask is not None:
        check_weights(mask)
    observed = observed_entries(X, mask)
    if xp.isdtype(X.dtype, "real floating"):
        _check_finite(X, observed, xp, origin)
    values = xp.astype(X, dtype, copy=False)
    if bool(xp.all(observed)):
        missing = False
    else:
        missing = True
        values = xp.where(observed, values, xp.zeros_like(values))
    if mask is None or mask.dtype == xp.bool or bool(xp.all((mask == 0) | (mask == 1))):
        return DenseBlock(values, observed if missing else None)
    weights = xp.astype(mask, dtype)
    return DenseBlock(values, xp.where(observed, weights, xp.zeros_like(weights)))


def _observe_sparse(
    X: Any, mask: Any | None, dtype: Any, origin: tuple[int, int]
) -> SparseBlock:
    from dmf.kernels.sparse import SparseBlock

    X, given = _same_pattern(X, mask)
    observed = observed_entries(X.data, given)
    weights = None
    if given is not None and not np.all(given == 1):
        weights = given.astype(dtype)
    if X.data.dtype.kind == "f" and not np.all(np.isfinite(X.data[observed])):
        entry = int(np.flatnonzero(np.isinf(X.data) & observed)[0])
        row = int(np.searchsorted(X.indptr, entry, side="right")) - 1
        _refuse_infinite(row + origin[0], int(X.indices[entry]) + origin[1])
    starts, columns, values = X.indptr, X.indices, X.data
    if not np.all(observed):
        kept = np.concatenate([[0], np.cumsum(observed)])
        starts, columns, values = kept[starts], columns[observed], values[observed]
        weights = None if weights is None else weights[observed]
    return SparseBlock(
        starts.astype(np.int64),
        columns.astype(np.int32),
        values.astype(dtype),
        weights,
        X.shape,
    )


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
    if not result.has_canonical_format:
        result = result.copy() if result is X else result
        result.sum_duplicates()
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
    if xp.isdtype(mask.dtype, "real floating") and bool(xp.any(xp.isnan(mask))):
        msg = (
            "mask has NaN; use 0 (or False) for what is unobserved and a positive "
            "weight (or True) for what is observed"
        )
        raise ValueError(msg)
    smallest, largest = float(xp.min(mask)), float(xp.max(mask))
    if smallest < 0 or largest > LARGEST_WEIGHT:
        bad = smallest if smallest < 0 else largest
        msg = (
            f"mask has the weight {bad:g}; weights must be at least 0 (for what is "
            f"unobserved) and at most {LARGEST_WEIGHT:g}"
        )
        raise ValueError(msg)


def _same_pattern(X: Any, mask: Any | None) -> tuple[Any, Array | None]:
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


def _check_finite(X: Array, observed: Array, xp: Any, origin: tuple[int, int]) -> None:
    infinite = xp.isinf(X) & observed
    if bool(xp.any(infinite)):
        rows, columns = xp.nonzero(infinite)
        _refuse_infinite(int(rows[0]) + origin[0], int(columns[0]) + origin[1])


def _refuse_infinite(row: int, column: int) -> None:
    msg = (
        f"X is infinite in row {row}, column {column}; replace the value, or mark it "
        "as missing with NaN or in the mask"
    )
    raise ValueError(msg)
