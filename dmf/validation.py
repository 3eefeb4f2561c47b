"""Bad input gets one sentence that names the value and the way out."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

WORKING_DTYPES = {"float16": "float32", "float32": "float32"}


def check_integer(name: str, value: Any, *, at_least: int) -> int:
    """Return `value` as an int, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        msg = f"{name} must be an integer of at least {at_least}, got {value!r}"
        raise TypeError(msg)
    if value < at_least:
        msg = f"{name} must be at least {at_least}, got {value}"
        raise ValueError(msg)
    return int(value)


def check_real(
    name: str, value: Any, *, at_least: float = 0.0, positive: bool = False
) -> float:
    """Return `value` as a finite float, or refuse it."""
    bound = "above 0" if positive else f"at least {at_least:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        msg = f"{name} must be a number {bound}, got {value!r}"
        raise TypeError(msg)
    if not math.isfinite(value) or value < at_least or (positive and value <= 0):
        msg = f"{name} must be finite and {bound}, got {value}"
        raise ValueError(msg)
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """Return `value` as a bool, or refuse it."""
    if not isinstance(value, bool | np.bool_):
        msg = f"{name} must be True or False, got {value!r}"
        raise TypeError(msg)
    return bool(value)


def check_matrix(name: str, X: Any) -> tuple[int, int]:
    """Return the shape of X; refuse what isn't a matrix of real numbers.

    Accepted: NumPy arrays, scipy.sparse matrices and arrays, Dask arrays.
    """
    if not hasattr(X, "dtype") or not hasattr(X, "shape"):
        msg = (
            f"{name} must be a NumPy, scipy.sparse or Dask array, got "
            f"{type(X).__name__}; convert it first, for example with numpy.asarray"
        )
        raise TypeError(msg)
    if isinstance(X, np.ma.MaskedArray):
        msg = (
            f"{name} is a masked array; pass {name}.filled(numpy.nan), or {name}.data "
            f"with mask=~numpy.ma.getmaskarray({name})"
        )
        raise TypeError(msg)
    if isinstance(X, np.matrix):
        msg = f"{name} is a numpy.matrix; pass numpy.asarray({name})"
        raise TypeError(msg)
    if len(X.shape) != 2:
        msg = f"{name} must have two dimensions, got shape {tuple(X.shape)}"
        raise ValueError(msg)
    if any(isinstance(size, float) and math.isnan(size) for size in X.shape):
        msg = (
            f"the shape of {name} isn't known ({tuple(X.shape)}); call "
            f"{name}.compute_chunk_sizes() first"
        )
        raise ValueError(msg)
    try:
        kind = np.dtype(X.dtype).kind
    except TypeError:  # another library's dtype
        kind = "other"
    if kind not in "biuf":
        msg = (
            f"{name} must hold real numbers, got dtype {X.dtype}; convert it first, "
            f"for example with {name}.astype('float64')"
        )
        raise TypeError(msg)
    m, n = X.shape
    return int(m), int(n)


def check_mask(X: Any, mask: Any) -> None:
    """Refuse a mask that doesn't fit X; its values are checked where they are read."""
    shape = check_matrix("mask", mask)
    if shape != tuple(X.shape):
        msg = (
            f"mask has shape {shape}, but X has shape {tuple(X.shape)}; give one mask "
            "entry for each entry of X"
        )
        raise ValueError(msg)


def check_rank(rank: Any, shape: tuple[int, int]) -> int:
    """Return the rank as an int, or refuse it."""
    rank = check_integer("rank", rank, at_least=1)
    if rank > min(shape):
        msg = (
            f"rank must be at most min(m, n) = {min(shape)} for X of shape {shape}, "
            f"got {rank}"
        )
        raise ValueError(msg)
    return int(rank)


def refuse_empty(shape: tuple[int, int]) -> None:
    """Refuse a matrix without a single observed entry."""
    msg = (
        f"X of shape {tuple(shape)} has no observed entry; check the mask, or which "
        "value stands for missing (NaN in dense arrays, what isn't stored in sparse "
        "ones)"
    )
    raise ValueError(msg)


def check_scale(rms: float, dtype: np.dtype[Any]) -> None:
    """Refuse values whose squares the dtype can't hold."""
    # A quarter of the exponents: room for squares, and for residuals far below X.
    limit = float(np.finfo(dtype).max) ** 0.25
    if rms > limit or 0 < rms < 1 / limit:
        msg = (
            f"the observed entries of X are around {rms:.2g} (root mean square), too "
            f"{'large' if rms > 1 else 'small'} for {dtype}; give X in another unit"
            + (", or in float64" if dtype == np.float32 else "")
        )
        raise ValueError(msg)


def working_dtype(dtype: Any) -> Any:
    """Return the dtype to compute in: float32 for float16 and float32, else float64."""
    return np.dtype(WORKING_DTYPES.get(np.dtype(dtype).name, "float64"))
