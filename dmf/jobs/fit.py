"""The fit of a run: anew, on from the last model, or that model with what is new."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import dmf
from dmf._checkpoint import OtherFitError
from dmf._fold import grown
from dmf._options import SOLVERS
from dmf._split import held_out_of
from dmf.containers import unwrap_pair
from dmf.engine.arrays import number_observed
from dmf.engine.store import DamagedError
from dmf.history import History
from dmf.holdout import Share
from dmf.io.checkpoints import CheckpointStore
from dmf.jobs.align import Aligned
from dmf.jobs.config import Job, PenaltySection
from dmf.labels import numbers_of
from dmf.status import Status

Array = Any


@dataclass(frozen=True)
class Found:
    """A model, and its errors on what was held out: NaN where nothing was."""

    fit: dmf.Factorization
    rmse: float
    mae: float


def fitted(
    job: Job,
    X: Any,
    mask: Any,
    last: dmf.Factorization | None,
    watch: Callable[[dmf.Record], None],
    progress: bool | None,
) -> Found:
    """Fit a model; go on from the last one, if it's given, and from a checkpoint.

    A checkpoint of other data or settings, which a former run has left, is dropped.
    """
    model, solver = job.model, job.solver
    options: dict[str, Any] = {
        "mask": mask,
        "offsets": model.offsets,
        "penalty": penalty_of(model.penalty),
        "unobserved_weight": model.unobserved_weight,
        "validation": model.validation,
        "patience": model.patience,
        "restarts": 1 if last is not None else model.restarts,
        "start": last,
        "solver": SOLVERS[solver.name],
        "max_rounds": solver.max_rounds,
        "tol": solver.tol,
        "device": solver.device,
        "seed": model.seed,
        "callbacks": [watch],
        "progress": progress,
        "checkpoint": job.checkpoint_place,
        "checkpoint_every": job.checkpoint.every,
        "resume": True,
    }
    try:
        fit = dmf.factorize(X, model.rank, **options)
    except (OtherFitError, DamagedError) as error:
        warnings.warn(f"begun anew, because {error}", UserWarning, stacklevel=2)
        CheckpointStore.at(job.checkpoint_place).clear()
        fit = dmf.factorize(X, model.rank, **options)
    if not len(fit.history):
        return Found(fit, math.nan, math.nan)
    kept = fit.history[(fit.status.factors_of or len(fit.history)) - 1]
    return Found(fit, kept.validation_rmse, kept.validation_mae)


def folded_in(job: Job, found: Aligned) -> Found:
    """Return the last model with the factors of new rows and columns."""
    X, mask, labels = unwrap_pair(found.X, found.mask)
    share = None
    if job.model.validation is not None:
        share = Share(
            job.model.validation,
            job.model.seed,
            numbers_of(labels),
        )
    fit = replace(
        grown(found.last, X, mask, share),
        labels=labels,
        history=History([]),
        status=Status("folded_in", 0),
        certificate=None,
    )
    if share is None:
        return Found(fit, math.nan, math.nan)
    held_out = held_out_of(X, share)
    if not number_observed(held_out, mask):
        return Found(fit, math.nan, math.nan)
    score = fit.score(held_out, mask)
    return Found(fit, score.rmse, score.mae)


def penalty_of(settings: PenaltySection | None) -> dmf.Penalty | str | None:
    """Return the penalty on both factors."""
    if settings is None:
        return "auto"
    penalty: dmf.Penalty = dmf.Ridge(settings.ridge, settings.by_count)
    if settings.lasso:
        penalty = penalty + dmf.Lasso(settings.lasso)
    return penalty + dmf.NonNegative() if settings.non_negative else penalty
