"""Places for matrices and models: what is there, and how something gets there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

PathLike = str | os.PathLike[str]


def locate(path: PathLike) -> str:
    """Return a URL as it is, and any other path in full: workers may run elsewhere."""
    place = os.fspath(path).removeprefix("file://")
    return place if is_url(place) else os.path.abspath(place)


def is_url(place: str) -> bool:
    """Return whether a place is a URL, which fsspec opens."""
    return "://" in place


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
    if is_url(place):
        exists = open_node(place, missing_ok=True) is not None
    else:
        check_folder(os.path.dirname(place))
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
    """Refuse a path where there is no file."""
    if not os.path.exists(place):
        msg = f"there is no file {place}; check the path"
        raise FileNotFoundError(msg)


def check_folder(folder: str) -> None:
    """Refuse a folder that isn't there, or can't be written to."""
    if not os.path.isdir(folder):
        msg = f"there is no folder {folder}; create it first"
        raise FileNotFoundError(msg)
    if not os.access(folder, os.W_OK):
        msg = f"the folder {folder} can't be written to; choose another one"
        raise PermissionError(msg)


@contextmanager
def published(path: str, check: Callable[[], None]) -> Iterator[str]:
    """Give a temporary path beside `path`; move it there if all goes well.

    `check` is asked once more before that: much may have happened meanwhile.
    """
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


def explain(error: BaseException) -> str:
    """Return what an error says, on one line, for a message of our own."""
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return " ".join(str(error).split()) or type(error).__name__


def open_node(place: str, missing_ok: bool = False) -> Any:
    """Return the Zarr array or group at a path or URL, read-only.

    Raises
    ------
    FileNotFoundError
        Nothing is there; with `missing_ok`, None is returned instead.
    ValueError
        Something else is there, or the URL can't be opened.
    """
    import zarr

    try:
        if not is_url(place) and os.path.exists(place):
            _require_metadata(place)
        return zarr.open(place, mode="r")
    except FileNotFoundError as error:
        if missing_ok:
            return None
        msg = f"there is nothing at {place}; check the path"
        raise FileNotFoundError(msg) from error
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        msg = (
            f"{place} can't be opened as Zarr ({explain(error)}); check the path and "
            "what has been written there"
        )
        raise ValueError(msg) from error


def _require_metadata(path: str) -> None:
    names = ("zarr.json", ".zarray", ".zgroup")
    if not any(os.path.isfile(os.path.join(path, name)) for name in names):
        msg = "it has no Zarr metadata"
        raise ValueError(msg)


def peek(place: str) -> Any:
    """Return the Zarr array or group at a place; None if there is none to be read."""
    try:
        return open_node(place)
    except (ValueError, OSError):
        return None
