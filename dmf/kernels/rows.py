"""Coordinate descent on rows, compiled with Numba: see `dmf.kernels.coordinates`."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def descend(strip, hessian, slopes, ridge, lasso, lower, free, sweeps, rest):
    """Move the rows of a strip, and their slopes, in place."""
    p, candidates, width = strip.shape
    for i in range(p):
        own = i if hessian.shape[0] > 1 else 0
        for k in range(candidates):
            for _ in range(sweeps):
                largest, size = 0.0, 0.0
                for s in range(width):
                    curvature = hessian[own, k, s, s] + ridge[i, k, s]
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
                            slopes[i, k, t] += hessian[own, k, s, t] * move
                        slopes[i, k, s] += ridge[i, k, s] * move
                if largest <= rest * size:
                    break
