"""Kernels for strips whose rows are tied to their neighbours, compiled with Numba.

`pull` and `products` do what the formulas of `dmf.smoothness` do, in one pass each;
`solve` is for what the array API can't. A strip is seen as a matrix with a row for each
of its rows, in which a candidate has some neighbouring columns: loops over those are
innermost, so that they vectorise although each row needs the one before it. Sums are
float64, whatever the strip is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.kernels.vectors import compiled, frozen

Array = NDArray[Any]


def pull(
    padded: Array,
    coefficients: Array,
    begin: int,
    halo: int,
    k: int,
    rank: int,
    gradient: Array,
) -> float:
    """Add ΔᵀΔ h to a candidate's gradient, and return the strip's share of ‖Δ h‖².

    Parameters
    ----------
    padded : array, shape (rows, K, c)
        The strip between the rows that border on it.
    coefficients : array of float64, shape (differences, order + 1)
        Of the differences Δ.
    begin : int
        The row of `padded` where the first difference begins.
    halo : int
        How many of the rows are before the strip.
    k : int
        The candidate.
    rank : int
        The columns that are tied, the first of the c.
    gradient : array of float64, shape (p, K, c)
        Of the strip's own rows.
    """
    p, _, width = gradient.shape
    place = gradient.reshape(p, -1), k * width, rank
    return float(_pull(_flat(padded), frozen(coefficients), begin, halo, *place))


def products(
    one: Array, other: Array, coefficients: Array, begin: int, k: int, rank: int
) -> tuple[float, float, float]:
    """Return ⟨Δ a, Δ a⟩, ⟨Δ a, Δ b⟩ and ⟨Δ b, Δ b⟩ of a candidate of two strips.

    `one` and `other` have rows that the strip doesn't own, as in `pull`, but
    `coefficients` are those of its own differences alone.
    """
    column = k * one.shape[2]
    found: tuple[float, float, float] = _products(
        _flat(one), _flat(other), frozen(coefficients), begin, column, rank
    )
    return found


def solve(
    bands: Array, curvature: Array, counts: Array, least: float, right: Array
) -> None:
    """Solve a banded system for each column of the right-hand sides, in place.

    Parameters
    ----------
    bands : array of float64, shape (order + 1, p)
        What all systems have in common: the diagonal and those below it.
    curvature : array of float64, shape (r,)
        Times `counts`, what the diagonal of each column's system has besides.
    counts : array of float64, shape (p,)
    least : float
        The share of the largest number on it that is added to a diagonal.
    right : array of float64, shape (p, r)
    """
    order = len(bands) - 1
    lower, inverse = np.empty((order, *right.shape)), np.empty_like(right)
    given = frozen(bands), frozen(curvature), frozen(counts)
    _solve(*given, least, lower, inverse, right)


def _flat(strip: Array) -> Array:
    """Return a strip as a matrix: the candidates of a row side by side."""
    return frozen(strip).reshape(len(strip), -1)


@compiled
def _pull(padded, coefficients, begin, halo, gradient, column, rank):
    count, width = coefficients.shape
    found = np.empty((width, rank))  # the last differences, in a ring
    total = 0.0
    # A row has its gradient as soon as the differences that end beyond it are known.
    for row in range(begin, begin + count + width - 1):
        if row - begin < count:
            latest = found[row % width]
            _difference(padded, coefficients, row, row - begin, column, latest)
            # The strip owns what begins at one of its rows.
            if row >= halo:
                for s in range(rank):
                    total += latest[s] * latest[s]
        else:
            found[row % width] = 0.0
        i = row - halo
        if i < 0 or i >= gradient.shape[0]:
            continue
        for j in range(min(width, row - begin + 1)):
            if row - j < begin + count:
                factor = coefficients[row - j - begin, j]
                earlier = found[(row - j) % width]
                for s in range(rank):
                    gradient[i, column + s] += factor * earlier[s]
    return total


@compiled
def _products(one, other, coefficients, begin, column, rank):
    a, b = np.empty(rank), np.empty(rank)
    aa, ab, bb = 0.0, 0.0, 0.0
    for number in range(coefficients.shape[0]):
        _difference(one, coefficients, begin + number, number, column, a)
        _difference(other, coefficients, begin + number, number, column, b)
        for s in range(rank):
            aa += a[s] * a[s]
            ab += a[s] * b[s]
            bb += b[s] * b[s]
    return aa, ab, bb


@compiled
def _difference(padded, coefficients, row, number, column, result):
    """Write the difference that begins at a row."""
    factor = coefficients[number, 0]
    for s in range(result.size):
        result[s] = factor * padded[row, column + s]
    for j in range(1, coefficients.shape[1]):
        factor = coefficients[number, j]
        for s in range(result.size):
            result[s] += factor * padded[row + j, column + s]


@compiled
def _solve(bands, curvature, counts, least, lower, inverse, right):
    """Decompose into L D Lᵀ and solve, column by column side by side.

    `lower` gets L's entries below the diagonal, `inverse` those of 1/D.
    """
    p, r = right.shape
    order = bands.shape[0] - 1
    added = np.full(r, 1e-300)
    for i in range(p):
        for s in range(r):
            added[s] = max(added[s], bands[0, i] + curvature[s] * counts[i])
    pivot, products = np.empty(r), np.empty((order + 1, r))
    for i in range(p):
        for s in range(r):
            pivot[s] = bands[0, i] + curvature[s] * counts[i] + least * added[s]
        for j in range(min(order, i), 0, -1):
            # products[j] is L D at (i, i − j)
            product, below = products[j], lower[j - 1, i]
            entry = bands[j, i - j]
            for s in range(r):
                product[s] = entry
            for m in range(j + 1, min(order, i) + 1):
                above, farther = lower[m - j - 1, i - j], products[m]
                for s in range(r):
                    product[s] -= farther[s] * above[s]
            for s in range(r):
                below[s] = product[s] * inverse[i - j, s]
                pivot[s] -= product[s] * below[s]
                right[i, s] -= below[s] * right[i - j, s]
        for s in range(r):
            inverse[i, s] = 1.0 / pivot[s]
    for i in range(p - 1, -1, -1):
        for s in range(r):
            right[i, s] *= inverse[i, s]
        for j in range(1, min(order, p - 1 - i) + 1):
            below = lower[j - 1, i + j]
            for s in range(r):
                right[i, s] -= below[s] * right[i + j, s]
