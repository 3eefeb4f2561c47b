"""The differences that `Smooth` penalises, for a strip and what borders on it.

A difference of order k combines k + 1 rows that follow each other. A strip *owns* the
differences that begin at one of its rows, so that each is counted once; those that
touch it also reach into the k rows on either side, its *halo*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.penalties import Smooth

Array = NDArray[Any]


@dataclass(frozen=True)
class Differences:
    """The differences that touch a strip.

    Parameters
    ----------
    coefficients : array, shape (differences, order + 1)
        Those of the first of the rows, of the second, …
    first : int
        The row of the strip where the first difference begins; negative in the halo.
    length : int
        The rows of the strip.
    strength : float
    """

    coefficients: Array
    first: int
    length: int
    strength: float

    @property
    def order(self) -> int:
        return int(self.coefficients.shape[1]) - 1

    def value(self, one: Array, other: Array, halo: int) -> float:
        """Return the strip's share of λ ⟨Δ a, Δ b⟩, for strips with their halos.

        `halo` is the number of rows before the strip.
        """
        own = slice(max(0, -self.first), None)
        products = self._of(one, halo)[own] * self._of(other, halo)[own]
        return self.strength * float(np.sum(products))

    def gradient(self, strip: Array, halo: int) -> Array:
        """Return λ ΔᵀΔ of a strip with its halo, for the strip's own rows."""
        found = self._of(strip, halo)
        result = np.zeros_like(strip)
        begin = halo + self.first
        for j in range(self.order + 1):
            rows = slice(begin + j, begin + j + len(found))
            result[rows] += self.coefficients[:, j, None] * found
        return self.strength * result[halo : halo + self.length]

    def banded(self, order: int) -> Array:
        """Return λ ΔᵀΔ among the strip's own rows, its diagonal and those below."""
        bands = np.zeros((order + 1, self.length))
        begin = self.first + np.arange(len(self.coefficients))
        for a in range(self.order + 1):
            for b in range(a, min(self.order, a + order) + 1):
                inside = (begin + a >= 0) & (begin + b < self.length)
                products = self.coefficients[inside, a] * self.coefficients[inside, b]
                np.add.at(bands[b - a], begin[inside] + a, products)
        return self.strength * bands

    def _of(self, strip: Array, halo: int) -> Array:
        begin, count = halo + self.first, len(self.coefficients)
        parts = (
            self.coefficients[:, j, None] * strip[begin + j : begin + j + count]
            for j in range(self.order + 1)
        )
        return sum(parts, np.zeros((count, strip.shape[1])))


def differences_of(smooth: Smooth, start: int, length: int, total: int) -> Differences:
    """Return the differences that touch a strip.

    Parameters
    ----------
    smooth : Smooth
    start, length : int
        Which rows of the factor the strip holds.
    total : int
        The rows of the factor.
    """
    first = max(0, start - smooth.order)
    count = max(0, min(total - smooth.order, start + length) - first)
    gaps = np.full(count + smooth.order - 1 if count else 0, 1.0)
    if isinstance(smooth.step, tuple):
        gaps = np.asarray(smooth.step[first : first + len(gaps)])
    else:
        gaps = gaps * smooth.step
    return Differences(
        _coefficients(smooth.order, gaps, count), first - start, length, smooth.strength
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
