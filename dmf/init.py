"""Where a fit starts: at random, seeded by row and column, or at a former fit.

Row i of a factor depends on the seed, the start, the factor and i, and on nothing else:
not on the chunks, not on the worker, not on the order of the work. A counter-based
generator (Philox) jumps to any row at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dmf.objective import Side

Array = Any

# Philox yields four 64-bit numbers for each value of its counter.
_PER_COUNT = 4


def scale_for(mean_square: float, rank: int) -> float:
    """Return the standard deviation of a start's entries.

    With it, the entries of W H have half the root mean square of the observed entries
    of X: large enough to break the symmetry, small enough not to have to be unlearned.
    """
    return float((0.25 * mean_square / rank) ** 0.25)


def random_strip(
    seed: int, start: int, axis: int, rows: range, rank: int, scale: float, dtype: Any
) -> NDArray[Any]:
    """Return rows of a random normal start.

    Parameters
    ----------
    seed : int
    start : int
        The number of the restart.
    axis : {0, 1}
        0 for W, 1 for H.
    rows : range
        Which rows of the factor (for H: which columns of X).
    rank : int
    scale : float
        Standard deviation.
    dtype : float32 or float64

    Returns
    -------
    array, shape (len(rows), rank)
    """
    key = np.random.SeedSequence(seed, spawn_key=(start, axis)).generate_state(
        2, np.uint64
    )
    per_row = -(-rank // _PER_COUNT)
    # A counter has 256 bits; its lowest word counts the rows.
    counter = np.array([rows.start * per_row, 0, 0, 0], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter)
    raw = bits.random_raw(len(rows) * per_row * _PER_COUNT)
    raw = raw.reshape(len(rows), per_row * _PER_COUNT)[:, :rank]
    # 53 random bits, centred in their cell: never 0 and never 1.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    from scipy.special import ndtri

    strip: NDArray[Any] = (scale * ndtri(uniform)).astype(dtype)
    return strip


class Start(Protocol):
    """Where the factors of all candidates begin."""

    def given(self, axis: int) -> Array | None:
        """Return the whole factor if it's known, shape (length, c); Dask or NumPy."""

    def level(self, axis: int) -> float:
        """Return what the offsets of a factor are pulled towards at first."""

    def strip(
        self, axis: int, rows: range, side: Side, given: Array | None, dtype: Any
    ) -> Array:
        """Return rows of a factor, shape (len(rows), K, c); `given` are its own."""


@dataclass(frozen=True)
class RandomStart:
    """Random normal factors, and offsets at the mean of X.

    Parameters
    ----------
    seed : int
    numbers : tuple of int
        The number of each candidate's restart.
    mean_square : float
        Of what the factors are to approximate.
    levels : (float, float)
        Where the offsets of W and of H begin.
    scale : float
        The size of the factors, as a share of the usual one.
    """

    seed: int
    numbers: tuple[int, ...]
    mean_square: float
    levels: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    def given(self, axis: int) -> None:
        return None

    def level(self, axis: int) -> float:
        return self.levels[axis]

    def strip(
        self, axis: int, rows: range, side: Side, given: Array | None, dtype: Any
    ) -> Array:
        strip = np.zeros((len(rows), len(self.numbers), side.width), dtype=dtype)
        for k, (number, rank) in enumerate(zip(self.numbers, side.ranks, strict=True)):
            scale = self.scale * scale_for(self.mean_square, rank)
            drawn = random_strip(self.seed, number, axis, rows, rank, scale, dtype)
            if side.penalties[k].nonnegative:
                drawn = np.abs(drawn)
            strip[:, k, :rank] = drawn
        for role, column in zip(side.roles, range(side.rank, side.width), strict=True):
            strip[:, :, column] = 1.0 if role == "one" else self.levels[axis]
        return strip


@dataclass(frozen=True)
class GivenStart:
    """The factors of a former fit, with the columns of its offsets beside them.

    Parameters
    ----------
    factors : (array of shape (m, c), array of shape (n, c))
    levels : (float, float)
        Where the centres of the offsets of W and of H begin.
    """

    factors: tuple[Array, Array]
    levels: tuple[float, float] = (0.0, 0.0)

    def given(self, axis: int) -> Array:
        return self.factors[axis]

    def level(self, axis: int) -> float:
        return self.levels[axis]

    def strip(
        self, axis: int, rows: range, side: Side, given: Array | None, dtype: Any
    ) -> Array:
        strip = np.array(given, dtype=dtype)[:, None, :]
        if side.penalties[0].nonnegative:
            proper = strip[:, :, : side.rank]
            np.maximum(proper, 0, out=proper)
        return strip
