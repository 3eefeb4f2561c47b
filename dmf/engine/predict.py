"""What predictions need of tasks: parts of lazy arrays, the lazy product, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from dmf.engine.chunks import Chunks, in_chunks
from dmf.engine.kinds import is_dask
from dmf.engine.loading import load
from dmf.engine.losses import insisting
from dmf.engine.rounds import build_errors, start_state
from dmf.engine.runner import Runner, choose_runner
from dmf.entries import is_sparse
from dmf.objective import NO_RIDGE, Objective, Side
from dmf.totals import Totals
from dmf.validation import check_scale

Array = Any

# A block of the lazy product, in bytes: what is aimed at where nothing is given, and
# what blocks between the chunks of Dask factors may have before they are cut.
AIM_BYTES = 2**25
MOST_BYTES = 2**27
# What of a Dask array is fetched at once: so many entries.
FETCH_ENTRIES = 2**26


# --------------------------------------------------------------------------- in parts


def fetch(*arrays: Array) -> list[Array]:
    """Return the values of arrays, Dask's computed together; others as they are."""
    if not any(is_dask(array) for array in arrays):
        return list(arrays)
    from dask.base import compute

    with choose_runner(None).session():
        return list(compute(*arrays))


class Excluded(NamedTuple):
    """What is excluded in some rows and in a band of columns.

    Parameters
    ----------
    block : array or scipy.sparse array, shape (p, q)
        Dense: bool, or numbers of which NaN excludes nothing.
    rows : array of int, shape (k,)
        Which rows of it are meant.
    start : int
        Which of its columns the band begins with.
    """

    block: Array
    rows: Array
    start: int

    def tile(self, rows: slice, columns: slice) -> Array:
        """Return a part as bools where the block is dense, stored where sparse."""
        own = slice(columns.start + self.start, columns.stop + self.start)
        return _excluded(self.block, self.rows[rows], own)


def bands_of(H: Array, exclude: Array | None, width: int) -> list[range]:
    """Cut the columns of H, at chunks if there are any: each is computed once."""
    if is_dask(exclude):
        lengths = exclude.chunks[1]  # type: ignore[union-attr]
    elif is_dask(H):
        lengths = H.chunks[1]
    else:
        lengths = np.diff([*range(0, H.shape[1], width), H.shape[1]])
    return [range(*ends) for ends in pairwise(np.cumsum([0, *lengths]).tolist())]


def exclusions(
    exclude: Array | None, rows: Array, band: range, number: int
) -> Iterator[tuple[Array, Excluded | None]]:
    """Go through groups of rows, with what they exclude in a band of columns.

    Parameters
    ----------
    exclude : array, shape (m, n), or None
    rows : array of int, shape (k,)
    band : range
    number : int
        Of the band: the j-th of `bands_of`.

    Yields
    ------
    index : array of int, shape (p,)
        Which of `rows`.
    part : Excluded, or None
    """
    every = np.arange(len(rows))
    if exclude is None:
        yield every, None
    elif not is_dask(exclude):
        yield every, Excluded(exclude, rows, band.start)
    else:
        for index, block in _excluded_chunks(exclude, rows, number):
            yield index, Excluded(block, np.arange(len(index)), 0)


def _excluded(block: Array, rows: Array, columns: slice = slice(None)) -> Array:
    if is_sparse(block):
        return block.tocsr()[rows][:, columns]
    chosen = block[rows, columns]
    return chosen if chosen.dtype == bool else ~np.isnan(chosen)


def _excluded_chunks(exclude: Array, rows: Array, j: int) -> Iterator[tuple[Any, Any]]:
    """Go through what a Dask array excludes in some rows and in its j-th column chunk.

    Each chunk is computed once, and reduced to what it excludes where it is computed.
    """
    from dask.base import compute
    from dask.delayed import delayed

    chunks = exclude.blocks[:, j].to_delayed()[:, 0]
    ends = np.cumsum(exclude.chunks[0])
    owners = np.searchsorted(ends, rows, side="right")
    waiting: list[tuple[Array, Any]] = []
    entries = 0

    def computed() -> Iterator[tuple[Any, Any]]:
        with choose_runner(None).session():
            parts = compute(*(task for _, task in waiting))
        return zip([index for index, _ in waiting], parts, strict=True)

    for i in np.unique(owners):
        index = np.flatnonzero(owners == i)
        own = len(index) * exclude.chunks[1][j]
        if waiting and entries + own > FETCH_ENTRIES:
            yield from computed()
            waiting, entries = [], 0
        start = ends[i] - exclude.chunks[0][i]
        task = delayed(_excluded, pure=False)(chunks[i], rows[index] - start)
        waiting.append((index, task))
        entries += own
    if waiting:
        yield from computed()


# ---------------------------------------------------------------------------- product


def multiply_lazily(W: Array, H: Array) -> Array:
    """Return W H as a Dask array; nothing is computed.

    Parameters
    ----------
    W : NumPy or Dask array, shape (m, c)
    H : NumPy or Dask array, shape (c, n)
    """
    import dask.array as da

    runner = choose_runner(None)
    dtype = np.result_type(W.dtype, H.dtype)
    rows, columns = _chunks_of(W, H, dtype)
    width = (W.shape[1],)
    return da.blockwise(
        _multiply,
        "ij",
        in_chunks(W, (rows, width), runner),
        "ik",
        in_chunks(H.T, (columns, width), runner),
        "jk",
        dtype=dtype,
        meta=np.empty((0, 0), dtype=dtype),
        concatenate=False,
        align_arrays=False,  # they are: to look again would only warn of many chunks
        name=None,
        token="reconstruct",
    )


def _multiply(W: list[Array], H: list[Array]) -> Array:
    # The rank is one chunk: the lists that blockwise hands over have one item.
    return W[0] @ H[0].T


def _chunks_of(W: Array, H: Array, dtype: np.dtype[Any]) -> Chunks:
    """Return the chunks of W H: those of Dask factors, cut where blocks are too big."""
    from dask.array.core import normalize_chunks

    given = [
        W.chunks[0] if is_dask(W) else "auto",
        H.chunks[1] if is_dask(H) else "auto",
    ]
    rows, columns = normalize_chunks(
        tuple(given), (W.shape[0], H.shape[1]), limit=AIM_BYTES, dtype=dtype
    )
    most = MOST_BYTES // dtype.itemsize
    p, q = max(rows), max(columns)
    if p * q <= most:
        return rows, columns
    side = math.isqrt(most)
    p = min(p, max(side, most // q))
    return _cut(rows, p), _cut(columns, most // p)


def _cut(lengths: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """Cut chunks into even parts of at most some length."""
    cut: list[int] = []
    for length in lengths:
        parts = max(1, -(-length // longest))
        cut += [(length * (k + 1)) // parts - length * k // parts for k in range(parts)]
    return tuple(cut)


# ----------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class _Compared:
    """Two candidates: given factors, and the same number everywhere.

    Parameters
    ----------
    factors : (array of shape (m, c), array of shape (n, c))
    number : float
    """

    factors: tuple[Array, Array]
    number: float

    def given(self, axis: int) -> Array:
        return self.factors[axis]

    def level(self, axis: int) -> float:
        return 0.0

    def strip(
        self, axis: int, rows: range, side: Side, given: Array | None, dtype: Any
    ) -> Array:
        strip = np.zeros((len(rows), 2, side.width), dtype=dtype)
        strip[:, 0, :] = given
        strip[:, 1, 0] = (1.0, self.number)[axis]
        return strip


def errors_of(
    X: Array, mask: Array | None, W: Array, H: Array, runner: Runner
) -> tuple[Totals, Array]:
    """Return the totals of X's observed entries, and the sums of two kinds of errors.

    Parameters
    ----------
    X : NumPy, scipy.sparse or Dask array, shape (m, n)
    mask : array, shape (m, n), or None
    W : array, shape (m, c)
    H : array, shape (c, n)
    runner : Runner

    Returns
    -------
    totals : Totals
    errors : array of float64, shape (2, 2)
        Σ M (X − P)² and Σ M |X − P|: for P = W H, and for P = the mean of X. (The
        squares of the latter are more precise than Σ M X² less those of the mean.)

    Raises
    ------
    ValueError
        Values or weights that `dmf.observed.observe` refuses; nothing is observed.
    """
    compared = partial(_compared, X, mask, W, H, runner)
    return insisting(runner.session, compared, "while predictions were compared with X")


def _compared(
    X: Array, mask: Array | None, W: Array, H: Array, runner: Runner
) -> tuple[Totals, Array]:
    width = W.shape[1]
    data = load(X, mask, width, runner, once=True)
    check_scale(data.totals.mean_square**0.5, data.dtype)
    # Rounded, as the kernels will have it.
    number = float(data.dtype.type(data.totals.mean))
    side = Side((NO_RIDGE,) * 2, (width,) * 2, width)
    state = start_state(
        data,
        runner,
        start=_Compared((W, H.T), number),
        objective=Objective((side, side)),
    )
    tasks, key = build_errors(data, state, data.block(0))
    done = runner.run({**data.leaves, **state.leaves, **tasks}, [key])
    errors = np.array(runner.fetch([done[key]])[0], dtype=np.float64)
    errors[1, 0] -= data.totals.weight * (number - data.totals.mean) ** 2
    return data.totals, errors
