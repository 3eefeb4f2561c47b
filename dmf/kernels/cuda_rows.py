"""Kernels that go through the rows of strips in the memory of a GPU.

They do what those of `dmf.kernels.rows` do: a row is read once, for all that is asked
of it. A team of lanes (see `dmf.kernels.lanes`) works on a row of a candidate.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from array_api_compat import array_namespace
from numba import cuda

from dmf.kernels.lanes import Layout, inlined, jit, launch, layout_for, tools_of
from dmf.kernels.strips import PAIRS, Advanced, Directions

Array = Any
Terms = Any  # dmf.objective.Terms


class Kernels(NamedTuple):
    """The compiled kernels for rows of some length, in one dtype."""

    directions: Any
    advance: Any


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
    xp = array_namespace(moving)
    p, K, _ = moving.shape
    if moves == 2 and last is None:
        last = xp.zeros_like(moving)
    units = [xp.empty(moving.shape, dtype=moving.dtype) for _ in range(moves)]
    numbers = xp.empty((3 * moves + PAIRS[moves], p, K), dtype=xp.float64)
    sums = xp.empty((2, K, p), dtype=xp.float64)
    _launch(
        "directions",
        moving,
        gradient,
        first,
        last if moves == 2 else None,
        terms.ridge,
        terms.centre,
        terms.free,
        units[0],
        units[1] if moves == 2 else None,
        numbers,
        sums,
    )
    kinds = xp.moveaxis(numbers, 0, -1)
    penalty, square = xp.sum(sums, axis=-1)
    return Directions(
        tuple(units),
        kinds[..., :moves],
        kinds[..., moves : 2 * moves],
        kinds[..., 2 * moves : 3 * moves],
        kinds[..., 3 * moves :],
        penalty,
        square,
    )


def advance(
    moving: Array, units: tuple[Array, ...], strides: Array, terms: Terms, *, rank: int
) -> Advanced:
    """Move each row by its strides: see `dmf.kernels.strips.advance`."""
    xp = array_namespace(moving)
    p, K, _ = moving.shape
    factor, move = (xp.empty(moving.shape, dtype=moving.dtype) for _ in range(2))
    sums = xp.empty((4, K, p), dtype=xp.float64)
    _launch(
        "advance",
        moving,
        units[0],
        units[1] if len(units) == 2 else None,
        strides,
        terms.ridge,
        terms.centre,
        rank,
        factor,
        move,
        sums,
    )
    return Advanced(factor, move, *xp.sum(sums, axis=-1))


def _launch(name: str, moving: Array, *arguments: Any) -> None:
    """Run a kernel with a team for each row and candidate."""
    p, K, width = moving.shape
    layout = layout_for(width)
    kernel = getattr(kernels_of(layout, np.dtype(moving.dtype)), name)
    launch(kernel, -(-p // (layout.lanes // layout.team)), K, moving, *arguments)


@lru_cache
def kernels_of(layout: Layout, dtype: np.dtype[Any]) -> Kernels:
    """Return the kernels for strips in a layout."""
    lanes, team, steps, _ = layout
    teams = lanes // team
    number = numba.from_dtype(dtype)
    load, together, _, dot = tools_of(layout, dtype)

    @inlined
    def row_and_lane():
        """Return the row of a team, and a lane's place in that."""
        warp = cuda.blockIdx.x * numba.int64(cuda.blockDim.y) + cuda.threadIdx.y
        return warp * teams + cuda.threadIdx.x // team, cuda.threadIdx.x % team

    @inlined
    def store(row, rows, i, k, lane):
        for t in range(steps):
            c = lane + t * team
            if c < rows.shape[2]:
                rows[i, k, c] = row[t]

    @inlined
    def weigh(ridge, i, k, lane, row, into):
        """Weigh a row by λ, whether that is one number for all columns and candidates
        or not."""
        same = min(k, ridge.shape[1] - 1)
        for t in range(steps):
            c = min(lane + t * team, ridge.shape[2] - 1)
            into[t] = ridge[i, same, c] * row[t]

    @inlined
    def subtract(centre, k, lane, row):
        for t in range(steps):
            c = lane + t * team
            if c < centre.shape[1]:
                row[t] -= centre[k, c]

    @inlined
    def divide(row):
        """Return the length of a row, and divide the row by it."""
        # In float64: the squares of tiny or huge entries would leave float32.
        square = 0.0
        for t in range(steps):
            square += numba.float64(row[t]) * numba.float64(row[t])
        length = math.sqrt(together(square))
        if length > 0:
            for t in range(steps):
                row[t] /= number(length)
        return length

    @jit
    def directions(
        moving,
        gradient,
        first,
        last,
        ridge,
        centre,
        free,
        unit,
        unit_too,
        numbers,
        sums,
    ):
        row, lane = row_and_lane()
        k = cuda.blockIdx.y
        # What is beyond the last row does it once more: all lanes hand over.
        i = min(row, moving.shape[0] - 1)
        away = cuda.local.array(steps, number)
        slope = cuda.local.array(steps, number)
        pull = cuda.local.array(steps, number)
        down = cuda.local.array(steps, number)
        curved = cuda.local.array(steps, number)
        load(moving, i, k, lane, away)
        load(gradient, i, k, lane, slope)
        if centre is not None:
            subtract(centre, k, lane, away)
        weigh(ridge, i, k, lane, away, pull)
        penalty = 0.5 * numba.float64(dot(pull, away, 0))
        for t in range(steps):
            down[t] = -(slope[t] + pull[t])
            if free is not None:
                down[t] *= free[min(lane + t * team, free.size - 1)]
        norm = divide(down)
        square = norm * norm
        if first is not None:
            load(first, i, k, lane, down)
            norm = divide(down)
        weigh(ridge, i, k, lane, down, curved)
        loss_slope = norm * numba.float64(dot(down, slope, 0))
        penalty_slope = norm * numba.float64(dot(down, pull, 0))
        curvature = norm * norm * numba.float64(dot(down, curved, 0))
        if last is not None:
            move = cuda.local.array(steps, number)
            load(last, i, k, lane, move)
            size = divide(move)
            loss_slope_too = size * numba.float64(dot(move, slope, 0))
            penalty_slope_too = size * numba.float64(dot(move, pull, 0))
            both = norm * size * numba.float64(dot(move, curved, 0))
            weigh(ridge, i, k, lane, move, curved)
            curvature_too = size * size * numba.float64(dot(move, curved, 0))
        if row >= moving.shape[0]:
            return
        store(down, unit, i, k, lane)
        if last is not None:
            store(move, unit_too, i, k, lane)
        if lane == 0:
            sums[0, k, i] = penalty
            sums[1, k, i] = square
            numbers[0, i, k] = norm
            if last is None:
                numbers[1, i, k] = loss_slope
                numbers[2, i, k] = penalty_slope
                numbers[3, i, k] = curvature
            else:
                numbers[1, i, k] = size
                numbers[2, i, k] = loss_slope
                numbers[3, i, k] = loss_slope_too
                numbers[4, i, k] = penalty_slope
                numbers[5, i, k] = penalty_slope_too
                numbers[6, i, k] = curvature
                numbers[7, i, k] = both
                numbers[8, i, k] = curvature_too

    @jit
    def advance(
        moving,
        unit,
        unit_too,
        strides,
        ridge,
        centre,
        rank,
        factor,
        move,
        sums,
    ):
        row, lane = row_and_lane()
        k = cuda.blockIdx.y
        i = min(row, moving.shape[0] - 1)
        there = cuda.local.array(steps, number)
        step = cuda.local.array(steps, number)
        other = cuda.local.array(steps, number)
        load(moving, i, k, lane, there)
        load(unit, i, k, lane, step)
        stride = number(strides[i, k, 0])
        for t in range(steps):
            step[t] *= stride
        if unit_too is not None:
            load(unit_too, i, k, lane, other)
            stride = number(strides[i, k, 1])
            for t in range(steps):
                step[t] += stride * other[t]
        moved, size, zeros = 0.0, 0.0, 0.0
        for t in range(steps):
            there[t] += step[t]
            if lane + t * team < rank:
                moved += numba.float64(step[t]) * numba.float64(step[t])
                size += numba.float64(there[t]) * numba.float64(there[t])
                zeros += numba.float64(there[t] == 0)
        moved, size, zeros = together(moved), together(size), together(zeros)
        if row < moving.shape[0]:
            store(step, move, i, k, lane)
            store(there, factor, i, k, lane)
        if centre is not None:
            subtract(centre, k, lane, there)
        weigh(ridge, i, k, lane, there, other)
        penalty = 0.5 * numba.float64(dot(other, there, 0))
        if row < moving.shape[0] and lane == 0:
            sums[0, k, i] = penalty
            sums[1, k, i] = moved
            sums[2, k, i] = size
            sums[3, k, i] = zeros

    return Kernels(directions, advance)
