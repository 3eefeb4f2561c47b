"""Masked matrix factorization, block by block, on NumPy, sparse and Dask arrays."""

from __future__ import annotations

from typing import Any

from dmf._factorize import factorize
from dmf._impute import impute
from dmf.io.model import load
from dmf.penalties import Ridge
from dmf.result import Factorization, History, Record, Status
from dmf.solvers import (
    AlternatingLeastSquares,
    Constant,
    Decay,
    Exact,
    GradientDescent,
    NormalizedGradient,
    Plane,
)

__version__ = "0.1.0"

__all__ = [
    "AlternatingLeastSquares",
    "Constant",
    "Decay",
    "Exact",
    "Factorization",
    "GradientDescent",
    "History",
    "MatrixFactorization",
    "NormalizedGradient",
    "Plane",
    "Record",
    "Ridge",
    "Status",
    "factorize",
    "impute",
    "load",
]


def __getattr__(name: str) -> Any:
    # scikit-learn takes longer to import than all the rest: only its users wait for it.
    if name == "MatrixFactorization":
        from dmf.estimator import MatrixFactorization

        return MatrixFactorization
    msg = f"module 'dmf' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
