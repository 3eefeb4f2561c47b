"""Parts of X as a fit sees them: blocks, what is held out, counts and totals.

Everything later works on blocks that this module has made: the rules of `dmf.entries`
are followed here, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from array_api_compat import array_namespace, is_cupy_namespace, is_numpy_namespace

from dmf.device import to_host
from dmf.entries import (
    canonical_csr,
    check_weights,
    is_pattern,
    is_sparse,
    observed_entries,
    row_numbers,
    same_pattern,
)
from dmf.holdout import PART, Share
from dmf.kernels import dense
from dmf.kernels.dense import DenseBlock
from dmf.kernels.panels import panels_for
from dmf.sizes import Sized
from dmf.totals import Totals

if TYPE_CHECKING:
    from dmf.kernels.sparse import SparseBlock

Array = Any


@dataclass(frozen=True)
class Observed(Sized):
    """A part of X as a fit sees it; no tuple, which Dask would look through for keys.

    Parameters
    ----------
    block : DenseBlock or SparseBlock
        What the loss is made of.
    held_out : DenseBlock or SparseBlock, or None
        What it is validated on.
    counts : (array of float64, shape (p,), array of float64, shape (q,))
        The observed entries of each row and of each column; an unobserved one counts α.
    totals : Totals
    """

    block: DenseBlock | SparseBlock
    held_out: DenseBlock | SparseBlock | None
    counts: tuple[Array, Array]
    totals: Totals


NO_COUNTS = (np.empty(0), np.empty(0))


def observe(
    X: Array,
    mask: Array | None,
    dtype: Any,
    origin: tuple[int, int] = (0, 0),
    *,
    unobserved: float = 0.0,
    validation: Array | Share | None = None,
    again: bool = False,
    row_bytes: int = 0,
) -> Observed:
    """Turn a part of X and of its mask into a block.

    Parameters
    ----------
    X : array or scipy.sparse array, shape (p, q)
    mask : array or scipy.sparse array, shape (p, q), or None
        Bool, or weights ≥ 0. With a sparse X, sparse and of the same pattern.
    dtype : float32 or float64
    origin : (row, column)
        Where the part begins in the whole matrix; messages name places in the whole.
    unobserved : float
        α: the weight with which what isn't observed counts as 0.
    validation : Share, array or scipy.sparse array of shape (p, q), or None
        What to hold out: a share of the observed entries, those that a bool array
        names, or values that X doesn't have.
    again : bool
        Whether the part has been seen before: it isn't checked, and counts and totals
        are left empty.
    row_bytes : int
        What a row of the factors takes that will often pass over a sparse block: its
        entries are then kept in panels. 0: in plain rows.

    Raises
    ------
    ValueError
        An observed entry is infinite; a weight is negative, infinite or NaN; the
        pattern of a sparse mask isn't that of X; X has an entry that is held out.
    """
    given = X, mask, dtype, origin, unobserved, validation, again
    with np.errstate(over="ignore"):  # sums of squares: their size is checked later
        if is_sparse(X):
            return _observe_sparse(*given, row_bytes)
        return _observe_dense(*given)


def _observe_dense(
    X: Array,
    mask: Array | None,
    dtype: Any,
    origin: tuple[int, int],
    unobserved: float,
    validation: Array | Share | None,
    again: bool,
) -> Observed:
    xp = array_namespace(X)
    if mask is not None and not again:
        check_weights(mask)
    observed = observed_entries(X, mask)
    if xp.isdtype(X.dtype, "real floating") and not again:
        _check_finite(X, observed, xp, origin)
    weights = None
    if mask is not None and not is_pattern(mask):
        weights = xp.astype(mask, dtype)
    values = xp.astype(X, dtype, copy=False)
    if is_numpy_namespace(xp) or is_cupy_namespace(xp):
        values = xp.ascontiguousarray(values)  # else each pass would copy its tiles
    zero = xp.zeros((1, 1), dtype=dtype)
    if not to_host(xp.all(observed)):
        values = xp.where(observed, values, zero)
    used, held_out = observed, None
    if validation is not None:
        held, given = _held_out_dense(X, observed, dtype, origin, validation)
        used = observed & ~held
        values_held = values if given is None else given
        held_weights = held
        if weights is not None and given is None:
            held_weights = xp.where(held, weights, xp.zeros_like(weights))
        held_out = DenseBlock(values_held, held_weights)
    block_values = values
    if unobserved > 0:
        # What isn't observed is a zero with a weight; what is held out, nothing at all.
        block_values = xp.where(used, values, zero)
        rest = ~used if validation is None else ~used & ~held
        flat = xp.astype(rest, dtype) * unobserved
        ones = xp.ones_like(flat)
        weights = xp.where(used, ones if weights is None else weights, flat)
        final = None if to_host(xp.all(weights == 1)) else weights
    elif weights is not None:
        final = xp.where(used, weights, xp.zeros_like(weights))
    else:
        final = None if to_host(xp.all(used)) else used
    block = DenseBlock(block_values, final)
    if again:
        return Observed(block, held_out, NO_COUNTS, Totals())
    counts = [xp.sum(used, axis=1 - axis, dtype=xp.float64) for axis in (0, 1)]
    if unobserved > 0:
        for axis in (0, 1):
            zeros = xp.sum(rest, axis=1 - axis, dtype=xp.float64)
            counts[axis] = counts[axis] + unobserved * zeros
    entries = int(to_host(xp.count_nonzero(used)))
    totals = _totals_dense(block, entries, held_out)
    return Observed(block, held_out, (counts[0], counts[1]), totals)


def _held_out_dense(
    X: Array,
    observed: Array,
    dtype: Any,
    origin: tuple[int, int],
    validation: Array | Share,
) -> tuple[Array, Array | None]:
    """Return which entries are held out, and their values if X doesn't have them."""
    xp = array_namespace(X)
    if isinstance(validation, Share):
        return observed & validation.of_part(X, origin), None
    if validation.dtype == xp.bool:
        return observed & validation, None
    held = observed_entries(validation, None)
    _check_apart(observed & held, origin)
    _check_finite(validation, held, xp, origin, "validation")
    given = xp.astype(validation, dtype)
    return held, xp.where(held, given, xp.zeros_like(given))


def _totals_dense(
    block: DenseBlock, entries: int, held_out: DenseBlock | None
) -> Totals:
    xp = array_namespace(block.values)
    masked = int(block.weights is not None)
    held = 0.0
    if held_out is not None:
        held = float(to_host(xp.sum(xp.astype(held_out.weights, xp.float64))))
    total = Totals(entries=entries, masked=masked, held_out=held)
    for rows in dense.tiles(block):
        weights = None if block.weights is None else block.weights[rows, :]
        total = total + Totals.of(block.values[rows, :], weights)
    return total


def _observe_sparse(
    X: Any,
    mask: Any | None,
    dtype: Any,
    origin: tuple[int, int],
    unobserved: float,
    validation: Any | Share | None,
    again: bool = False,
    row_bytes: int = 0,
) -> Observed:
    from dmf.kernels.sparse import SparseBlock

    X, given = same_pattern(X, mask)
    observed = observed_entries(X.data, given)
    weights = None
    if given is not None and not np.all(given == 1):
        weights = given.astype(dtype)
    if not again:
        _check_finite_sparse(X, observed, origin)
    values = X.data.astype(dtype, copy=False)

    starts = X.indptr.astype(np.int64, copy=False)
    columns = X.indices.astype(np.int32, copy=False)
    every = SparseBlock(starts, columns, values, weights, X.shape, unobserved)
    panels = panels_for(X.shape, X.nnz, row_bytes)
    used, held_out = observed, None
    if validation is not None:
        held, held_out = _held_out_sparse(X, observed, dtype, origin, validation)
        used = observed & ~held
        held_out = every.part(held) if held_out is None else held_out
    if unobserved > 0 and held_out is not None:
        # Held out is neither observed nor a zero: stored with weight 0, it is nothing.
        block = every.part(used)
        stored = _with_weight_zero(block, held_out).part(None, panels)
    else:
        block = stored = every.part(used, panels)
    if again:
        return Observed(stored, held_out, NO_COUNTS, Totals())
    counts = []
    for axis, other in ((0, X.shape[1]), (1, X.shape[0])):
        observed_here = _stored_along(block, axis)
        if unobserved > 0:
            observed_here += unobserved * (other - _stored_along(stored, axis))
        counts.append(observed_here)
    totals = _totals_sparse(every, used, stored, held_out)
    return Observed(stored, held_out, (counts[0], counts[1]), totals)


def _stored_along(block: SparseBlock, axis: int) -> Array:
    """Return the number of stored entries of each row (axis 0) or column (axis 1)."""
    if axis == 0:
        lines, p = np.diff(block.starts), block.shape[0]  # of all panels
        return lines.reshape(len(lines) // max(1, p), p).sum(0, np.float64)
    from dmf.kernels.selection import stored_in_columns

    return stored_in_columns(block.columns, block.shape[1])


def _with_weight_zero(block: SparseBlock, held_out: SparseBlock) -> SparseBlock:
    """Return a block with the entries of another one, which don't count."""
    one = block.values.dtype.type(1)
    own = np.full_like(block.values, one) if block.weights is None else block.weights
    rows = np.concatenate([row_numbers(b.starts) for b in (block, held_out)])
    columns = np.concatenate([block.columns, held_out.columns])
    order = np.lexsort((columns, rows))
    values = np.concatenate([block.values, held_out.values])[order]
    weights = np.concatenate([own, np.zeros_like(held_out.values)])[order]
    return replace(
        block,
        starts=block.starts + held_out.starts,
        columns=columns[order],
        values=values,
        weights=weights,
    )


def _held_out_sparse(
    X: Any, observed: Array, dtype: Any, origin: tuple[int, int], validation: Any
) -> tuple[Array, SparseBlock | None]:
    """Return which stored entries are held out; or, if X lacks them, their block."""
    if isinstance(validation, Share):
        return observed & validation.of_part(X, origin), None
    validation = canonical_csr(validation)
    places, held = (_places(matrix) for matrix in (X, validation))
    if validation.dtype == bool:
        return observed & np.isin(places, held[validation.data]), None
    both = np.isin(places, held) & observed
    if np.any(both):
        entry = int(np.flatnonzero(both)[0])
        _refuse_both(*np.add(divmod(int(places[entry]), X.shape[1]), origin))
    _check_finite_sparse(validation, ~np.isnan(validation.data), origin, "validation")
    part = _observe_sparse(validation, None, dtype, origin, 0.0, None)
    return np.zeros_like(observed), cast("SparseBlock", part.block)


def _places(X: Any) -> Array:
    """Return one number for the place of each stored entry, in their order."""
    return row_numbers(X.indptr) * X.shape[1] + X.indices


def _totals_sparse(
    every: SparseBlock, used: Array, stored: SparseBlock, held_out: SparseBlock | None
) -> Totals:
    held = 0.0
    if held_out is not None:
        w = held_out.weights
        held = float(len(held_out.values) if w is None else np.sum(w, dtype=np.float64))
    masked = int(stored.unobserved < 1 or stored.weights is not None)
    zeros = math.prod(stored.shape) - len(stored.values)
    entries = int(np.count_nonzero(used))
    total = Totals(entries=entries, masked=masked, held_out=held)
    # A few at a time: in float64, all of them would take twice what the block does. And
    # as they were given: sums would depend on the panels in their last bits.
    for part in dense.cuts(len(every.values), PART):
        weights = None if every.weights is None else every.weights[part][used[part]]
        total = total + Totals.of(every.values[part][used[part]], weights)
    return total + Totals(weight=stored.unobserved * zeros)


def _check_finite(
    X: Array, observed: Array, xp: Any, origin: tuple[int, int], name: str = "X"
) -> None:
    infinite = xp.isinf(X) & observed
    if to_host(xp.any(infinite)):
        rows, columns = to_host(xp.nonzero(infinite))
        _refuse_infinite(name, int(rows[0]) + origin[0], int(columns[0]) + origin[1])


def _check_finite_sparse(
    X: Any, observed: Array, origin: tuple[int, int], name: str = "X"
) -> None:
    if X.data.dtype.kind != "f":
        return
    infinite = np.isinf(X.data) & observed
    if np.any(infinite):
        entry = int(np.flatnonzero(infinite)[0])
        row = int(np.searchsorted(X.indptr, entry, side="right")) - 1
        _refuse_infinite(name, row + origin[0], int(X.indices[entry]) + origin[1])


def _refuse_infinite(name: str, row: int, column: int) -> None:
    msg = (
        f"{name} is infinite in row {row}, column {column}; replace the value, or mark "
        "it as missing with NaN or in the mask"
    )
    raise ValueError(msg)


def _check_apart(both: Array, origin: tuple[int, int]) -> None:
    xp = array_namespace(both)
    if to_host(xp.any(both)):
        rows, columns = to_host(xp.nonzero(both))
        _refuse_both(int(rows[0]) + origin[0], int(columns[0]) + origin[1])


def _refuse_both(row: int, column: int) -> None:
    msg = (
        f"X has the entry in row {row}, column {column}, which validation holds out; "
        "take it out of X, or give validation as a bool mask of X's own entries"
    )
    raise ValueError(msg)
