"""Of what kind an array is: Dask or in memory, dense or sparse."""

from __future__ import annotations

from typing import Any

from dmf.device import DEVICES, PRECISIONS, Gpu, is_on_device, to_host
from dmf.entries import is_sparse


def is_dask(X: Any) -> bool:
    """Return whether X is a Dask array."""
    return type(X).__module__.startswith("dask.array")


def in_memory(X: Any) -> Any:
    """Return a Dask array's value; anything else as it is."""
    return X.compute() if is_dask(X) else X


def block_kind(X: Any) -> str:
    """Return "sparse" or "dense": what X is or, for a Dask array, its blocks are."""
    return "sparse" if is_sparse(meta_of(X)) else "dense"


def meta_of(X: Any) -> Any:
    """Return X or, for a Dask array, an empty array of the kind of its blocks."""
    if not is_dask(X):
        return X
    from dask.array.utils import meta_from_array

    return meta_from_array(X)


def is_there(X: Any) -> bool:
    """Return whether X is in the memory of GPUs or, if it's lazy, its blocks will be.

    What is made of it then is, too.
    """
    return is_on_device(meta_of(X))


def on_host(X: Any) -> Any:
    """Return X in the memory of the host; what is lazy stays lazy."""
    if not is_there(X):
        return X
    if not is_dask(X):
        return to_host(X)
    return X.map_blocks(to_host, dtype=X.dtype, meta=to_host(meta_of(X)))


def gpu_for(X: Any, device: str = "auto", precision: str = "float32") -> Gpu | None:
    """Return how a fit of X uses GPUs; None: it runs on processors.

    Raises
    ------
    ValueError
        There is no such device or precision; X is on a GPU, or the precision one of
        GPUs, but the fit shall run on processors.
    """
    for name, value, known in (
        ("device", device, DEVICES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            told = ", ".join(f'"{one}"' for one in known[:-1])
            msg = f'{name} must be {told} or "{known[-1]}", got {value!r}'
            raise ValueError(msg)
    there = is_there(X)
    if device == "gpu" or (device == "auto" and there):
        return Gpu(precision)
    if there:
        msg = (
            "X is in the memory of a GPU, but device='cpu'; bring it to the host with "
            "cupy.asnumpy, or leave device out"
        )
        raise ValueError(msg)
    if precision != "float32":
        msg = (
            f"precision={precision!r} is for GPUs, but this fit runs on processors; "
            "leave it out, or give device='gpu'"
        )
        raise ValueError(msg)
    return None


def check_kinds(X: Any, mask: Any | None, name: str = "mask") -> None:
    """Refuse something dense beside a sparse X, and the reverse."""
    if mask is not None and block_kind(mask) != block_kind(X):
        msg = (
            f"{name} is {block_kind(mask)}, but X is {block_kind(X)}; give a {name} of "
            "X's kind, for a sparse X one that stores the entries it speaks of"
        )
        raise ValueError(msg)
