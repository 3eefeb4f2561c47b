"""A run of a job: decide, read, fit, guard, publish, and record all of it."""

from __future__ import annotations

import logging
import os
import secrets
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dmf._shell import EXPECTED
from dmf.io.places import check_parent
from dmf.jobs.bookkeeping import (
    failing_with,
    planned,
    stage,
    tell_findings,
    tell_last,
    tell_measured,
    versions,
    write_reports,
)
from dmf.jobs.config import Job, Scheduler
from dmf.jobs.exits import Exit, JobError
from dmf.jobs.lock import locked
from dmf.jobs.log import log, logging_to, warnings_to
from dmf.jobs.manifest import (
    Manifest,
    Paths,
    ToDo,
    decide,
    input_versions,
    named,
    read_manifest,
)
from dmf.jobs.publish import finish_publication, publish, remove_left_overs
from dmf.jobs.record import RunRecord
from dmf.jobs.steps import (
    Run,
    aligned_with_last,
    clear_checkpoint,
    compare,
    count,
    found_model,
    manifest_of,
    opened,
    written,
)
from dmf.secrets import without_secrets

if TYPE_CHECKING:
    from dmf._plan import Plan


def run_job(job: Job, name: str) -> RunRecord:
    """Do what a job says, and return the record of it; nothing is raised.

    Parameters
    ----------
    job : Job
    name : str
        What the run is called in logs and reports.
    """
    begun, now = time.monotonic(), datetime.now(UTC)
    record = RunRecord(
        name=name,
        id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        started=now.isoformat(timespec="seconds"),
        settings=without_secrets(job.model_dump(mode="json")),
        versions=versions(),
        output={name: named(place) for name, place in job.output.places.items()},
    )
    with ExitStack() as stack:
        code = Exit.DONE
        try:
            with stage(record, "log", Exit.BAD_CONFIGURATION):
                stack.enter_context(logging_to(job.log))
            stack.enter_context(warnings_to(record.warnings))
            log("started", run=record.id, job=name)
            record.message = _under_lock(job, record)
        except JobError as error:
            code, record.message = error.code, str(error)
            if code == Exit.INTERRUPTED:
                record.message += f"; {_goes_on(job, record)}"
            told = traceback.format_exc()
            log("where it failed", logging.DEBUG, traceback=told)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
            record.message = f"interrupted; {_goes_on(job, record)}"
        except Exception as error:
            code = Exit.UNEXPECTED
            record.message = f"{type(error).__name__}: {error}"
            log("a bug", logging.ERROR, traceback=traceback.format_exc())
        record.code = int(code)
        record.outcome = record.outcome or code.name.lower().replace("_", " ")
        record.message = " ".join(str(without_secrets(record.message)).split())
        record.seconds = round(time.monotonic() - begun, 3)
        write_reports(job, record)
        level = logging.INFO if code == Exit.DONE else logging.ERROR
        log(record.message, level, code=record.code, seconds=record.seconds)
    return record


def look(job: Job) -> ToDo:
    """Return what a run of a job would do now.

    Raises
    ------
    JobError
        It would fail at once.
    """
    with failing_with(Exit.BAD_CONFIGURATION):
        paths = _checked(job)
        if os.path.exists(paths.journal):
            return ToDo("publish", "a killed run was about to")
        return _decided(job, paths)[0]


def plan_of(job: Job) -> Plan:
    """Return what a fit would take, where it would be.

    Raises
    ------
    JobError
        The cluster or the input can't be had.
    """
    from dmf.jobs.where import started

    with ExitStack() as stack:
        with failing_with(Exit.CLUSTER_LOST):
            stack.enter_context(started(job.cluster))
        with failing_with(Exit.BAD_INPUT):
            return planned(job, *opened(job), calibrate=True)


def _under_lock(job: Job, record: RunRecord) -> str:
    with stage(record, "check", Exit.BAD_CONFIGURATION):
        paths = _checked(job)
    with locked(paths.lock, job.job.wait):
        with stage(record, "recover", Exit.UNEXPECTED):
            other = finish_publication(paths, job.output.places.values())
            if other is not None:
                log("finished what a killed run was about to publish", other=other)
                clear_checkpoint(job)
            remove_left_overs(list(job.output.places.values()))
        with stage(record, "decide", Exit.BAD_CONFIGURATION):
            todo, last, found = _decided(job, paths)
        log("decided", action=todo.action, reason=todo.reason)
        record.input = {
            "place": named(job.input.path),
            "version": found[named(job.input.path)],
        }
        if last is not None and todo.action == "nothing":
            record.outcome = "nothing to do"
            tell_last(record, last)
            clear_checkpoint(job)  # a run that was killed when all was published
            return str(todo)
        try:
            return _do(Run(job, record, paths, last, found), todo)
        finally:
            # What a journal speaks of is still to be moved.
            if not os.path.exists(paths.journal):
                remove_left_overs(list(job.output.places.values()))


def _do(run: Run, todo: ToDo) -> str:
    from dmf.jobs.where import started

    job, record = run.job, run.record
    with ExitStack() as stack:
        with stage(record, "cluster", Exit.CLUSTER_LOST):
            stack.enter_context(started(job.cluster))
        with stage(record, "input", Exit.BAD_INPUT):
            X, mask = opened(job)
            mode, aligned = aligned_with_last(run, todo.action, X, mask)
            X, mask = (X, mask) if aligned is None else (aligned.X, aligned.mask)
            plan = planned(job, X, mask)
            record.plan = asdict(plan) | {"bytes": plan.bytes}
            if plan.refusal is not None and mode in ("full", "warm"):
                raise JobError(Exit.BAD_CONFIGURATION, plan.refusal)
            # This reads all of X, and so comes last.
            count(run, X, mask)
        with stage(record, "fit", Exit.BAD_INPUT):
            found = found_model(run, mode, X, mask, aligned)
        with stage(record, "compare", Exit.BAD_INPUT):
            compare(run, found)
            tell_findings(job, record, X, mask, found)
        with stage(record, "write", Exit.UNEXPECTED):
            moves = written(run, mode, X, mask, found, aligned)
    with stage(record, "publish", Exit.UNEXPECTED):
        publish(moves, manifest_of(run, mode, found, moves), run.paths)
        clear_checkpoint(job)
    tell_measured(job, record)
    return f"done: a {mode} run; {found.fit.status}"


# ------------------------------------------------------------------------------- checks


def _checked(job: Job) -> Paths:
    """Return where a job keeps things; refuse places where nothing can be kept.

    It is cheap, since it comes before any decision.
    """
    from dmf.io.checkpoints import CheckpointStore

    if isinstance(job.cluster, Scheduler):
        job.cluster.tls.check(job.cluster.address)
    paths = Paths.of(job)
    for place in (paths.lock, *job.output.places.values(), job.checkpoint_place):
        check_parent(place)
    CheckpointStore.at(job.checkpoint_place).versions()
    return paths


def _decided(
    job: Job, paths: Paths
) -> tuple[ToDo, Manifest | None, dict[str, str | None]]:
    """Return what there is to do, the last manifest, and the versions of the input.

    Outputs that couldn't be written are refused, if there is something to do.
    """
    last, found = _last(paths), _input(job)
    todo = decide(job, last, found)
    if todo.action != "nothing":
        _check_outputs(job)
    return todo, last, found


def _check_outputs(job: Job) -> None:
    """Refuse places where something else is: a slip in a path must not cost data."""
    from dmf.io import matrices, model

    for name, place in job.output.places.items():
        check = model.check_writable if name == "model" else matrices.check_writable
        check(place, overwrite=True)


def _last(paths: Paths) -> Manifest | None:
    try:
        return read_manifest(paths.manifest)
    except ValueError as error:
        log(
            f"the manifest {paths.manifest} can't be read ({error}); all is done anew",
            logging.WARNING,
        )
        return None


def _input(job: Job) -> dict[str, str | None]:
    """Return the versions of what is read, or refuse what isn't there."""
    try:
        found = input_versions(job)
    except EXPECTED as error:
        msg = f"the input can't be looked at ({error})"
        raise JobError(Exit.BAD_INPUT, msg) from error
    for place, version in found.items():
        if version is None:
            msg = f"there is nothing at {place}; check the path"
            raise JobError(Exit.BAD_INPUT, msg)
    return found


def _goes_on(job: Job, record: RunRecord) -> str:
    """Say what becomes of a run that was interrupted."""
    from dmf.io.checkpoints import CheckpointStore

    with suppress(*EXPECTED):
        if os.path.exists(Paths.of(job).journal):
            return "the next run finishes publishing"
        fitted = any(name == "fit" for name, _ in record.stages)
        if fitted and CheckpointStore.at(job.checkpoint_place).versions():
            return "the next run goes on from its checkpoint"
    return "the next run begins again"
