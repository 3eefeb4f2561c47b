"""Where tasks run: on the threads of this process, or on a cluster."""

from __future__ import annotations

import math
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import dask
import dask.threaded
import psutil
from dask.base import persist
from dask.system import CPU_COUNT
from dask.utils import parse_bytes, parse_timedelta
from threadpoolctl import threadpool_limits

from dmf.engine.cost import Machine
from dmf.engine.interrupts import kept
from dmf.engine.lower import Graph, Key

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
Leaf = Any  # what stands for a computed value: the value itself, or a Future


# How often in a row the same thing may fail on a cluster that loses workers.
MAX_LOSSES = 5


class ClusterError(RuntimeError):
    """The cluster couldn't do the work."""


class WorkersLost(ClusterError):
    """Workers died and took data with them that Dask can't compute again."""


class Tasks:
    """A Dask collection that is a plain dict of tasks and the keys that are wanted.

    It follows Dask's protocol for custom collections: the dict goes to the scheduler as
    it is, without the layers and the optimisation that an array of arrays would need.
    """

    def __init__(self, graph: Graph, keys: list[Key]) -> None:
        self.graph = graph
        self.keys = keys

    __dask_optimize__ = None
    __dask_scheduler__ = staticmethod(dask.threaded.get)

    def __dask_graph__(self) -> Graph:
        return self.graph

    def __dask_keys__(self) -> list[Key]:
        return list(self.keys)

    def __dask_tokenize__(self) -> tuple[Key, ...]:
        return tuple(self.keys)

    def __dask_postcompute__(self) -> tuple[Any, tuple[()]]:
        return list, ()

    def __dask_postpersist__(self) -> tuple[Any, tuple[list[Key]]]:
        return _rebuilt, (self.keys,)


def _rebuilt(
    graph: Graph, keys: list[Key], rename: dict[str, str] | None = None
) -> Tasks:
    return Tasks(graph, keys)


class Runner(Protocol):
    """Runs tasks and keeps their results where they are."""

    remote: ClassVar[bool]

    def put(self, values: list[Any], *, in_order: bool = False) -> list[Leaf]:
        """Bring values to where the tasks run; in order: neighbours to one worker."""

    def run(self, graph: Graph, keys: list[Key]) -> dict[Key, Leaf]:
        """Compute keys; return what stands for their values in the next graph."""

    def fetch(self, leaves: list[Leaf]) -> list[Any]:
        """Return the values of leaves."""

    def session(self) -> Any:
        """Return a context manager to run tasks in."""

    def machine(self) -> Machine:
        """Return how much there is to run tasks on."""

    def used(self) -> float:
        """Return the bytes that the fullest process uses now."""


def insisting(work: Callable[[], T], when: str) -> T:
    """Do some work, anew whenever workers have taken its data along.

    Parameters
    ----------
    work : callable
    when : str
        For the message when it's given up.

    Raises
    ------
    ClusterError
        It has failed too often.
    """
    for _ in range(MAX_LOSSES):
        with suppress(WorkersLost):
            return work()
    try:
        return work()
    except WorkersLost as error:
        raise given_up(when) from error


def given_up(when: str) -> ClusterError:
    """Return what ends a fit on a cluster that keeps losing workers."""
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


def computed(
    runner: Runner, name: str, tasks: list[tuple[Any, ...]], leaves: dict[Key, Leaf]
) -> list[Any]:
    """Return what tasks on leaves compute, on this side of a cluster."""
    token = uuid.uuid4().hex[:8]
    keys: list[Key] = [(f"{name}-{token}", number) for number in range(len(tasks))]
    graph: Graph = {**leaves, **dict(zip(keys, tasks, strict=True))}
    done = runner.run(graph, keys) if keys else {}
    return runner.fetch([done[key] for key in keys])


def on_threads(graph: Graph, keys: list[Key]) -> dict[Key, Any]:
    """Compute keys on the threads of this process.

    At once: what a collection goes through first takes longer than small rounds, and
    imports distributed to look for a client.
    """
    get: Any = dask.threaded.get
    with kept():
        return dict(zip(keys, get(graph, keys), strict=True))


class Threads:
    """Dask's scheduler in this process: threads, unless it is configured otherwise."""

    remote: ClassVar[bool] = False

    def put(self, values: list[Any], *, in_order: bool = False) -> list[Leaf]:
        return values

    def run(self, graph: Graph, keys: list[Key]) -> dict[Key, Leaf]:
        chosen = dask.config.get("scheduler", None)
        if chosen is None:
            return on_threads(graph, keys)
        (done,) = persist(Tasks(graph, keys), scheduler=chosen)
        return {key: done.graph[key] for key in keys}

    def fetch(self, leaves: list[Leaf]) -> list[Any]:
        return leaves

    @contextmanager
    def session(self) -> Iterator[None]:
        with one_blas_thread():
            yield

    def machine(self) -> Machine:
        threads = dask.config.get("num_workers", None) or CPU_COUNT
        return Machine(threads, memory=_memory())

    def used(self) -> float:
        return float(psutil.Process().memory_info().rss)


class Cluster:
    """A `distributed` cluster, through its client. Workers limit BLAS themselves."""

    remote: ClassVar[bool] = True

    def __init__(self, client: Client) -> None:
        self._client = client

    def put(self, values: list[Any], *, in_order: bool = False) -> list[Leaf]:
        leaves: list[Leaf] = []
        with _translated(self._client):
            for worker, part in self._dealt(len(values), in_order):
                leaves += self._scattered(values[part], worker)
        return leaves

    def _scattered(self, values: list[Any], worker: list[str] | None) -> list[Leaf]:
        # Without hash=False, data that were scattered before would share their keys,
        # and be lost when the earlier copy is released.
        if worker is not None:
            try:
                return list(self._client.scatter(values, worker, hash=False))
            except (KeyError, TimeoutError):  # it has gone, or is paused
                return self._scattered(values, None)
        # They wait for any worker as long as tasks would.
        config = dask.config.get("distributed")
        patience = config["scheduler"]["no-workers-timeout"]
        seconds = parse_timedelta(patience or config["comm"]["timeouts"]["connect"])
        try:
            return list(self._client.scatter(values, hash=False, timeout=seconds))
        except TimeoutError as error:
            raise no_worker(seconds) from error

    def run(self, graph: Graph, keys: list[Key]) -> dict[Key, Leaf]:
        # Tasks aren't bound to workers, not even loosely: those whose worker has died
        # would wait for it.
        with _translated(self._client):
            done = self._client.persist(Tasks(graph, keys))
        return {key: done.graph[key] for key in keys}

    def _dealt(
        self, count: int, in_order: bool
    ) -> Iterator[tuple[list[str] | None, slice]]:
        """Deal things out in order, by the threads of workers; None: to any of them."""
        workers = (
            self._client.scheduler_info(n_workers=-1)["workers"] if in_order else {}
        )
        threads = [worker["nthreads"] for worker in workers.values()]
        if len(workers) < 2:
            yield None, slice(None)
            return
        ends = [count * end // sum(threads) for end in accumulate(threads, initial=0)]
        for worker, (start, stop) in zip(workers, pairwise(ends), strict=True):
            if start < stop:
                yield [worker], slice(start, stop)

    def fetch(self, leaves: list[Leaf]) -> list[Any]:
        with _translated(self._client):
            return list(self._client.gather(leaves))

    def machine(self) -> Machine:
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        if not workers:  # they may come later: room for a few
            return Machine(CPU_COUNT, 1)
        return Machine(
            sum(worker["nthreads"] for worker in workers),
            len(workers),
            min(worker["memory_limit"] or math.inf for worker in workers),
        )

    def used(self) -> float:
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return max((w["metrics"].get("memory", 0.0) for w in workers), default=0.0)

    @contextmanager
    def session(self) -> Iterator[None]:
        # Dask arrays that are computed inside find their data on this cluster.
        with _translated(self._client), self._client.as_current():
            yield


def limited(machine: Machine, memory: float | str | None) -> Machine:
    """Return a machine whose workers have so many bytes, or as in "8 GiB".

    Raises
    ------
    ValueError
        It isn't a number of bytes above 0.
    """
    if memory is None:
        return machine
    try:
        given = float(parse_bytes(memory)) if memory else 0.0
    except (ValueError, TypeError, AttributeError):
        given = 0.0
    if not given > 0:
        msg = (
            f"memory_limit must be a number of bytes above 0, or as in '8 GiB'; got "
            f"{memory!r}"
        )
        raise ValueError(msg)
    return replace(machine, memory=given)


def _memory() -> float:
    """Return the bytes of memory of this machine, or of the container around us."""
    total = float(psutil.virtual_memory().total)
    for limit in (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ):
        with suppress(OSError, ValueError):  # "max": there is none
            return min(total, float(int(Path(limit).read_text())))
    return total


_blas_lock = threading.Lock()
_blas_sessions = 0
_blas_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: Dask's threads would fight its own for the cores.

    The limit holds for the whole process, so that sessions that overlap share it: the
    first one sets it, the last one lifts it.
    """
    global _blas_sessions, _blas_limits
    with _blas_lock:
        if _blas_sessions == 0:
            _blas_limits = threadpool_limits(limits=1, user_api="blas")
        _blas_sessions += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_sessions -= 1
            if _blas_sessions == 0:
                _blas_limits.restore_original_limits()


@contextmanager
def _translated(client: Client) -> Iterator[None]:
    """Raise `WorkersLost` where distributed says that data are gone.

    Without its scheduler a client takes tasks all the same, and waits for them forever.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.scheduler import NoWorkerError

    if client.status != "running":
        msg = (
            f"the connection to the scheduler was lost (the client is {client.status});"
            " look why it has ended, and run it again"
        )
        raise ClusterError(msg)
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
    except CancelledError as error:
        msg = "workers of the cluster were lost, and data with them; run it again"
        raise WorkersLost(msg) from error


def choose_runner(client: Client | None) -> Runner:
    """Return the runner for a client, passed or active; threads if there is none.

    Raises
    ------
    TypeError
        `client` isn't a synchronous ``distributed.Client``.
    ValueError
        `client` is closed.
    """
    client = _active_client() if client is None else client
    if client is None:
        return Threads()
    if not hasattr(client, "scatter"):
        msg = f"client must be a distributed.Client or None, got {client!r}"
        raise TypeError(msg)
    if client.asynchronous:
        msg = "client is asynchronous; pass Client(…, asynchronous=False)"
        raise TypeError(msg)
    if client.status != "running":
        msg = (
            f"client is {client.status}; connect a new distributed.Client, or pass "
            "client=None to run on the threads of this process"
        )
        raise ValueError(msg)
    return Cluster(client)


def _active_client() -> Client | None:
    # Whoever has a client has imported distributed.
    if "distributed" not in sys.modules:
        return None
    if dask.config.get("scheduler", None) not in (None, "dask.distributed"):
        return None
    from distributed import default_client

    try:
        client: Client = default_client()
        return client
    except ValueError:
        return None
