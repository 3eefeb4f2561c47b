"""Blocks of matrices in storage: read inside tasks, and written by them."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from dmf.engine.kinds import is_dask
from dmf.engine.runner import choose_runner
from dmf.io.places import explain, is_url, remove_quietly

Array = Any
Where = tuple[slice, ...]

# A graph of more would fill the memory before anything is read.
MOST_BLOCKS = 10**6


def lazy_matrix(
    read: Callable[[Where], Array],
    place: str,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: Any,
) -> Array:
    """Return a Dask array whose blocks are read inside the tasks.

    Parameters
    ----------
    read : callable
        Returns the block at a pair of slices. It travels with the tasks: it should know
        where the data are, and not hold them.
    place : str
        A path or URL, for messages.
    shape, dtype, chunks
        As `dask.array.core.normalize_chunks` takes them.

    Raises
    ------
    ValueError
        It has other than two dimensions, or its blocks are too many or too large.
    """
    import dask.array as da
    from dask.array.core import normalize_chunks

    check_two_dimensions(place, shape)
    if np.dtype(dtype).kind not in "biuf":
        msg = f"{place} holds {dtype}, not real numbers; convert it before saving it"
        raise ValueError(msg)
    lengths = _lengths(shape, np.dtype(dtype), chunks)
    _check_blocks(place, shape, lengths, np.dtype(dtype))
    chunks = normalize_chunks(lengths, shape, dtype=dtype)
    return da.map_blocks(
        _read_block,
        read=read,
        place=place,
        chunks=chunks,
        dtype=dtype,
        meta=np.empty((0, 0), dtype=dtype),
        # A name made from the path would stand for an older version of the file too.
        name=f"read-{uuid4().hex}",
    )


def _read_block(
    *, read: Callable[[Where], Array], place: str, block_info: Any
) -> Array:
    ends = block_info[None]["array-location"]
    return checked_read(place, read, tuple(slice(*pair) for pair in ends))


def checked_read(place: str, read: Callable[[Any], Array], part: Any) -> Array:
    """Read a part; libraries tell of damage in errors of any class."""
    try:
        return read(part)
    except Exception as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        told = explain(error)[:200]
        msg = f"a part of {place} can't be read ({told}); check it, or write it anew"
        raise kind(msg) from error


def check_two_dimensions(place: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no matrix."""
    if len(shape) != 2 or min(shape) < 0:
        msg = (
            f"{place} holds an array of shape {shape}; a matrix has two dimensions, "
            "reshape it first"
        )
        raise ValueError(msg)


def _lengths(
    shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Any
) -> tuple[int, ...]:
    """Return how long chunks are along each axis, whichever way they were given."""
    from dask.array.core import normalize_chunks

    if all(isinstance(length, int) for length in chunks):
        return tuple(chunks)  # not all of them: a header may speak of any number
    normal = normalize_chunks(chunks, shape, dtype=dtype)
    return tuple(lengths[0] for lengths in normal)


def _check_blocks(
    place: str, shape: tuple[int, ...], lengths: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Refuse what would fill the memory."""
    pairs = list(zip(shape, lengths, strict=True))
    number = math.prod(-(-size // max(length, 1)) for size, length in pairs)
    largest = math.prod(min(pair) for pair in pairs) * dtype.itemsize
    memory = choose_runner(None).machine().memory
    if number > MOST_BLOCKS or largest > memory:
        msg = (
            f"{place} says that it has shape {shape} in {number} blocks of up to "
            f"{largest:.3g} bytes, but at most {MOST_BLOCKS} of {memory:.3g} bytes can "
            "be worked on; check it, or write it in other chunks"
        )
        raise ValueError(msg)


def in_like_chunks(array: Array) -> Array:
    """Return a Dask array in chunks that are alike, but for the last ones, as Zarr's.

    Dask leaves an array alone whose chunks are.
    """
    return array.rechunk(tuple(max(lengths) for lengths in array.chunks))


def store(array: Array, target: Any) -> None:
    """Write the blocks of a Dask array to what takes them by pairs of slices."""
    import dask.array as da

    with choose_runner(None).session():
        # No two blocks share a chunk of the target: no lock is needed.
        da.store(array, target, lock=False)


# Which places the threads of this process are writing chunks to just now, and which
# ones take no more of them.
_writing: list[str] = []
_closed: set[str] = set()
_changed = threading.Condition()


def store_zarr(array: Array, place: str, target: Any) -> None:
    """Write an array to a new Zarr array at a place; nothing stays there if it fails.

    When a task fails, Dask leaves others alone that have begun. They must have ended
    before somebody cleans up, or they would bring back what was removed. Half an array
    is no use: what lacks would be read as zeros.
    """
    with _changed:
        _closed.discard(place)
    try:
        if is_dask(array):
            store(array, ZarrTarget(place, target))
        else:
            target[...] = array
    except BaseException:
        with _changed:
            _closed.add(place)
            _changed.wait_for(lambda: place not in _writing)
        if is_url(place):
            remove_quietly(place)
        raise


@dataclass(frozen=True)
class ZarrTarget:
    """What `store` writes blocks to: a Zarr array keeps no file open."""

    place: str
    array: Any

    def __setitem__(self, where: Any, block: Array) -> None:
        with _changed:
            # The other processes of a cluster see only that the folder has gone.
            gone = not is_url(self.place) and not os.path.isdir(self.place)
            if gone or self.place in _closed:
                raise FileNotFoundError(self.place)
            _writing.append(self.place)
        try:
            self.array[where] = block
        finally:
            with _changed:
                _writing.remove(self.place)
                _changed.notify_all()
