"""A run of a job: decide, read, fit, guard, publish, and record all of it."""

from __future__ import annotations

import logging
import os
import secrets
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime

from dmf._shell import EXPECTED
from dmf.io.places import check_folder, is_url
from dmf.jobs.bookkeeping import (
    planned,
    stage,
    tell_findings,
    tell_measured,
    versions,
    write_reports,
)
from dmf.jobs.config import Job
from dmf.jobs.exits import Exit, JobError
from dmf.jobs.lock import locked
from dmf.jobs.log import log, logging_to, warnings_to
from dmf.jobs.manifest import (
    Manifest,
    Paths,
    ToDo,
    decide,
    input_versions,
    read_manifest,
)
from dmf.jobs.publish import finish_publication, publish, remove_left_overs
from dmf.jobs.record import RunRecord
from dmf.jobs.secrets import without_secrets
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
        output=dict(job.output.places),
    )
    with ExitStack() as stack:
        code = Exit.DONE
        try:
            with stage(record, "log", Exit.BAD_CONFIGURATION):
                stack.enter_context(logging_to(job.log))
            stack.enter_context(warnings_to(record.warnings))
            log("started", run=record.id, job=name)
            record.message = _under_lock(Run(job, record, Paths.of(job)))
        except JobError as error:
            code, record.message = error.code, str(error)
            told = traceback.format_exc()
            log("where it failed", logging.DEBUG, traceback=told)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
            record.message = "interrupted; the next run goes on from its checkpoint"
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
    paths = Paths.of(job)
    _check_folders(job, paths)
    if os.path.exists(paths.journal):
        return ToDo("publish", "a killed run was about to")
    return decide(job, _last(paths), _input(job))


def plan_of(job: Job, todo: ToDo) -> str:
    """Return what a fit would take, for people; nothing if there would be none."""
    if todo.action not in ("full", "warm"):
        return ""
    with stage(RunRecord("", "", ""), "input", Exit.BAD_INPUT):
        return str(planned(job, *opened(job), calibrate=True))


def _under_lock(run: Run) -> str:
    job, record = run.job, run.record
    with stage(record, "check", Exit.BAD_CONFIGURATION):
        _check_folders(job, run.paths)
    with locked(run.paths.lock, job.job.wait):
        with stage(record, "recover", Exit.UNEXPECTED):
            other = finish_publication(run.paths)
            if other is not None:
                log("finished what a killed run was about to publish", other=other)
            remove_left_overs(list(job.output.places.values()))
        with stage(record, "decide", Exit.BAD_INPUT):
            run.last, run.versions = _last(run.paths), _input(job)
            todo = decide(job, run.last, run.versions)
        log("decided", action=todo.action, reason=todo.reason)
        record.input = {
            "place": without_secrets(job.input.path),
            "version": run.versions[job.input.path],
        }
        if todo.action == "nothing":
            record.outcome = "nothing to do"
            return str(todo)
        with stage(record, "outputs", Exit.BAD_CONFIGURATION):
            _check_outputs(job)
        try:
            return _do(run, todo)
        finally:
            # What a journal speaks of is still to be moved.
            if not os.path.exists(run.paths.journal):
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
            count(run, X, mask)
            plan = planned(job, X, mask)
            record.plan = asdict(plan) | {"bytes": plan.bytes}
            if plan.refusal is not None and mode in ("full", "warm"):
                raise JobError(Exit.BAD_CONFIGURATION, plan.refusal)
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


def _check_folders(job: Job, paths: Paths) -> None:
    """Refuse folders that aren't there; cheap, since it comes before any decision."""
    places = [paths.lock, *job.output.places.values(), job.checkpoint_place]
    for place in dict.fromkeys(os.path.dirname(p) for p in places if not is_url(p)):
        try:
            check_folder(place)
        except OSError as error:
            raise JobError(Exit.BAD_CONFIGURATION, str(error)) from error


def _check_outputs(job: Job) -> None:
    """Refuse places where something else is: a slip in a path must not cost data."""
    from dmf.io import matrices, model

    for name, place in job.output.places.items():
        check = model.check_writable if name == "model" else matrices.check_writable
        check(place, overwrite=True)


def _last(paths: Paths) -> Manifest | None:
    try:
        return read_manifest(paths.manifest)
    except (ValueError, OSError) as error:
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
