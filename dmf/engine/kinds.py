"""Of what kind an array is: Dask or in memory, dense or sparse."""

from __future__ import annotations

from typing import Any

from dmf.entries import is_sparse


def is_dask(X: Any) -> bool:
    """Return whether X is a Dask array."""
    return type(X).__module__.startswith("dask.array")


def in_memory(X: Any) -> Any:
    """Return a Dask array's value; anything else as it is."""
    return X.compute() if is_dask(X) else X


def block_kind(X: Any) -> str:
    """Return "sparse" or "dense": what X is or, for a Dask array, its blocks are."""
    if not is_dask(X):
        return "sparse" if is_sparse(X) else "dense"
    from dask.array.utils import meta_from_array

    return "sparse" if is_sparse(meta_from_array(X)) else "dense"


def check_kinds(X: Any, mask: Any | None, name: str = "mask") -> None:
    """Refuse something dense beside a sparse X, and the reverse."""
    if mask is not None and block_kind(mask) != block_kind(X):
        msg = (
            f"{name} is {block_kind(mask)}, but X is {block_kind(X)}; give a {name} of "
            "X's kind, for a sparse X one that stores the entries it speaks of"
        )
        raise ValueError(msg)
