"""The steps of a run: open, fit, measure, guard, and write beside the old."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dmf.io.replace import name_run
from dmf.jobs.bookkeeping import failing_with
from dmf.jobs.config import Job
from dmf.jobs.exits import Exit, JobError
from dmf.jobs.log import log
from dmf.jobs.manifest import (
    Manifest,
    Paths,
    model_settings,
    named,
    solver_settings,
)
from dmf.jobs.publish import Move, beside, link_unchanged
from dmf.jobs.record import RunRecord

if TYPE_CHECKING:
    from dmf.jobs.align import Aligned
    from dmf.jobs.fit import Found


@dataclass
class Run:
    """A run on its way.

    Parameters
    ----------
    job : Job
    record : RunRecord
    paths : Paths
    last : Manifest or None
        Of the last run that has published.
    versions : dict of str to str
        Of what is read, by its places.
    """

    job: Job
    record: RunRecord
    paths: Paths
    last: Manifest | None
    versions: dict[str, str | None]


def opened(job: Job) -> tuple[Any, Any]:
    """Open the input and its mask, and check that they fit."""
    from dmf.containers import unwrap_pair
    from dmf.engine.kinds import check_kinds
    from dmf.io.matrices import check_output, open_mask, open_matrix
    from dmf.validation import check_mask, check_matrix, check_rank

    settings, output = job.input, job.output
    X = open_matrix(
        settings.path, settings.columns, settings.duplicates, settings.variable
    )
    mask = open_mask(settings.mask, settings.index)
    array, plain_mask, _ = unwrap_pair(X, mask)
    shape = check_matrix("X", array)
    with failing_with(Exit.BAD_CONFIGURATION):
        if output.matrix is not None:
            check_output(X, output.matrix)
        if min(shape):
            check_rank(job.model.rank, shape)
    if plain_mask is not None:
        check_mask(array, plain_mask)
        check_kinds(array, plain_mask)
    return X, mask


def aligned_with_last(
    run: Run, action: str, X: Any, mask: Any
) -> tuple[str, Aligned | None]:
    """Return what is done after all, and the last model with X in its order."""
    from dmf import load
    from dmf.jobs.align import OtherMatrixError, align

    if action == "full":
        return action, None
    try:
        return action, align(X, mask, load(run.job.output.model))
    except OtherMatrixError as error:
        log(f"the last model can't be used: {error}; fitted anew", logging.WARNING)
        return "full", None


def found_model(
    run: Run, mode: str, X: Any, mask: Any, aligned: Aligned | None
) -> Found:
    from dmf.jobs.fit import Found, fitted, folded_in

    job, record = run.job, run.record
    if aligned is not None and mode == "fill":
        result = run.last.result if run.last else {}
        rmse, mae = (result.get(name) or math.nan for name in ("rmse", "mae"))
        return Found(aligned.last, rmse, mae)
    if aligned is not None and mode == "fold-in":
        return folded_in(job, aligned)
    quiet = job.log.format == "json" or job.log.file is not None
    start = None if aligned is None else aligned.last
    found = fitted(job, X, mask, start, _log_round, False if quiet else None)
    record.rounds = [asdict(one) for one in found.fit.history]
    status = found.fit.status
    log("fitted", status=str(status), rounds=len(record.rounds), rmse=found.rmse)
    if status.code == "interrupted":
        msg = f"interrupted after round {status.round}"
        raise JobError(Exit.INTERRUPTED, msg)
    strict = job.job.strict and status.code == "max_rounds"
    if strict or status.code == "diverged":
        raise JobError(Exit.NOT_CONVERGED, f"not published: {status}")
    return found


def _log_round(record: Any) -> None:
    told = {"objective": record.objective, "rmse": record.rmse}
    log("round", logging.DEBUG, round=record.round, start=record.candidate, **told)


def count(run: Run, X: Any, mask: Any) -> None:
    """Record what X is, and how much of it is observed; refuse one of gaps."""
    from dmf.containers import unwrap_pair
    from dmf.engine.arrays import number_observed
    from dmf.engine.kinds import block_kind

    X, mask, _ = unwrap_pair(X, mask)
    m, n = map(int, X.shape)
    entries = number_observed(X, mask)
    # Of an empty matrix nothing is missing: the fit will say what is wrong with it.
    missing, most = 1 - entries / (m * n) if m * n else 0.0, run.job.guards.missing
    run.record.input |= {
        "shape": [m, n],
        "dtype": str(X.dtype),
        "kind": block_kind(X),
        "observed": entries,
        "missing": missing,
    }
    if missing > most:
        msg = (
            f"not published: {missing:.2%} of the cells are missing, more than "
            f"guards.missing={most:g}; check the input, or raise it"
        )
        raise JobError(Exit.REFUSED, msg)


def compare(run: Run, found: Found) -> None:
    """Record the errors; refuse to publish what is much worse than the last model."""
    last, worst = _last_rmse(run), run.job.guards.worsened
    told = {"rmse": found.rmse, "mae": found.mae, "last_rmse": last}
    run.record.validation = {
        name: value
        for name, value in told.items()
        if value is not None and not math.isnan(value)
    }
    if not last or math.isnan(found.rmse):
        return
    worsened = found.rmse / last - 1
    if worsened > worst:
        msg = (
            f"not published: the RMSE on held-out entries is {found.rmse:.6g}, "
            f"{worsened:.1%} above the last run's {last:.6g} and more than "
            f"guards.worsened={worst:g} allows; check the input, or raise it"
        )
        raise JobError(Exit.REFUSED, msg)


def _last_rmse(run: Run) -> float | None:
    """Return the error of the last model; None if it was one of other settings."""
    if run.last is None or run.last.model_settings != model_settings(run.job):
        return None
    return run.last.result.get("rmse")


def written(
    run: Run, mode: str, X: Any, mask: Any, found: Found, aligned: Aligned | None
) -> list[Move]:
    """Write all outputs beside their places."""
    from dmf import impute
    from dmf._impute import imputed
    from dmf.io import model
    from dmf.io.matrices import write_made

    def cells(name: str) -> Any:
        filled = impute(X, found.fit, mask) if name == "matrix" else imputed(X, mask)
        return filled if aligned is None else aligned.as_read(filled)

    output, moves = run.job.output, []
    for name, place in output.places.items():
        if name == "model" and mode == "fill":
            moves.append(Move.of(place, place))
            continue
        staged = beside(place, run.record.id)
        if name == "model":
            model.save(found.fit, staged, overwrite=True)
        else:
            write_made(partial(cells, name), staged, overwrite=True)
            if place.endswith(".zarr"):
                # Who reads chunk after chunk sees whether they are of one version.
                name_run(staged, run.record.id)
        linked = link_unchanged(staged, place) if staged != place else 0
        log("written", output=name, place=place, unchanged_files=linked)
        moves.append(Move.of(staged, place))
    return moves


def manifest_of(run: Run, mode: str, found: Found, moves: list[Move]) -> Manifest:
    outputs = {
        name: [named(move.place), str(move.version)]
        for name, move in zip(run.job.output.places, moves, strict=True)
    }
    if mode == "fill" and run.last is not None:
        return replace(run.last, run=run.record.id, outputs=outputs)
    told = {"rmse": found.rmse, "mae": found.mae}
    return Manifest(
        run=run.record.id,
        dmf=run.record.versions["dmf"],
        model_settings=model_settings(run.job),
        solver_settings=solver_settings(run.job),
        mode=mode,
        input=run.versions,
        outputs=outputs,
        result={
            "shape": list(found.fit.shape),
            "status": found.fit.status.code,
            "rounds": len(run.record.rounds),
            "missing": run.record.input["missing"],
            **{k: None if math.isnan(v) else v for k, v in told.items()},
        },
    )


def clear_checkpoint(job: Job) -> None:
    from dmf.io.checkpoints import CheckpointStore

    try:
        CheckpointStore.at(job.checkpoint_place).clear()
    except (OSError, ValueError) as error:
        log(f"the checkpoint can't be removed ({error})", logging.WARNING)
