"""What is behind a URL replaced by what was written beside it, inside the store."""

from __future__ import annotations

from typing import Any

from dmf.io.places import files_at, peek, reached

# What an array or a group of Zarr begins with, in both versions.
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
# What S3 and Google's store say of a file that is the same for the same bytes.
CONTENT = ("ETag", "md5Hash")
# The attribute that names the run that has written a Zarr output, and what it says
# meanwhile.
RUN = "dmf_run"
BEING_REPLACED = "being replaced"


def replace_behind(staged: str, place: str) -> None:
    """Put a copy of what is behind a URL at another one of the same store.

    A file is replaced in one step. Object stores can't do that with folders: of Zarr,
    the attribute ``dmf_run`` at `place` says "being replaced" first, then all else is
    copied, and the metadata with that attribute come last. It can be done again if it
    was cut short. Files that are the same already, by what the store says of them,
    aren't copied.

    Parameters
    ----------
    staged, place : str

    Raises
    ------
    OSError
        The store can't be reached, or refuses it.
    """
    files, source = files_at(staged)
    _, target = files_at(place)
    with reached(place):
        files.invalidate_cache()
        if files.isfile(source):
            # Not `copy`, which takes ? and [ in names for patterns.
            files.cp_file(source, target)
            return
        new, old = (_files_in(files, folder) for folder in (source, target))
        if peek(place) is not None:
            name_run(place, BEING_REPLACED)
        data = [name for name in new if name not in METADATA]
        changed = [name for name in data if not _same(new, old, name)]
        _copy(files, changed, source, target)
        gone = [f"{target}/{name}" for name in old if name not in new]
        if gone:
            files.rm(gone)
        _copy(files, [name for name in new if name in METADATA], source, target)
        files.invalidate_cache()


def name_run(place: str, run: str) -> None:
    """Say in a Zarr array or group which run has written it."""
    import zarr

    zarr.open(place, mode="r+").update_attributes({RUN: run})


def _files_in(files: Any, folder: str) -> dict[str, Any]:
    """Return what the store says of the files in a folder, by their names there."""
    try:
        found = files.find(folder, detail=True)
    except FileNotFoundError:
        return {}
    return {name[len(folder) :].strip("/"): told for name, told in found.items()}


def _same(new: dict[str, Any], old: dict[str, Any], name: str) -> bool:
    told = [[one.get(name, {}).get(key) for key in CONTENT] for one in (new, old)]
    return told[0] == told[1] and any(told[0])


def _copy(files: Any, names: list[str], source: str, target: str) -> None:
    if not names:
        return
    pairs = [[f"{folder}/{name}" for name in names] for folder in (source, target)]
    for folder in {path.rpartition("/")[0] for path in pairs[1]}:
        files.makedirs(folder, exist_ok=True)
    files.copy(*pairs)
