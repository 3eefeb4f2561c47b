"""Kernels on strips of the moving factor: where its rows may go, and the move itself.

These are the passes over the factors between the passes over the data. For NumPy and
CuPy they are compiled (`dmf.kernels.rows`, `dmf.kernels.cuda_rows`); the formulas here
are for any array-API namespace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import (
    array_namespace,
    is_cupy_namespace,
    is_numpy_namespace,
)

Array = Any
Terms = Any  # dmf.objective.Terms

# Moves -> how many second derivatives a plane of so many moves has.
PAIRS = {1: 1, 2: 3}


class Metric(NamedTuple):
    """The curvature by which the gradients of rows are divided: w_i A + λ_i for row i.

    A is the same for all rows, and its largest eigenvalue is 1.
    """

    vectors: Array  # (K, c, c): the eigenvectors of A, in columns
    values: Array  # (K, c): its eigenvalues
    weight: Array  # (p,): w
    ridge: Array  # (p, K): λ
    least: float  # share of w + λ below which a curvature is taken for rounding


class Directions(NamedTuple):
    """Where the rows of a strip may go, and how the objective begins to change there.

    The moves are −g, or −g divided by a metric, and, for a plane, the previous move s,
    each row scaled to length one: however large or small the gradients are, kernels see
    numbers near one. `norms` holds the lengths that were divided out.
    """

    units: tuple[Array, ...]  # k arrays (p, K, c)
    norms: Array  # (p, K, k), float64
    loss_slopes: Array  # (p, K, k): derivatives of the loss along the units
    penalty_slopes: Array  # (p, K, k)
    penalty_curvature: Array  # (p, K, k(k+1)/2)
    penalty: Array  # (K,): of the rows as they are
    gradient: Array  # (K,): squared norm of the objective's gradient


class Advanced(NamedTuple):
    """A strip after its move, and sums over its rows, float64, shape (K,)."""

    factor: Array
    move: Array
    penalty: Array
    move_square: Array  # of the factor's own columns, as the next two
    factor_square: Array
    zeros: Array  # entries that are exactly 0


def directions(
    gradient: Array,
    moving: Array,
    last: Array | None,
    terms: Terms,
    metric: Metric | None = None,
    *,
    moves: int,
) -> Directions:
    """Return the directions of a strip: against its gradient, and of its last move.

    Parameters
    ----------
    gradient : array, shape (p, K, c)
        Of the loss.
    moving : array, shape (p, K, c)
    last : array, shape (p, K, c), or None
        The previous move; None in the first round.
    terms : Terms
        The penalty, a quadratic one.
    metric : Metric, optional
        What −g is divided by.
    moves : {1, 2}
    """
    compiled = _compiled_for(array_namespace(moving))
    find = plain_directions if compiled is None else compiled.directions
    return find(gradient, moving, last, terms, metric, moves=moves)


def _compiled_for(xp: Any) -> Any:
    """Return the module with the compiled kernels of a namespace; None: it has none."""
    if is_numpy_namespace(xp):
        from dmf.kernels import rows

        return rows
    if is_cupy_namespace(xp):
        from dmf.kernels import cuda_rows

        return cuda_rows
    return None


def plain_directions(
    gradient: Array,
    moving: Array,
    last: Array | None,
    terms: Terms,
    metric: Metric | None = None,
    *,
    moves: int,
) -> Directions:
    """Return what `directions` does, by formulas on arrays."""
    xp = array_namespace(moving)
    pull = terms.gradient(moving)
    last = xp.zeros_like(moving) if last is None else last
    slope = terms.still(gradient + pull)
    # In float64: the squares of tiny or huge entries would leave float32.
    wide = xp.astype(slope, xp.float64)
    first = -slope if metric is None else divided_by(-slope, metric)
    candidates = [first, last][:moves]
    units, norms = zip(*(unit_rows(xp, move) for move in candidates), strict=True)
    pairs = [(a, b) for k, a in enumerate(units) for b in units[k:]]

    def slopes(rows: Array) -> Array:
        return xp.stack([row_dots(xp, rows, unit) for unit in units], axis=-1)

    return Directions(
        units,
        xp.stack(norms, axis=-1),
        slopes(gradient),
        slopes(pull),
        xp.stack([terms.curvature(a, b) for a, b in pairs], axis=-1),
        terms.value(moving),
        xp.sum(row_dots(xp, wide, wide), axis=0),
    )


def divided_by(rows: Array, metric: Metric) -> Array:
    """Return the rows of a strip divided by a metric."""
    xp = array_namespace(rows)
    vectors, values = metric.vectors, metric.values
    weight, ridge = metric.weight[:, None, None], metric.ridge[..., None]
    # Where next to nothing curves, the slope is rounding: it shall not grow.
    least = metric.least * (weight + ridge)
    least = xp.where(least > 0, least, xp.ones_like(least))
    curvature = xp.maximum(weight * values + ridge, least)
    result = through(through(rows, vectors) / curvature, xp.matrix_transpose(vectors))
    # Columns that never move, and those beyond a candidate's rank, have no slope.
    return xp.where(rows == 0, xp.zeros_like(result), result)


def through(strip: Array, matrix: Array) -> Array:
    """Return F A of each candidate for a strip F, shape (p, K, c)."""
    xp = array_namespace(strip)
    turned = xp.permute_dims(strip, (1, 0, 2)) @ xp.astype(matrix, strip.dtype)
    return xp.permute_dims(turned, (1, 0, 2))


def advance(
    moving: Array, units: tuple[Array, ...], strides: Array, terms: Terms, *, rank: int
) -> Advanced:
    """Move each row of a strip by its strides along the units.

    Parameters
    ----------
    moving : array, shape (p, K, c)
    units : tuple of one or two arrays, shape (p, K, c)
    strides : array of float64, shape (p, K, k)
    terms : Terms
    rank : int
        The factor's own columns, the first of the c.
    """
    compiled = _compiled_for(array_namespace(moving))
    move = plain_advance if compiled is None else compiled.advance
    return move(moving, units, strides, terms, rank=rank)


def plain_advance(
    moving: Array, units: tuple[Array, ...], strides: Array, terms: Terms, *, rank: int
) -> Advanced:
    """Return what `advance` does, by formulas on arrays."""
    xp = array_namespace(moving)
    strides = xp.astype(strides, moving.dtype)
    move = sum(strides[..., k, None] * unit for k, unit in enumerate(units))
    factor = moving + move
    return Advanced(factor, move, terms.value(factor), *sizes(factor, move, rank))


def plane_lengths(
    slopes: tuple[Array, Array], curvatures: tuple[Array, Array], tolerance: float
) -> Array:
    """Return the lengths along two moves to the minimum of their plane.

    Parameters
    ----------
    slopes : two arrays of float64, shape (..., 2)
        Of the loss and of the penalty.
    curvatures : two arrays of float64, shape (..., 3)
    tolerance : float
        A system whose determinant is below this share is degenerate: then the first
        move is followed alone.

    Returns
    -------
    array of float64, shape (..., 2)
    """
    xp = array_namespace(slopes[0])
    if is_numpy_namespace(xp) and slopes[0].ndim == 3:
        from dmf.kernels import rows

        return rows.plane_lengths(slopes, curvatures, tolerance)
    b, c = slopes[0] + slopes[1], curvatures[0] + curvatures[1]
    pairs = (b[..., 0], b[..., 1]), (c[..., 0], c[..., 1], c[..., 2])
    return xp.stack(plane_minimum(*pairs, tolerance), axis=-1)


def plane_minimum(
    slopes: tuple[Array, Array], curvature: tuple[Array, Array, Array], tolerance: float
) -> tuple[Array, Array]:
    """Return what `plane_lengths` does, by formulas on arrays."""
    xp = array_namespace(slopes[0])
    b1, b2 = slopes
    c11, c12, c22 = curvature
    determinant = c11 * c22 - c12 * c12
    regular = determinant > tolerance * c11 * c22
    safe = xp.where(regular, determinant, xp.ones_like(determinant))
    first = xp.where(regular, (c12 * b2 - c22 * b1) / safe, line_minimum(b1, c11))
    second = (c12 * b1 - c11 * b2) / safe
    return first, xp.where(regular, second, xp.zeros_like(second))


def line_minimum(slopes: Array, curvature: Array) -> Array:
    """Return −b / c; 0 where there is no curvature, and so no slope either."""
    xp = array_namespace(slopes)
    curved = curvature > 0
    safe = xp.where(curved, curvature, xp.ones_like(curvature))
    return xp.where(curved, -slopes / safe, xp.zeros_like(slopes))


def change_along(slopes: Array, curvature: Array, lengths: Array) -> Array:
    """Return the change of quadratics: ⟨b, t⟩ + ½ ⟨t, C t⟩, with C by its pairs.

    Parameters
    ----------
    slopes, lengths : arrays of float64, shape (p, K, k) or (K, k)
    curvature : array of float64, shape (p, K, k(k+1)/2) or (K, k(k+1)/2)

    Returns
    -------
    array of float64, shape (K,)
        Summed over the rows, if there are any.
    """
    xp = array_namespace(slopes)
    if is_numpy_namespace(xp) and slopes.ndim == 3:
        from dmf.kernels import rows

        return rows.change_along(slopes, curvature, lengths)
    first = slopes[..., 0] * lengths[..., 0]
    second = curvature[..., 0] * lengths[..., 0] ** 2
    if lengths.shape[-1] == 2:
        first = first + slopes[..., 1] * lengths[..., 1]
        second = second + curvature[..., 2] * lengths[..., 1] ** 2
        second = second + 2 * curvature[..., 1] * lengths[..., 0] * lengths[..., 1]
    change = first + 0.5 * second
    return xp.sum(change, axis=0) if change.ndim == 2 else change


def sizes(factor: Array, move: Array, rank: int) -> tuple[Array, Array, Array]:
    """Return the squared norms of the move and of the factor, and the factor's zeros.

    All are sums over the rows and over the first `rank` columns, shape (K,).
    """
    xp = array_namespace(factor)
    own, taken = factor[:, :, :rank], move[:, :, :rank]
    # Row by row: CuPy is slow where much is added up to a few numbers.
    zeros = xp.sum(xp.astype(xp.count_nonzero(own == 0, axis=2), xp.float64), axis=0)
    taken, squares = (xp.sum(row_dots(xp, rows, rows), axis=0) for rows in (taken, own))
    return taken, squares, zeros


def unit_rows(xp: Any, move: Array) -> tuple[Array, Array]:
    """Scale rows to length one; rows of zeros stay. Return them and their lengths."""
    # In float64: the squares of tiny or huge entries would leave float32.
    wide = xp.astype(move, xp.float64, copy=False)
    length = xp.sqrt(row_dots(xp, wide, wide))
    safe = xp.where(length > 0, length, xp.ones_like(length))
    return move / xp.astype(safe, move.dtype)[..., None], length


def row_dots(xp: Any, a: Array, b: Array) -> Array:
    """Return ⟨a_i, b_i⟩ for each row (of each candidate), in float64."""
    if is_numpy_namespace(xp):
        return xp.astype(xp.vecdot(a, b), xp.float64)
    # CuPy has no vecdot: what stands for it copies both, and multiplies as many pairs
    # of matrices as there are rows.
    return xp.sum(a * b, axis=-1, dtype=xp.float64)
