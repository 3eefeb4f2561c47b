"""Dense matrices in .npy files: mapped into memory, or by ranges of bytes of a URL."""

from __future__ import annotations

import errno
import io
import math
import os
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from dmf.engine.kinds import in_memory, is_dask
from dmf.engine.runner import choose_runner
from dmf.io.blocks import Where, check_two_dimensions, lazy_matrix, store
from dmf.io.places import is_url, read_bytes, size_of

Array = Any

# What NumPy writes is 128 bytes long; no matrix needs as much.
LONGEST_HEADER = 2**14


def open_npy(place: str) -> Array:
    """Return a lazy matrix in chunks of Dask's "auto" size.

    Behind a URL they are whole rows, or columns if these are stored one by one: then a
    block is one range of bytes.
    """
    source = _Source.at(place)
    if not is_url(place):
        return lazy_matrix(source.mapped, place, source.shape, source.dtype, "auto")
    chunks = (-1, "auto") if source.by_columns else ("auto", -1)
    return lazy_matrix(source.fetched, place, source.shape, source.dtype, chunks)


@dataclass(frozen=True)
class _Source:
    """A .npy file: its data begin at byte `begin`."""

    place: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool
    begin: int

    @classmethod
    def at(cls, place: str) -> _Source:
        """Read a header, and make sure that all the data are there."""
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        size = size_of(place)
        file = io.BytesIO(read_bytes(place, 0, min(size, LONGEST_HEADER)))
        try:
            read = readers[np.lib.format.read_magic(file)]
            shape, by_columns, dtype = read(file)
        except Exception as error:  # a header is parsed, and may be anything
            msg = f"{place} isn't a .npy file of numbers; write it with numpy.save"
            raise ValueError(msg) from error
        if dtype.hasobject:
            msg = (
                f"{place} holds pickled Python objects, which dmf never loads; convert "
                "the array to numbers before saving it, for example with "
                "astype('float64')"
            )
            raise ValueError(msg)
        check_two_dimensions(place, shape)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
        if size < expected:
            msg = (
                f"{place} is cut off: it has {size} bytes, its header speaks of "
                f"{expected}; write it anew, or copy it again"
            )
            raise ValueError(msg)
        return cls(place, shape, dtype, by_columns, file.tell())

    def mapped(self, where: Where) -> Array:
        """Return a block of a file."""
        matrix = np.load(self.place, mmap_mode="r", allow_pickle=False)
        return np.array(matrix[where])

    def fetched(self, where: Where) -> Array:
        """Return a block of whole rows, or of whole columns, from a URL."""
        along = 1 if self.by_columns else 0
        lines, length = where[along], self.shape[1 - along]
        start, stop = (
            self.begin + line * length * self.dtype.itemsize
            for line in (lines.start, lines.stop)
        )
        content = np.frombuffer(read_bytes(self.place, start, stop), self.dtype)
        block = content.reshape(lines.stop - lines.start, length)
        return np.array(block.T if self.by_columns else block)


def write_npy(array: Array, path: str, shared: bool = True) -> None:
    """Write a matrix to a new file.

    Parameters
    ----------
    array : NumPy or Dask array
    path : str
    shared : bool
        Whether workers see the path, and write the blocks; else they come here, a strip
        of rows after the other.
    """
    target = np.lib.format.open_memmap(
        path, mode="w+", dtype=array.dtype, shape=array.shape
    )
    _reserve(path)
    if is_dask(array) and shared:
        store(array, _Target(path))
        return
    for start, stop in strips_of(array):
        with choose_runner(None).session():
            target[start:stop] = in_memory(array[start:stop])


def strips_of(array: Array) -> list[tuple[int, int]]:
    """Return where the strips of chunks of a Dask array begin and end; else, all."""
    lengths = array.chunks[0] if is_dask(array) else (array.shape[0],)
    return list(pairwise(accumulate(lengths, initial=0)))


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
class _Target:
    """What `da.store` writes blocks to: the file is opened where the task runs."""

    path: str

    def __setitem__(self, where: Any, block: Array) -> None:
        np.load(self.path, mmap_mode="r+", allow_pickle=False)[where] = block
