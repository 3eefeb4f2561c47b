"""Versions of what is at a place: the same as long as nobody has written there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from dmf.io.places import files_at, is_url, reached

# What storage says of a file that changes when its content does.
TOLD = (
    "ETag",
    "etag",
    "checksum",
    "md5Hash",
    "size",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


def version_of(place: str) -> str | None:
    """Return what tells the version of a file or folder; None if nothing is there.

    Nothing is read: a file counts by its size and time, behind a URL also by its ETag;
    a folder by the names and versions of all files in it.

    Parameters
    ----------
    place : str
        A full path, or a URL that fsspec knows.

    Raises
    ------
    OSError, ValueError
        The place can't be looked at.
    """
    told = _of_url(place) if is_url(place) else _of_path(place)
    digest = blake2b(digest_size=16)
    files = 0
    for name, version in told:
        digest.update(f"{name}\0{version}\0".encode())
        files += 1
    return digest.hexdigest() if files else None


def _of_path(path: str) -> Iterator[tuple[str, Any]]:
    if not os.path.isdir(path):
        with suppress(FileNotFoundError, NotADirectoryError):
            yield "", _stat(path)
        return
    yield ".", "a folder"
    for folder, inner, names in os.walk(path):
        inner.sort()
        for name in sorted(names):
            full = os.path.join(folder, name)
            yield os.path.relpath(full, path), _stat(full)


def _stat(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _of_url(url: str) -> Iterator[tuple[str, Any]]:
    files, root = files_at(url)
    files.invalidate_cache()
    try:
        with reached(url):
            info = files.info(root)
    except FileNotFoundError:
        return
    if info.get("type") != "directory":
        yield "", _told(info)
        return
    with reached(url):
        found = files.find(root, detail=True)
    for name in sorted(found):
        yield name.removeprefix(root), _told(found[name])


def _told(info: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(info[key])) for key in TOLD if key in info]
