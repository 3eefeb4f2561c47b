"""Matrices on disk: .npy files, sparse ones, Zarr arrays, and tables.

Files are opened inside the tasks, by their path, so that the same code works on threads
and on a cluster whose workers see the same file system. An output appears under its
name when it is complete, never before.
"""

from __future__ import annotations

import errno
import math
import os
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from dmf.containers import is_from, unwrap
from dmf.engine.kinds import is_dask
from dmf.engine.runner import choose_runner
from dmf.entries import is_sparse
from dmf.io.places import (
    PathLike,
    check_file,
    check_free,
    explain,
    is_url,
    locate,
    open_node,
    peek,
    published,
)
from dmf.io.tables import CUT_OFF, Columns, open_table, suffix_of, write_table
from dmf.io.tables import SUFFIXES as TABLES
from dmf.validation import check_matrix

Array = Any


def open_matrix(
    path: PathLike, columns: Columns | None = None, duplicates: str = "error"
) -> Array:
    """Open a matrix; dense ones are read later, block by block.

    Parameters
    ----------
    path : str or path
        A ``.npy`` file, a ``.npz`` file that `scipy.sparse.save_npz` has written, a
        Matrix Market file (``.mtx``), a table (``.csv``, ``.tsv``, ``.parquet``), or a
        Zarr array, which is a directory. Tables and Zarr arrays may be URLs that fsspec
        knows.
    columns : Columns, optional
        Which columns of a table hold what. Default: it is the matrix itself.
    duplicates : {"error", "mean", "sum", "last"}
        As for `from_triplets`.

    Returns
    -------
    array or container, shape (m, n)
        .npy: a lazy Dask array in chunks of Dask's "auto" size; Zarr: a lazy Dask array
        in the chunks of the Zarr array; .npz, .mtx: a scipy.sparse matrix or array in
        memory; tables: `Triplets` or a data frame. Whatever a sparse file doesn't store
        is missing; elsewhere, NaN is.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        It is something else, of another kind than its name says, or damaged.
    """
    path = locate(path)
    columns = columns or Columns()
    suffix = suffix_of(path)
    if suffix in TABLES:
        return open_table(path, columns, duplicates)
    if columns != Columns():
        msg = f"{path} isn't a table ({', '.join(TABLES)}), and has no columns to name"
        raise ValueError(msg)
    if is_url(path) or suffix == ".zarr" or os.path.isdir(path):
        return _open_zarr(path)
    if suffix not in FILES:
        msg = (
            f"{path} is of no kind that dmf reads; give a .npy file, a .npz file of "
            "scipy.sparse.save_npz, a .mtx file, a .csv, .tsv or .parquet table, or a "
            "Zarr array"
        )
        raise ValueError(msg)
    check_file(path)
    return FILES[suffix](path)


def write_matrix(array: Array, path: PathLike, overwrite: bool = False) -> None:
    """Write a matrix, block by block inside tasks if it is a Dask array.

    It is written beside `path` and moved there at the end: when something fails, the
    temporary is removed and an older output stays as it was. (Behind a URL nothing can
    be moved: there it is written in place.) On a cluster, the workers must see the file
    system of `path`.

    Parameters
    ----------
    array : NumPy or Dask array, or data frame, shape (m, n)
        A Dask array is rechunked for a Zarr output only if its chunks are irregular.
    path : str or path
        Ends in ``.npy`` or ``.zarr``; for the latter, a URL is fine too. For a data
        frame, ``.csv``, ``.tsv`` or ``.parquet``; elsewhere its labels are lost.
    overwrite : bool, default False
        Replace a file by a file, or a Zarr array by a Zarr array.

    Raises
    ------
    FileExistsError
        Something is there that may not be replaced.
    FileNotFoundError, PermissionError
        The folder doesn't exist, or can't be written to.
    ValueError, TypeError
        The path has another suffix; the array is sparse, or no matrix of real numbers.
    """
    table = suffix_of(locate(path)) in TABLES
    check_output(array, path)
    if not table:
        array, _ = unwrap(array)
        check_matrix("array", array)
    if is_sparse(array):
        msg = "a sparse matrix can't be written; use scipy.sparse.save_npz"
        raise TypeError(msg)
    check_writable(path, overwrite)
    path = locate(path)
    if is_url(path):
        write_zarr(array, path, overwrite=overwrite)
        return
    with published(path, lambda: check_writable(path, overwrite)) as temporary:
        if table:
            write_table(array, temporary, suffix_of(path))
        elif path.lower().endswith(".npy"):
            _write_npy(array, temporary)
        else:
            write_zarr(array, temporary)


def check_output(array: Array, path: PathLike) -> None:
    """Refuse a table as the output of what isn't one: it would have no labels."""
    if suffix_of(locate(path)) in TABLES and not is_from("pandas", "DataFrame", array):
        msg = (
            f"{path} would be a table, but the input isn't a matrix in a table; "
            "write a .npy or a .zarr"
        )
        raise ValueError(msg)


def check_writable(path: PathLike, overwrite: bool = False) -> None:
    """Refuse a path that `write_matrix` couldn't write to, before any work is done."""
    path = locate(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".npy", *TABLES) and not is_url(path):
        check_free(path, os.path.isfile, "a file", overwrite)
    elif suffix == ".zarr":
        check_free(path, _is_zarr_array, "a Zarr array", overwrite)
    else:
        msg = (
            f"can't write {path}; its name must end in .zarr or, but for URLs, in .npy "
            f"or, for a table, in {', '.join(TABLES)}"
        )
        raise ValueError(msg)


# -------------------------------------------------------------------------------- .npy


def _open_npy(path: str) -> Array:
    import dask.array as da
    from dask.array.core import normalize_chunks

    shape, dtype = _npy_header(path)
    _check_two_dimensions(path, shape)
    return da.map_blocks(
        _read_npy,
        path=path,
        chunks=normalize_chunks("auto", shape, dtype=dtype),
        dtype=dtype,
        meta=np.empty((0, 0), dtype=dtype),
        # A name made from the path would stand for an older version of the file too.
        name=f"npy-{uuid4().hex}",
    )


def _npy_header(path: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype, after making sure that all the data are there."""
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with open(path, "rb") as file:
        try:
            read = headers[np.lib.format.read_magic(file)]
            shape, _, dtype = read(file)
        except (ValueError, KeyError) as error:
            msg = f"{path} isn't a .npy file of numbers; write it with numpy.save"
            raise ValueError(msg) from error
        begin = file.tell()
    if dtype.hasobject:
        msg = (
            f"{path} holds pickled Python objects, which dmf never loads; convert the "
            "array to numbers before saving it, for example with astype('float64')"
        )
        raise ValueError(msg)
    expected = begin + math.prod(shape) * dtype.itemsize
    size = os.path.getsize(path)
    if size < expected:
        msg = (
            f"{path} is cut off: it has {size} bytes, its header speaks of {expected}; "
            "write it anew, or copy it again"
        )
        raise ValueError(msg)
    return shape, dtype


def _read_npy(*, path: str, block_info: Any) -> Array:
    ends = block_info[None]["array-location"]
    matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.array(matrix[tuple(slice(*pair) for pair in ends)])


def _write_npy(array: Array, path: str) -> None:
    target = np.lib.format.open_memmap(
        path, mode="w+", dtype=array.dtype, shape=array.shape
    )
    _reserve(path)
    if is_dask(array):
        _store(array, _NpyTarget(path))
    else:
        target[...] = array


def _reserve(path: str) -> None:
    """Make the disk set a new file's space aside, where it can do that."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            # A full disk raises here; writing to a mapped hole would kill the process.
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


@dataclass(frozen=True)
class _NpyTarget:
    """What `da.store` writes blocks to: the file is opened where the task runs."""

    path: str

    def __setitem__(self, where: Any, block: Array) -> None:
        np.load(self.path, mmap_mode="r+", allow_pickle=False)[where] = block


# -------------------------------------------------------------------------------- .npz


def _open_npz(path: str) -> Array:
    import zlib
    from zipfile import BadZipFile

    from scipy import sparse

    damage = (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error)
    with open(path, "rb") as file:
        try:
            matrix = sparse.load_npz(file)
            if hasattr(matrix, "check_format"):
                # Kernels trust the indices: one beyond the shape would read anywhere.
                matrix.check_format(full_check=True)
        except damage as error:
            msg = (
                f"{path} isn't a sparse matrix, or it is damaged; write one with "
                "scipy.sparse.save_npz, or save a dense array as .npy"
            )
            raise ValueError(msg) from error
    return matrix


def _open_mtx(path: str) -> Array:
    from scipy.io import mmread

    try:
        return mmread(path, spmatrix=False)
    except (ValueError, OverflowError, MemoryError, *CUT_OFF, OSError) as error:
        msg = f"{path} isn't a Matrix Market file, or it is damaged ({explain(error)})"
        raise ValueError(msg) from error


# What a file's suffix says of it.
FILES = {".npy": _open_npy, ".npz": _open_npz, ".mtx": _open_mtx}


# -------------------------------------------------------------------------------- Zarr


def write_zarr(
    array: Array, place: str, *, overwrite: bool = False, **options: Any
) -> None:
    """Write an array to a new Zarr array.

    Parameters
    ----------
    array : NumPy or Dask array
    place : str
        A path or URL.
    overwrite : bool
    **options
        For `zarr.create_array`.
    """
    import zarr

    chunks: Any = "auto"
    if is_dask(array):
        # Zarr's chunks are alike; Dask leaves an array alone whose chunks are, too.
        array = array.rechunk(tuple(max(lengths) for lengths in array.chunks))
        chunks = tuple(max(lengths[0], 1) for lengths in array.chunks)
    target = zarr.create_array(
        place,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        overwrite=overwrite,
        **options,
    )
    if is_dask(array):
        _store(array, _ZarrTarget(place, target))
    else:
        target[...] = array


def _open_zarr(path: str) -> Array:
    import dask.array as da
    import zarr

    node = open_node(path)
    if isinstance(node, zarr.Group):
        names = ", ".join(sorted(name for name, _ in node.arrays())) or "none"
        msg = (
            f"{path} is a Zarr group, not an array; name an array inside it, as in "
            f"{path}/NAME (it has: {names})"
        )
        raise ValueError(msg)
    _check_two_dimensions(path, node.shape)
    return da.from_zarr(node, name=False)  # no name from the path, as for .npy


def _is_zarr_array(place: str) -> bool:
    import zarr

    return isinstance(peek(place), zarr.Array)


@dataclass(frozen=True)
class _ZarrTarget:
    """What `da.store` writes blocks to: a Zarr array keeps no file open."""

    place: str
    array: Any

    def __setitem__(self, where: Any, block: Array) -> None:
        # A task that outlives the failure of another would bring the folder back.
        if not is_url(self.place) and not os.path.isdir(self.place):
            raise FileNotFoundError(self.place)
        self.array[where] = block


# -------------------------------------------------------------------------- any format


def _store(array: Array, target: Any) -> None:
    import dask.array as da

    with choose_runner(None).session():
        # No two blocks share a chunk of the target: no lock is needed.
        da.store(array, target, lock=False)


def _check_two_dimensions(path: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        msg = (
            f"{path} holds an array of shape {shape}; a matrix has two dimensions, "
            "reshape it first"
        )
        raise ValueError(msg)
