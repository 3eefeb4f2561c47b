"""Logs of a run: events with fields, as JSON lines or for people."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from dmf.jobs.config import LogSection
from dmf.secrets import without_secrets

LOGGER = logging.getLogger("dmf.jobs")


def log(event: str, level: int = logging.INFO, /, **told: Any) -> None:
    """Log an event, with fields that have plain values."""
    LOGGER.log(level, event, extra={"told": without_secrets(told)})


class JsonLines(logging.Formatter):
    """An object a line: time (UTC), level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": without_secrets(record.getMessage()),
            **getattr(record, "told", {}),
        }
        return json.dumps(line, default=str, ensure_ascii=False)


class Human(logging.Formatter):
    """Time (UTC), event, and its fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        told = getattr(record, "told", {})
        # A traceback comes last, on lines of its own.
        trace = told.get("traceback")
        shown = [f"{k}={_short(v)}" for k, v in told.items() if k != "traceback"]
        loud = record.levelno >= logging.WARNING
        words = [
            f"{_time(record):%Y-%m-%d %H:%M:%S}",
            *([f"{record.levelname}:"] if loud else []),
            str(without_secrets(record.getMessage())),
            *shown,
        ]
        return " ".join(words) + (f"\n{trace}" if trace else "")


@contextmanager
def logging_to(settings: LogSection) -> Iterator[None]:
    """Send events to a file or, without one, to standard error.

    Raises
    ------
    OSError
        The file can't be written.
    """
    handler: logging.Handler
    if settings.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.FileHandler(settings.file, encoding="utf-8")
    handler.setFormatter(JsonLines() if settings.format == "json" else Human())
    before = LOGGER.propagate
    LOGGER.setLevel(settings.level.upper())
    LOGGER.propagate = False
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.propagate = before
        handler.close()


@contextmanager
def warnings_to(told: list[str]) -> Iterator[None]:
    """Log what the library warns of, and keep it."""

    def show(message: Any, *rest: Any, **more: Any) -> None:
        text = " ".join(str(without_secrets(str(message))).split())
        told.append(text)
        log(text, logging.WARNING)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
