"""Masked matrix factorization, block by block, on NumPy, sparse and Dask arrays."""

from __future__ import annotations

from typing import Any

from dmf._factorize import factorize
from dmf._impute import impute
from dmf._plan import Plan, plan
from dmf._split import split_observed
from dmf._sweep import Sweep, Trial, sweep
from dmf.ensemble import Ensemble
from dmf.history import History, Record
from dmf.io.model import load
from dmf.penalties import Lasso, NonNegative, Penalty, Ridge, Smooth
from dmf.result import Factorization
from dmf.solvers import (
    AlternatingLeastSquares,
    Constant,
    Decay,
    Exact,
    GradientDescent,
    NormalizedGradient,
    Plane,
)
from dmf.status import Certificate, Status
from dmf.triplets import from_triplets

__version__ = "0.1.0"

SCIKIT_LEARN = {
    "MatrixFactorization": "dmf.estimator",
    "MatrixFactorizationImputer": "dmf.imputer",
}

__all__ = [
    "AlternatingLeastSquares",
    "Certificate",
    "Constant",
    "Decay",
    "Ensemble",
    "Exact",
    "Factorization",
    "GradientDescent",
    "History",
    "Lasso",
    "MatrixFactorization",
    "MatrixFactorizationImputer",
    "NonNegative",
    "NormalizedGradient",
    "Penalty",
    "Plan",
    "Plane",
    "Record",
    "Ridge",
    "Smooth",
    "Status",
    "Sweep",
    "Trial",
    "factorize",
    "from_triplets",
    "impute",
    "load",
    "plan",
    "split_observed",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # scikit-learn takes longer to import than all the rest: only its users wait for it.
    if name in SCIKIT_LEARN:
        from importlib import import_module

        return getattr(import_module(SCIKIT_LEARN[name]), name)
    msg = f"module 'dmf' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
