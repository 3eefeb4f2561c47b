"""Kernels that go through the rows of strips, compiled with Numba.

`directions` and `advance` do what those of `dmf.kernels.strips` do, but a row stays in
registers for all that is asked of it. `descend` belongs to `dmf.kernels.coordinates`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dmf.kernels import strips
from dmf.kernels.strips import PAIRS, Advanced, Directions
from dmf.kernels.vectors import (
    blank,
    compiled,
    divided,
    dot,
    frozen,
    in_lines,
    layout_of,
    load,
    minus,
    own,
    plus,
    plus_scaled,
    shortest_row,
    store,
    times,
    wide_dot,
    zeros_in,
)

Array = NDArray[Any]
Terms = Any  # dmf.objective.Terms


def directions(
    gradient: Array,
    moving: Array,
    last: Array | None,
    terms: Terms,
    first: Array | None = None,
    *,
    moves: int,
) -> Directions:
    """Return the directions of a strip: see `dmf.kernels.strips.directions`."""
    p, K, width = moving.shape
    if width < shortest_row(moving.dtype):
        return strips.plain_directions(
            gradient, moving, last, terms, first, moves=moves
        )
    if moves == 2 and last is None:
        last = np.zeros_like(moving)
    pairs = PAIRS[moves]
    units = [in_lines(np.empty, moving.shape, moving.dtype) for _ in range(moves)]
    numbers = np.empty((3 * moves + pairs, p * K))
    penalty, square = np.zeros(K), np.zeros(K)
    _directions(
        _flat(gradient),
        _flat(moving),
        None if first is None else _flat(first),
        None if last is None or moves == 1 else _flat(last),
        *_of_terms(terms),
        layout_of(width, moving.dtype),
        units[0].reshape(p * K, width),
        None if moves == 1 else units[1].reshape(p * K, width),
        numbers,
        penalty,
        square,
    )
    # The numbers of a kind lie side by side in memory, as they are worked with later.
    kinds = np.moveaxis(numbers.reshape(3 * moves + pairs, p, K), 0, -1)
    cuts = [moves, 2 * moves, 3 * moves]
    norms, loss_slopes, penalty_slopes, curvature = np.split(kinds, cuts, axis=-1)
    return Directions(
        tuple(units), norms, loss_slopes, penalty_slopes, curvature, penalty, square
    )


def advance(
    moving: Array, units: tuple[Array, ...], strides: Array, terms: Terms, *, rank: int
) -> Advanced:
    """Move each row by its strides: see `dmf.kernels.strips.advance`."""
    p, K, width = moving.shape
    if width < shortest_row(moving.dtype):
        return strips.plain_advance(moving, units, strides, terms, rank=rank)
    factor, move = (in_lines(np.empty, moving.shape, moving.dtype) for _ in range(2))
    sums = np.zeros((4, K))
    proper = (np.arange(width) < rank).astype(moving.dtype)
    ridge, centre, _ = _of_terms(terms)
    _advance(
        _flat(moving),
        _flat(units[0]),
        None if len(units) == 1 else _flat(units[1]),
        frozen(np.moveaxis(strides, -1, 0)).reshape(len(units), p * K),
        ridge,
        centre,
        frozen(proper[None]),
        layout_of(width, moving.dtype),
        factor.reshape(p * K, width),
        move.reshape(p * K, width),
        sums,
    )
    return Advanced(factor, move, *sums)


def plane_lengths(slopes: Array, curvature: Array, tolerance: float) -> Array:
    """Return the lengths of each row: see `dmf.kernels.strips.plane_lengths`."""
    lengths = np.empty((2, *slopes.shape[:2]))
    _plane_lengths(slopes, curvature, tolerance, lengths)
    return np.moveaxis(lengths, 0, -1)


def change_along(slopes: Array, curvature: Array, lengths: Array) -> Array:
    """Return the change of each candidate: see `dmf.kernels.strips.change_along`."""
    change = np.zeros(slopes.shape[1])
    _change_along(slopes, curvature, lengths, change)
    return change


def _flat(strip: Array) -> Array:
    """Return a strip with a row for each row of each candidate."""
    p, K, width = strip.shape
    return frozen(strip).reshape(p * K, width)


def _of_terms(terms: Terms) -> tuple[Array, Array | None, Array | None]:
    centre = None if terms.centre is None else frozen(terms.centre)
    free = None if terms.free is None else frozen(terms.free[None])
    return frozen(terms.ridge), centre, free


@compiled
def _directions(
    gradient,
    moving,
    first,
    last,
    ridge,
    centre,
    free,
    layout,
    unit,
    unit_too,
    numbers,
    penalty,
    square,
):
    for row in range(moving.shape[0]):
        i, k = divmod(row, penalty.size)
        here = load(moving, row, layout)
        slope = load(gradient, row, layout)
        away = here
        if centre is not None:
            away = minus(here, load(centre, k, layout))
        pull = _weighed(ridge, i, k, away, layout)
        penalty[k] += 0.5 * np.float64(dot(own(pull, layout), away))
        down = minus(blank(here), plus(slope, pull))
        if free is not None:
            down = times(down, load(free, 0, layout))
        norm, ahead = _unit(down, layout)
        square[k] += norm * norm
        if first is not None:
            norm, ahead = _unit(load(first, row, layout), layout)
        down = ahead
        store(unit, row, layout, down)
        curved = _weighed(ridge, i, k, down, layout)
        down = own(down, layout)
        if last is None:
            numbers[0, row] = norm
            numbers[1, row] = norm * np.float64(dot(down, slope))
            numbers[2, row] = norm * np.float64(dot(down, pull))
            numbers[3, row] = norm * norm * np.float64(dot(down, curved))
        if last is not None:
            size, move = _unit(load(last, row, layout), layout)
            store(unit_too, row, layout, move)
            curved_too = _weighed(ridge, i, k, move, layout)
            move = own(move, layout)
            numbers[0, row] = norm
            numbers[1, row] = size
            numbers[2, row] = norm * np.float64(dot(down, slope))
            numbers[3, row] = size * np.float64(dot(move, slope))
            numbers[4, row] = norm * np.float64(dot(down, pull))
            numbers[5, row] = size * np.float64(dot(move, pull))
            numbers[6, row] = norm * norm * np.float64(dot(down, curved))
            numbers[7, row] = norm * size * np.float64(dot(down, curved_too))
            numbers[8, row] = size * size * np.float64(dot(move, curved_too))


@compiled
def _advance(
    moving,
    unit,
    unit_too,
    strides,
    ridge,
    centre,
    proper,
    layout,
    factor,
    move,
    sums,
):
    number = moving.dtype.type
    columns = own(load(proper, 0, layout), layout)
    for row in range(moving.shape[0]):
        i, k = divmod(row, sums.shape[1])
        step = times(load(unit, row, layout), number(strides[0, row]))
        if unit_too is not None:
            stride = number(strides[1, row])
            step = plus_scaled(step, stride, load(unit_too, row, layout))
        there = plus(load(moving, row, layout), step)
        store(move, row, layout, step)
        store(factor, row, layout, there)
        away = there
        if centre is not None:
            away = minus(there, load(centre, k, layout))
        pull = own(_weighed(ridge, i, k, away, layout), layout)
        sums[0, k] += 0.5 * np.float64(dot(pull, away))
        sums[1, k] += np.float64(dot(times(step, columns), step))
        sums[2, k] += np.float64(dot(times(there, columns), there))
        sums[3, k] += np.float64(dot(columns, zeros_in(there)))


@compiled
def _plane_lengths(slopes, curvature, tolerance, lengths):
    for i in range(slopes.shape[0]):
        for k in range(slopes.shape[1]):
            b1, b2 = slopes[i, k, 0], slopes[i, k, 1]
            c11, c12 = curvature[i, k, 0], curvature[i, k, 1]
            c22 = curvature[i, k, 2]
            determinant = c11 * c22 - c12 * c12
            if determinant > tolerance * c11 * c22:
                lengths[0, i, k] = (c12 * b2 - c22 * b1) / determinant
                lengths[1, i, k] = (c12 * b1 - c11 * b2) / determinant
            else:
                lengths[0, i, k] = -b1 / c11 if c11 > 0 else 0.0
                lengths[1, i, k] = 0.0


@compiled
def _change_along(slopes, curvature, lengths, change):
    plane = lengths.shape[2] == 2
    for i in range(slopes.shape[0]):
        for k in range(slopes.shape[1]):
            t = lengths[i, k, 0]
            total = slopes[i, k, 0] * t + 0.5 * curvature[i, k, 0] * t * t
            if plane:
                u = lengths[i, k, 1]
                total += slopes[i, k, 1] * u + 0.5 * curvature[i, k, 2] * u * u
                total += curvature[i, k, 1] * t * u
            change[k] += total


@compiled
def _weighed(ridge, i, k, row, layout):
    """Return λ * row, whether λ is one number for all columns and candidates or not."""
    if ridge.shape[1] == 1:
        k = 0
    if ridge.shape[2] == 1:
        return times(row, ridge[i, k, 0])
    return times(row, load(ridge[i], k, layout))


@compiled
def _unit(row, layout):
    """Return the length of a row, and the row divided by it."""
    length = np.sqrt(wide_dot(own(row, layout), row))
    if length > 0:
        row = divided(row, length)
    return length, row


@njit(nogil=True, cache=True)
def descend(strip, hessian, slopes, ridge, lasso, lower, free, sweeps, rest):
    """Move the rows of a strip, and their slopes, in place."""
    p, candidates, width = strip.shape
    for i in range(p):
        same = i if hessian.shape[0] > 1 else 0
        for k in range(candidates):
            for _ in range(sweeps):
                largest, size = 0.0, 0.0
                for s in range(width):
                    curvature = hessian[same, k, s, s] + ridge[i, k, s]
                    before = strip[i, k, s]
                    if free[i, k, s] == 0.0:
                        continue
                    if curvature > 0.0:
                        aim = before - slopes[i, k, s] / curvature
                        threshold = lasso[i, k, s] / curvature
                        if aim > threshold:
                            aim -= threshold
                        elif aim < -threshold:
                            aim += threshold
                        else:
                            aim = 0.0
                        aim = max(aim, lower[i, k, s])
                    elif lasso[i, k, s] > 0.0:
                        aim = 0.0  # nothing but the lasso acts on it
                    else:
                        continue
                    size = max(size, abs(aim))
                    move = aim - before
                    if move != 0.0:
                        largest = max(largest, abs(move))
                        strip[i, k, s] = aim
                        for t in range(width):
                            slopes[i, k, t] += hessian[same, k, s, t] * move
                        slopes[i, k, s] += ridge[i, k, s] * move
                if largest <= rest * size:
                    break
