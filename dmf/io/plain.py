"""Settings and results as strict JSON, without code.

Penalties, solvers and steps are written by the name of their class and by their fields,
and only the classes listed here are ever made again.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import fields
from typing import Any

import numpy as np

from dmf.penalties import Lasso, NonNegative, Ridge, Smooth, Sum
from dmf.solvers import (
    AlternatingLeastSquares,
    Constant,
    Decay,
    Exact,
    GradientDescent,
    NormalizedGradient,
    Plane,
)
from dmf.status import Certificate

# What a model can be made of. A new solver, step or penalty is one more entry.
KNOWN = {
    kind.__name__: kind
    for kind in (
        AlternatingLeastSquares,
        Certificate,
        Constant,
        Decay,
        Exact,
        GradientDescent,
        Lasso,
        NonNegative,
        NormalizedGradient,
        Plane,
        Ridge,
        Smooth,
        Sum,
    )
}
# JSON has no numbers for these; strings do for Zarr's own metadata as well.
NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def encode(value: Any) -> Any:
    """Return a value as strict JSON; dataclasses as their class's name and fields."""
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _encode_real(float(value))
    name = type(value).__name__
    if KNOWN.get(name) is not type(value):
        msg = (
            f"{value!r} can't be saved, because a model holds no code and only dmf's "
            "own solvers and penalties are made again; save "
            "dataclasses.replace(factorization, solver=dmf.NormalizedGradient())"
        )
        raise TypeError(msg)
    parts = {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    return {"kind": name, **parts}


def decode(value: Any) -> Any:
    """The inverse of `encode`; tuples come back as lists."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, str) and value in NOT_FINITE:
        return float(value)
    if not isinstance(value, dict):
        return value
    parts = {key: decode(item) for key, item in value.items()}
    if "kind" not in parts:
        return parts
    name = parts.pop("kind")
    if name not in KNOWN:
        msg = f"this dmf doesn't know {name!r}"
        raise ValueError(msg)
    return KNOWN[name](**parts)


def _encode_real(number: float) -> float | str:
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"
