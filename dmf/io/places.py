"""Places for matrices and models: what is there, and how something gets there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

PathLike = str | os.PathLike[str]
# Protocols of stores whose URLs begin with a bucket, which nothing creates by itself.
BUCKETS = ("s3", "s3a", "gs", "gcs")


def locate(path: PathLike) -> str:
    """Return a URL as it is, and any other path in full: workers may run elsewhere."""
    place = os.fspath(path).removeprefix("file://")
    return place if is_url(place) else os.path.abspath(place)


def is_url(place: str) -> bool:
    """Return whether a place is a URL, which fsspec opens."""
    return "://" in place


@contextmanager
def reached(place: str) -> Iterator[None]:
    """Say which URL it was when what is behind it fails, in whatever way.

    Stores of others raise classes of their own: for lost connections, credentials that
    lack or that are refused, unknown hosts.
    """
    try:
        yield
    except FileNotFoundError as error:
        msg = f"there is nothing at {place}; check the path"
        raise FileNotFoundError(msg) from error
    except Exception as error:
        if not is_url(place):
            raise
        msg = (
            f"{place} can't be reached ({explain(error)}); check the URL, and that you "
            "are allowed there"
        )
        raise OSError(msg) from error


@contextmanager
def read_as(place: str, kind: str) -> Iterator[None]:
    """Say that a file isn't what it should be: readers fail in any way on others."""
    try:
        yield
    except (ImportError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        told = explain(error)[:200]
        msg = f"{place} can't be read as {kind} ({told}); check the file"
        raise ValueError(msg) from error


def files_at(place: str) -> tuple[Any, str]:
    """Return fsspec's file system of a path or URL, and what it calls the place."""
    from fsspec.core import url_to_fs

    with reached(place):
        files, path = url_to_fs(place)
        return files, path


def is_file(place: str) -> bool:
    """Return whether there is a file at a path or URL."""
    files, path = files_at(place)
    with reached(place):
        return bool(files.isfile(path))


def size_of(place: str) -> int:
    """Return the size of the file at a path or URL, in bytes."""
    check_file(place)
    files, path = files_at(place)
    with reached(place):
        return int(files.size(path))


def read_bytes(place: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return what the file at a path or URL holds, or a range of it."""
    if start == stop:
        return b""  # some stores refuse to read nothing
    files, path = files_at(place)
    with reached(place):
        content: bytes = files.cat_file(path, start=start, end=stop)
        return content


def write_whole(content: bytes, place: str) -> None:
    """Write a file at a path or URL in one step: who reads it never sees a part."""
    if is_url(place):
        files, path = files_at(place)
        with reached(place):
            files.pipe_file(path, content)
        return
    folder, name = os.path.split(place)
    part = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)


def open_binary(place: str, compression: str | None = None) -> Any:
    """Open the file at a path or URL for reading; "infer": as its suffix says."""
    check_file(place)
    files, path = files_at(place)
    with reached(place):
        return files.open(path, "rb", compression=compression)


def check_free(
    place: str, replaceable: Callable[[str], bool], kind: str, overwrite: bool
) -> None:
    """Refuse a place where something is, unless it may be replaced.

    Parameters
    ----------
    place : str
        A full path, or a URL.
    replaceable : callable
        Whether a place holds what `overwrite` may replace: a slip in a path must not
        cost someone a folder of data.
    kind : str
        What that is, for the message.
    overwrite : bool
    """
    check_parent(place)
    if is_url(place):
        files, path = files_at(place)
        with reached(place):
            files.invalidate_cache()
            exists = files.exists(path)
    else:
        exists = os.path.lexists(place)
    if exists and not overwrite:
        msg = (
            f"{place} exists; choose another path, or overwrite it with overwrite=True "
            "(on the command line: --overwrite)"
        )
        raise FileExistsError(msg)
    if exists and not replaceable(place):
        msg = (
            f"{place} exists and isn't {kind}, so that it won't be overwritten; choose "
            "another path"
        )
        raise FileExistsError(msg)


def check_file(place: str) -> None:
    """Refuse a path or URL where there is nothing."""
    if is_url(place):
        files, path = files_at(place)
        with reached(place):
            if not files.exists(path):
                raise FileNotFoundError
        return
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"there is no file {place}; check the path"
        raise FileNotFoundError(msg) from error


def check_folder(folder: str) -> None:
    """Refuse a folder that isn't there, or can't be written to."""
    if not os.path.isdir(folder):
        msg = f"there is no folder {folder}; create it first"
        raise FileNotFoundError(msg)
    if not os.access(folder, os.W_OK):
        msg = f"the folder {folder} can't be written to; choose another one"
        raise PermissionError(msg)


def check_parent(place: str) -> None:
    """Refuse a place in a folder that isn't there, or behind a URL in no bucket."""
    if not is_url(place):
        check_folder(os.path.dirname(place))
        return
    files, path = files_at(place)
    protocol, bucket = place.split("://")[0], path.split("/")[0]
    if protocol not in BUCKETS:
        return  # folders are made when they are written to
    try:
        # Whoever may not list a bucket may still be allowed to write there.
        with reached(place), suppress(PermissionError):
            files.info(bucket)
    except FileNotFoundError as error:
        msg = f"there is no bucket {bucket} for {place}; create it first"
        raise FileNotFoundError(msg) from error


@contextmanager
def published(path: str, check: Callable[[], None]) -> Iterator[str]:
    """Give a temporary path beside `path`; move it there if all goes well.

    What shall be behind a URL is a temporary file of this machine at first. `check` is
    asked once more before it is moved: much may have happened meanwhile.
    """
    if is_url(path):
        with TemporaryDirectory() as local:
            temporary = os.path.join(local, "whole")
            yield temporary
            check()
            files, target = files_at(path)
            with reached(path):
                files.put_file(temporary, target)
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid4().hex[:8]}.part")
    try:
        yield temporary
        check()
        _move(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def _move(temporary: str, path: str) -> None:
    exchange(temporary, path)
    # What was replaced, if anything.
    remove(temporary)


def exchange(temporary: str, path: str) -> None:
    """Put what is at `temporary` at `path`, in one step.

    A folder that was there is at `temporary` afterwards; a file is gone.
    """
    if not os.path.isdir(path):
        os.replace(temporary, path)
        return
    if _exchanged(temporary, path):
        return
    # Without that system call there is an instant with nothing at `path`.
    old = f"{temporary}.old"
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, temporary)


def _exchanged(first: str, second: str) -> bool:
    """Exchange two paths in one step, where system and file system can do that."""
    import ctypes

    at_current_folder, exchange_them = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if sys.platform != "linux" or rename is None:
        return False
    pair = (os.fsencode(first), os.fsencode(second))
    here = at_current_folder
    if rename(here, pair[0], here, pair[1], exchange_them) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(error, os.strerror(error), first, None, second)


def remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.exists(path):
        os.remove(path)


def remove_quietly(url: str) -> None:
    """Remove what is behind a URL, as far as that can be done."""
    with suppress(Exception):
        files, path = files_at(url)
        files.invalidate_cache()
        files.rm(path, recursive=True)


def names_beside(url: str) -> list[str]:
    """Return the names of what is beside a URL, as far as that can be seen."""
    with suppress(Exception):
        files, path = files_at(url)
        files.invalidate_cache()
        names = files.ls(path.rpartition("/")[0], detail=False)
        return [name.rstrip("/").rpartition("/")[2] for name in names]
    return []


def explain(error: BaseException) -> str:
    """Return what an error says, on one line, for a message of our own."""
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return " ".join(str(error).split()) or type(error).__name__


def open_node(place: str) -> Any:
    """Return the Zarr array or group at a path or URL, read-only.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        Something else is there, or the URL can't be opened.
    """
    import zarr

    try:
        if not is_url(place):
            os.stat(place)
            _require_metadata(place)
        return zarr.open(place, mode="r")
    except FileNotFoundError as error:
        msg = f"there is nothing at {place}; check the path"
        raise FileNotFoundError(msg) from error
    except Exception as error:  # metadata may be anything, and so may its errors
        msg = (
            f"{place} can't be opened as Zarr ({explain(error)}); check the path and "
            "what has been written there"
        )
        raise ValueError(msg) from error


def _require_metadata(path: str) -> None:
    names = ("zarr.json", ".zarray", ".zgroup")
    if os.path.isdir(path):
        os.listdir(path)  # it says so if that isn't allowed
    if not any(os.path.isfile(os.path.join(path, name)) for name in names):
        msg = "it has no Zarr metadata"
        raise ValueError(msg)


def peek(place: str) -> Any:
    """Return the Zarr array or group at a place; None if there is none to be read."""
    try:
        return open_node(place)
    except (ValueError, OSError):
        return None
