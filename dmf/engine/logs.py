"""What Dask logs of tasks that fail: without credentials, here and on workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import WorkerPlugin

from dmf.secrets import without_secrets


class LogsWithoutSecrets(WorkerPlugin):
    """Has a worker log no credentials, which messages of errors and URLs may hold."""

    name = "dmf-logs-without-secrets"

    def setup(self, worker: Any) -> None:
        for handler in _handlers():
            handler.addFilter(_cleaned)


@contextmanager
def without_secrets_here() -> Iterator[None]:
    """Have this process log no credentials meanwhile."""
    handlers = _handlers()
    for handler in handlers:
        handler.addFilter(_cleaned)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_cleaned)


def _handlers() -> list[logging.Handler]:
    """Return what all loggers of Dask write to."""
    return [*logging.getLogger("distributed").handlers, *logging.getLogger().handlers]


def _cleaned(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    if record.exc_info and not record.exc_text:
        trace = logging.Formatter().formatException(record.exc_info)
        # A formatter that finds this formats nothing itself.
        record.exc_text = str(without_secrets(trace))
    return True
