"""Random starts, seeded by row and column.

Row i of a factor depends on the seed, the start, the factor and i, and on nothing else:
not on the chunks, not on the worker, not on the order of the work. A counter-based
generator (Philox) jumps to any row at no cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
