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
from dmf.kernels.strips import PAIRS, Advanced, Directions, Metric
from dmf.kernels.vectors import (
    at_least,
    blank,
    blank_where,
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
    unchanging,
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
    metric: Metric | None = None,
    *,
    moves: int,
) -> Directions:
    """Return the directions of a strip: see `dmf.kernels.strips.directions`."""
    p, K, width = moving.shape
    if width < shortest_row(moving.dtype):
        return strips.plain_directions(
            gradient, moving, last, terms, metric, moves=moves
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
        None if metric is None else _by_loops(metric),
        None if last is None or moves == 1 else _flat(last),
        *_of_terms(terms, width),
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
    strengths, columns, centre, _ = _of_terms(terms, width)
    _advance(
        _flat(moving),
        _flat(units[0]),
        None if len(units) == 1 else _flat(units[1]),
        frozen(np.moveaxis(strides, -1, 0)).reshape(len(units), p * K),
        strengths,
        columns,
        centre,
        frozen(proper[None]),
        layout_of(width, moving.dtype),
        factor.reshape(p * K, width),
        move.reshape(p * K, width),
        sums,
    )
    return Advanced(factor, move, *sums)


def plane_lengths(
    slopes: tuple[Array, Array], curvatures: tuple[Array, Array], tolerance: float
) -> Array:
    """Return the lengths of each row: see `dmf.kernels.strips.plane_lengths`."""
    lengths = np.empty((2, *slopes[0].shape[:2]))
    b, b_too, c, c_too = map(unchanging, (*slopes, *curvatures))
    _plane_lengths(b, b_too, c, c_too, tolerance, lengths)
    return np.moveaxis(lengths, 0, -1)


def change_along(slopes: Array, curvature: Array, lengths: Array) -> Array:
    """Return the change of each candidate: see `dmf.kernels.strips.change_along`."""
    change = np.zeros(slopes.shape[1])
    slopes, curvature, lengths = map(unchanging, (slopes, curvature, lengths))
    _change_along(slopes, curvature, lengths, change)
    return change


def _flat(strip: Array) -> Array:
    """Return a strip with a row for each row of each candidate."""
    p, K, width = strip.shape
    return frozen(strip).reshape(p * K, width)


def _by_loops(metric: Metric) -> tuple[Any, ...]:
    """Return a metric as loops work with it: for vectors Vᵀ too, as V, row by row."""
    vectors, values, weight, ridge, least = metric
    back = np.swapaxes(vectors, 1, 2)
    vectors, back = (
        frozen(part).reshape(-1, part.shape[2]) for part in (vectors, back)
    )
    parts = (vectors, back, values, weight, ridge)
    return (*(frozen(part) for part in parts), values.dtype.type(least))


def _of_terms(
    terms: Terms, width: int
) -> tuple[Array, Array, Array | None, Array | None]:
    columns = terms.columns
    if columns is None:
        columns = np.zeros((2, width), terms.strengths.dtype)
        columns[0] = 1
    centre = None if terms.centre is None else frozen(terms.centre)
    free = None if terms.free is None else frozen(terms.free[None])
    return frozen(terms.strengths), frozen(columns), centre, free


@compiled
def _directions(
    gradient,
    moving,
    metric,
    last,
    strengths,
    columns,
    centre,
    free,
    layout,
    unit,
    unit_too,
    numbers,
    penalty,
    square,
):
    turned = np.empty((1, moving.shape[1]), moving.dtype)
    for row in range(moving.shape[0]):
        i, k = divmod(row, penalty.size)
        here = load(moving, row, layout)
        slope = load(gradient, row, layout)
        away = here
        if centre is not None:
            away = minus(here, load(centre, k, layout))
        strength = _strength(strengths, columns, i, k, layout)
        pull = times(away, strength)
        penalty[k] += 0.5 * np.float64(dot(own(pull, layout), away))
        down = minus(blank(here), plus(slope, pull))
        if free is not None:
            down = times(down, load(free, 0, layout))
        norm, ahead = _unit(down, layout)
        square[k] += norm * norm
        if metric is not None:
            size, ahead = _unit(
                _divided_by(ahead, metric, i, k, layout, turned), layout
            )
            norm *= size
        down = ahead
        store(unit, row, layout, down)
        curved = times(down, strength)
        down = own(down, layout)
        if last is None:
            numbers[0, row] = norm
            numbers[1, row] = np.float64(dot(down, slope))
            numbers[2, row] = np.float64(dot(down, pull))
            numbers[3, row] = np.float64(dot(down, curved))
        if last is not None:
            size, move = _unit(load(last, row, layout), layout)
            store(unit_too, row, layout, move)
            curved_too = times(move, strength)
            move = own(move, layout)
            numbers[0, row] = norm
            numbers[1, row] = size
            numbers[2, row] = np.float64(dot(down, slope))
            numbers[3, row] = np.float64(dot(move, slope))
            numbers[4, row] = np.float64(dot(down, pull))
            numbers[5, row] = np.float64(dot(move, pull))
            numbers[6, row] = np.float64(dot(down, curved))
            numbers[7, row] = np.float64(dot(down, curved_too))
            numbers[8, row] = np.float64(dot(move, curved_too))


@compiled
def _advance(
    moving,
    unit,
    unit_too,
    strides,
    strengths,
    columns,
    centre,
    proper,
    layout,
    factor,
    move,
    sums,
):
    number = moving.dtype.type
    factors_own = own(load(proper, 0, layout), layout)
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
        strength = _strength(strengths, columns, i, k, layout)
        pull = own(times(away, strength), layout)
        sums[0, k] += 0.5 * np.float64(dot(pull, away))
        sums[1, k] += np.float64(dot(times(step, factors_own), step))
        sums[2, k] += np.float64(dot(times(there, factors_own), there))
        sums[3, k] += np.float64(dot(factors_own, zeros_in(there)))


@compiled
def _plane_lengths(slopes, pulls, curvature, curvature_too, tolerance, lengths):
    for i in range(slopes.shape[0]):
        for k in range(slopes.shape[1]):
            b1 = slopes[i, k, 0] + pulls[i, k, 0]
            b2 = slopes[i, k, 1] + pulls[i, k, 1]
            c11 = curvature[i, k, 0] + curvature_too[i, k, 0]
            c12 = curvature[i, k, 1] + curvature_too[i, k, 1]
            c22 = curvature[i, k, 2] + curvature_too[i, k, 2]
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
def _strength(strengths, columns, i, k, layout):
    """Return λ of each number of a row."""
    if strengths.shape[1] == 1:
        k = 0
    # No branch: rows that depend on one don't stay in registers.
    last = strengths[i, k, strengths.shape[2] - 1]
    factors = times(load(columns, 0, layout), strengths[i, k, 0])
    return plus_scaled(factors, last, load(columns, 1, layout))


@compiled
def _divided_by(row, metric, i, k, layout, turned):
    """Return what `dmf.kernels.strips.divided_by` does; `turned` is room for a row."""
    vectors, back, values, weight, ridge, least = metric
    lowest = least * (weight[i] + ridge[i, k])
    curvature = plus(times(load(values, k, layout), weight[i]), ridge[i, k])
    curvature = at_least(curvature, lowest if lowest > 0 else turned.dtype.type(1))
    result = divided(_through(row, vectors, k, layout, turned), curvature)
    return blank_where(_through(result, back, k, layout, turned), row)


@compiled
def _through(row, matrix, k, layout, turned):
    """Return the row times a matrix."""
    # A number that stands in memory is spread over a vector as it is loaded.
    store(turned, 0, layout, row)
    total = blank(row)
    size = matrix.shape[1]
    for s in range(size):
        total = plus_scaled(total, turned[0, s], load(matrix, k * size + s, layout))
    return total


@compiled
def _unit(row, layout):
    """Return the length of a row, and the row divided by it."""
    length = np.sqrt(wide_dot(own(row, layout), row))
    return length, divided(row, length if length > 0 else 1.0)


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
