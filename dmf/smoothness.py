"""The differences that `Smooth` penalises, for a strip and what borders on it.

A difference of order k combines k + 1 rows that follow each other. A strip *owns* the
differences that begin at one of its rows, so that each is counted once; those that
touch it also reach into the k rows on either side, its *halo*. On NumPy arrays they are
worked with by compiled loops (`dmf.kernels.ties`), elsewhere by the formulas here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace

from dmf.penalties import Smooth

Array = Any


@dataclass(frozen=True)
class Differences:
    """The differences that touch a strip, for one candidate.

    Parameters
    ----------
    coefficients : array of float64, shape (differences, order + 1)
        Those of the first of the rows, of the second, …, times √λ.
    first : int
        The row of the strip where the first difference begins; negative in the halo.
    length : int
        The rows of the strip.
    candidate : int
    """

    coefficients: Array
    first: int
    length: int
    candidate: int = 0

    @property
    def order(self) -> int:
        return int(self.coefficients.shape[1]) - 1

    @property
    def owned(self) -> Differences:
        """The differences that begin at one of the strip's rows."""
        halo = max(0, -self.first)
        return Differences(
            self.coefficients[halo:], self.first + halo, self.length, self.candidate
        )

    def of(self, rows: Array, halo: int) -> Array:
        """Return √λ Δ h for the rows of a strip with its halo, float64, (n, columns).

        `halo` is the number of rows before the strip.
        """
        xp = array_namespace(rows)
        begin, count = halo + self.first, len(self.coefficients)
        factors = xp.asarray(self.coefficients)
        result = xp.zeros((count, rows.shape[1]), dtype=xp.float64)
        for j in range(self.order + 1):
            part = xp.astype(rows[begin + j : begin + j + count, :], xp.float64)
            result += factors[:, j, None] * part
        return result

    def gradient(self, rows: Array, halo: int) -> Array:
        """Return λ ΔᵀΔ h for the strip's own rows."""
        xp = array_namespace(rows)
        found = self.of(rows, halo)
        factors = xp.asarray(self.coefficients)
        result = xp.zeros(rows.shape, dtype=xp.float64)
        begin = halo + self.first
        for j in range(self.order + 1):
            place = slice(begin + j, begin + j + found.shape[0])
            result[place, :] += factors[:, j, None] * found
        return result[halo : halo + self.length, :]

    def banded(self, order: int) -> Array:
        """Return λ ΔᵀΔ among the strip's own rows, its diagonal and those below it."""
        bands = np.zeros((order + 1, self.length))
        for a in range(self.order + 1):
            for b in range(a, min(self.order, a + order) + 1):
                # Of the differences that have both rows in the strip.
                start = max(0, -self.first - a)
                stop = min(len(self.coefficients), self.length - self.first - b)
                inside = self.coefficients[start : max(start, stop)]
                begin = self.first + a + start
                place = slice(begin, begin + len(inside))
                bands[b - a, place] += inside[:, a] * inside[:, b]
        return bands


@dataclass(frozen=True)
class Ties:
    """What ties the rows of a strip to each other and to its neighbours.

    Parameters
    ----------
    parts : tuple of Differences
        Those of all candidates.
    rank : int
        The columns that are tied, the first ones.
    length : int
        The rows of the strip.
    halo : int
        How many rows of the strip before it are at hand.
    """

    parts: tuple[Differences, ...]
    rank: int
    length: int
    halo: int

    def pull(self, padded: Array) -> tuple[Array, Array]:
        """Return the strip's share of ½ λ ‖Δ h‖², and its gradient.

        Parameters
        ----------
        padded : array, shape (rows, K, c)
            A strip between the rows that border on it.

        Returns
        -------
        value : array of float64, shape (K,)
        gradient : array of float64, shape (length, K, c)
        """
        xp = array_namespace(padded)
        _, K, width = padded.shape
        value = xp.zeros(K, dtype=xp.float64)
        gradient = xp.zeros((self.length, K, width), dtype=xp.float64)
        for part in self.parts:
            k = part.candidate
            if is_numpy_namespace(xp):
                from dmf.kernels import ties

                begin = self.halo + part.first
                value[k] += 0.5 * ties.pull(
                    padded, part.coefficients, begin, self.halo, k, self.rank, gradient
                )
                continue
            rows = padded[:, k, : self.rank]
            value[k] += 0.5 * xp.sum(part.owned.of(rows, self.halo) ** 2)
            gradient[:, k, : self.rank] += part.gradient(rows, self.halo)
        return value, gradient

    def products(self, one: Array, other: Array) -> Array:
        """Return the strip's share of λ ⟨Δ a, Δ a⟩, λ ⟨Δ a, Δ b⟩ and λ ⟨Δ b, Δ b⟩.

        `one` and `other` are like `padded` of `pull`; the result is float64, (K, 3).
        """
        xp = array_namespace(one)
        result = xp.zeros((one.shape[1], 3), dtype=xp.float64)
        for part in self.parts:
            k, owned = part.candidate, part.owned
            if is_numpy_namespace(xp):
                from dmf.kernels import ties

                begin = self.halo + owned.first
                result[k] += ties.products(
                    one, other, owned.coefficients, begin, k, self.rank
                )
                continue
            a, b = (owned.of(x[:, k, : self.rank], self.halo) for x in (one, other))
            result[k, :] += xp.stack([xp.sum(a * a), xp.sum(a * b), xp.sum(b * b)])
        return result

    def banded(self, candidate: int) -> Array:
        """Return λ ΔᵀΔ of a candidate among the strip's own rows, as bands."""
        own = [part for part in self.parts if part.candidate == candidate]
        order = min(max((part.order for part in own), default=0), self.length - 1)
        bands = np.zeros((order + 1, self.length))
        for part in own:
            bands += part.banded(order)
        return bands


def solve(
    bands: Array, curvature: Array, counts: Array, least: float, right: Array
) -> None:
    """Solve banded systems in place: see `dmf.kernels.ties.solve`.

    On NumPy arrays alone: the array API has nothing to do this with.
    """
    from dmf.kernels import ties

    ties.solve(bands, curvature, counts, least, right)


def differences_of(
    smooth: Smooth, start: int, length: int, total: int, candidate: int = 0
) -> Differences:
    """Return the differences that touch a strip.

    Parameters
    ----------
    smooth : Smooth
    start, length : int
        Which rows of the factor the strip holds.
    total : int
        The rows of the factor.
    candidate : int
    """
    first = max(0, start - smooth.order)
    count = max(0, min(total - smooth.order, start + length) - first)
    gaps = np.full(count + smooth.order - 1 if count else 0, 1.0)
    if isinstance(smooth.step, tuple):
        gaps = np.asarray(smooth.step[first : first + len(gaps)])
    else:
        gaps = gaps * smooth.step
    scale = np.sqrt(smooth.strength)
    return Differences(
        scale * _coefficients(smooth.order, gaps, count),
        first - start,
        length,
        candidate,
    )


def _coefficients(order: int, gaps: Array, count: int) -> Array:
    """Return the coefficients of divided differences.

    They are weighted so that the sum of their squares is close to the integral of the
    squared derivative: Σ (Δh)²/g, and Σ ((a + b)/2) h''² with h'' from both gaps. It
    then hardly matters how finely the axis is sampled.
    """
    if not count:
        return np.zeros((0, order + 1))
    if order == 1:
        weight = 1 / np.sqrt(gaps)
        return np.stack([-weight, weight], axis=1)
    a, b = gaps[:-1], gaps[1:]
    weight = np.sqrt((a + b) / 2)
    parts = [2 / (a * (a + b)), -2 / (a * b), 2 / (b * (a + b))]
    return np.stack([weight * part for part in parts], axis=1)
