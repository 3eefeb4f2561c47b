"""Which entries are held out: a hash of seed, row and column decides.

The same entries are held out for any chunking, on any machine, and whether X is dense
or sparse; an entry keeps its lot when X grows and, where labels decide, also when rows
and columns leave or change places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from dmf.entries import canonical_csr, filled_dtype, is_sparse, row_numbers

Array = Any

_WORD = 2**64
# The increment and the multipliers of SplitMix64.
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB

# Entries that are decided on, or added up, at once: in 8 bytes each.
PART = 2**16


class Share(NamedTuple):
    """A share of the observed entries, drawn by hash.

    Parameters
    ----------
    fraction : float
        Between 0 and 1.
    seed : int
    names : (array of uint64, array of uint64), optional
        Numbers that stand for the labels of rows and columns: entries go by them, not
        by their positions, and stay held out when others come and go.
    """

    fraction: float
    seed: int
    names: tuple[Array, Array] | None = None

    def cut(self, rows: range, columns: range) -> Share:
        """Return the share of a part of the matrix."""
        if self.names is None:
            return self
        own = zip(self.names, (rows, columns), strict=True)
        first, second = (names[part.start : part.stop] for names, part in own)
        return self._replace(names=(first, second))

    def _numbers(
        self, xp: Any, shape: tuple[int, int], origin: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Return what the rows and columns of a part go by."""
        if self.names is not None:
            return xp.asarray(self.names[0]), xp.asarray(self.names[1])
        rows, columns = (
            xp.arange(start, start + size, dtype=xp.uint64)
            for start, size in zip(origin, shape, strict=True)
        )
        return rows, columns

    def chosen(self, rows: Array, columns: Array) -> Array:
        """Return whether each entry is held out.

        Parameters
        ----------
        rows, columns : arrays of uint64 that broadcast
            Where the entries are in the whole matrix.
        """
        xp = array_namespace(rows)
        of_row, of_column = self._words_of(rows, columns)
        return _mixed(xp, of_row + of_column) < _word(xp, self.limit)

    @property
    def limit(self) -> int:
        """Below it are the mixed words of what is held out."""
        return int(self.fraction * _WORD)

    def words(
        self, xp: Any, shape: tuple[int, int], origin: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Return what a part's rows and columns add to the words of their entries."""
        return self._words_of(*self._numbers(xp, shape, origin))

    def _words_of(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        xp = array_namespace(rows)
        seed = _word(xp, (self.seed * _STEP + 1) % _WORD)
        of_row = _mixed(xp, rows * _word(xp, _STEP) + seed)
        return of_row, (columns + _word(xp, 1)) * _word(xp, _FIRST)

    def of_part(self, X: Array, origin: tuple[int, int]) -> Array:
        """Return `chosen` for the entries of a part of X; of a sparse one, the stored.

        Parameters
        ----------
        X : array, or scipy.sparse array in compressed rows
        origin : (row, column)
            Where the part begins in the whole matrix, unless the share has names: those
            must be the part's.
        """
        if is_sparse(X):
            from dmf.kernels.selection import drawn

            words = self.words(np, X.shape, origin)
            return drawn(X.indptr, X.indices, *words, self.limit)
        xp = array_namespace(X)
        rows, columns = self._numbers(xp, X.shape, origin)
        # In parts: the words take eight times as much as what they decide.
        step = max(1, PART // max(1, X.shape[1]))
        starts = range(0, max(1, X.shape[0]), step)
        return xp.concat(
            [self.chosen(rows[k : k + step, None], columns[None, :]) for k in starts]
        )


def part_of(
    X: Array,
    share: Share,
    origin: tuple[int, int],
    held_out: bool,
    same_pattern: bool = False,
) -> Array:
    """Return a part of X with the entries that are held out, or with the others.

    Parameters
    ----------
    X : array or scipy.sparse array, shape (p, q)
    share : Share
    origin : (row, column)
        Where the part begins in the whole matrix.
    held_out : bool
    same_pattern : bool
        Whether a sparse X goes on storing the others, as NaN, so that a mask fits it.

    Returns
    -------
    array of the kind of X, shape (p, q)
        The other entries are missing: NaN, or not stored. Integers become float64.
    """
    if is_sparse(X):
        X = canonical_csr(X)
        kept = share.of_part(X, origin) == held_out
        if same_pattern:
            data = np.where(kept, X.data.astype(filled_dtype(X.dtype)), np.nan)
            return type(X)((data, X.indices, X.indptr), shape=X.shape)
        starts = np.concatenate([[0], np.cumsum(kept)])[X.indptr]
        return type(X)((X.data[kept], X.indices[kept], starts), shape=X.shape)
    xp = array_namespace(X)
    kept = share.of_part(X, origin) == held_out
    X = xp.astype(X, filled_dtype(X.dtype), copy=False)
    return xp.where(kept, X, xp.full_like(X, xp.nan))


def blank(X: Array, held_out: Array) -> Array:
    """Return a part of X with NaN where a bool array of its kind holds entries out."""
    if is_sparse(X):
        X = canonical_csr(X).astype(filled_dtype(X.dtype), copy=True)
        held = held_out.tocsr()[row_numbers(X.indptr), X.indices]
        X.data[np.asarray(held).ravel()] = np.nan
        return X
    xp = array_namespace(X)
    X = xp.astype(X, filled_dtype(X.dtype), copy=False)
    return xp.where(held_out, xp.full_like(X, xp.nan), X)


def _mixed(xp: Any, word: Array) -> Array:
    """Return `dmf.kernels.selection.mixed` of each number, in any namespace."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        shifted = xp.bitwise_right_shift(word, _word(xp, shift))
        word = xp.bitwise_xor(word, shifted) * _word(xp, factor)
    return xp.bitwise_xor(word, xp.bitwise_right_shift(word, _word(xp, 31)))


def _word(xp: Any, value: int) -> Array:
    # An array, not a number: arrays wrap around without a warning.
    return xp.asarray([value], dtype=xp.uint64)
