"""Predictions: for pairs, for all entries, the best ones of a row; and how good."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dmf._fold import columns_of
from dmf.containers import check_same_labels, unwrap_pair
from dmf.engine.kinds import block_kind, gpu_for, on_host
from dmf.engine.predict import bands_of, errors_of, exclusions, fetch, multiply_lazily
from dmf.engine.runner import choose_runner
from dmf.entries import canonical_csr, is_sparse
from dmf.offsets import COLUMNS
from dmf.result import Factorization
from dmf.validation import check_integer, check_mask, check_matrix

if TYPE_CHECKING:
    from distributed import Client

Array = Any
Index = Any  # an array of int, or a slice

# The factors' rows that a tile of pairs gathers, in bytes.
PAIRS_BYTES = 2**25
# A tile of predictions among which the best are looked for: columns, and entries.
TILE_COLUMNS = 2**13
TILE_ENTRIES = 2**21


class Score(NamedTuple):
    """How well a factorization predicts the observed entries of a matrix.

    Parameters
    ----------
    rmse, mae : float
        Root mean square and mean absolute error, in units of X; weighted if the mask
        has weights.
    r2 : float
        1 − Σ M (X − X̂)² / Σ M (X − mean of X)²: 1 for perfect predictions, 0 for ones
        no better than the mean. NaN if X's observed entries are all the same.
    entries : int
        How many entries were observed.
    """

    rmse: float
    mae: float
    r2: float
    entries: int


def augmented(fit: Factorization) -> tuple[Array, Array]:
    """Return W' (m × c) and H' (c × n) such that W' H' = μ + b + c + W H."""
    W_roles, H_roles = COLUMNS[fit.offsets]
    return columns_of(fit, 0, W_roles), columns_of(fit, 1, H_roles).T


def predict(fit: Factorization, rows: Array, columns: Array) -> Array:
    """Return predictions for pairs of a row and a column: `Factorization.predict`."""
    rows, columns = _positions(fit, "rows", rows), _positions(fit, "columns", columns)
    try:
        rows, columns = np.broadcast_arrays(rows, columns)
    except ValueError:
        msg = (
            f"rows of shape {rows.shape} and columns of shape {columns.shape} don't "
            "make pairs; give equally many, or rows[:, None] for all pairs"
        )
        raise ValueError(msg) from None
    shape = rows.shape
    rows, columns = rows.ravel(), columns.ravel()
    # In the order of the rows, so that each tile needs few chunks of a Dask W.
    order = np.argsort(rows, kind="stable")
    dtype = np.result_type(fit.W.dtype, fit.H.dtype)
    result = np.empty(len(rows), dtype=dtype)
    width = fit.rank + max(map(len, COLUMNS[fit.offsets]))
    step = max(1, PAIRS_BYTES // (2 * width * dtype.itemsize))
    for start in range(0, len(rows), step):
        pairs = order[start : start + step]
        own_rows, i = np.unique(rows[pairs], return_inverse=True)
        own_columns, j = np.unique(columns[pairs], return_inverse=True)
        W, H = fetch(*_strips(fit, own_rows, own_columns))
        result[pairs] = np.vecdot(W[i], H[j])
    return result.reshape(shape)


def reconstruct(fit: Factorization) -> Array:
    """Return all predictions, as a lazy Dask array: `Factorization.reconstruct`."""
    return multiply_lazily(*augmented(fit))


def recommend(
    fit: Factorization, rows: Array, n: int, exclude: Array | None = None
) -> tuple[Array, Array]:
    """Return the n best columns of each of some rows: `Factorization.recommend`."""
    rows = _positions(fit, "rows", rows)
    if rows.ndim != 1:
        msg = (
            f"rows must have one dimension, got shape {rows.shape}; give [row] for one "
            "row"
        )
        raise ValueError(msg)
    n = check_integer("n", n, at_least=1)
    if exclude is not None:
        exclude, _, labels = unwrap_pair(exclude, None)
        check_same_labels(labels, fit.labels)
        _check_exclude(exclude, fit.shape)
        exclude = on_host(exclude)
        exclude = canonical_csr(exclude) if is_sparse(exclude) else exclude
    (W,) = fetch(_strips(fit, rows, slice(0, 0))[0])
    dtype = np.result_type(fit.W.dtype, fit.H.dtype)
    # There are no more than all columns, however many are asked for.
    wanted, n = n, min(n, fit.shape[1])
    columns = np.full((len(rows), n), -1)
    scores = np.full((len(rows), n), -np.inf, dtype=dtype)
    step = max(1, TILE_ENTRIES // (min(TILE_COLUMNS, fit.shape[1]) + 2 * n))
    bands = bands_of(fit.H, exclude, TILE_COLUMNS) if len(rows) else []
    for number, band in enumerate(bands):
        own = slice(band.start, band.stop)
        (H,) = fetch(_strips(fit, slice(0, 0), own)[1])
        for index, part in exclusions(exclude, rows, band, number):
            for start in range(0, len(index), step):
                tile = index[start : start + step]
                for first in range(0, len(band), TILE_COLUMNS):
                    cut = slice(first, min(first + TILE_COLUMNS, len(band)))
                    found = W[tile] @ H[cut].T
                    if part is not None:
                        _strike(found, part.tile(slice(start, start + step), cut))
                    _improve(columns, scores, tile, found, band.start + first)
    none = np.isneginf(scores)
    columns[none], scores[none] = -1, np.nan
    beyond = ((0, 0), (0, wanted - n))
    return (
        np.pad(columns, beyond, constant_values=-1),
        np.pad(scores, beyond, constant_values=np.nan),
    )


def score(
    fit: Factorization,
    X: Array,
    mask: Array | None = None,
    client: Client | None = None,
) -> Score:
    """Return the errors on the observed entries of X: `Factorization.score`."""
    X, mask, labels = unwrap_pair(X, mask)
    check_same_labels(labels, fit.labels)
    shape = check_matrix("X", X)
    if shape != fit.shape:
        msg = (
            f"X has shape {shape}, but the factorization is of a matrix of shape "
            f"{fit.shape}; give entries of the matrix that was factorized"
        )
        raise ValueError(msg)
    if mask is not None:
        check_mask(X, mask)
    runner = choose_runner(client, gpu_for(X))
    totals, errors = errors_of(X, mask, *augmented(fit), runner)
    (squares, sizes), (around_mean, _) = errors.tolist()
    # Less than this is what rounding leaves of equal numbers.
    eps = float(np.finfo(np.result_type(X.dtype, np.float32)).eps)
    equal = around_mean <= totals.weight * (8 * eps * totals.mean) ** 2
    return Score(
        rmse=math.sqrt(squares / totals.weight),
        mae=sizes / totals.weight,
        r2=math.nan if equal else 1 - squares / around_mean,
        entries=totals.entries,
    )


def _positions(fit: Factorization, name: str, given: Array) -> Array:
    """Return positions, or those of labels, as an array of int64, or refuse them."""
    length = fit.shape[0] if name == "rows" else fit.shape[1]
    positions = np.asarray(given)
    if positions.size == 0:
        return positions.astype(np.int64)
    if positions.dtype.kind not in "iuf" and fit.labels is not None:
        labels = fit.labels
        find = labels.row_positions if name == "rows" else labels.column_positions
        found: Array = np.reshape(find(positions.ravel().tolist()), positions.shape)
        return found
    if positions.dtype.kind not in "iu":
        msg = (
            f"{name} must be integers, got dtype {positions.dtype}; give the positions "
            "of rows and columns, for those of a mask numpy.flatnonzero(mask)"
        )
        raise TypeError(msg)
    bad = (positions < 0) | (positions >= length)
    if np.any(bad):
        place = np.argwhere(bad)[0]
        where = f"[{', '.join(map(str, place))}]" if len(place) else ""
        msg = (
            f"{name}{where} is {positions[tuple(place)]}, but the matrix has {length} "
            f"{name}; give positions from 0 to {length - 1}"
        )
        raise ValueError(msg)
    return positions.astype(np.int64)


def _strips(fit: Factorization, rows: Index, columns: Index) -> tuple[Array, Array]:
    """Return the rows of W' and of H'ᵀ (see `augmented`) for rows and columns of X."""
    b, c = fit.row_offsets, fit.column_offsets
    part = replace(
        fit,
        W=fit.W[rows],
        H=fit.H[:, columns],
        row_offsets=None if b is None else b[rows],
        column_offsets=None if c is None else c[columns],
    )
    W, H = augmented(part)
    return W, H.T


def _check_exclude(exclude: Array, shape: tuple[int, int]) -> None:
    own = check_matrix("exclude", exclude)
    if own != shape:
        msg = (
            f"exclude has shape {own}, but the factorization is of a matrix of shape "
            f"{shape}; give one entry for each entry of that matrix"
        )
        raise ValueError(msg)
    if np.dtype(exclude.dtype).kind in "iu" and block_kind(exclude) == "dense":
        msg = (
            f"exclude is a dense array of {exclude.dtype}, in which nothing is missing "
            "and all would be excluded; give bools, True for what is excluded"
        )
        raise TypeError(msg)


def _strike(scores: Array, out: Array) -> None:
    """Set what is excluded to −∞."""
    if is_sparse(out):
        entries = out.tocoo()
        scores[entries.row, entries.col] = -np.inf
    else:
        scores[out] = -np.inf


def _improve(
    columns: Array, scores: Array, rows: Array, found: Array, first: int
) -> None:
    """Put what was found in a tile among the best so far, whose columns are smaller.

    Parameters
    ----------
    columns, scores : arrays, shape (k, n)
        The best so far, the best first.
    rows : array of int, shape (p,)
        Which of the k rows the tile has.
    found : array, shape (p, q)
    first : int
        The column of the matrix in which the tile begins.
    """
    n = columns.shape[1]
    found[np.isnan(found)] = -np.inf
    better = np.max(found, axis=1) > scores[rows, -1]
    rows, found = rows[better], found[better]
    if not len(rows):
        return
    picked = _largest(found, n)
    both = np.hstack([scores[rows], np.take_along_axis(found, picked, axis=1)])
    places = np.hstack([columns[rows], picked + first])
    # Stable: of equal ones, the smaller column stays before the larger.
    order = np.argsort(-both, axis=1, kind="stable")[:, :n]
    scores[rows] = np.take_along_axis(both, order, axis=1)
    columns[rows] = np.take_along_axis(places, order, axis=1)


def _largest(values: Array, n: int) -> Array:
    """Return where the n largest values of each row are, in ascending order.

    Of values that are equal to the least of them, the first ones.
    """
    p, q = values.shape
    if n >= q:
        return np.broadcast_to(np.arange(q), (p, q))
    least = np.partition(values, q - n, axis=1)[:, q - n, None]
    chosen = values >= least
    tied = np.flatnonzero(np.count_nonzero(chosen, axis=1) > n)
    if len(tied):
        above, equal = values[tied] > least[tied], values[tied] == least[tied]
        room = n - np.count_nonzero(above, axis=1)
        chosen[tied] = above | (equal & (np.cumsum(equal, axis=1) <= room[:, None]))
    return np.nonzero(chosen)[1].reshape(p, n)
