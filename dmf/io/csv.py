"""Tables in CSV, read by Arrow: strictly, and in parts inside tasks.

pandas forgets, without a word, what is too much in a line, and makes up what it lacks.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any

from dmf.io.blocks import checked_read
from dmf.io.places import open_binary, size_of
from dmf.io.versions import version_of

Frame = Any  # of pandas
Index = Any

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PART = 2**25  # bytes that a task reads
# A whole number as it is written back, which makes it an id that isn't text.
WHOLE = r"0|-?[1-9][0-9]{0,17}"


def read_whole(place: str, separator: str, text: list[str]) -> Frame:
    """Return a table in memory.

    Parameters
    ----------
    place : str
        A path or URL; it may be compressed, as its suffix says.
    separator : str
    text : list of str
        The columns to take as text, whatever is in them.
    """
    with open_binary(place, compression="infer") as file:
        table = _parse(file.read(), separator=separator, kinds=dict.fromkeys(text, str))
    _check_unique(table.schema.names, table.schema.names)
    return table.to_pandas()


def read_parts(
    place: str, separator: str, text: list[str], numbers: list[str], compressed: bool
) -> Any:
    """Return some columns of a table as a Dask data frame.

    A compressed file is one part: it can't be read from amid it.
    """
    import dask.dataframe as dd
    import pandas as pd

    kinds: dict[str, type] = dict.fromkeys(numbers, float) | dict.fromkeys(text, str)
    with open_binary(place, compression="infer") as file:
        header = file.readline()
    names = _parse(header, separator=separator, kinds={}).schema.names
    _check_unique(list(kinds), names)
    meta = pd.DataFrame({name: pd.Series([], dtype=kinds[name]) for name in kinds})
    version = version_of(place)
    options = {"separator": separator, "kinds": kinds, "names": names}
    return dd.from_map(
        partial(_part, place, version=version, **options),
        [None] if compressed else range(0, max(size_of(place), 1), PART),
        meta=meta,
    )


def _part(
    place: str, start: int | None, *, version: str | None, **options: Any
) -> Frame:
    """Return the lines that begin in a range of bytes; None: all of them."""
    from fsspec.utils import read_block

    if version_of(place) != version:
        # Its lines would be sorted by the ids of other ones.
        msg = f"{place} has changed since it was opened; open it again"
        raise ValueError(msg)

    def read(start: int | None) -> Frame:
        with open_binary(place, compression="infer") as file:
            if start is None:
                content = file.read()
            else:
                content = read_block(file, start, PART, delimiter=b"\n")
        # None begins amid a long line, and Arrow wants at least an empty one.
        table = _parse(content or b"\n", skip=not start, **options)
        return _encoded(table).to_pandas()

    return checked_read(place, read, start)


def _encoded(table: Any) -> Any:
    """Number the words of a table of Arrow, which does it faster than pandas would."""
    for j, field in enumerate(table.schema):
        if field.type == "string":
            numbered = table.column(j).combine_chunks().dictionary_encode()
            table = table.set_column(j, field.name, numbered)
    return table


def _check_unique(wanted: list[str], names: list[str]) -> None:
    """Refuse columns that aren't there, or of which there are several."""
    for name in wanted:
        if names.count(name) != 1:
            found = ", ".join(map(repr, names[:10]))
            number = names.count(name) or "no"
            msg = f"{number} columns are called {name!r}; the table has {found}"
            raise ValueError(msg)


def _parse(
    content: bytes,
    *,
    separator: str,
    kinds: dict[str, type],
    names: list[str] | None = None,
    skip: bool = False,
) -> Any:
    """Return lines as a table of Arrow.

    Parameters
    ----------
    content : bytes
    separator : str
    kinds : dict of str to type
        Columns that hold text or numbers. Others are what they look like.
    names : list of str, optional
        All columns, of lines without a header: those of `kinds` are returned. Default:
        the first line has the names, and all are returned.
    skip : bool
        Whether there is a header all the same.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    types = {str: pa.string(), float: pa.float64()}
    return pc.read_csv(
        io.BytesIO(content),
        read_options=pc.ReadOptions(
            use_threads=names is None, column_names=names, skip_rows=int(skip)
        ),
        parse_options=pc.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pc.ConvertOptions(
            column_types={name: types[kind] for name, kind in kinds.items()},
            include_columns=None if names is None else list(kinds),
            strings_can_be_null=True,
        ),
    )


def whole_numbers(ids: Index) -> Index:
    """Return ids that were read as text as integers, if all of them are such."""
    if not len(ids) or not ids.str.fullmatch(WHOLE).all():
        return ids
    return ids.astype("int64")
