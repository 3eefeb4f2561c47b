"""Passes over the entries of sparse blocks, compiled with Numba.

`near` holds a row for each row of the block, `far` one for each of its columns; sums go
`onto_near` or `onto_far`, whichever isn't None, on top of what is there. Numba leaves
out what would happen to a None. A line is a row within a panel: lines follow each other
panel after panel, so that a row is come back to in each.

`starts` are unsigned, and so are all places of entries: of signed ones Numba asks each
time whether they count from the end, which takes an eighth of a pass.
"""

from __future__ import annotations

import numpy as np

from dmf.kernels.vectors import (
    compiled,
    dot,
    dots,
    load,
    own,
    plus_scaled,
    prefetch,
    store,
)

# So many entries ahead, the rows that an entry names are asked for from memory.
AHEAD = np.uintp(8)


@compiled
def gradient(
    rows,
    starts,
    columns,
    values,
    weights,
    alpha,
    near,
    far,
    onto_near,
    onto_far,
    layout,
):
    squares = 0.0
    last = np.uintp(columns.size - 1)
    for line in range(starts.size - 1):
        i = line % rows
        if starts[line] == starts[line + 1]:
            continue
        here = own(load(near, i, layout), layout)
        if onto_near is not None:
            total = load(onto_near, i, layout)
        for e in range(starts[line], starts[line + 1]):
            j = columns[e]
            ahead = columns[min(e + AHEAD, last)]
            prefetch(far, ahead, layout)
            if onto_far is not None:
                prefetch(onto_far, ahead, layout)
            there = load(far, j, layout)
            predicted = dot(here, there)
            residual = predicted - values[e]
            weighted = residual
            if weights is not None:
                weighted = residual * weights[e]
            squares += np.float64(residual) * np.float64(weighted)
            if alpha is not None:
                shrunk = alpha * predicted
                squares -= np.float64(shrunk) * np.float64(predicted)
                weighted -= shrunk
            if onto_near is not None:
                total = plus_scaled(total, weighted, there)
            if onto_far is not None:
                sums = load(onto_far, j, layout)
                store(onto_far, j, layout, plus_scaled(sums, weighted, here))
        if onto_near is not None:
            store(onto_near, i, layout, total)
    return 0.5 * squares


@compiled
def curvature(
    rows,
    starts,
    columns,
    weights,
    alpha,
    near,
    near_too,
    far,
    far_too,
    onto_near,
    onto_far,
    layout,
):
    last = np.uintp(columns.size - 1)
    for line in range(starts.size - 1):
        i = line % rows
        if starts[line] == starts[line + 1]:
            continue
        here = own(load(near, i, layout), layout)
        here_too = here
        if near_too is not None:
            here_too = own(load(near_too, i, layout), layout)
        aa, ab, bb = 0.0, 0.0, 0.0
        if onto_near is not None:
            aa = onto_near[i, 0]
            if near_too is not None:
                ab, bb = onto_near[i, 1], onto_near[i, 2]
        for e in range(starts[line], starts[line + 1]):
            j = np.uintp(columns[e])
            ahead = columns[min(e + AHEAD, last)]
            prefetch(far, ahead, layout)
            there = load(far, j, layout)
            there_too = there  # of one move LLVM works out nothing twice
            if far_too is not None:
                prefetch(far_too, ahead, layout)
                there_too = load(far_too, j, layout)
            along = dots(here, there, here_too, there_too)
            a, b = np.float64(along[0]), np.float64(along[1])
            weighted_a, weighted_b = a, b
            if weights is not None:
                weighted_a = a * weights[e]
                weighted_b = b * weights[e]
            if alpha is not None:
                weighted_a -= alpha * a
                weighted_b -= alpha * b
            if onto_near is not None:
                aa += weighted_a * a
                ab += weighted_a * b
                bb += weighted_b * b
            if onto_far is not None:
                onto_far[j, 0] += weighted_a * a
                if far_too is not None:
                    onto_far[j, 1] += weighted_a * b
                    onto_far[j, 2] += weighted_b * b
        if onto_near is not None:
            onto_near[i, 0] = aa
            if near_too is not None:
                onto_near[i, 1] = ab
                onto_near[i, 2] = bb


@compiled
def product(rows, starts, columns, values, factor, onto_near, onto_far, layout):
    last = np.uintp(columns.size - 1)
    for line in range(starts.size - 1):
        i = line % rows
        if starts[line] == starts[line + 1]:
            continue
        if onto_near is not None:
            total = load(onto_near, i, layout)
        if onto_far is not None:
            here = own(load(factor, i, layout), layout)
        for e in range(starts[line], starts[line + 1]):
            j = columns[e]
            ahead = columns[min(e + AHEAD, last)]
            if onto_near is not None:
                prefetch(factor, ahead, layout)
                total = plus_scaled(total, values[e], load(factor, j, layout))
            if onto_far is not None:
                prefetch(onto_far, ahead, layout)
                sums = load(onto_far, j, layout)
                store(onto_far, j, layout, plus_scaled(sums, values[e], here))
        if onto_near is not None:
            store(onto_near, i, layout, total)


@compiled
def residuals(rows, starts, columns, values, near, far, result, layout):
    last = np.uintp(columns.size - 1)
    for line in range(starts.size - 1):
        i = line % rows
        if starts[line] == starts[line + 1]:
            continue
        here = own(load(near, i, layout), layout)
        for e in range(starts[line], starts[line + 1]):
            prefetch(far, columns[min(e + AHEAD, last)], layout)
            result[e] = values[e] - dot(here, load(far, columns[e], layout))


@compiled
def gram(rows, starts, columns, weights, alpha, fixed, axis, result):
    rank = fixed.shape[1]
    one = fixed.dtype.type(1)
    for line in range(starts.size - 1):
        i = line % rows
        for e in range(starts[line], starts[line + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            weight = one
            if weights is not None:
                weight = weights[e]
            if alpha is not None:
                weight = weight - alpha
            for s in range(rank):
                scaled = weight * fixed[f, s]
                for t in range(rank):
                    result[m, s, t] += scaled * fixed[f, t]
