"""A store that fails when a case says so: errors, slowness, parts, no space."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tests.faults.state import Shared

_shared: Shared | None = None


def attend(shared: Shared) -> None:
    """Let the store of this process meet the fault of a case."""
    global _shared
    _shared = shared


class FaultyFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Folders of this machine behind URLs that begin with faulty://."""

    protocol = "faulty"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return os.fspath(path).removeprefix("faulty://").rstrip("/") or "/"

    def pipe_file(self, path: str, value: bytes, **options: Any) -> Any:
        if _meets("write"):
            super().pipe_file(path, value[: len(value) // 2], **options)
            if _shared is not None and _shared.case.chance % 2:
                return None  # as if all was well
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return super().pipe_file(path, value, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        _meets("read")
        return super().cat_file(path, *arguments, **options)

    def exists(self, path: str, **options: Any) -> Any:
        _meets("look")
        return super().exists(path, **options)

    def ls(self, path: str, *arguments: Any, **options: Any) -> Any:
        _meets("look")
        return super().ls(path, *arguments, **options)

    def rm(self, path: Any, *arguments: Any, **options: Any) -> Any:
        _meets("remove")
        return super().rm(path, *arguments, **options)


def _meets(kind: str) -> bool:
    """Return whether only a part shall be written; fail, or take time, if that's due.

    A fault begins with the first operation after its moment.
    """
    if _shared is None or not _shared["store"]:
        return False
    case = _shared.case
    if case.fault == "slow store":
        time.sleep(0.05)
        return False
    if case.fault == "full disk" and kind == "write":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if case.fault not in ("store errors", "partial writes"):
        return False
    if case.fault == "partial writes" and kind != "write":
        return False
    if _shared.operation() > 1 + case.chance % 4:
        return False  # it has recovered
    if case.fault == "partial writes":
        return True
    raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} on the {kind} of a test")


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
