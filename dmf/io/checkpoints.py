"""Checkpoints in storage: numbered versions of a fit's factors, the last two kept.

A version is a folder: files of arrays, written inside tasks, and `manifest.json`, which
is written last and knows the size and the checksum of every file. A folder without one
isn't a version yet; what is torn or damaged is told by its checksum. Nothing is
pickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from dmf.engine.store import DamagedError
from dmf.io.places import PathLike, explain, files_at, locate, reached
from dmf.io.plain import decode, encode

Array = Any

FORMAT = "dmf-checkpoint"
FORMAT_VERSION = 1
KEPT = 2
MANIFEST = "manifest.json"
OURS = r"[0-9a-f]{8}-\d{8}\.npz|manifest\.json"


@dataclass(frozen=True)
class Receipt:
    """A file that was written: its name, bytes and checksum."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True)
class CheckpointStore:
    """Versions at a place that all workers see.

    Parameters
    ----------
    url : str
        A full path, or a URL that fsspec knows.
    """

    url: str

    @classmethod
    def at(cls, url: PathLike) -> CheckpointStore:
        return cls(locate(url).rstrip("/"))

    def versions(self) -> list[int]:
        """Return the numbers of all versions, the newest first.

        Raises
        ------
        OSError, ValueError
            The place can't be looked at.
        """
        return sorted(filter(self._is_published, self._folders()), reverse=True)

    def write(self, version: int, name: str, arrays: dict[str, Array]) -> Receipt:
        """Write arrays as one file of a version."""
        buffer = io.BytesIO()
        plain: dict[str, Any] = {key: np.asarray(part) for key, part in arrays.items()}
        np.savez(buffer, allow_pickle=False, **plain)
        content = buffer.getvalue()
        self._write(version, name, content)
        return Receipt(name, len(content), _checksum(content))

    def read(self, version: int, receipt: Receipt) -> dict[str, Array]:
        """Return the arrays of a file.

        Raises
        ------
        DamagedError
            The file isn't what was written.
        """
        content = self._read(version, receipt.name)
        if (len(content), _checksum(content)) != (receipt.size, receipt.checksum):
            msg = f"{receipt.name} isn't what was written"
            raise DamagedError(msg)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    def publish(
        self, version: int, told: dict[str, Any], receipts: list[Receipt]
    ) -> None:
        """Make a version of the files that were written; remove all but the last two.

        Raises
        ------
        OSError
            It can't be written, or this process doesn't see what workers have written.
        """
        files, root = self._files()
        files.invalidate_cache()
        for receipt in receipts:
            path = self._path(root, version, receipt.name)
            with reached(self.url):
                seen = files.exists(path) and files.size(path) == receipt.size
            if not seen:
                msg = (
                    f"the workers have written {receipt.name} of the checkpoint "
                    f"{self.url}, but it isn't there for this process; name a place "
                    "that all of them share"
                )
                raise FileNotFoundError(msg)
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "files": [asdict(receipt) for receipt in receipts],
            "told": told,
        }
        text = json.dumps(encode(body), allow_nan=False)
        sealed = {"checksum": _checksum(text.encode()), "body": text}
        self._write(version, MANIFEST, json.dumps(sealed).encode())
        self._prune()

    def manifest(self, version: int) -> tuple[dict[str, Any], list[Receipt]]:
        """Return what `publish` was told, and the receipts of the files.

        Raises
        ------
        DamagedError
            It isn't what was written.
        ValueError
            A newer dmf has written it.
        """
        try:
            sealed = json.loads(self._read(version, MANIFEST))
            text = sealed["body"]
            if sealed["checksum"] != _checksum(text.encode()):
                msg = f"{MANIFEST} isn't what was written"
                raise DamagedError(msg)
            body: dict[str, Any] = decode(json.loads(text))
            written, known = body["format_version"], body["format"] == FORMAT
            told, receipts = body["told"], [Receipt(**one) for one in body["files"]]
            if not all(re.fullmatch(OURS, one.name) for one in receipts):
                msg = f"{MANIFEST} names files of others"
                raise DamagedError(msg)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(explain(error)) from error
        if not known or written > FORMAT_VERSION:
            msg = (
                f"the checkpoint {self.url} has format version {written}, but this dmf "
                f"reads versions up to {FORMAT_VERSION}; upgrade dmf"
            )
            raise ValueError(msg)
        return told, receipts

    def clear(self) -> None:
        """Remove all versions, and the folder if nothing else is in it."""
        self._remove_but([])
        files, root = self._files()
        with contextlib.suppress(OSError):
            files.rmdir(root)

    def _prune(self) -> None:
        """Remove all but the last versions, and what never became one."""
        self._remove_but(self.versions()[:KEPT])

    def _remove_but(self, kept: list[int]) -> None:
        files, _ = self._files()
        for number, folder in self._folders().items():
            with reached(self.url):
                inside = [name.rsplit("/", 1)[-1] for name in files.find(folder)]
            if number not in kept and all(re.fullmatch(OURS, name) for name in inside):
                # What is in the way now goes the next time.
                with contextlib.suppress(OSError):
                    files.rm(folder, recursive=True)

    def _folders(self) -> dict[int, str]:
        """Return the numbers and folders of versions, finished or not."""
        files, root = self._files()
        with reached(self.url):
            is_file = files.isfile(root)
        if is_file:
            msg = f"the checkpoint {self.url} is a file; name a folder"
            raise ValueError(msg)
        files.invalidate_cache()
        try:
            with reached(self.url):
                names = files.ls(root, detail=False)
        except FileNotFoundError:
            return {}
        found = ((re.fullmatch(r"(?:.*/)?v(\d{8})/?", name), name) for name in names)
        return {int(match[1]): name for match, name in found if match}

    def _is_published(self, version: int) -> bool:
        files, root = self._files()
        with reached(self.url):
            return bool(files.exists(self._path(root, version, MANIFEST)))

    def _write(self, version: int, name: str, content: bytes) -> None:
        files, root = self._files()
        path = self._path(root, version, name)
        with reached(self.url):
            files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            files.pipe_file(path, content)

    def _read(self, version: int, name: str) -> bytes:
        files, root = self._files()
        try:
            with reached(self.url):
                content: bytes = files.cat_file(self._path(root, version, name))
        except FileNotFoundError as error:
            msg = f"{name} is missing"
            raise DamagedError(msg) from error
        return content

    def _files(self) -> tuple[Any, str]:
        files, root = files_at(self.url)
        return files, root.rstrip("/")

    @staticmethod
    def _path(root: str, version: int, name: str) -> str:
        return f"{root}/v{version:08}/{name}"


def _checksum(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
