"""Dense matrices in Zarr arrays, of version 2 or 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmf.engine.kinds import is_dask
from dmf.io.blocks import Where, in_like_chunks, lazy_matrix, store_zarr
from dmf.io.datasets import is_dataset, open_group
from dmf.io.places import open_node, peek, read_as

Array = Any


def open_zarr(place: str, variable: str | None = None) -> Array:
    """Return a lazy matrix in the chunks of a Zarr array.

    Parameters
    ----------
    place : str
        A path or URL.
    variable : str, optional
        Which array of a group. A group that xarray has written has labels, and needs
        none if only one of its variables has two dimensions.
    """
    import zarr

    node = open_node(place)
    if isinstance(node, zarr.Group):
        return _open_group(node, place, variable)
    if variable is not None:
        msg = (
            f"{place} is a Zarr array, not a group with an array {variable!r} in it; "
            "leave out the variable"
        )
        raise ValueError(msg)
    # Chunks may be packed in shards, each of them one file.
    chunks = node.shards or node.chunks
    return lazy_matrix(_Source(node), place, node.shape, node.dtype, chunks)


@dataclass(frozen=True)
class _Source:
    """A Zarr array: pickled, it holds no data."""

    array: Any

    def __call__(self, where: Where) -> Array:
        return self.array[where]


def _open_group(group: Any, place: str, variable: str | None) -> Array:
    with read_as(place, "Zarr"):
        labelled = is_dataset(group)
    if labelled:
        return open_group(place, variable)
    if variable is not None and variable in group:
        return open_zarr(f"{place}/{variable}")
    names = ", ".join(sorted(name for name, _ in group.arrays())) or "none"
    if variable is not None:
        msg = f"there is no array {variable!r} in {place} (it has: {names})"
    else:
        msg = (
            f"{place} is a Zarr group, not an array; name an array inside it, as in "
            f"{place}/NAME (it has: {names})"
        )
    raise ValueError(msg)


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
        array = in_like_chunks(array)
        chunks = tuple(max(lengths[0], 1) for lengths in array.chunks)
    target = zarr.create_array(
        place,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        overwrite=overwrite,
        **options,
    )
    store_zarr(array, place, target)


def is_zarr_matrix(place: str) -> bool:
    """Return whether a place holds what `write_matrix` writes to a .zarr."""
    import zarr

    node = peek(place)
    if isinstance(node, zarr.Group):
        return (
            is_dataset(node) and sum(array.ndim > 1 for _, array in node.arrays()) == 1
        )
    return isinstance(node, zarr.Array)
