"""Offsets: X ≈ μ + b_i + c_j + W H, as columns that W and H get beside their own.

With W' = [W, b, 1] and H' = [H, 1, c] the offsets are part of one product W' H'ᵀ, so
that kernels, engine and predictions need not know of them. The columns of ones never
move. μ is the level that b and c are pulled towards: the mean that makes their penalty
least (see `dmf.objective`).
"""

from __future__ import annotations

from typing import Any, Literal

Array = Any

Role = Literal["offset", "one", "tied"]

# The columns that (W, H) get. "tied": all rows hold one number, μ.
COLUMNS: dict[str, tuple[tuple[Role, ...], tuple[Role, ...]]] = {
    "none": ((), ()),
    "global": (("one",), ("tied",)),
    "rows": (("offset",), ("one",)),
    "columns": (("one",), ("offset",)),
    "both": (("offset", "one"), ("one", "offset")),
}


def carrier(kind: str) -> int | None:
    """Return the axis whose offsets start at the mean of X; None without offsets."""
    if kind == "none":
        return None
    return 0 if kind == "rows" else 1


def column_of(roles: tuple[Role, ...], rank: int) -> int | None:
    """Return which column of a factor is its offset; None if it has none."""
    for k, role in enumerate(roles):
        if role != "one":
            return rank + k
    return None


def check_offsets(offsets: Any) -> str:
    """Return the kind of offsets, or refuse it."""
    if not isinstance(offsets, str) or offsets not in COLUMNS:
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        msg = f"offsets must be one of {names}; got {offsets!r}"
        raise ValueError(msg)
    return offsets
