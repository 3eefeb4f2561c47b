"""Labelled matrices in netCDF files and in groups of Zarr arrays, through xarray."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from dmf.engine.kinds import is_dask
from dmf.engine.runner import choose_runner
from dmf.io.blocks import Where, in_like_chunks, lazy_matrix, store_zarr
from dmf.io.places import check_file, is_url, open_binary, read_as

Array = Any
DataArray = Any  # of xarray
Dataset = Any

# What a matrix without a name is called in a file.
UNNAMED = "X"


def open_netcdf(place: str, variable: str | None = None) -> DataArray:
    """Return a variable of a netCDF file, lazily, with its labels.

    Parameters
    ----------
    place : str
        A path or URL.
    variable : str, optional
        Which one. Not needed if only one has two dimensions.
    """
    _import_xarray(place)
    check_file(place)
    source = open_binary(place) if is_url(place) else place
    return _matrix(_opened(source, place, "netCDF"), place, variable)


def open_group(place: str, variable: str | None = None) -> DataArray:
    """Return a variable of a Zarr group that xarray has written; see `open_netcdf`."""
    _import_xarray(place)
    options = {"engine": "zarr", "consolidated": False}
    return _matrix(_opened(place, place, "Zarr", **options), place, variable)


def is_dataset(group: Any) -> bool:
    """Return whether a Zarr group's arrays have names for their dimensions."""
    return any(
        getattr(array.metadata, "dimension_names", None)
        or "_ARRAY_DIMENSIONS" in array.attrs
        for _, array in group.arrays()
    )


def _import_xarray(place: str) -> Any:
    try:
        import xarray as xr
    except ImportError as error:
        msg = f"{place} needs xarray; install it with: pip install 'dmf[xarray]'"
        raise ImportError(msg) from error
    return xr


def _opened(source: Any, place: str, kind: str, **options: Any) -> Dataset:
    xr = _import_xarray(place)
    with read_as(place, kind):
        return xr.open_dataset(
            source,
            chunks=None,  # `lazy_matrix` cuts it
            cache=False,  # or what is read would stay
            decode_timedelta=False,  # a variable in days is a number of days
            **options,
        )


def _matrix(dataset: Dataset, place: str, variable: str | None) -> DataArray:
    fitting = [name for name, array in dataset.data_vars.items() if array.ndim == 2]
    if variable is None and len(fitting) == 1:
        variable = fitting[0]
    if variable not in fitting:
        if variable is None:
            what = f"{place} doesn't say which variable is the matrix"
        elif variable in dataset.variables:
            what = f"{variable!r} in {place} has dimensions {dataset[variable].dims}"
        else:
            what = f"there is no variable {variable!r} in {place}"
        msg = (
            f"{what}; name one with two dimensions, as in --variable NAME (it has: "
            f"{', '.join(map(str, fitting)) or 'none'})"
        )
        raise ValueError(msg)
    X = dataset[variable]
    stored = X.encoding.get("preferred_chunks", {})
    chunks = tuple(stored.get(dim, "auto") for dim in X.dims)
    return X.copy(
        data=lazy_matrix(_Source(X.variable), place, X.shape, X.dtype, chunks)
    )


@dataclass(frozen=True)
class _Source:
    """A variable that isn't read yet: pickled, it holds no data."""

    variable: Any

    def __call__(self, where: Where) -> Array:
        return np.asarray(self.variable[where].values)


def write_netcdf(array: DataArray, path: str) -> None:
    """Write a labelled matrix to a new netCDF file.

    It is of version 4 where h5py is installed, which HDF5 needs, else of version 3.
    """
    dataset = _dataset(array)
    with choose_runner(None).session():
        dataset.to_netcdf(path, engine=_engine())


def check_netcdf(place: str) -> None:
    """Refuse a netCDF file that workers would write, but can't."""
    if choose_runner(None).remote and (is_url(place) or _engine() == "scipy"):
        msg = (
            f"the workers of a cluster can't write {place}: they need h5py, and a path "
            "that all of them see; write a .zarr"
        )
        raise ValueError(msg)


def _engine() -> str:
    return "h5netcdf" if find_spec("h5netcdf") and find_spec("h5py") else "scipy"


def write_group(array: DataArray, place: str, overwrite: bool = False) -> None:
    """Write a labelled matrix, and its labels, to a new Zarr group."""
    import zarr

    dataset = _dataset(array)
    (name,) = dataset.data_vars
    data = dataset[name].data
    if is_dask(data):
        data = in_like_chunks(data)
        dataset[name] = dataset[name].copy(data=data)
    dataset.to_zarr(
        place,
        mode="w" if overwrite else "w-",
        consolidated=False,
        zarr_format=3,
        compute=False,
    )
    if is_dask(data):
        target = zarr.open_array(f"{place}/{name}", mode="r+")
        store_zarr(data, f"{place}/{name}", target)


def _dataset(array: DataArray) -> Dataset:
    """Return what is written: nothing of how the input was encoded, or of its file."""
    name = UNNAMED if array.name is None else array.name
    dataset = array.to_dataset(name=name).drop_encoding()
    for label, coord in dataset.coords.items():
        # Zarr has no standard for words of one length.
        words = coord.dtype.kind == "U"
        with read_as(f"the coordinate {label!r}", "labels"):
            loaded = coord.load()
        dataset[label] = loaded.astype(object) if words else loaded
    return dataset
