"""The systems: where each runs, what can be chosen for it, and what dmf must reach."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

RANKS = (16, 32)
Variant = dict[str, Any]
# Numbers of iterations on a curve. An iteration more should cost little beside what a
# fit costs anyway; where it costs more than that, or the fits do, fewer are tried.
FINE = (*range(1, 21), 25, 30, 40, 50, 65, 80, 100)
COARSE = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80)
SAMPLES = (5, 10, 20, 50, 100, 200, 500)


def grid(**values: tuple[Any, ...]) -> tuple[Variant, ...]:
    """Return every combination."""
    combinations = product(*values.values())
    return tuple(dict(zip(values, one, strict=True)) for one in combinations)


@dataclass(frozen=True)
class System:
    """A system that is compared.

    Parameters
    ----------
    environment, package : str
        Where it runs, and the package whose version is reported.
    stages : tuple of tuples of Variant
        What is tuned, one stage after the other: a stage keeps the best of its
        variants, the later stages standing at their first ones. `ridge` is for ratings
        of standard deviation 1: a penalty on factors grows with the unit of ratings.
    fast : bool
        Its best RMSE counts for the target of all.
    bound : float or None
        dmf's time to the target must not be more than this share of the system's.
    counts : tuple of int
        The numbers of iterations on its curve of RMSE against seconds.
    note : str
        What a reader of the tables should know.
    """

    environment: str
    package: str
    stages: tuple[tuple[Variant, ...], ...]
    fast: bool = False
    bound: float | None = None
    counts: tuple[int, ...] = FINE
    note: str = ""


# Steps of about 1.3: a step of 1.5 away from the best costs more than 0.1% of RMSE.
RIDGES = (0.07, 0.02, 0.03, 0.04, 0.055, 0.085, 0.1, 0.12, 0.15, 0.2, 0.25)
BY_COUNT = grid(by_count=(True,), ridge=RIDGES)
# As if every row had so many entries more than it has.
SHRUNK = grid(by_count=(True,), ridge=(0.03, 0.055, 0.07, 0.1), entries=(0, 30, 60))
BY_FACTOR = grid(by_count=(False,), ridge=(1.0, 3.0, 10.0, 30.0))
LEVELS = grid(level=("none", "mean", "offsets"))

CATALOG = {
    "dmf": System(
        "dmf",
        "dmf",
        (SHRUNK, grid(offset_ridge=(2.0, 10.0)), grid(scaled=(True,))),
        note="NormalizedGradient(scaled=True), offsets of both, float32",
    ),
    "dmf, default": System(
        "dmf",
        "dmf",
        (SHRUNK, grid(offset_ridge=(2.0, 10.0)), grid(scaled=(False,))),
        note="the same with its default solver",
    ),
    "LIBMF": System(
        "libmf",
        "libmf",
        (
            grid(ridge=RIDGES),
            grid(eta=(0.1, 0.05, 0.2)),
            LEVELS,
        ),
        fast=True,
        bound=1.0,
        note="stochastic gradients; it differs from run to run",
    ),
    "cmfrec": System(
        "cmfrec",
        "cmfrec",
        (BY_COUNT + BY_FACTOR,),
        fast=True,
        bound=0.5,
        note="alternating least squares by conjugate gradients, with offsets",
    ),
    "LensKit": System(
        "lenskit",
        "lenskit",
        (grid(ridge=RIDGES), grid(damping=(5.0, 1.0))),
        fast=True,
        note="alternating least squares of what damped offsets leave",
    ),
    "Spark ALS": System(
        "spark",
        "pyspark",
        (LEVELS, grid(ridge=RIDGES)),
        fast=True,
        bound=0.1,
        counts=COARSE,
        note="alternating least squares, local[threads], 6 GB for Java",
    ),
    "Surprise SVD": System(
        "surprise",
        "scikit-surprise",
        (grid(ridge=(0.07, 0.04, 0.15)), grid(rate=(0.005, 0.002, 0.015))),
        counts=COARSE,
        note="stochastic gradients on one thread: it knows no more",
    ),
    "SMURFF BPMF": System(
        "smurff",
        "smurff",
        (),
        counts=SAMPLES,
        note="Bayesian: the mean over samples, after a third of them as burn-in",
    ),
    "implicit": System(
        "implicit",
        "implicit",
        (grid(ridge=(0.07,)),),
        counts=COARSE,
        note="another problem (implicit feedback): for its speed only",
    ),
    "NMF": System(
        "sklearn",
        "scikit-learn",
        (),
        counts=COARSE,
        note="scikit-learn's, what is missing filled in with damped offsets",
    ),
    "TruncatedSVD": System(
        "sklearn",
        "scikit-learn",
        (),
        counts=COARSE,
        note="scikit-learn's, damped offsets taken off, what is missing then zero",
    ),
}
