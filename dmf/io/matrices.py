"""Matrices in storage, by the suffixes of their names: `FORMATS` says who reads what.

Files are opened inside the tasks, by their path or URL, so that the same code works on
threads and on a cluster whose workers see the same storage. An output appears under its
name when it is complete, never before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from dmf.containers import Table, is_from, unwrap
from dmf.engine.losses import insisting
from dmf.engine.runner import choose_runner
from dmf.entries import is_sparse
from dmf.io.datasets import check_netcdf, open_netcdf, write_group, write_netcdf
from dmf.io.npy import open_npy, write_npy
from dmf.io.places import PathLike, check_free, is_file, is_url, locate, published
from dmf.io.sparse import open_mtx, open_npz
from dmf.io.tables import SUFFIXES as TABLES
from dmf.io.tables import Columns, open_table, suffix_of, write_table
from dmf.io.zarr import is_zarr_matrix, open_zarr, write_zarr
from dmf.validation import check_matrix

Array = Any


@dataclass(frozen=True)
class Format:
    """How matrices of one suffix are read and written.

    Parameters
    ----------
    read : callable
        Takes a path or URL, and what `options` names.
    write : callable, optional
        Takes a matrix and a path of this machine.
    options : tuple of str
        Which parameters of `open_matrix` it knows.
    """

    read: Callable[..., Array]
    write: Callable[..., None] | None = None
    options: tuple[str, ...] = ()


# A new format is one module, one line here, and one in `FORMATS` of tests/test_io.py.
FORMATS = {
    ".npy": Format(open_npy, write_npy),
    ".npz": Format(open_npz),
    ".mtx": Format(open_mtx),
    ".nc": Format(open_netcdf, write_netcdf, ("variable",)),
    ".zarr": Format(open_zarr, None, ("variable",)),
} | {
    suffix: Format(open_table, partial(write_table, suffix=suffix), ("columns",))
    for suffix in TABLES
}


def open_matrix(
    path: PathLike,
    columns: Columns | None = None,
    duplicates: str = "error",
    variable: str | None = None,
) -> Array:
    """Open a matrix; dense ones are read later, block by block.

    Parameters
    ----------
    path : str or path
        A ``.npy`` file, a ``.npz`` file that `scipy.sparse.save_npz` has written, a
        Matrix Market file (``.mtx``), a table (``.csv``, ``.tsv``, ``.parquet``), a
        netCDF file (``.nc``), a Zarr array of version 2 or 3, or a Zarr group that
        xarray has written; or a URL of one of them that fsspec knows. Without one of
        these suffixes, a folder or URL is taken for Zarr.
    columns : Columns, optional
        Which columns of a table hold what. Default: it is the matrix itself.
    duplicates : {"error", "mean", "sum", "last"}
        As for `from_triplets`.
    variable : str, optional
        Which variable of a netCDF file or Zarr group. Default: the one with two
        dimensions, if there is only one.

    Returns
    -------
    array or container, shape (m, n)
        .npy: a lazy Dask array in chunks of Dask's "auto" size; Zarr: a lazy Dask array
        in the chunks of the Zarr array; .nc and groups of xarray: a lazy DataArray;
        .npz, .mtx: a scipy.sparse matrix or array in memory; tables: `Triplets`, a data
        frame or, if Parquet has several parts, a lazy `Table`. Whatever a sparse file
        doesn't store is missing; elsewhere, NaN is.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    OSError
        A URL can't be reached.
    ValueError
        It is something else, of another kind than its name says, or damaged.
    """
    path = locate(path)
    known = _format_of(path)
    table = "columns" in known.options
    if not table and columns not in (None, Columns()):
        msg = f"{path} isn't a table ({', '.join(TABLES)}), and has no columns to name"
        raise ValueError(msg)
    if variable is not None and "variable" not in known.options:
        msg = f"{path} is neither netCDF nor Zarr, and has no variable {variable!r}"
        raise ValueError(msg)
    if table:
        return known.read(path, columns or Columns(), duplicates)
    return known.read(path) if variable is None else known.read(path, variable)


def open_mask(path: PathLike | None, index: str | None = None) -> Array:
    """Open a mask, if there is one; a table has its labels where that of X has them."""
    if path is None:
        return None
    table = suffix_of(locate(path)) in TABLES
    return open_matrix(path, Columns(index=index) if table else None)


def _format_of(path: str) -> Format:
    suffix = suffix_of(path)
    if suffix in FORMATS and (suffix in TABLES or not os.path.isdir(path)):
        return FORMATS[suffix]
    if is_url(path) or os.path.isdir(path):
        return FORMATS[".zarr"]
    msg = (
        f"{path} is of no kind that dmf reads; give a .npy file, a .npz file of "
        "scipy.sparse.save_npz, a .mtx file, a .csv, .tsv or .parquet table, a .nc "
        "file, or Zarr"
    )
    raise ValueError(msg)


def write_matrix(array: Array, path: PathLike, overwrite: bool = False) -> None:
    """Write a matrix, block by block inside tasks if it is a Dask array.

    It is written beside `path` and moved there at the end: when something fails, the
    temporary is removed and an older output stays as it was. Behind a URL, files are
    put in place whole, from a temporary file of this machine; Zarr is written in place.
    On a cluster, the workers must see the file system of `path`.

    Parameters
    ----------
    array : NumPy or Dask array, data frame, `Table` or DataArray, shape (m, n)
        A Dask array is rechunked for a Zarr output only if its chunks are irregular.
    path : str or path
        Ends in ``.npy`` or ``.zarr``; of a data frame or `Table`, also in ``.csv``,
        ``.tsv`` or ``.parquet``; of a DataArray, also in ``.nc``. Only these keep
        labels, and a ``.zarr`` of a DataArray, which is a group.
    overwrite : bool, default False
        Replace a file by a file, or a Zarr matrix by a Zarr matrix.

    Raises
    ------
    FileExistsError
        Something is there that may not be replaced.
    FileNotFoundError, PermissionError
        The folder doesn't exist, or can't be written to.
    OSError
        A URL can't be reached.
    ValueError, TypeError
        The path has another suffix; the array is sparse, or no matrix of real numbers.
    """
    check_output(array, path)
    plain, _ = unwrap(array)
    check_matrix("array", plain)
    if is_sparse(plain):
        msg = "a sparse matrix can't be written; use scipy.sparse.save_npz"
        raise TypeError(msg)
    check_writable(path, overwrite)
    path = locate(path)
    suffix = suffix_of(path)
    if suffix == ".zarr":
        labelled = is_from("xarray", "DataArray", array)
        write: Any = write_group if labelled else write_zarr
        given = array if labelled else plain
        if is_url(path):
            write(given, path, overwrite=overwrite)
            return
    elif suffix == ".npy":
        write, given = partial(write_npy, shared=not is_url(path)), plain
    else:
        write, given = FORMATS[suffix].write, array
    with published(path, lambda: check_writable(path, overwrite)) as temporary:
        write(given, temporary)


def write_made(
    make: Callable[[], Array], path: PathLike, overwrite: bool = False
) -> Array:
    """Make a matrix, write it as `write_matrix` does, and return it.

    Both are done anew when workers have taken along what was brought to them to make it
    of, such as factors in memory.
    """
    check_writable(path, overwrite)
    tries = count()

    def made() -> Array:
        array = make()
        # What is in the way of a further try is what the one before has left.
        write_matrix(array, path, overwrite or next(tries) > 0)
        return array

    return insisting(
        choose_runner(None).session, made, f"while {locate(path)} was written"
    )


def check_output(array: Array, path: PathLike) -> None:
    """Refuse a format with labels as the output of what has none."""
    path = locate(path)
    suffix = suffix_of(path)
    frame = is_from("pandas", "DataFrame", array) or isinstance(array, Table)
    if suffix in TABLES and not frame:
        msg = (
            f"{path} would be a table, but the input isn't a matrix in a table; "
            "write a .npy or a .zarr"
        )
        raise ValueError(msg)
    if suffix == ".nc":
        if not is_from("xarray", "DataArray", array):
            msg = (
                f"{path} would be netCDF, but the input has no named dimensions; write "
                "a .npy or a .zarr"
            )
            raise ValueError(msg)
        check_netcdf(path)


def check_writable(path: PathLike, overwrite: bool = False) -> None:
    """Refuse a path that `write_matrix` couldn't write to, before any work is done."""
    path = locate(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".zarr":
        check_free(path, is_zarr_matrix, "a Zarr array", overwrite)
    elif suffix in FORMATS and FORMATS[suffix].write is not None:
        check_free(path, is_file, "a file", overwrite)
    else:
        msg = (
            f"can't write {path}; its name must end in .npy or .zarr or, for what has "
            f"labels, in .nc or, for a table, in {', '.join(TABLES)}"
        )
        raise ValueError(msg)
