"""Clusters for a command: connect to one, or start one on this machine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

CONNECT_SECONDS = 10


@contextmanager
def connected(scheduler: str) -> Iterator[None]:
    """Connect to a scheduler by its address; the client is Dask's default meanwhile.

    Raises
    ------
    ConnectionError
        Nobody answers there.
    """
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        msg = (
            f"can't connect to a Dask scheduler at {scheduler} ({error}); check the "
            "address, and that the scheduler runs"
        )
        raise ConnectionError(msg) from error
    with _abandoned_tasks_unlogged(), client:
        yield


@contextmanager
def started(workers: int) -> Iterator[None]:
    """Start worker processes of one thread each, and end them afterwards."""
    from distributed import Client, LocalCluster

    with _interrupts_left_to_us(), _memory_kept():
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            # Port 0 is any free one; None would be the default port.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        )
    with _abandoned_tasks_unlogged(), cluster, Client(cluster):
        yield


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Let workers that are started here keep memory that they have freed.

    Dask has glibc give it back at once. A round needs as much as the one before, and
    getting it page by page takes about a tenth of a round.
    """
    import dask

    name = "distributed.nanny.pre-spawn-environ"
    kept = {"MALLOC_TRIM_THRESHOLD_": 2**31 - 1, "MALLOC_MMAP_THRESHOLD_": 2**25}
    with dask.config.set({name: {**dask.config.get(name), **kept}}):
        yield


@contextmanager
def _abandoned_tasks_unlogged() -> Iterator[None]:
    """Keep asyncio from logging what Ctrl-C leaves of `Client.gather`."""

    def wanted(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ != "AllExit"

    logger = logging.getLogger("asyncio")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


@contextmanager
def _interrupts_left_to_us() -> Iterator[None]:
    """Let processes that are started here ignore Ctrl-C.

    A terminal sends it to all processes of a command. Workers would die of it, and take
    the factors along that this process still wants to save.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
