"""Compiled loops that make sparse blocks: which entries are drawn, and those alone.

NumPy would pass over the entries a dozen times, each time into memory of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.kernels.vectors import compiled, frozen

Array = NDArray[Any]


def drawn(
    starts: Array, columns: Array, of_row: Array, of_column: Array, limit: int
) -> Array:
    """Return whether each stored entry is drawn: its word, mixed, is below a limit.

    Parameters
    ----------
    starts : array of int, shape (p + 1,)
    columns : array of int, shape (stored,)
    of_row, of_column : arrays of uint64, shapes (p,) and (q,)
        Their sum is the word of an entry.
    limit : int
        At most 2⁶⁴ − 1.

    Returns
    -------
    array of bool, shape (stored,)
    """
    chosen = np.empty(len(columns), dtype=bool)
    words = frozen(of_row), frozen(of_column)
    _draw(frozen(starts), frozen(columns), *words, np.uint64(limit), chosen)
    return chosen


def picked(
    starts: Array, columns: Array, values: Array, weights: Array | None, chosen: Array
) -> tuple[Array, Array, Array, Array | None]:
    """Return compressed rows of the entries that are chosen.

    Parameters
    ----------
    starts : array of int, shape (p + 1,)
    columns : array of int, shape (stored,)
    values : array, shape (stored,)
    weights : array, shape (stored,), or None
    chosen : array of bool, shape (stored,)

    Returns
    -------
    starts : array of int64, shape (p + 1,)
    columns : array of int32, shape (chosen,)
    values : array, shape (chosen,)
    weights : array, shape (chosen,), or None
    """
    starts, chosen = frozen(starts), frozen(chosen)
    begin = np.zeros(len(starts), dtype=np.int64)
    _count_rows(starts, chosen, begin)
    stored = int(begin[-1])
    found = (
        np.empty(stored, dtype=np.int32),
        np.empty(stored, dtype=values.dtype),
        None if weights is None else np.empty(stored, dtype=weights.dtype),
    )
    weights = None if weights is None else frozen(weights)
    _pick(starts, frozen(columns), frozen(values), weights, chosen, *found)
    return begin, *found


def stored_in_columns(columns: Array, length: int) -> Array:
    """Return how many entries each of so many columns stores, as float64."""
    counts = np.zeros(length)
    _count_columns(frozen(columns), counts)
    return counts


@compiled
def mixed(word):
    """Return SplitMix64's finaliser: every bit of it depends on every bit of a word.

    G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014.
    """
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def _draw(starts, columns, of_row, of_column, limit, chosen):
    for i in range(starts.size - 1):
        own = of_row[i]
        for e in range(starts[i], starts[i + 1]):
            chosen[e] = mixed(own + of_column[columns[e]]) < limit


@compiled
def _count_rows(starts, chosen, begin):
    for i in range(starts.size - 1):
        count = 0
        for e in range(starts[i], starts[i + 1]):
            count += chosen[e]
        begin[i + 1] = begin[i] + count


@compiled
def _pick(
    starts, columns, values, weights, chosen, onto_columns, onto_values, onto_weights
):
    k = 0
    for e in range(starts[-1]):
        if chosen[e]:
            onto_columns[k] = columns[e]
            onto_values[k] = values[e]
            if weights is not None:
                onto_weights[k] = weights[e]
            k += 1


@compiled
def _count_columns(columns, counts):
    for e in range(columns.size):
        counts[columns[e]] += 1
