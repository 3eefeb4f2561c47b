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
    starts: Array,
    columns: Array,
    values: Array,
    weights: Array | None,
    chosen: Array | None,
    ends: Array,
) -> tuple[Array, Array, Array, Array | None]:
    """Return the entries that are chosen, panel after panel of columns.

    Parameters
    ----------
    starts : array of int, shape (p + 1,)
    columns : array of int, shape (stored,)
        Of each row in order.
    values : array, shape (stored,)
    weights : array, shape (stored,), or None
    chosen : array of bool, shape (stored,), or None
        None: all are.
    ends : array of int64, shape (panels,)
        Where panels end: the last one at the number of columns.

    Returns
    -------
    starts : array of int64, shape (panels * p + 1,)
    columns : array of int32, shape (chosen,)
    values : array, shape (chosen,)
    weights : array, shape (chosen,), or None
    """
    starts, columns, ends = frozen(starts), frozen(columns), frozen(ends)
    chosen = None if chosen is None else frozen(chosen)
    begin = np.zeros(len(ends) * (len(starts) - 1) + 1, dtype=np.int64)
    _count(starts, columns, chosen, ends, begin)
    np.cumsum(begin, out=begin)
    stored = int(begin[-1])
    found = (
        np.empty(stored, dtype=np.int32),
        np.empty(stored, dtype=values.dtype),
        None if weights is None else np.empty(stored, dtype=weights.dtype),
    )
    weights = None if weights is None else frozen(weights)
    _pick(starts, columns, frozen(values), weights, chosen, ends, begin, *found)
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
def _count(starts, columns, chosen, ends, begin):
    rows = starts.size - 1
    for i in range(rows):
        first = starts[i]
        for panel in range(ends.size):
            last = _reach(columns, first, starts[i + 1], ends[panel])
            count = last - first
            if chosen is not None:
                count = 0
                for e in range(first, last):
                    count += chosen[e]
            begin[panel * rows + i + 1] = count
            first = last


@compiled
def _pick(
    starts,
    columns,
    values,
    weights,
    chosen,
    ends,
    begin,
    onto_columns,
    onto_values,
    onto_weights,
):
    rows = starts.size - 1
    for i in range(rows):
        first = starts[i]
        for panel in range(ends.size):
            last = _reach(columns, first, starts[i + 1], ends[panel])
            k = begin[panel * rows + i]
            for e in range(first, last):
                if chosen is None or chosen[e]:
                    onto_columns[k] = columns[e]
                    onto_values[k] = values[e]
                    if weights is not None:
                        onto_weights[k] = weights[e]
                    k += 1
            first = last


@compiled
def _reach(columns, first, last, end):
    """Return how far the entries from `first` to `last` are in columns below `end`."""
    if first == last or columns[last - 1] < end:
        return last
    while first < last:
        middle = (first + last) // 2
        if columns[middle] < end:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def _count_columns(columns, counts):
    for e in range(columns.size):
        counts[columns[e]] += 1
