"""What a warp does with a segment of a sparse row, compiled with numba-cuda.

It goes through its entries 32 at a time, in three steps. Lanes lie along the columns of
the factors, so that rows are read as they lie in memory: first each lane writes its
share of all 32 dot products to shared memory. Then each lane has an entry of its own,
adds up the shares and forms the residual. Then they lie along the columns again, and
add up in registers what the entries bring to the row. A block of threads is one warp:
barriers cost next to nothing, and warps wait for no other. Where a row has several
segments, their warps add with atomics.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda

WARP = 32
# Few rows are no mistake of the user's, whom Numba would warn of idle processors.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


class Kernels(NamedTuple):
    """The compiled kernels for rows of some length, in one dtype."""

    gradient: Any
    curvature: Any
    product: Any
    gram: Any
    errors: Any


@lru_cache
def kernels_of(steps: int, dtype: np.dtype[Any], lanes: int = WARP) -> Kernels:
    """Return the kernels for factors of at most ``lanes * steps`` columns.

    A lane holds `steps` numbers of a row. They are a constant of the kernels, so that
    they stay in registers. A device has 32 lanes in a warp.
    """
    number = numba.from_dtype(dtype)
    zero = dtype.type(0)
    padded = lanes + 1  # rows of shared memory begin in different banks

    @cuda.jit(device=True, inline="always")
    def load(rows, i, k, lane, into):
        """Let each lane hold its numbers of a row; beyond the rank they are zeros."""
        for t in range(steps):
            c = lane + t * lanes
            into[t] = rows[i, k, c] if c < rows.shape[2] else zero

    @cuda.jit(device=True, inline="always")
    def multiply(row, fixed, k, others, begin, count, lane, shares):
        """Write each lane's share of the dot products of a row and those of entries."""
        for e in range(count):
            j = others[begin + e]
            share = zero
            for t in range(steps):
                c = lane + t * lanes
                if c < fixed.shape[2]:
                    share += row[t] * fixed[j, k, c]
            shares[e, lane] = share

    @cuda.jit(device=True, inline="always")
    def added(shares, entry, rank=lanes):
        """Return the sum of what lanes have of an entry: its dot product."""
        total = shares[entry, 0]
        for lane in range(1, min(rank, lanes)):
            total += shares[entry, lane]
        return total

    @cuda.jit(device=True, inline="always")
    def is_alone(owners, s):
        """Return whether a segment is all of its row."""
        first = s == 0 or owners[s - 1] != owners[s]
        return first and (s + 1 == owners.size or owners[s + 1] != owners[s])

    @cuda.jit
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
        s, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        shares = cuda.shared.array((lanes, padded), number)
        scales = cuda.shared.array(lanes, number)
        squares = cuda.shared.array((1, lanes), numba.float64)
        row = cuda.local.array(steps, number)
        total = cuda.local.array(steps, number)
        i, rank = owners[s], fixed.shape[2]
        load(moving, i, k, lane, row)
        for t in range(steps):
            total[t] = zero
        own = 0.0
        for begin in range(starts[s], starts[s + 1], lanes):
            count = min(lanes, starts[s + 1] - begin)
            multiply(row, fixed, k, others, begin, count, lane, shares)
            cuda.syncthreads()
            if lane < count:
                e = begin + lane
                predicted = added(shares, lane, rank)
                residual = predicted - values[e]
                weighted = residual
                if weights is not None:
                    weighted = residual * weights[e]
                own += numba.float64(residual) * numba.float64(weighted)
                if alpha is not None:
                    shrunk = alpha * predicted
                    own -= numba.float64(shrunk) * numba.float64(predicted)
                    weighted -= shrunk
                scales[lane] = weighted
            cuda.syncthreads()
            for e in range(count):
                j = others[begin + e]
                for t in range(steps):
                    c = lane + t * lanes
                    if c < rank:
                        total[t] += scales[e] * fixed[j, k, c]
        alone = is_alone(owners, s)
        for t in range(steps):
            c = lane + t * lanes
            if c < rank:
                if alone:
                    result[i, k, c] = total[t]
                else:
                    cuda.atomic.add(result, (i, k, c), total[t])
        squares[0, lane] = own
        cuda.syncthreads()
        if lane == 0:
            losses[s, k] = 0.5 * added(squares, 0)

    @cuda.jit
    def curvature(
        owners,
        starts,
        others,
        values,
        weights,
        fixed,
        alpha,
        first,
        second,
        result,
    ):
        s, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        shares = cuda.shared.array((lanes, padded), number)
        sums = cuda.shared.array((3, lanes), numba.float64)
        row = cuda.local.array(steps, number)
        i, rank = owners[s], fixed.shape[2]
        load(first, i, k, lane, row)
        if second is not None:
            shares_too = cuda.shared.array((lanes, padded), number)
            row_too = cuda.local.array(steps, number)
            load(second, i, k, lane, row_too)
        aa, ab, bb = 0.0, 0.0, 0.0
        for begin in range(starts[s], starts[s + 1], lanes):
            count = min(lanes, starts[s + 1] - begin)
            multiply(row, fixed, k, others, begin, count, lane, shares)
            if second is not None:
                multiply(row_too, fixed, k, others, begin, count, lane, shares_too)
            cuda.syncthreads()
            if lane < count:
                a = numba.float64(added(shares, lane, rank))
                b = 0.0
                if second is not None:
                    b = numba.float64(added(shares_too, lane, rank))
                weighted_a, weighted_b = a, b
                if weights is not None:
                    weighted_a = a * weights[begin + lane]
                    weighted_b = b * weights[begin + lane]
                if alpha is not None:
                    weighted_a -= alpha * a
                    weighted_b -= alpha * b
                aa += weighted_a * a
                ab += weighted_a * b
                bb += weighted_b * b
            cuda.syncthreads()
        sums[0, lane], sums[1, lane], sums[2, lane] = aa, ab, bb
        cuda.syncthreads()
        if lane < result.shape[2]:
            total = added(sums, lane)
            if is_alone(owners, s):
                result[i, k, lane] = total
            else:
                cuda.atomic.add(result, (i, k, lane), total)

    @cuda.jit
    def product(owners, starts, others, values, weights, fixed, alpha, result):
        s, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        total = cuda.local.array(steps, number)
        i, rank = owners[s], fixed.shape[2]
        for t in range(steps):
            total[t] = zero
        for e in range(starts[s], starts[s + 1]):
            for t in range(steps):
                c = lane + t * lanes
                if c < rank:
                    total[t] += values[e] * fixed[others[e], k, c]
        alone = is_alone(owners, s)
        for t in range(steps):
            c = lane + t * lanes
            if c < rank:
                if alone:
                    result[i, k, c] = total[t]
                else:
                    cuda.atomic.add(result, (i, k, c), total[t])

    @cuda.jit
    def gram(owners, starts, others, values, weights, fixed, alpha, result):
        s, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        i, rank = owners[s], fixed.shape[2]
        alone = is_alone(owners, s)
        # A lane has entries of the matrix for itself.
        for place in range(lane, rank * rank, lanes):
            a, b = place // rank, place % rank
            total = zero
            for e in range(starts[s], starts[s + 1]):
                j = others[e]
                term = fixed[j, k, a] * fixed[j, k, b]
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

    @cuda.jit
    def errors(owners, starts, others, values, weights, fixed, alpha, moving, result):
        s, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        shares = cuda.shared.array((lanes, padded), number)
        sums = cuda.shared.array((2, lanes), numba.float64)
        row = cuda.local.array(steps, number)
        load(moving, owners[s], k, lane, row)
        squares, sizes = 0.0, 0.0
        for begin in range(starts[s], starts[s + 1], lanes):
            count = min(lanes, starts[s + 1] - begin)
            multiply(row, fixed, k, others, begin, count, lane, shares)
            cuda.syncthreads()
            if lane < count:
                e = begin + lane
                predicted = added(shares, lane, fixed.shape[2])
                residual = numba.float64(predicted - values[e])
                weighted = residual
                if weights is not None:
                    weighted = residual * weights[e]
                squares += weighted * residual
                sizes += abs(weighted)
            cuda.syncthreads()
        sums[0, lane], sums[1, lane] = squares, sizes
        cuda.syncthreads()
        if lane < 2:
            result[s, k, lane] = added(sums, lane)

    return Kernels(gradient, curvature, product, gram, errors)
