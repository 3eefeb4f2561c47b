"""Coordinate descent on the quadratic of each row, where a penalty isn't a square.

It works on strips, with Hessians at hand: no block is read.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, is_numpy_namespace

from dmf.device import to_host

Array = Any


def descend_coordinates(
    strip: Array,
    hessian: Array,
    gradient: Array,
    ridge: Array,
    lasso: Array | None,
    lower: Array | None,
    free: Array | None,
    sweeps: int,
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
    ridge, lasso, lower, free : arrays that broadcast to the strip, or None
        As in `dmf.objective.Terms`.
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
    whole: list[Any] = [
        xp.astype(xp.broadcast_to(given, strip.shape), xp.float64)
        for given in (
            ridge,
            xp.zeros_like(ridge) if lasso is None else lasso,
            xp.full_like(ridge, -xp.inf) if lower is None else lower,
            xp.ones_like(ridge) if free is None else free,
        )
    ]
    # Below this share of itself, a change is rounding.
    rest = float(xp.finfo(strip.dtype).eps) / 4
    strip = xp.astype(strip, xp.float64, copy=True)
    slopes = xp.astype(gradient, xp.float64, copy=True)
    if is_numpy_namespace(xp):
        # Row by row, compiled: a row stays in registers, and stops when it has settled.
        from dmf.kernels import rows

        compiled: Any = rows.descend
        # In one layout, so that one function is compiled.
        strip, slopes, hessian, *whole = (
            xp.require(part, requirements=["C", "W"])
            for part in (strip, slopes, hessian, *whole)
        )
        compiled(strip, hessian, slopes, *whole, sweeps, rest)
        return strip
    return _descend(xp, strip, hessian, slopes, *whole, sweeps, rest)


def _descend(
    xp: Any,
    strip: Array,
    hessian: Array,
    slopes: Array,
    *limits: Any,
) -> Array:
    """Do the same for all rows at once, in any namespace."""
    ridge, lasso, lower, free, sweeps, rest = limits
    for _ in range(sweeps):
        before = xp.asarray(strip, copy=True)
        for s in range(strip.shape[-1]):
            curvature = hessian[..., s, s] + ridge[..., s]
            moves = (curvature > 0) & (free[..., s] > 0)
            safe = xp.where(moves, curvature, xp.ones_like(curvature))
            aim = strip[..., s] - slopes[..., s] / safe
            size = xp.abs(aim) - lasso[..., s] / safe
            aim = xp.where(size > 0, xp.sign(aim) * size, xp.zeros_like(aim))
            aim = xp.where(aim > lower[..., s], aim, lower[..., s])
            aim = xp.where(moves, aim, strip[..., s])
            # Where nothing curves, nothing but the lasso acts.
            alone = (curvature <= 0) & (lasso[..., s] > 0) & (free[..., s] > 0)
            move = xp.where(alone, xp.zeros_like(aim), aim) - strip[..., s]
            strip[..., s] += move
            slopes += hessian[..., s] * move[..., None]
            slopes[..., s] += ridge[..., s] * move
        changed = xp.abs(strip - before)
        if not to_host(xp.any(changed > rest * xp.max(xp.abs(strip)))):
            break
    return strip
