"""Where tasks run: on the threads of this process, or on a cluster."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import dask
import dask.threaded
import psutil
from dask.base import persist
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta

from dmf.device import RESOURCE, Gpu, to_device, to_host
from dmf.engine.blas import one_blas_thread
from dmf.engine.cost import Machine
from dmf.engine.interrupts import kept
from dmf.engine.losses import disconnected, no_worker, translated
from dmf.engine.lower import Graph, Key

if TYPE_CHECKING:
    from distributed import Client

Leaf = Any  # what stands for a computed value: the value itself, or a Future


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
    """Runs tasks and keeps their results where they are.

    Attributes
    ----------
    remote : bool
        Whether that is on the workers of a cluster.
    gpu : Gpu or None
        What they work on, if not on processors.
    """

    remote: ClassVar[bool]
    gpu: Gpu | None

    @property
    def place(self) -> Callable[[Any], Any] | None:
        """What tasks do to values from the host to work on them; None: nothing."""

    def put(
        self,
        values: list[Any],
        *,
        in_order: bool = False,
        ready: Callable[[Any], Any] | None = None,
    ) -> list[Leaf]:
        """Bring values to where the tasks run; in order: neighbours to one worker.

        `ready` is what makes them ready there.
        """

    def share(self, leaves: list[Leaf]) -> list[Leaf] | None:
        """Deal values that are in order to workers that are new; None: nobody is."""

    def run(self, graph: Graph, keys: list[Key]) -> dict[Key, Leaf]:
        """Compute keys; return what stands for their values in the next graph."""

    def fetch(self, leaves: list[Leaf]) -> list[Any]:
        """Return the values of leaves, in the memory of this host."""

    def session(self) -> Any:
        """Return a context manager to run tasks in."""

    def machine(self) -> Machine:
        """Return how much there is to run tasks on."""

    def used(self) -> float:
        """Return the bytes that the fullest process uses now."""


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


class _Placing:
    """What a runner's tasks do to values from the host."""

    def __init__(self, gpu: Gpu | None = None) -> None:
        self.gpu = gpu

    @property
    def place(self) -> Callable[[Any], Any] | None:
        return None if self.gpu is None else to_device


class Threads(_Placing):
    """Dask's scheduler in this process: threads, unless it is configured otherwise."""

    remote: ClassVar[bool] = False

    def put(
        self,
        values: list[Any],
        *,
        in_order: bool = False,
        ready: Callable[[Any], Any] | None = None,
    ) -> list[Leaf]:
        return values if ready is None else [ready(value) for value in values]

    def share(self, leaves: list[Leaf]) -> list[Leaf] | None:
        return None

    def run(self, graph: Graph, keys: list[Key]) -> dict[Key, Leaf]:
        chosen = dask.config.get("scheduler", None)
        if chosen is None:
            return on_threads(graph, keys)
        (done,) = persist(Tasks(graph, keys), scheduler=chosen)
        return {key: done.graph[key] for key in keys}

    def fetch(self, leaves: list[Leaf]) -> list[Any]:
        return leaves if self.gpu is None else [to_host(leaf) for leaf in leaves]

    @contextmanager
    def session(self) -> Iterator[None]:
        # Tasks on a GPU follow each other: each of them has all of it.
        alone = {} if self.gpu is None else {"num_workers": 1}
        with one_blas_thread(), dask.config.set(alone):
            yield

    def machine(self) -> Machine:
        if self.gpu is not None:
            return Machine(1, memory=self.gpu.memory(), gpu=True)
        threads = dask.config.get("num_workers", None) or CPU_COUNT
        return Machine(threads, memory=_memory())

    def used(self) -> float:
        if self.gpu is not None:  # the memory of the process isn't that of its GPU
            return 0.0
        return float(psutil.Process().memory_info().rss)


class Cluster(_Placing):
    """A `distributed` cluster, through its client. Workers limit BLAS themselves."""

    remote: ClassVar[bool] = True

    def __init__(self, client: Client, gpu: Gpu | None = None) -> None:
        super().__init__(gpu)
        self._client = client
        # Of tasks: those on a GPU go where one is offered.
        self._needs: dict[str, Any] = {} if gpu is None else {"resources": RESOURCE}
        self._workers: set[str] | None = None  # among whom things were dealt last

    def put(
        self,
        values: list[Any],
        *,
        in_order: bool = False,
        ready: Callable[[Any], Any] | None = None,
    ) -> list[Leaf]:
        leaves: list[Leaf] = []
        with translated(self._client):
            for worker, part in self._dealt(len(values), in_order):
                leaves += self._scattered(values[part], worker)
            if ready is not None:
                leaves = self._client.map(ready, leaves, pure=False, **self._needs)
        return leaves

    def _scattered(self, values: list[Any], worker: list[str] | None) -> list[Leaf]:
        # Without hash=False, data that were scattered before would share their keys,
        # and be lost when the earlier copy is released.
        if worker is not None:
            try:
                return list(self._client.scatter(values, worker, hash=False))
            except (KeyError, OSError):  # it has gone, is just going, or is paused
                return self._scattered(values, None)
        # They wait for any worker as long as tasks would.
        config = dask.config.get("distributed")
        patience = config["scheduler"]["no-workers-timeout"]
        seconds = parse_timedelta(patience or config["comm"]["timeouts"]["connect"])
        try:
            return list(self._client.scatter(values, hash=False, timeout=seconds))
        except TimeoutError as error:
            raise no_worker(seconds) from error

    def share(self, leaves: list[Leaf]) -> list[Leaf] | None:
        with translated(self._client):
            there = set(self._threads())
            new = there - (self._workers or there)
            self._workers = there
            if not new:
                return None
            shared: list[Leaf] = []
            for worker, part in self._dealt(len(leaves), in_order=True):
                mine = leaves[part]
                if worker is not None and worker[0] in new:
                    # A result can be computed again elsewhere; copies that are only
                    # replicated are taken away by Dask as it likes.
                    mine = self._client.map(
                        _same,
                        mine,
                        workers=worker,
                        allow_other_workers=True,
                        pure=False,
                        **self._needs,
                    )
                shared += mine
            return shared

    def run(self, graph: Graph, keys: list[Key]) -> dict[Key, Leaf]:
        # Tasks aren't bound to workers, not even loosely: those whose worker has died
        # would wait for it.
        with translated(self._client):
            done = self._client.persist(Tasks(graph, keys), **self._needs)
        return {key: done.graph[key] for key in keys}

    def _dealt(
        self, count: int, in_order: bool
    ) -> Iterator[tuple[list[str] | None, slice]]:
        """Deal things out in order, by the threads of workers; None: to any of them."""
        workers = self._told() if in_order else {}
        threads = [worker["nthreads"] for worker in workers.values()]
        if in_order:
            self._workers = set(workers)
        if len(workers) < 2:
            yield None, slice(None)
            return
        ends = [count * end // sum(threads) for end in accumulate(threads, initial=0)]
        for worker, (start, stop) in zip(workers, pairwise(ends), strict=True):
            if start < stop:
                yield [worker], slice(start, stop)

    def fetch(self, leaves: list[Leaf]) -> list[Any]:
        with translated(self._client):
            if self.gpu is not None:
                # Copied where they are: this process may have no GPU.
                leaves = self._client.map(to_host, leaves, pure=False, **self._needs)
            return list(self._client.gather(leaves))

    def _told(self) -> dict[str, Any]:
        """Return what the scheduler says of each worker."""
        info = self._client.scheduler_info(n_workers=-1)
        if "workers" not in info:  # the connection is just being lost
            raise disconnected(self._client)
        workers: dict[str, Any] = info["workers"]
        return workers

    def _threads(self) -> dict[str, int]:
        """Return the threads of each worker, which takes less to say."""
        try:
            threads: dict[str, int] = self._client.nthreads()
        except OSError as error:
            raise disconnected(self._client) from error
        return threads

    def machine(self) -> Machine:
        if self.gpu is not None:
            return self._gpus(self.gpu)
        workers = self._told().values()
        if not workers:  # they may come later: room for a few
            return Machine(CPU_COUNT, 1)
        return Machine(
            sum(worker["nthreads"] for worker in workers),
            len(workers),
            min(worker["memory_limit"] or math.inf for worker in workers),
        )

    def _gpus(self, gpu: Gpu) -> Machine:
        """Return the GPUs that workers offer, or refuse to wait for one."""
        workers = self._told()
        offering = [
            address
            for address, worker in workers.items()
            if worker["resources"].get("GPU", 0) >= 1
        ]
        if not offering:
            msg = (
                "device='gpu' needs workers that offer a GPU, but none of the "
                f"{len(workers)} workers does; start them with --resources GPU=1, as "
                "in deploy/gpu, or use device='cpu'"
            )
            raise ValueError(msg)
        memory = min(self._client.run(gpu.memory, workers=offering).values())
        return Machine(len(offering), len(offering), memory, gpu=True)

    def used(self) -> float:
        if self.gpu is not None:
            return 0.0
        workers = self._told().values()
        return max((w["metrics"].get("memory", 0.0) for w in workers), default=0.0)

    @contextmanager
    def session(self) -> Iterator[None]:
        # Dask arrays that are computed inside find their data on this cluster.
        with translated(self._client), self._client.as_current():
            yield


def _same(value: Any) -> Any:
    return value


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


def choose_runner(client: Client | None, gpu: Gpu | None = None) -> Runner:
    """Return the runner for a client, passed or active; threads if there is none.

    With `gpu` its tasks work on GPUs.

    Raises
    ------
    TypeError
        `client` isn't a synchronous ``distributed.Client``.
    ValueError
        `client` is closed.
    """
    client = _active_client() if client is None else client
    if client is None:
        return Threads(gpu)
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
    return Cluster(client, gpu)


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
