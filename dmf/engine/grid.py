"""The plan: how X is cut into P × Q blocks.

The plan depends on the data and on the rank, never on the number of workers: partial
sums are then added in the same order everywhere, and the same seed gives bitwise the
same factors on one thread and on a hundred workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Observed entries × rank that one task should handle at least: a few milliseconds, well
# above what a task costs. Dense kernels run at the speed of BLAS, about 8 times faster.
LEAST_WORK = {"sparse": 2**22, "dense": 2**25}
# Blocks grow with the data, but more slowly: their number grows with work ** GROWTH.
GROWTH = 0.6
# A user's chunks are kept unless they are more than this many times the plan's blocks,
KEEP_CHUNKS = 4
# or the plan has this many times more blocks than there are chunks.
SPLIT_CHUNKS = 2


@dataclass(frozen=True)
class Grid:
    """P × Q blocks by their bounds: strip i of W holds the rows bounds[i]:bounds[i+1].

    Parameters
    ----------
    row_bounds : tuple of P + 1 integers
    column_bounds : tuple of Q + 1 integers
    """

    row_bounds: tuple[int, ...]
    column_bounds: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, Q)."""
        return len(self.row_bounds) - 1, len(self.column_bounds) - 1

    def strip(self, axis: int, i: int) -> range:
        """Return the rows (axis 0) or columns (axis 1) of strip i."""
        bounds = self.column_bounds if axis else self.row_bounds
        return range(bounds[i], bounds[i + 1])


def blocks_for(
    shape: tuple[int, int], stored: int, rank: int, kind: str
) -> tuple[int, int]:
    """Return P and Q for a matrix.

    Parameters
    ----------
    shape : (m, n)
    stored : int
        The number of entries that a pass over X visits.
    rank : int
    kind : {"dense", "sparse"}
    """
    m, n = shape
    work = stored * rank / LEAST_WORK[kind]
    blocks = max(1, round(work**GROWTH))
    # Each half-step moves its factor's partial sums once for each block of a strip.
    candidates = []
    for Q in range(1, min(blocks, n) + 1):
        P = min(math.ceil(blocks / Q), m)
        candidates.append((P * n + Q * m, Q, P))
    _, Q, P = min(candidates)
    return P, Q


def even_bounds(length: int, parts: int) -> tuple[int, ...]:
    """Return the bounds of equally long strips."""
    return tuple(length * k // parts for k in range(parts + 1))


def balanced_bounds(counts: NDArray[np.int64], parts: int) -> tuple[int, ...]:
    """Return the bounds of strips with about the same number of entries.

    Parameters
    ----------
    counts : array of int, shape (length,)
        The number of entries of each row (or column).
    parts : int
        At most `length`; no strip is empty.
    """
    length = len(counts)
    ends = np.cumsum(counts)
    goals = ends[-1] * np.arange(1, parts) / parts
    cuts = np.searchsorted(ends, goals) + 1
    # Every strip keeps a row, however unbalanced the counts are.
    for k in range(parts - 1):
        least = (cuts[k - 1] if k else 0) + 1
        cuts[k] = min(max(cuts[k], least), length - (parts - 1 - k))
    return (0, *(int(cut) for cut in cuts), length)


def merged_bounds(chunks: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Return the bounds of at most `parts` strips that are made of whole chunks."""
    ends = np.cumsum(chunks)
    if len(chunks) <= parts:
        return (0, *(int(end) for end in ends))
    goals = ends[-1] * np.arange(1, parts + 1) / parts
    picked = sorted(set(np.searchsorted(ends, goals - 0.5).tolist()))
    return (0, *(int(ends[k]) for k in picked))
