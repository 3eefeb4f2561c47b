"""Coordinate descent on the quadratic of each row, where a penalty isn't a square."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from dmf.objective import Terms

Array = Any


def descend_coordinates(
    strip: Array, hessian: Array, gradient: Array, terms: Terms, sweeps: int
) -> Array:
    """Minimise each row's quadratic and its penalty, one column after the other.

    Parameters
    ----------
    strip : array, shape (p, K, c)
        Where to begin.
    hessian : array of float64, shape (p or 1, K, c, c)
        Of the loss.
    gradient : array of float64, shape (p, K, c)
        Of the loss and of the penalty's squares, at `strip`.
    terms : Terms
    sweeps : int
        Passes over the columns at most; fewer if nothing changes any more.

    Returns
    -------
    array of float64, shape (p, K, c)

    References
    ----------
    .. [1] A. Cichocki, A.-H. Phan, "Fast local algorithms for large scale nonnegative
       matrix and tensor factorizations", IEICE Trans. E92-A (2009), 708-721.
    """
    xp = array_namespace(strip)
    width = strip.shape[-1]
    rest = float(xp.finfo(strip.dtype).eps) / 4
    # Columns first: each step works on one of them for all rows.
    factor = [xp.astype(strip[..., s], xp.float64) for s in range(width)]
    slopes = xp.astype(xp.permute_dims(gradient, (2, 0, 1)), xp.float64, copy=True)
    free = [True] * width
    if terms.free is not None:
        free = [bool(terms.free[s] > 0) for s in range(width)]
    for _ in range(sweeps):
        largest = 0.0
        for s in (s for s in range(width) if free[s]):
            one = terms.column(s)
            ridge = one.ridge[..., 0]
            curvature = hessian[..., s, s] + ridge
            curved = curvature > 0
            safe = xp.where(curved, curvature, xp.ones_like(curvature))
            free_minimum = factor[s] - slopes[s, ...] / safe
            aim = one.prox(free_minimum[..., None], 1 / safe[..., None])[..., 0]
            aim = xp.where(curved, aim, factor[s])
            move = aim - factor[s]
            factor[s] = aim
            slopes += xp.permute_dims(hessian[..., s], (2, 0, 1)) * move
            slopes[s, ...] += ridge * move
            if move.size:
                size = float(xp.max(xp.abs(move)))
                largest = max(largest, size / (float(xp.max(xp.abs(aim))) + 1e-300))
        if largest <= rest:
            break
    return xp.stack(factor, axis=-1)
