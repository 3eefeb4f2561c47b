"""Models on disk: a Zarr group with the factors and offsets, and JSON for the rest."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

from dmf.engine.kinds import is_dask, on_host
from dmf.history import History
from dmf.io.labels import describe_labels, rebuild_labels
from dmf.io.places import (
    PathLike,
    check_free,
    explain,
    is_url,
    locate,
    open_node,
    peek,
    published,
)
from dmf.io.plain import decode, encode
from dmf.io.replace import BEING_REPLACED, RUN
from dmf.io.zarr import write_zarr
from dmf.offsets import COLUMNS
from dmf.result import Factorization
from dmf.status import Code, Status

Array = Any

FORMAT = "dmf-model"
FORMAT_VERSION = 2

# The arrays of a model, and how many axes they have.
ARRAYS = {"W": 2, "H": 2, "row_offsets": 1, "column_offsets": 1}


def save(factorization: Factorization, url: PathLike, overwrite: bool = False) -> None:
    """Write a model as a Zarr group.

    A local model is written beside `url` and moved there at the end, so that a failure
    leaves nothing half-written and keeps an older model. Behind other URLs the
    attributes come last: what has none isn't a model yet.

    Parameters
    ----------
    factorization : Factorization
        Dask factors are written block by block, inside tasks.
    url : str or path
        A path, or a URL that fsspec knows.
    overwrite : bool, default False
        Replace a model of dmf that is there. Nothing else is ever replaced.

    Raises
    ------
    FileExistsError
        Something is there.
    FileNotFoundError, PermissionError
        The folder doesn't exist, or can't be written to.
    TypeError
        The solver or a penalty isn't one of dmf's: a model holds no code, so that it
        couldn't be made again.
    """
    attributes = _describe(factorization)
    check_writable(url, overwrite)
    place = locate(url)
    if is_url(place):
        _write(factorization, attributes, place, overwrite)
        return
    with published(place, lambda: check_writable(place, overwrite)) as temporary:
        _write(factorization, attributes, temporary, False)


def load(url: PathLike) -> Factorization:
    """Read a model that `Factorization.save` has written.

    Parameters
    ----------
    url : str or path
        A path, or a URL that fsspec knows.

    Returns
    -------
    Factorization
        Equal to the one that was saved, bit by bit. Its factors are lazy Dask arrays if
        they were Dask arrays then, else NumPy arrays.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        It isn't a model, it is damaged, or a newer dmf has written it.

    See Also
    --------
    Factorization.save : write a model.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, dmf
    >>> fit = dmf.factorize(np.eye(4), rank=2, max_rounds=3, tol=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.zarr")
    ...     fit.save(path)
    ...     again = dmf.load(path)
    >>> bool(np.all(again.W == fit.W)), again.solver, again.status.code
    (True, NormalizedGradient(scope='row', step=Plane(), scaled=False), 'max_rounds')
    """
    import zarr

    from dmf import __version__

    place = locate(url)
    node = open_node(place)
    attributes = dict(node.attrs)
    if not isinstance(node, zarr.Group) or attributes.get("format") != FORMAT:
        msg = (
            f"{place} isn't a model of dmf; give what Factorization.save or "
            "`dmf factorize` has written"
        )
        raise ValueError(msg)
    if attributes.get(RUN) == BEING_REPLACED:
        msg = (
            f"the model {place} is being replaced; load it again in a moment or, if a "
            "job was killed meanwhile, after its next run"
        )
        raise ValueError(msg)
    version = attributes.get("format_version")
    written_by = attributes.get("dmf_version", "unknown")
    if isinstance(version, int) and version > FORMAT_VERSION:
        msg = (
            f"the model {place} has format version {version} (dmf {written_by}), but "
            f"dmf {__version__} reads versions up to {FORMAT_VERSION}; upgrade dmf"
        )
        raise ValueError(msg)
    try:
        fit = _rebuild(node, attributes)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        if _replaced(place, attributes):
            return load(url)
        msg = (
            f"the model {place} can't be read ({explain(error)}); save it again, or "
            f"load it with the dmf that wrote it (version {written_by})"
        )
        raise ValueError(msg) from error
    # W may be of the old model, and H of one that was put there meanwhile.
    return load(url) if _replaced(place, attributes) else fit


def _replaced(place: str, attributes: dict[str, Any]) -> bool:
    node = peek(place)
    return node is not None and dict(node.attrs) != attributes


def check_writable(url: PathLike, overwrite: bool = False) -> None:
    """Refuse a place that `save` couldn't write to, before any work is done."""
    check_free(locate(url), _is_model, "a model of dmf", overwrite)


def _is_model(place: str) -> bool:
    import zarr

    node = peek(place)
    return isinstance(node, zarr.Group) and node.attrs.get("format") == FORMAT


def _write(
    factorization: Factorization,
    attributes: dict[str, Any],
    place: str,
    overwrite: bool,
) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(place, zarr_format=3, overwrite=overwrite)
    for name in ARRAYS:
        array = getattr(factorization, name)
        if array is None:
            continue
        write_zarr(
            on_host(array),
            f"{place}/{name}",
            # Factors hardly compress; a checksum tells when one has been damaged.
            compressors=Crc32cCodec(),
            # Zarr leaves out chunks of zeros; ours are all there, so that a lost one
            # isn't taken for zeros.
            config={"write_empty_chunks": True},
        )
    group.update_attributes(attributes)


def _describe(factorization: Factorization) -> dict[str, Any]:
    """Return all that isn't an array, as strict JSON."""
    from dmf import __version__

    f = factorization
    penalty_W, penalty_H = f.penalty
    described: dict[str, Any] = encode(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dmf_version": __version__,
            "lazy": is_dask(f.W),
            "history": f.history.to_dict(),
            "initial_objective": f.history.initial_objective,
            "status": asdict(f.status),
            "penalty": {"W": penalty_W, "H": penalty_H},
            "solver": f.solver,
            "seed": f.seed,
            "objectives": f.objectives,
            "offsets": f.offsets,
            "offset": f.offset,
            "offset_penalty": f.offset_penalty,
            "unobserved_weight": f.unobserved_weight,
            "certificate": f.certificate,
            # As text of its own: a label may read like a number that JSON lacks.
            "labels": None if f.labels is None else describe_labels(f.labels),
        }
    )
    return described


def _rebuild(group: Any, attributes: dict[str, Any]) -> Factorization:
    read = decode(attributes)
    if read["status"]["code"] not in get_args(Code):
        msg = f"its status {read['status']['code']!r} isn't known"
        raise ValueError(msg)
    rows, columns = COLUMNS[read.get("offsets", "none")]
    names = ["W", "H"]
    names += ["row_offsets"] if "offset" in rows else []
    names += ["column_offsets"] if "offset" in columns else []
    arrays = {name: _array(group, name, read["lazy"]) for name in names}
    _check_shapes(arrays)
    # What models of the first version lack has a default.
    later = ("offsets", "offset", "offset_penalty", "unobserved_weight", "certificate")
    return Factorization(
        **arrays,
        **{name: read[name] for name in later if name in read},
        labels=rebuild_labels(read["labels"]) if read.get("labels") else None,
        history=History.from_dict(read["history"], read["initial_objective"]),
        status=Status(**read["status"]),
        penalty=(read["penalty"]["W"], read["penalty"]["H"]),
        solver=read["solver"],
        seed=read["seed"],
        objectives=tuple(read["objectives"]),
    )


def _check_shapes(arrays: dict[str, Array]) -> None:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    (m, rank), (other, n) = shapes["W"], shapes["H"]
    if rank != other:
        msg = f"W has shape {shapes['W']}, but H has shape {shapes['H']}"
        raise ValueError(msg)
    for name, length in (("row_offsets", m), ("column_offsets", n)):
        if name in shapes and shapes[name] != (length,):
            msg = f"{name} have shape {shapes[name]}, but X has shape {(m, n)}"
            raise ValueError(msg)


def _array(group: Any, name: str, lazy: bool) -> Array:
    array = group[name]
    if array.ndim != ARRAYS[name]:
        msg = f"{name} has shape {array.shape}"
        raise ValueError(msg)
    # Reading anything else could run code that is stored there.
    if array.dtype.kind != "f":
        msg = f"{name} holds {array.dtype}, not real numbers"
        raise ValueError(msg)
    lost = array.nchunks - array.nchunks_initialized
    if lost:
        msg = f"{lost} of the {array.nchunks} chunks of {name} are missing"
        raise ValueError(msg)
    if not lazy:
        return array[...]
    import dask.array as da

    return da.from_zarr(array, name=False)
