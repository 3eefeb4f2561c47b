"""Clusters for a command: connect to one, or start one on this machine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dmf.engine.replaced import lost_jobs_replaced
from dmf.engine.tls import Tls

CONNECT_SECONDS = 10
IDLE_SECONDS = 600
RESTART_SECONDS = 300
# Of the scheduler: tasks that find no worker at all for so long fail.
NO_WORKERS = "distributed.scheduler.no-workers-timeout"
VARIABLE = "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT"
# Let workers keep memory that they have freed. Dask has glibc give it back at once: a
# round needs as much as the one before, and to get it anew, page by page, takes from a
# tenth to a third of a round. A nanny heeds these in its own environment, too.
KEPT_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


@contextmanager
def connected(scheduler: str, tls: Tls | None = None) -> Iterator[None]:
    """Connect to a scheduler by its address; Dask uses the client meanwhile.

    Raises
    ------
    ConnectionError
        Nobody answers there, or this client is turned away.
    FileNotFoundError, ValueError
        Of `Tls.check`.
    """
    from distributed import Client

    tls = Tls() if tls is None else tls
    tls.check(scheduler)
    try:
        client = Client(
            scheduler,
            timeout=CONNECT_SECONDS,
            # One that fails to connect would stay the default.
            set_as_default=False,
            security=tls.security(),
        )
    except (OSError, ValueError) as error:
        msg = (
            f"can't connect to a Dask scheduler at {scheduler} ({error}); check the "
            "address, that the scheduler runs, and whether it asks for TLS"
        )
        raise ConnectionError(msg) from error
    with _clean_logs(), client, client.as_current():
        yield


@contextmanager
def started(workers: int, timeout: float = IDLE_SECONDS) -> Iterator[None]:
    """Start worker processes of one thread each, and end them afterwards.

    Parameters
    ----------
    workers : int
    timeout : float
        Seconds without a single worker after which what waits for one fails.
    """
    from distributed import Client, LocalCluster

    with _waiting_at_most(timeout), _restarts_awaited(), _clean_logs():
        with _interrupts_left_to_us(), _memory_kept():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                # Port 0 is any free one; None would be the default port.
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
            )
        with cluster, Client(cluster) as client:
            _clean_logs_of_workers(client)
            yield


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Use so many threads of this process; None: as many as it has processors."""
    import dask

    with dask.config.set({} if threads is None else {"num_workers": threads}):
        yield


@contextmanager
def on_slurm(jobs: int, timeout: float, **options: Any) -> Iterator[None]:
    """Start workers as jobs of Slurm, and cancel them afterwards.

    Jobs that end before that, since their time is over or somebody has cancelled them,
    are replaced.

    Parameters
    ----------
    jobs : int
    timeout : float
        Seconds to wait for the first worker, and later while there is none.
    **options
        As for `dask_jobqueue.SLURMCluster`.
    """
    with _waiting_at_most(timeout), slurm_cluster(**options) as cluster:
        cluster.scale(jobs=jobs)
        late = "Slurm has started none of the jobs"
        with _ready(cluster, timeout, late), lost_jobs_replaced(cluster, jobs):
            yield


def slurm_cluster(**options: Any) -> Any:
    """Return a `dask_jobqueue.SLURMCluster` without workers yet."""
    try:
        # On import it makes Ctrl-C end the process at once, without a checkpoint.
        with _interrupts_left_to_us():
            from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        msg = "clusters on Slurm need dask-jobqueue: pip install 'dmf[slurm]'"
        raise ImportError(msg) from error
    # Nobody watches a scheduled job, and the usual port of a dashboard may be taken.
    scheduler = {"dashboard": False, "dashboard_address": ":0"}
    prologue = [f"export {name}={value}" for name, value in KEPT_MEMORY.items()]
    options["job_script_prologue"] = prologue + options.get("job_script_prologue", [])
    return SLURMCluster(scheduler_options=scheduler, **options)


@contextmanager
def on_kubernetes(spec: dict[str, Any], timeout: float) -> Iterator[None]:
    """Have the operator start a cluster, and delete it afterwards.

    Parameters
    ----------
    spec : dict
        Of `kubernetes_spec`.
    timeout : float
        Seconds to wait for the first worker.
    """
    from dask_kubernetes.operator import KubeCluster

    namespace = spec["metadata"].get("namespace")
    try:
        cluster = KubeCluster(
            custom_cluster_spec=spec,
            namespace=namespace,
            resource_timeout=max(1, int(timeout)),
            quiet=True,
        )
    except Exception as error:
        # Whatever the client of Kubernetes raises: it shares no base class.
        msg = (
            f"Kubernetes hasn't started a cluster ({type(error).__name__}: {error}); "
            "check the operator, the namespace and the rights of this account"
        )
        raise ConnectionError(msg) from error
    with (
        _waiting_at_most(timeout),
        cluster,
        _ready(cluster, timeout, "Kubernetes has started none of the workers"),
    ):
        yield


def kubernetes_spec(
    name: str,
    image: str,
    workers: int,
    resources: dict[str, str],
    env: dict[str, str],
    timeout: float,
    namespace: str | None = None,
) -> dict[str, Any]:
    """Return the specification of a cluster for Dask's operator.

    Without a single worker for `timeout` seconds, what waits for one fails.
    """
    try:
        from dask_kubernetes.operator import make_cluster_spec
    except ImportError as error:
        msg = (
            "clusters on Kubernetes need dask-kubernetes: pip install 'dmf[kubernetes]'"
        )
        raise ImportError(msg) from error
    spec: dict[str, Any] = make_cluster_spec(
        name=name,
        image=image,
        n_workers=workers,
        resources={"limits": resources, "requests": resources},
        env={VARIABLE: f"{timeout:g} s"} | KEPT_MEMORY | env,
        # Of one thread each, as everywhere: BLAS has the other cores of none.
        worker_command="dask worker --nthreads 1",
        # A client that was killed deletes nothing.
        idle_timeout=IDLE_SECONDS,
    )
    if namespace is not None:
        spec["metadata"]["namespace"] = namespace
    return spec


@contextmanager
def _ready(cluster: Any, timeout: float, late: str) -> Iterator[None]:
    """Connect to a cluster, and wait for its first worker."""
    from distributed import Client

    with _clean_logs(), Client(cluster) as client:
        _clean_logs_of_workers(client)
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            msg = f"{late} in {timeout:g} s; wait longer with cluster.timeout"
            raise ConnectionError(msg) from error
        yield


@contextmanager
def _waiting_at_most(timeout: float) -> Iterator[None]:
    """Let what finds no worker for so long fail, where a scheduler is started here."""
    import dask

    with dask.config.set({NO_WORKERS: f"{timeout:g} s"}):
        yield


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Let workers that are started here keep memory that they have freed."""
    import dask

    name = "distributed.nanny.pre-spawn-environ"
    with dask.config.set({name: dask.config.get(name) | KEPT_MEMORY}):
        yield


def _clean_logs_of_workers(client: Any) -> None:
    from dmf.engine.logs import LogsWithoutSecrets

    client.register_plugin(LogsWithoutSecrets())


@contextmanager
def _restarts_awaited() -> Iterator[None]:
    """Let a worker that died take its time to start again.

    Dask gives up a worker that isn't back after 15 s, and never starts another in its
    place; on a machine under load, the start of a process may take longer.
    """
    import dask

    name = "distributed.deploy.lost-worker-timeout"
    with dask.config.set({name: f"{RESTART_SECONDS} s"}):
        yield


@contextmanager
def _clean_logs() -> Iterator[None]:
    """Log no credentials, and nothing of what Ctrl-C leaves of `Client.gather`."""
    from dmf.engine.logs import without_secrets_here

    def wanted(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ != "AllExit"

    logger = logging.getLogger("asyncio")
    logger.addFilter(wanted)
    try:
        with without_secrets_here():
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
