"""Tables on disk: CSV and Parquet, with an observation a line or a matrix as it is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from dmf.containers import Table, Triplets
from dmf.io.csv import SEPARATORS, read_parts, read_whole, whole_numbers
from dmf.io.parquet import labelled, open_wide, parts_of, write_wide
from dmf.io.places import check_file, explain, read_as
from dmf.triplets import from_triplets

Frame = Any  # of pandas

SUFFIXES = (*SEPARATORS, ".parquet")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Parameters
    ----------
    row, column, value : str or None
        Of a table with one observation a line. None: the table is the matrix itself.
    weight : str or None
    index : str or None
        Of a table that is a matrix: the column with the labels of its rows.
    """

    row: str | None = None
    column: str | None = None
    value: str | None = None
    weight: str | None = None
    index: str | None = None

    @property
    def names(self) -> tuple[str | None, str | None, str | None, str | None]:
        """What `from_triplets` asks for, in its order."""
        return self.row, self.column, self.value, self.weight

    @property
    def long(self) -> bool:
        """Whether the table has one observation a line.

        Raises
        ------
        ValueError
            Only some of the three columns are named.
        """
        *named, weight = self.names
        if all(name is not None for name in named):
            if self.index is not None:
                msg = (
                    f"index={self.index!r} is for a table that is a matrix; leave it "
                    "out, or row, column and value"
                )
                raise ValueError(msg)
            return True
        if any(name is not None for name in (*named, weight)):
            msg = (
                "a table with one observation a line needs row, column and value, the "
                f"names of its columns; got row={self.row!r}, column={self.column!r}, "
                f"value={self.value!r}"
            )
            raise ValueError(msg)
        return False

    @property
    def wanted(self) -> list[str]:
        """The columns that a table with one observation a line is read for."""
        return list(dict.fromkeys(name for name in self.names if name is not None))


def suffix_of(place: str) -> str:
    """Return what a name ends in, but for a compression: ".csv" of "x.csv.gz"."""
    stem, suffix = os.path.splitext(place.lower())
    return os.path.splitext(stem)[1] if suffix in (".gz", ".bz2", ".xz") else suffix


def open_table(
    place: str, columns: Columns, duplicates: str
) -> Triplets | Table | Frame:
    """Open a table.

    Ids and labels in CSV are text, such as 007, unless all of them are whole numbers.

    Parameters
    ----------
    place : str
        A path or a URL.
    columns : Columns
    duplicates : str
        As for `from_triplets`.

    Returns
    -------
    Triplets
        Of a table with one observation a line: it is read inside tasks, once for its
        ids and again in the fit, and never as a whole in one place.
    pandas.DataFrame
        Of a table that is a matrix, in memory.
    Table
        Of a Parquet matrix in several row groups: it is read inside tasks.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ImportError
        pyarrow isn't installed.
    ValueError
        It isn't a table, or lacks a column.
    """
    long = columns.long
    check_file(place)
    if find_spec("pyarrow") is None:
        msg = f"{place} needs pyarrow; install it with: pip install 'dmf[tables]'"
        raise ImportError(msg)
    if not long:
        return _read_wide(place, columns.index)
    with read_as(place, "CSV" if suffix_of(place) in SEPARATORS else "Parquet"):
        frame = _read_long(place, columns)
    try:
        found = from_triplets(frame, *columns.names, duplicates)
    except OSError as error:  # as Arrow says that pages of Parquet are no such
        if suffix_of(place) in SEPARATORS:
            raise
        told = explain(error)[:200]
        msg = f"{place} is damaged or cut off ({told}); copy it again"
        raise ValueError(msg) from error
    if suffix_of(place) not in SEPARATORS:
        return found
    return replace(
        found, rows=whole_numbers(found.rows), columns=whole_numbers(found.columns)
    )


def _read_long(place: str, columns: Columns) -> Any:
    """Return a Dask data frame of the columns that are wanted."""
    import dask.dataframe as dd

    suffix = suffix_of(place)
    if suffix not in SEPARATORS:
        return dd.read_parquet(place, columns=columns.wanted, index=False)
    text = [name for name in (columns.row, columns.column) if name is not None]
    numbers = [name for name in columns.wanted if name not in text]
    compressed = not place.lower().endswith(suffix)
    return read_parts(place, SEPARATORS[suffix], text, numbers, compressed)


def _read_wide(place: str, index: str | None) -> Table | Frame:
    suffix = suffix_of(place)
    if suffix not in SEPARATORS:
        return open_wide(place, index)
    with read_as(place, "CSV"):
        text = [] if index is None else [index]
        frame = read_whole(place, SEPARATORS[suffix], text)
    frame = labelled(frame, index, place)
    if index is not None:
        frame = frame.set_axis(whole_numbers(frame.index), axis=0)
    return frame


def write_table(table: Table | Frame, path: str, suffix: str) -> None:
    """Write a matrix in the format of a suffix, in parts; its index if it has one."""
    import pandas as pd

    index = table.labels.rows if isinstance(table, Table) else table.index
    own = index.name is not None or not isinstance(index, pd.RangeIndex)
    if suffix not in SEPARATORS:
        write_wide(table, path, own)
        return
    parts: Iterable[Frame] = parts_of(table)
    for k, part in enumerate(parts):
        mode = "a" if k else "w"
        part.to_csv(path, sep=SEPARATORS[suffix], index=own, mode=mode, header=k == 0)
