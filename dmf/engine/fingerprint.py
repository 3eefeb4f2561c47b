"""What tells the data of one fit from those of another."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from dmf.device import to_host
from dmf.engine.data import Data
from dmf.engine.kinds import is_dask
from dmf.engine.runner import Runner, computed
from dmf.engine.stream import opened
from dmf.observed import Observed


def fingerprint(data: Data, runner: Runner) -> str:
    """Return what tells the data of one fit from those of another.

    It depends on every value, weight and place of what is observed and held out, and on
    the grid.
    """
    blocks = [data.block(0).key(i, j) for i, j in data.grid.places()]
    tasks = [(_digest_of_block, block) for block in blocks]
    parts = computed(runner, "fingerprint", tasks, data.leaves)
    return digest((data.grid.row_bounds, data.grid.column_bounds, *parts))


def _digest_of_block(block: Any) -> str:
    block = opened(block)
    parts = tuple(getattr(block, field.name) for field in fields(Observed))
    return digest(to_host(parts))


def digest(value: Any) -> str:
    """Return a checksum of arrays, numbers, and what is made of them."""
    checksum = blake2b(digest_size=16)
    if is_dataclass(value):
        value = tuple(getattr(value, f.name) for f in fields(value))
    if isinstance(value, tuple):
        checksum.update("".join(digest(part) for part in value).encode())
    elif isinstance(value, np.ndarray):
        checksum.update(f"{value.dtype.str}{value.shape}".encode())
        checksum.update(np.ascontiguousarray(value).data)
    else:
        checksum.update(repr(value).encode())
    return checksum.hexdigest()


def digest_of(array: Any) -> str:
    """Return a checksum of an array; Dask's are read in tasks, chunk by chunk."""
    if not is_dask(array):
        return digest(array)
    from dask.base import compute
    from dask.delayed import delayed

    parts = [delayed(digest)(chunk) for chunk in array.to_delayed().ravel()]
    return digest((array.chunks, *compute(*parts)))
