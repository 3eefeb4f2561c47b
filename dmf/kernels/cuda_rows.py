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

from dmf.kernels.lanes import (
    Layout,
    inlined,
    jit,
    launch,
    layout_for,
    this_warp,
    tools_of,
)
from dmf.kernels.strips import PAIRS, Advanced, Directions, Metric, divided_by

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
    metric: Metric | None = None,
    *,
    moves: int,
) -> Directions:
    """Return the directions of a strip: see `dmf.kernels.strips.directions`."""
    xp = array_namespace(moving)
    p, K, _ = moving.shape
    first = None
    if metric is not None:
        slope = terms.still(gradient + terms.gradient(moving))
        first = divided_by(-slope, metric)
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
        terms.strengths,
        terms.columns,
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
        terms.strengths,
        terms.columns,
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
    load, gather, *_ = tools_of(layout, dtype)

    @inlined
    def row_and_lane():
        """Return the row of a team, and a lane's place in that."""
        team_of_warp = cuda.threadIdx.x // team
        return this_warp() * teams + team_of_warp, cuda.threadIdx.x % team

    @inlined
    def store(rows, i, k, lane, row, length):
        """Write a row, divided by its length unless that is 0."""
        for t in range(steps):
            c = lane + t * team
            if c < rows.shape[2]:
                rows[i, k, c] = row[t] / number(length) if length > 0 else row[t]

    @inlined
    def strength(strengths, columns, i, k, c):
        """Return λ, whether it is one number for all columns and candidates or not."""
        k = min(k, strengths.shape[1] - 1)
        if columns is None:
            return strengths[i, k, 0]
        c = min(c, columns.shape[1] - 1)
        return strengths[i, k, 0] * columns[0, c] + strengths[i, k, 1] * columns[1, c]

    @inlined
    def subtract(centre, k, lane, row):
        for t in range(steps):
            c = lane + t * team
            if c < centre.shape[1]:
                row[t] -= centre[k, c]

    @jit
    def directions(
        moving,
        gradient,
        first,
        last,
        strengths,
        columns,
        centre,
        free,
        unit,
        unit_too,
        numbers,
        sums,
    ):
        row, lane = row_and_lane()
        k = cuda.blockIdx.y
        # Beyond the last row, that once more: all lanes hand over.
        i = min(row, moving.shape[0] - 1)
        away = cuda.local.array(steps, number)
        slope = cuda.local.array(steps, number)
        move = cuda.local.array(steps, number)
        other = cuda.local.array(steps, number)
        load(moving, i, k, lane, away)
        load(gradient, i, k, lane, slope)
        if centre is not None:
            subtract(centre, k, lane, away)
        if first is not None:
            load(first, i, k, lane, move)
        if last is not None:
            load(last, i, k, lane, other)
        # In float64: the squares of tiny or huge entries would leave float32.
        total = cuda.local.array(11, numba.float64)
        count = 6 if last is None else 11
        for c in range(count):
            total[c] = 0.0
        for t in range(steps):
            weight = strength(strengths, columns, i, k, lane + t * team)
            pull = weight * away[t]
            down = -(slope[t] + pull)
            if free is not None:
                down *= free[min(lane + t * team, free.size - 1)]
            if first is None:
                move[t] = down
            here = numba.float64(move[t])
            total[0] += numba.float64(pull) * numba.float64(away[t])
            total[1] += numba.float64(down) * numba.float64(down)
            total[2] += here * here
            total[3] += here * numba.float64(slope[t])
            total[4] += here * numba.float64(pull)
            total[5] += here * here * numba.float64(weight)
            if last is not None:
                before = numba.float64(other[t])
                total[6] += before * before
                total[7] += before * numba.float64(slope[t])
                total[8] += before * numba.float64(pull)
                total[9] += before * here * numba.float64(weight)
                total[10] += before * before * numba.float64(weight)
        gather(total, count)
        if row >= moving.shape[0]:
            return
        norm = math.sqrt(total[2])
        per_unit = 1.0 / norm if norm > 0 else 0.0
        store(unit, i, k, lane, move, norm)
        if last is not None:
            size = math.sqrt(total[6])
            per_unit_too = 1.0 / size if size > 0 else 0.0
            store(unit_too, i, k, lane, other, size)
        if lane == 0:
            sums[0, k, i] = 0.5 * total[0]
            sums[1, k, i] = total[1]
            numbers[0, i, k] = norm
            if last is None:
                numbers[1, i, k] = total[3] * per_unit
                numbers[2, i, k] = total[4] * per_unit
                numbers[3, i, k] = total[5] * per_unit * per_unit
            else:
                numbers[1, i, k] = size
                numbers[2, i, k] = total[3] * per_unit
                numbers[3, i, k] = total[7] * per_unit_too
                numbers[4, i, k] = total[4] * per_unit
                numbers[5, i, k] = total[8] * per_unit_too
                numbers[6, i, k] = total[5] * per_unit * per_unit
                numbers[7, i, k] = total[9] * per_unit * per_unit_too
                numbers[8, i, k] = total[10] * per_unit_too * per_unit_too

    @jit
    def advance(
        moving,
        unit,
        unit_too,
        strides,
        strengths,
        columns,
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
        for t in range(steps):
            step[t] *= number(strides[i, k, 0])
        if unit_too is not None:
            load(unit_too, i, k, lane, other)
            for t in range(steps):
                step[t] += number(strides[i, k, 1]) * other[t]
        for t in range(steps):
            there[t] += step[t]
        if row < moving.shape[0]:
            store(move, i, k, lane, step, 1.0)
            store(factor, i, k, lane, there, 1.0)
        total = cuda.local.array(4, numba.float64)
        for c in range(4):
            total[c] = 0.0
        for t in range(steps):
            here, moved = numba.float64(there[t]), numba.float64(step[t])
            if lane + t * team < rank:
                total[1] += moved * moved
                total[2] += here * here
                if here == 0.0:
                    total[3] += 1.0
        if centre is not None:
            subtract(centre, k, lane, there)
        for t in range(steps):
            pull = strength(strengths, columns, i, k, lane + t * team) * there[t]
            total[0] += 0.5 * numba.float64(pull) * numba.float64(there[t])
        gather(total, 4)
        if row < moving.shape[0] and lane == 0:
            for c in range(4):
                sums[c, k, i] = total[c]

    return Kernels(directions, advance)
