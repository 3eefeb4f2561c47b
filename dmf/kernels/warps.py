"""What a warp does with a segment of a sparse row, compiled with numba-cuda.

Its teams (see `dmf.kernels.lanes`) work on entries of their own, side by side: each one
holds the row of the fixed factor that its entry names. What entries bring to the row of
the moving factor stays in registers until the end of the segment, when the teams add up
theirs. Where a row has several segments, their warps add with atomics.

Few instructions and many reads under way are what counts here, since each entry asks
for another row: indices are unsigned (Numba looks for negative ones otherwise), rows
are found in the flat factor by one product, and several are asked for before the first
is used.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda

from dmf.kernels.lanes import Layout, inlined, jit, this_warp, tools_of

# Numbers that a lane asks for before it uses the first.
AHEAD = 16


class Kernels(NamedTuple):
    """The compiled kernels for rows of some length, in one dtype."""

    gradient: Any
    curvature: Any
    product: Any
    gram: Any
    errors: Any


@lru_cache
def kernels_of(layout: Layout, dtype: np.dtype[Any]) -> Kernels:
    """Return the kernels for factors in a layout."""
    lanes, team, steps, even = layout
    teams = lanes // team
    ahead = max(1, AHEAD // steps)
    turn = ahead * teams  # entries that a warp works on at a time
    window = ahead * steps
    number = numba.from_dtype(dtype)
    zero = dtype.type(0)
    load, _, across, dot = tools_of(layout, dtype)

    @inlined
    def segment():
        """Return the segment and the candidate of a warp."""
        return this_warp(), cuda.blockIdx.y

    @inlined
    def place():
        """Return the team of a lane, and its place in that."""
        return cuda.threadIdx.x // team, cuda.threadIdx.x % team

    @inlined
    def apart(factor, k, lane):
        """Return how far rows are apart in a flat factor, and where a lane begins."""
        rank = factor.shape[2]
        return numba.uint32(factor.shape[1] * rank), numba.uint64(k * rank + lane)

    @inlined
    def fetch(fixed, others, first, begin, count, stride, start, lane, rank, into):
        """Ask for the rows of the fixed factor that the entries of a turn name."""
        for u in range(ahead):
            # Beyond the last entry, that once more: whoever uses rows looks at it.
            e = first + numba.uint64(min(begin + u * teams, count - 1))
            row = numba.uint32(others[e]) * stride + start
            for t in range(steps):
                if even or lane + t * team < rank:
                    into[u * steps + t] = fixed[row + numba.uint64(t * team)]
                else:
                    into[u * steps + t] = zero

    @inlined
    def is_alone(owners, s):
        """Return whether a segment is all of its row."""
        first = s == 0 or owners[s - 1] != owners[s]
        return first and (s + 1 == owners.size or owners[s + 1] != owners[s])

    @inlined
    def write(total, mine, lane, result, i, k, alone):
        """Add up what the teams bring to a row, and write it."""
        for t in range(steps):
            share = across(total[t])
            c = lane + t * team
            if mine == 0 and c < result.shape[2]:
                if alone:
                    result[i, k, c] = share
                else:
                    cuda.atomic.add(result, (i, k, c), share)

    @jit
    def gradient(
        owners,
        starts,
        others,
        values,
        weights,
        fixed,
        alpha,
        moving,
        result,
        losses,
    ):
        s, k = segment()
        if s >= owners.size:
            return
        mine, lane = place()
        rows = cuda.local.array(window, number)
        row = cuda.local.array(steps, number)
        total = cuda.local.array(steps, number)
        i, first, count = owners[s], numba.uint64(starts[s]), starts[s + 1] - starts[s]
        stride, start = apart(moving, k, lane)
        rank = moving.shape[2]
        load(moving, i, k, lane, row)
        for t in range(steps):
            total[t] = zero
        loss = 0.0
        for begin in range(mine, count + mine, turn):
            fetch(fixed, others, first, begin, count, stride, start, lane, rank, rows)
            for u in range(ahead):
                predicted = dot(row, rows, u * steps)
                if begin + u * teams < count:
                    e = first + numba.uint64(begin + u * teams)
                    residual = predicted - values[e]
                    weighted = residual
                    if weights is not None:
                        weighted = residual * weights[e]
                    loss += numba.float64(residual) * numba.float64(weighted)
                    if alpha is not None:
                        shrunk = alpha * predicted
                        loss -= numba.float64(shrunk) * numba.float64(predicted)
                        weighted -= shrunk
                    for t in range(steps):
                        total[t] += weighted * rows[u * steps + t]
        write(total, mine, lane, result, i, k, is_alone(owners, s))
        loss = across(loss)
        if cuda.threadIdx.x == 0:
            losses[s, k] = 0.5 * loss

    @jit
    def curvature(
        owners,
        starts,
        others,
        values,
        weights,
        fixed,
        alpha,
        move,
        second,
        result,
    ):
        s, k = segment()
        if s >= owners.size:
            return
        mine, lane = place()
        rows = cuda.local.array(window, number)
        row = cuda.local.array(steps, number)
        row_too = cuda.local.array(steps, number)
        i, first, count = owners[s], numba.uint64(starts[s]), starts[s + 1] - starts[s]
        stride, start = apart(move, k, lane)
        rank = move.shape[2]
        load(move, i, k, lane, row)
        if second is not None:
            load(second, i, k, lane, row_too)
        aa, ab, bb = 0.0, 0.0, 0.0
        for begin in range(mine, count + mine, turn):
            fetch(fixed, others, first, begin, count, stride, start, lane, rank, rows)
            for u in range(ahead):
                a = numba.float64(dot(row, rows, u * steps))
                b = 0.0
                if second is not None:
                    b = numba.float64(dot(row_too, rows, u * steps))
                if begin + u * teams < count:
                    weighted_a, weighted_b = a, b
                    if weights is not None:
                        weight = weights[first + numba.uint64(begin + u * teams)]
                        weighted_a = a * weight
                        weighted_b = b * weight
                    if alpha is not None:
                        weighted_a -= alpha * a
                        weighted_b -= alpha * b
                    aa += weighted_a * a
                    ab += weighted_a * b
                    bb += weighted_b * b
        aa, ab, bb = across(aa), across(ab), across(bb)
        if cuda.threadIdx.x < result.shape[2]:
            c = cuda.threadIdx.x
            share = aa if c == 0 else (ab if c == 1 else bb)
            if is_alone(owners, s):
                result[i, k, c] = share
            else:
                cuda.atomic.add(result, (i, k, c), share)

    @jit
    def product(owners, starts, others, values, weights, fixed, alpha, result):
        s, k = segment()
        if s >= owners.size:
            return
        mine, lane = place()
        rows = cuda.local.array(window, number)
        total = cuda.local.array(steps, number)
        i, first, count = owners[s], numba.uint64(starts[s]), starts[s + 1] - starts[s]
        stride, start = apart(result, k, lane)
        rank = result.shape[2]
        for t in range(steps):
            total[t] = zero
        for begin in range(mine, count + mine, turn):
            fetch(fixed, others, first, begin, count, stride, start, lane, rank, rows)
            for u in range(ahead):
                if begin + u * teams < count:
                    value = values[first + numba.uint64(begin + u * teams)]
                    for t in range(steps):
                        total[t] += value * rows[u * steps + t]
        write(total, mine, lane, result, i, k, is_alone(owners, s))

    @jit
    def gram(owners, starts, others, values, weights, fixed, alpha, result):
        s, k = segment()
        if s >= owners.size:
            return
        i, rank = owners[s], result.shape[2]
        alone = is_alone(owners, s)
        # A lane has entries of the matrix for itself.
        for place in range(cuda.threadIdx.x, rank * rank, lanes):
            a, b = place // rank, place % rank
            total = zero
            for e in range(starts[s], starts[s + 1]):
                row = (others[e] * numba.int64(result.shape[1]) + k) * rank
                term = fixed[row + a] * fixed[row + b]
                weighted = term
                if weights is not None:
                    weighted = term * weights[e]
                if alpha is not None:
                    weighted -= alpha * term
                total += weighted
            if alone:
                result[i, k, a, b] = total
            else:
                cuda.atomic.add(result, (i, k, a, b), total)

    @jit
    def errors(owners, starts, others, values, weights, fixed, alpha, moving, result):
        s, k = segment()
        if s >= owners.size:
            return
        mine, lane = place()
        rows = cuda.local.array(window, number)
        row = cuda.local.array(steps, number)
        first, count = numba.uint64(starts[s]), starts[s + 1] - starts[s]
        stride, start = apart(moving, k, lane)
        rank = moving.shape[2]
        load(moving, owners[s], k, lane, row)
        squares, sizes = 0.0, 0.0
        for begin in range(mine, count + mine, turn):
            fetch(fixed, others, first, begin, count, stride, start, lane, rank, rows)
            for u in range(ahead):
                predicted = dot(row, rows, u * steps)
                if begin + u * teams < count:
                    e = first + numba.uint64(begin + u * teams)
                    residual = numba.float64(predicted - values[e])
                    weighted = residual
                    if weights is not None:
                        weighted = residual * weights[e]
                    squares += weighted * residual
                    sizes += abs(weighted)
        squares, sizes = across(squares), across(sizes)
        if cuda.threadIdx.x < 2:
            result[s, k, cuda.threadIdx.x] = squares if cuda.threadIdx.x == 0 else sizes

    return Kernels(gradient, curvature, product, gram, errors)
