"""Wide Parquet tables, whose columns are variables: read and written in parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from dmf.containers import (
    Table,
    TableLabels,
    float_dtypes,
    frame_dtype,
    frame_numbers,
    not_numbers,
)
from dmf.engine.chunks import lazy_chunk
from dmf.engine.runner import choose_runner
from dmf.io.blocks import checked_read
from dmf.io.places import files_at, is_url, reached, read_as

Array = Any
Frame = Any  # of pandas
Fragment = Any  # of pyarrow: a row group that isn't read yet


def open_wide(place: str, index: str | None) -> Table | Frame:
    """Open a Parquet file, or a folder of them, that is a matrix.

    Parameters
    ----------
    place : str
        A path or URL.
    index : str or None
        The column with the labels of rows. Default: what pandas has written as such.

    Returns
    -------
    Table
        Of several row groups: their labels have been read, the numbers not yet.
    pandas.DataFrame
        Of one, in memory.

    Raises
    ------
    ValueError
        It isn't Parquet, lacks the column, or holds something else than numbers.
    """
    with read_as(place, "Parquet"):
        data = _dataset(place)
        groups = _row_groups(data)
        # As pandas would read it, with its dtypes and names, but for the rows.
        empty: Frame = data.schema.empty_table().to_pandas()
        own = (data.schema.pandas_metadata or {}).get("index_columns", [])
        whole = groups[0].to_table().to_pandas() if len(groups) < 2 else None
    if whole is not None:
        return labelled(whole, index, place)
    empty = labelled(empty, index, place)
    beside = [name for name in own if isinstance(name, str)]
    labels = beside if index is None else [index]
    wanted = [name for name in data.schema.names if name not in (*beside, index)]
    with read_as(place, "Parquet"):
        rows: Frame = data.to_table(columns=labels).to_pandas()
    dtype = frame_dtype(empty.dtypes)
    meta = np.empty((0, 0), dtype=dtype)
    take = partial(_numbers, place=place, columns=wanted, dtype=dtype)
    X = np.concatenate(
        [
            lazy_chunk(take, group, shape=(_length(group), len(wanted)), meta=meta)
            for group in groups
        ]
    )
    rows = rows if index is None else rows.set_index(index)
    return Table(X, TableLabels(rows.index, empty.columns, float_dtypes(empty)))


def labelled(frame: Frame, index: str | None, place: str) -> Frame:
    """Return a table that is a matrix with a column as its labels, or refuse it."""
    if index is not None and index not in frame.columns:
        found = ", ".join(map(repr, frame.columns[:10]))
        msg = f"there is no column {index!r}; the table has {found}"
        raise ValueError(msg)
    frame = frame if index is None else frame.set_index(index)
    for j, name in enumerate(frame.columns):
        kind = not_numbers(frame.iloc[:, j])
        if kind is not None:
            msg = (
                f"column {name!r} of {place} holds {kind}, not numbers; if it labels "
                f"the rows, name it with --index {name}, else leave it out of the table"
            )
            raise ValueError(msg)
    return frame


def _dataset(place: str) -> Any:
    """Return all files at a place, in the order of their names."""
    from dask.utils import natural_sort_key
    from pyarrow.dataset import dataset

    files, path = files_at(place)
    paths = [path]
    with reached(place):
        files.invalidate_cache()
        if files.isdir(path):
            found = [name for name in files.find(path) if name.endswith(".parquet")]
            paths = sorted(found, key=natural_sort_key)
        if not paths:
            msg = f"the folder {place} has no .parquet files"
            raise FileNotFoundError(msg)
        return dataset(
            paths, format="parquet", filesystem=files if is_url(place) else None
        )


def _row_groups(data: Any) -> list[Fragment]:
    """Return all row groups that aren't empty, in order; one if all are."""
    files = list(data.get_fragments())
    for file in files:
        if file.physical_schema != data.schema:
            msg = f"{file.path} has other columns than {files[0].path}"
            raise ValueError(msg)
    groups = [group for file in files for group in file.split_by_row_group()]
    return [group for group in groups if _length(group)] or files[:1]


def _length(group: Fragment) -> int:
    return int(group.row_groups[0].num_rows)


def _numbers(
    group: Fragment, *, place: str, columns: list[str], dtype: np.dtype[Any]
) -> Array:
    def read(columns: list[str]) -> Array:
        frame = group.to_table(columns=columns).to_pandas(ignore_metadata=True)
        return frame_numbers(frame, "X").astype(dtype, copy=False)

    return checked_read(place, read, columns)


def write_wide(table: Table | Frame, path: str, own: bool) -> None:
    """Write a table that is a matrix to one Parquet file, a row group for each part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = (pa.Table.from_pandas(part, preserve_index=own) for part in parts_of(table))
    first = next(parts)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


def parts_of(table: Table | Frame) -> Iterator[Frame]:
    """Return the data frames that a table consists of, one by one; at least one."""
    if not isinstance(table, Table):
        yield table
        return
    start = 0
    for length in table.X.chunks[0]:
        stop = start + length
        with choose_runner(None).session():
            block = table.X[start:stop].compute()
        yield table.labels.part(start, stop).wrap_matrix(block)
        start = stop
