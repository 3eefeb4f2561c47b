"""A wall clock that can be made to jump, a process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

_true = time.time
_offset: Callable[[], float] | None = None


def now() -> float:
    """Return what `time.time` says, and by how much the clock has jumped."""
    return _true() + (_offset() if _offset is not None else 0.0)


def install() -> None:
    """Replace `time.time`, before others import it by its name."""
    time.time = now


def follow(offset: Callable[[], float]) -> None:
    """Let the clock of this process be wrong by what this returns."""
    global _offset
    _offset = offset
