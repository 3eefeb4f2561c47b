"""Clusters that lose workers: what is tried again, and what is said in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

# How often in a row the same thing may fail on a cluster that loses workers.
MAX_LOSSES = 5


class ClusterError(RuntimeError):
    """The cluster couldn't do the work."""


class WorkersLost(ClusterError):
    """Workers died and took data with them that Dask can't compute again."""


def insisting(session: Callable[[], Any], work: Callable[[], T], when: str) -> T:
    """Do some work in a session, anew whenever workers have taken its data along.

    Parameters
    ----------
    session : callable
        Returns a context manager to run tasks in, as a runner's does.
    work : callable
        Brings all that it needs to the workers itself: what was brought there before
        would be lost for each further try, too.
    when : str
        For the message when it's given up.

    Raises
    ------
    ClusterError
        It has failed too often.
    """
    losses = 0
    while True:
        try:
            with session():
                return work()
        except WorkersLost as error:
            losses += 1
            if losses > MAX_LOSSES:
                raise given_up(when) from error


def given_up(when: str) -> ClusterError:
    """Return what ends work on a cluster that keeps losing workers."""
    msg = (
        f"workers were lost {MAX_LOSSES + 1} times {when}; look at their logs (too "
        "little memory is the usual reason), or give the cluster more workers"
    )
    return ClusterError(msg)


def no_worker(seconds: float) -> ClusterError:
    """Return what ends a fit on a cluster without workers."""
    msg = (
        f"the cluster has had no worker for {seconds:g} s; look why none has come, or "
        "none is left, and run it again"
    )
    return ClusterError(msg)


def disconnected(client: Client) -> ClusterError:
    """Return what ends a fit whose scheduler has gone."""
    msg = (
        f"the connection to the scheduler was lost (the client is {client.status}); "
        "look why it has ended, and run it again"
    )
    return ClusterError(msg)


@contextmanager
def translated(client: Client) -> Iterator[None]:
    """Raise `WorkersLost` where distributed says that data are gone.

    Without its scheduler a client takes tasks all the same, and waits for them forever.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import NoWorkerError

    if client.status != "running":
        raise disconnected(client)
    try:
        yield
    except KilledWorker as error:
        msg = (
            f"a task was tried on several workers, and all of them died ({error.task});"
            " too little memory is the usual reason: give the workers more of it, or "
            "cut X into smaller chunks"
        )
        raise ClusterError(msg) from error
    except NoWorkerError as error:
        raise no_worker(error.timeout) from error
    except (CancelledError, CommClosedError) as error:
        if client.status != "running":
            raise disconnected(client) from error
        # Or a worker died while data came to it.
        msg = "workers of the cluster were lost, and data with them; run it again"
        raise WorkersLost(msg) from error
