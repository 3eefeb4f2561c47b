"""Where a job runs: the section [cluster] as a context to work in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from dmf.engine import cluster
from dmf.jobs.config import Kubernetes, Processes, Scheduler, Slurm, Threads


def started(
    settings: Threads | Processes | Scheduler | Slurm | Kubernetes,
) -> AbstractContextManager[None]:
    """Return a context in which Dask works where a job says.

    Raises
    ------
    ConnectionError, ImportError, OSError
        When it's entered: the cluster can't be had.
    """
    match settings:
        case Threads():
            return cluster.limited(settings.threads)
        case Processes():
            return cluster.started(settings.workers, settings.timeout)
        case Scheduler():
            return cluster.connected(settings.address, settings.tls)
        case Slurm():
            options = slurm_options(settings)
            return cluster.on_slurm(settings.jobs, settings.timeout, **options)
        case Kubernetes():
            return cluster.on_kubernetes(kubernetes_spec(settings), settings.timeout)


def slurm_options(settings: Slurm) -> dict[str, Any]:
    """Return what `dask_jobqueue.SLURMCluster` is given."""
    named = ("queue", "account", "walltime", "interface", "local_directory")
    options = {name: getattr(settings, name) for name in (*named, "log_directory")}
    return {
        "cores": settings.cores,
        "memory": settings.memory,
        "processes": settings.processes,
        "job_extra_directives": settings.directives,
        "job_script_prologue": settings.prologue,
        # What is None is left to the configuration of dask-jobqueue.
        **{name: value for name, value in options.items() if value is not None},
    }


def kubernetes_spec(settings: Kubernetes) -> dict[str, Any]:
    """Return the cluster that Dask's operator shall start."""
    resources = {}
    if settings.cores is not None:
        resources["cpu"] = f"{settings.cores:g}"
    if settings.memory is not None:
        resources["memory"] = settings.memory
    return cluster.kubernetes_spec(
        settings.name,
        settings.image,
        settings.workers,
        resources,
        settings.env,
        settings.timeout,
        settings.namespace,
    )
