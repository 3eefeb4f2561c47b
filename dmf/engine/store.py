"""Where checkpoints are kept: what a fit asks of a store, and how it may fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Array = Any


class DamagedError(ValueError):
    """A version can't be used: something of it is missing, torn or changed."""


class UnreadableError(OSError):
    """A checkpoint can't be read: its store is away, or a part was damaged since."""


class Store(Protocol):
    """Where checkpoints go: `dmf.io.checkpoints.CheckpointStore`."""

    @property
    def url(self) -> str: ...

    def versions(self) -> list[int]: ...

    def write(self, version: int, name: str, arrays: dict[str, Array]) -> Any: ...

    def read(self, version: int, receipt: Any) -> dict[str, Array]: ...

    def publish(
        self, version: int, told: dict[str, Any], receipts: list[Any]
    ) -> None: ...

    def manifest(self, version: int) -> tuple[dict[str, Any], list[Any]]: ...


@contextmanager
def reading(store: Store) -> Iterator[None]:
    """Say that it was a checkpoint that couldn't be read, and not what is fitted."""
    try:
        yield
    except OSError as error:
        raise _unreadable(store, error) from error


def look(*, store: Store, version: int, receipt: Any) -> str:
    """Return what is wrong with a file; nothing if it is sound."""
    try:
        with reading(store):
            store.read(version, receipt)
    except DamagedError as error:
        return str(error)
    return ""


def read_again(store: Store, version: int, receipt: Any) -> dict[str, Array]:
    """Return the arrays of a file that was sound when somebody looked at it."""
    try:
        with reading(store):
            return store.read(version, receipt)
    except DamagedError as error:
        raise _unreadable(store, error) from error


def _unreadable(store: Store, error: Exception) -> UnreadableError:
    why = str(error).split("; ")[0]
    msg = (
        f"the checkpoint {store.url} can't be read ({why}); look after its store, and "
        "run it again to go on from there"
    )
    return UnreadableError(msg)
