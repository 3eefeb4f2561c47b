"""What is told of a run: its record, on the way and at the end."""

from __future__ import annotations

import logging
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmf._shell import EXPECTED
from dmf.engine.losses import ClusterError
from dmf.engine.store import UnreadableError
from dmf.jobs.config import Job, Threads
from dmf.jobs.exits import Exit, JobError
from dmf.jobs.log import log
from dmf.jobs.record import FILE, RUN_ID, RunRecord

if TYPE_CHECKING:
    from dmf._plan import Plan
    from dmf.jobs.fit import Found
    from dmf.jobs.manifest import Manifest

LIBRARIES = ("numpy", "scipy", "numba", "dask", "distributed", "zarr")
# Runs that came so far have something to tell in a report.
WORKED = "input"


@contextmanager
def failing_with(code: Exit) -> Iterator[None]:
    """End a run with a code where something fails that may be expected to."""
    try:
        yield
    except EXPECTED as error:
        if isinstance(error, ClusterError) or _is_from_cluster(error):
            code = Exit.CLUSTER_LOST
        elif isinstance(error, UnreadableError):  # neither input nor configuration
            code = Exit.UNEXPECTED
        raise JobError(code, str(error)) from error


@contextmanager
def stage(record: RunRecord, name: str, code: Exit) -> Iterator[None]:
    """Time a part of a run; what is expected to go wrong in it ends with a code."""
    begun = time.monotonic()
    try:
        with failing_with(code):
            yield
    finally:
        record.stages.append((name, round(time.monotonic() - begun, 3)))


def _is_from_cluster(error: BaseException) -> bool:
    """Return whether distributed has raised it because of a connection."""
    kind = type(error)
    return isinstance(error, OSError) and kind.__module__.startswith("distributed")


def versions() -> dict[str, str]:
    from dmf import __version__

    found = {"dmf": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in LIBRARIES}


def planned(job: Job, X: Any, mask: Any, calibrate: bool = False) -> Plan:
    """Return the plan of a fit."""
    from dmf import plan

    return plan(
        X,
        job.model.rank,
        mask=mask,
        unobserved_weight=job.model.unobserved_weight,
        validation=job.model.validation,
        restarts=job.model.restarts,
        device=job.solver.device,
        # Measuring how fast this place is takes as long as a small fit.
        calibrate=calibrate,
    )


def tell_findings(job: Job, record: RunRecord, X: Any, mask: Any, found: Found) -> None:
    """Record what is remarkable about the data and the model, for the report."""
    if job.report.folder is not None:
        with _told("no findings"):
            from dmf.jobs.findings import find

            record.findings = find(X, mask, found.fit)


def tell_last(record: RunRecord, last: Manifest) -> None:
    """Record what the last run has found in the same input."""
    told, result = ("shape", "missing"), last.result
    record.input |= {name: result[name] for name in told if name in result}
    errors = {name: result.get(name) for name in ("rmse", "mae")}
    record.validation = {k: v for k, v in errors.items() if v is not None}


def tell_measured(job: Job, record: RunRecord) -> None:
    ends = [one["seconds"] for one in record.rounds]
    if len(ends) > 1:  # the first one loads the kernels
        record.measured["seconds"] = (ends[-1] - ends[0]) / (len(ends) - 1)
    # Where a cluster has worked, its memory counts, and this process saw none of it.
    if platform.system() == "Linux" and isinstance(job.cluster, Threads):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        record.measured["peak_bytes"] = peak


def write_reports(job: Job, record: RunRecord) -> None:
    """Write what is asked for; no trouble with it changes how the run has ended."""
    settings = job.report
    if settings.folder is not None:
        folder = Path(settings.folder) / record.id
        with _told("no record"):
            folder.mkdir(parents=True)
            record.write(folder)
        if any(name == WORKED for name, _ in record.stages):
            with _told("no report"):
                from dmf.jobs.report import write_report

                write_report(record, folder)
        with _told("old runs stay"):
            _remove_old(Path(settings.folder), settings.keep)
    if settings.prometheus is not None:
        with _told("no metrics"):
            from dmf.jobs.prometheus import write_metrics

            write_metrics(record, Path(settings.prometheus))


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log(f"{what}: {type(error).__name__}: {error}", logging.WARNING)


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all but the last runs' folders; their names sort by time."""
    found = (path.parent for path in folder.glob(f"*/{FILE}"))
    runs = sorted(path for path in found if re.fullmatch(RUN_ID, path.name))
    for path in runs[:-keep]:
        shutil.rmtree(path)
