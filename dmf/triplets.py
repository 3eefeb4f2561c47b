"""Tables of triplets (row, column, value) as sparse matrices.

Each part of a table goes the same way: its ids are found, those of all parts are
merged, each triplet gets its positions, the triplets are sorted into chunks of rows.
A pandas frame is one part; of a Dask frame, what comes after the ids waits.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from dmf.containers import Triplets, not_numbers, plain_dtype
from dmf.engine.chunks import lazy_chunk
from dmf.engine.grid import balanced_bounds
from dmf.entries import LARGEST_WEIGHT
from dmf.labels import Index, shown
from dmf.validation import working_dtype

Array = Any
Frame = Any  # of pandas
Delayed = Any  # what Dask will compute: its methods can be called, and wait as well

DUPLICATES = ("error", "mean", "sum", "last")
# Every partition is cut for every chunk: more of them would drown in tasks.
MOST_CHUNKS = 64
# Tables of ids are merged by so many at once, in a tree.
FAN_IN = 8


def from_triplets(
    frame: Any,
    row: Hashable,
    column: Hashable,
    value: Hashable,
    weight: Hashable | None = None,
    duplicates: str = "error",
) -> Triplets:
    """Turn a table with one observation a line into a sparse matrix.

    Rows and columns stand in the order in which their ids appear first. A table that
    grows at its end makes a matrix that grows at its ends.

    Parameters
    ----------
    frame : pandas.DataFrame or Dask DataFrame
        Of Dask, the partitions are read here once for the ids, and again whenever X is;
        ``frame.persist()`` first saves the second time.
    row, column : hashable
        The names of the columns with the ids: any hashable values, none missing. Dask
        itself turns objects such as tuples into strings, unless its setting
        ``dataframe.convert-string`` is False.
    value : hashable
        The name of the column with the values. NaN, None and pandas.NA mean missing:
        these lines are left out, but their ids have a row and a column.
    weight : hashable, optional
        The name of a column with weights ≥ 0. 0 means missing.
    duplicates : {"error", "mean", "sum", "last"}, default "error"
        What several values of one pair of ids become, after missing ones have been left
        out. With weights, "mean" is the weighted mean. Weights add up, but "last" takes
        the last one's with its value. (The fit sees a pair of weight 1 in the place of
        duplicates without weights; a column of ones makes it count them.)

    Returns
    -------
    Triplets
        X is float32 if the values are float16 or float32, else float64. From a Dask
        frame, X is a Dask array in chunks of whole rows, with about as many triplets in
        each as in a partition; the ids are in memory.

    Raises
    ------
    TypeError
        `frame` isn't a data frame; values aren't numbers; ids can't be hashed.
    ValueError
        A column isn't there, an id is missing, a value is infinite, a weight is
        negative, there are no lines, or there are duplicates with
        ``duplicates="error"``. In a Dask frame, duplicates are found when X is read.

    Examples
    --------
    >>> import pandas as pd, dmf.triplets
    >>> frame = pd.DataFrame(
    ...     {"user": ["ann", "bob", "ann"], "film": [7, 7, 3], "stars": [4, 5, 1]}
    ... )
    >>> t = dmf.triplets.from_triplets(frame, row="user", column="film", value="stars")
    >>> t
    Triplets(2 × 2, 3 entries)
    >>> t.X.toarray().tolist(), t.columns.tolist()
    ([[4.0, 1.0], [5.0, 0.0]], [7, 3])
    """
    if duplicates not in DUPLICATES:
        options = ", ".join(f'"{option}"' for option in DUPLICATES)
        msg = f"duplicates must be one of {options}, got {duplicates!r}"
        raise ValueError(msg)
    names = _checked_names(
        frame, {"row": row, "column": column, "value": value, "weight": weight}
    )
    dtype = working_dtype(plain_dtype(frame.dtypes[value]))
    if type(frame).__module__.startswith("dask.dataframe"):
        return _from_dask(frame, names, dtype, duplicates)
    part_of = partial(_Part.of, names=names, dtype=dtype)
    seen = _see(frame, part_of=part_of)
    _check_seen(seen, names)
    (entries,) = _place(frame, seen, part_of=part_of, bounds=(0, len(seen.rows)))
    found = entries.matrices(seen, start=0, stop=len(seen.rows), rule=duplicates)
    return _triplets(found, seen)


def _from_dask(
    frame: Any, names: tuple[Hashable, ...], dtype: Any, duplicates: str
) -> Triplets:
    """Return triplets whose X is lazy."""
    parts: list[Delayed] = frame[list(dict.fromkeys(names))].to_delayed()
    part_of = partial(_Part.of, names=names, dtype=dtype)
    # Kept where it was computed, so that a cluster can also compute it again.
    seen_there = _merged([part.pipe(_see, part_of=part_of) for part in parts]).persist()
    seen: _Seen = seen_there.compute()
    _check_seen(seen, names)
    number = min(len(parts), len(seen.rows), MOST_CHUNKS)
    bounds = balanced_bounds(seen.row_counts, number)
    place = partial(_place, part_of=part_of, bounds=bounds)
    placed = [part.pipe(place, seen_there) for part in parts]
    chunks = []
    for i, (start, stop) in enumerate(pairwise(bounds)):
        first, *others = [entries[i] for entries in placed]
        chunks.append(
            first.matrices(seen_there, *others, start=start, stop=stop, rule=duplicates)
        )
    dtypes = [dtype, np.float64][: len(names) - 2]
    stacked = [
        _stacked([chunk[which] for chunk in chunks], bounds, len(seen.columns), dtype)
        for which, dtype in enumerate(dtypes)
    ]
    return _triplets(stacked, seen)


def _stacked(
    chunks: list[Delayed], bounds: tuple[int, ...], n: int, dtype: Any
) -> Array:
    """Return chunks of rows as one Dask array."""
    meta = sp.csr_array((0, 0), dtype=dtype)
    lengths = np.diff(bounds).tolist()
    return np.concatenate(
        [
            lazy_chunk(_whole, chunk, shape=(length, n), meta=meta)
            for chunk, length in zip(chunks, lengths, strict=True)
        ]
    )


def _whole(chunk: Any) -> Any:
    return chunk


def _triplets(found: Sequence[Any], seen: _Seen) -> Triplets:
    X, mask = (*found, None)[:2]
    return Triplets(X, mask, seen.rows, seen.columns)


def _merged(seen: list[Delayed]) -> Delayed:
    """Merge what was seen in all parts, in a tree that keeps their order."""
    while len(seen) > 1:
        groups = [seen[k : k + FAN_IN] for k in range(0, len(seen), FAN_IN)]
        seen = [first.merged_with(others) for first, *others in groups]
    return seen[0]


@dataclass(frozen=True)
class _Part:
    """A part of the table, checked.

    `codes` number the ids of each axis in the order of their first appearance, which
    `ids` list; −1 is a missing one. `values` are NaN where they are missing.
    """

    codes: tuple[Array, Array]
    ids: tuple[Index, Index]
    values: Array
    weights: Array | None

    @property
    def data(self) -> tuple[Array, ...]:
        return (self.values,) if self.weights is None else (self.values, self.weights)

    @classmethod
    def of(cls, frame: Frame, names: tuple[Hashable, ...], dtype: Any) -> _Part:
        codes, ids = zip(*(_factorized(frame, name) for name in names[:2]), strict=True)
        values = _numbers(frame, names[2], "value", dtype)
        weights = None
        if len(names) == 4:
            weights = _numbers(frame, names[3], "weight", np.float64)
        part = cls(codes, ids, values, weights)
        part.refuse("value", values, np.isinf(values), "leave it out, or make it NaN")
        if weights is not None:
            bad = ~((weights >= 0) & (weights <= LARGEST_WEIGHT)) & ~np.isnan(values)
            way_out = f"weights must be from 0 (for missing) to {LARGEST_WEIGHT:g}"
            part.refuse("weight", weights, bad, way_out)
        return part

    def refuse(self, kind: str, numbers: Array, bad: Array, way_out: str) -> None:
        if not np.any(bad):
            return
        line = int(np.argmax(bad))
        pair = _pair_shown(self.ids, [int(codes[line]) for codes in self.codes])
        msg = (
            f"the {kind} of {pair} is {numbers[line]:g} ({np.sum(bad)} are like it); "
            f"{way_out}"
        )
        raise ValueError(msg)


@dataclass(frozen=True)
class _Seen:
    """The ids that parts of the table have.

    `row_counts` are the lines of each row, `missing` those without an id, by axis.
    """

    rows: Index
    columns: Index
    row_counts: Array
    missing: tuple[int, int]

    def merged_with(self, others: Sequence[_Seen]) -> _Seen:
        rows = self.rows.append([other.rows for other in others]).unique()
        columns = self.columns.append([other.columns for other in others]).unique()
        counts = np.zeros(len(rows), dtype=np.int64)
        for seen in (self, *others):
            counts[_look_up(rows, seen.rows)] += seen.row_counts
        missing = [sum(seen.missing[k] for seen in (self, *others)) for k in (0, 1)]
        return _Seen(rows, columns, counts, (missing[0], missing[1]))


def _see(frame: Frame, part_of: Any) -> _Seen:
    part = part_of(frame)
    codes: Array = part.codes[0]
    counts = np.bincount(codes[codes >= 0], minlength=len(part.ids[0]))
    missing = int(np.sum(codes < 0)), int(np.sum(part.codes[1] < 0))
    return _Seen(part.ids[0], part.ids[1], counts, missing)


@dataclass(frozen=True)
class _Entries:
    """Observed triplets by their positions, in the order of the table.

    `data` are the values and, if there are any, the weights.
    """

    rows: Array
    columns: Array
    data: tuple[Array, ...]

    def __getitem__(self, which: Array) -> _Entries:
        data = tuple(array[which] for array in self.data)
        return _Entries(self.rows[which], self.columns[which], data)

    def joined(self, others: Sequence[_Entries]) -> _Entries:
        parts = [self, *others]
        joined = zip(*(part.data for part in parts), strict=True)
        return _Entries(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.columns for part in parts]),
            tuple(np.concatenate(arrays) for arrays in joined),
        )

    def matrices(
        self, seen: _Seen, *others: _Entries, start: int, stop: int, rule: str
    ) -> tuple[Any, ...]:
        """Return the rows from `start` to `stop` of all parts: X, and the weights."""
        entries = self.joined(others)
        # Duplicates stay in the order of the table.
        entries = entries[np.lexsort((entries.columns, entries.rows))]
        fresh = np.ones(len(entries.rows), dtype=bool)
        fresh[1:] = (np.diff(entries.rows) != 0) | (np.diff(entries.columns) != 0)
        if not np.all(fresh):
            if rule == "error":
                _refuse_duplicates(entries, fresh, seen)
            entries = entries.combined(np.flatnonzero(fresh), rule)
        counts = np.bincount(entries.rows - start, minlength=stop - start)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        shape = (stop - start, len(seen.columns))
        return tuple(
            sp.csr_array((array, entries.columns, indptr), shape=shape)
            for array in entries.data
        )

    def combined(self, starts: Array, rule: str) -> _Entries:
        """Make one entry of each group of duplicates that begins at `starts`."""
        sizes = np.diff(starts, append=len(self.rows))
        if rule == "last":
            return self[starts + sizes - 1]
        values = self.data[0].astype(np.float64)
        totals = [np.add.reduceat(weights, starts) for weights in self.data[1:]]
        if rule == "mean":
            # Shares first: sums of weights and values may be too large for a float.
            weights = self.data[1] if totals else 1.0
            values *= weights / np.repeat(totals[0] if totals else sizes, sizes)
        values = np.add.reduceat(values, starts).astype(self.data[0].dtype)
        return _Entries(self.rows[starts], self.columns[starts], (values, *totals))


def _place(
    frame: Frame, seen: _Seen, part_of: Any, bounds: tuple[int, ...]
) -> list[_Entries]:
    """Return the observed triplets of a part, for each chunk of rows."""
    part = part_of(frame)
    rows = _look_up(seen.rows, part.ids[0])[part.codes[0]]
    columns = _look_up(seen.columns, part.ids[1])[part.codes[1]]
    observed = ~np.isnan(part.values)
    if part.weights is not None:
        observed &= part.weights > 0
    entries = _Entries(rows, columns, part.data)[observed]
    order = np.argsort(entries.rows, kind="stable")
    cuts: Array = np.searchsorted(entries.rows[order], bounds)
    return [entries[order[start:stop]] for start, stop in pairwise(cuts)]


def _factorized(frame: Frame, name: Hashable) -> tuple[Array, Index]:
    """Return a number for the id in each line, and the ids."""
    import pandas as pd

    try:
        codes, ids = pd.factorize(frame[name])
    except TypeError as error:
        msg = (
            f"the ids in column {name!r} can't be hashed ({error}); turn them into "
            "tuples or strings"
        )
        raise TypeError(msg) from error
    if isinstance(ids, pd.CategoricalIndex):
        # Partitions may differ in their categories.
        ids = ids.astype(ids.categories.dtype)
    return codes, ids.rename(name)


def _numbers(frame: Frame, name: Hashable, kind: str, dtype: Any) -> Array:
    found = not_numbers(frame[name])
    if found is not None:
        msg = (
            f"the {kind} column {name!r} holds {found}, not numbers; convert it first, "
            "for example with pandas.to_numeric"
        )
        raise TypeError(msg)
    return frame[name].to_numpy(dtype=dtype, na_value=np.nan)


# An index makes its hash table when it's first asked, and isn't ready for a second
# thread that asks meanwhile.
_lookup = threading.Lock()


def _look_up(index: Index, ids: Index) -> Array:
    with _lookup:
        return index.get_indexer(ids)


def _checked_names(
    frame: Any, wanted: dict[str, Hashable | None]
) -> tuple[Hashable, ...]:
    """Return the names of the columns to read, or refuse them."""
    if not hasattr(frame, "columns") or not hasattr(frame, "dtypes"):
        msg = (
            f"frame must be a pandas or Dask DataFrame, got {type(frame).__name__}; "
            "convert it first, for example with pandas.DataFrame"
        )
        raise TypeError(msg)
    there = list(frame.columns)
    if wanted["weight"] is None:
        del wanted["weight"]
    for kind, name in wanted.items():
        number = there.count(name)
        if number != 1:
            msg = (
                f"{kind}={name!r}, but {number or 'no'} columns of the frame have that "
                f"name; its columns are {', '.join(map(repr, there))}"
            )
            raise ValueError(msg)
    return tuple(wanted.values())


def _check_seen(seen: _Seen, names: tuple[Hashable, ...]) -> None:
    for name, missing in zip(names[:2], seen.missing, strict=True):
        if missing:
            msg = (
                f"{missing} lines have no id in column {name!r}; drop them with "
                f"frame.dropna(subset=[{name!r}])"
            )
            raise ValueError(msg)
    if not len(seen.rows):
        msg = "the frame has no lines; give at least one triplet"
        raise ValueError(msg)


def _refuse_duplicates(entries: _Entries, fresh: Array, seen: _Seen) -> None:
    line = int(np.argmin(fresh))
    pair = _pair_shown(
        (seen.rows, seen.columns), [int(entries.rows[line]), int(entries.columns[line])]
    )
    pairs = len(np.unique(np.cumsum(fresh)[~fresh]))
    msg = (
        f"{pairs} pairs of ids have several values, {pair} for example; say what "
        'becomes of them with duplicates="mean", "sum" or "last"'
    )
    raise ValueError(msg)


def _pair_shown(ids: tuple[Index, Index], positions: list[int]) -> str:
    names = zip(("row", "column"), ids, positions, strict=True)
    return ", ".join(
        f"{axis} {shown(index, k) if k >= 0 else 'without an id'}"
        for axis, index, k in names
    )
