"""A half-step with a lasso or a bound: the plane step on a face, and the proximal one.

As long as no entry of a row changes its sign, lasso and bound are linear: on such a
*face* the objective is quadratic, and the minimum in the plane of two moves is known.
Where that leads across a zero, the row stops there, with the entry exactly 0, and goes
on along it. The first of the two moves is the proximal step, which takes many entries
to 0 at once; a row follows it alone, at most to its end, where that is better. Both
ways the change of the objective is known exactly, and never positive.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from dmf.kernels.strips import plane_minimum, row_dots, unit_rows
from dmf.objective import Side, Terms
from dmf.solvers.base import HalfStep, Moved, Value, moved
from dmf.solvers.loss import Loss

Array = Any

# Nearly flat rows go far, but not to infinity: squares must stay in float32.
FAR = 1e18


class Memory(NamedTuple):
    """What a row remembers of its last half-step."""

    move: Array  # (p, K, c)
    curvature: Array  # (p, K): along its proximal move, per squared length; 0: unknown


class Faces(NamedTuple):
    """The face of each row, where it may go on it, and how the objective changes there.

    In *face coordinates* an entry that is bound is multiplied by its sign, so that it
    is at least 0 on the face.
    """

    sign: Array  # (p, K, c): of the entry, or the sign that it may take; 0: it stays
    bound: Array  # (p, K, c), bool: changing its sign leaves the face
    gone: Array  # (p, K, c), bool: the proximal move takes the entry to 0
    units: tuple[Array, Array]  # the proximal and the previous move, of length one
    norms: tuple[Array, Array]  # (p, K), float64
    slopes: tuple[Array, Array]  # (p, K): of the objective along the units
    loss_slopes: tuple[Array, Array]  # (p, K): of the loss alone
    stationarity: Array  # (K,): squared norm of the proximal gradient
    beyond: Array  # (p, K): what the lasso adds where the proximal move crosses 0
    curvature: Array  # (p, K): as remembered
    loss: Array  # (K,)


def proximal(half: HalfStep) -> Value:
    """Describe a half-step for penalties with a lasso or a bound."""
    loss = Loss(half)
    summed = loss.gradient(half.moving)
    look = partial(find_faces, side=half.side)
    operands = (summed, half.moving, half.counts, half.centre)
    faces = half.per_strip("direction", look, half.memory, *operands)
    if half.round == 1:
        # The scale of the rows isn't known yet: one pass more, along their gradient.
        memory = half.per_strip(
            "scale", first_memory, faces, loss.curvature(faces["units"])
        )
        faces = half.per_strip("direction", look, memory, *operands)
    return half.per_strip(
        "update",
        partial(update_on_face, side=half.side),
        half.moving,
        faces,
        loss.curvature(faces["units"]),
        half.counts,
        half.centre,
    )


def find_faces(
    memory: tuple[Array, Array] | None,
    summed: tuple[Array, Array],
    moving: Array,
    counts: Array,
    centre: Array,
    *,
    side: Side,
) -> Faces:
    """Return the faces of a strip's rows and the moves on them."""
    xp = array_namespace(moving)
    loss_gradient, loss = summed
    terms = side.terms(moving, counts, centre)
    if memory is None:
        unknown = xp.zeros(moving.shape[:2], dtype=xp.float64)
        memory = (xp.zeros_like(moving), unknown)
    previous, curvature = memory
    gradient = terms.still(loss_gradient + terms.gradient(moving))
    nothing = xp.zeros_like(moving)
    lasso = nothing if terms.lasso is None else terms.lasso + nothing
    positive = nothing > 1
    if terms.lower is not None:
        positive = xp.broadcast_to(terms.lower == 0, moving.shape)
    bound = positive | (lasso > 0)
    # On which side of 0 an entry is; at 0, where the gradient draws it, if it does.
    drawn = xp.where(xp.abs(gradient) > lasso, -xp.sign(gradient), nothing)
    sign = xp.where(moving != 0, xp.sign(moving), drawn)
    rises = (moving > 0) | (gradient + lasso < 0)
    sign = xp.where(positive, xp.astype(rises, moving.dtype), sign)
    sign = xp.where(bound, sign, nothing + 1)
    slope = xp.where(
        sign != 0, gradient + sign * xp.where(bound, lasso, nothing), nothing
    )

    known = (curvature > 0)[..., None]
    safe = xp.where(curvature > 0, curvature, 1.0 + 0 * curvature)
    length = xp.astype(xp.where(safe > 1 / FAR, 1 / safe, FAR + 0 * safe), moving.dtype)
    length = length[..., None]
    aim = sign * (moving - length * slope)
    left = known & bound & (moving != 0) & (aim <= 0)
    # Past 0, a lasso has the other sign: some entries get there, others end at 0.
    across = xp.where(left & ~positive, aim + 2 * length * lasso, nothing)
    across = xp.where(across < 0, across, nothing)
    gone = left & (across == 0)
    move = xp.where(known, -length * slope, -slope)
    move = xp.where(gone, -moving, xp.where(across < 0, sign * across - moving, move))
    stays = bound & ((moving == 0) | gone)
    last = terms.still(xp.where(stays, nothing, previous))
    units, norms = zip(*(unit_rows(xp, one) for one in (move, last)), strict=True)
    beyond = xp.sum(xp.astype(-2 * lasso * across, xp.float64), axis=-1)
    return Faces(
        sign,
        bound,
        gone,
        units,
        norms,
        (row_dots(xp, slope, units[0]), row_dots(xp, slope, units[1])),
        (row_dots(xp, loss_gradient, units[0]), row_dots(xp, loss_gradient, units[1])),
        terms.stationarity(moving, gradient),
        beyond,
        curvature,
        loss,
    )


def first_memory(faces: Faces, curvature: Array) -> Memory:
    """Return the memory of rows that haven't moved yet: the curvature they meet."""
    xp = array_namespace(curvature)
    return Memory(xp.zeros_like(faces.units[0]), curvature[..., 0])


def update_on_face(
    moving: Array,
    faces: Faces,
    curvature: Array,
    counts: Array,
    centre: Array,
    *,
    side: Side,
) -> Moved:
    """Move each row the better of the two ways, and report what that did."""
    xp = array_namespace(moving)
    terms = side.terms(moving, counts, centre)
    first, second = faces.units
    pairs = ((first, first), (first, second), (second, second))
    ridge = xp.stack([terms.curvature(a, b) for a, b in pairs], axis=-1)
    whole = curvature + ridge
    planar, planar_lengths, planar_change = _in_plane(moving, faces, whole)
    line, line_length, line_change = _along_proximal(moving, faces, whole, terms)
    on_line = line_change < planar_change
    factor = xp.where(on_line[..., None], line, planar)
    change = xp.where(on_line, line_change, planar_change)
    downhill = change < 0  # otherwise rounding is all there is: stay
    factor = xp.where(downhill[..., None], factor, moving)
    if terms.lower is not None:
        factor = xp.where(factor > terms.lower, factor, terms.lower)
    lengths = [
        xp.where(downhill, xp.where(on_line, a, b), 0 * a)
        for a, b in zip((line_length, 0 * line_length), planar_lengths, strict=True)
    ]
    # Where nothing curves (no entries at all), a step that reaches every zero.
    size = faces.norms[0]
    guess = 1e-3 * xp.where(
        faces.curvature > 0, faces.curvature, size / _length(xp, moving)
    )
    seen = xp.where(whole[..., 0] > 0, whole[..., 0], guess)
    move = factor - moving
    return moved(
        moving,
        move,
        side=side,
        terms=terms,
        counts=counts,
        loss_before=faces.loss,
        change=xp.sum(_quadratic(faces.loss_slopes, curvature, *lengths), axis=0),
        gradient=faces.stationarity,
        in_plane=xp.sum(xp.astype(lengths[1] != 0, xp.float64), axis=0),
        factor=factor,
        memory=Memory(move, xp.where(size > 0, seen, faces.curvature)),
    )


def _in_plane(
    moving: Array, faces: Faces, curvature: Array
) -> tuple[Array, tuple[Array, Array], Array]:
    """Go to the plane's minimum but not across a zero; then along the zero met first.

    Return the rows, the lengths along the two units, and the objective's change.
    """
    xp = array_namespace(moving)
    tolerance = 100 * float(xp.finfo(moving.dtype).eps)
    c11, c12, c22 = (curvature[..., k] for k in range(3))
    b1, b2 = faces.slopes
    first, second = (faces.sign * unit for unit in faces.units)
    x, y = plane_minimum((b1, b2), (c11, c12, c22), tolerance)
    far = xp.sqrt(x * x + y * y) / FAR
    far = xp.where(far > 1, far, 1.0 + 0 * far)
    x, y = x / far, y / far

    def toward(x: Array, y: Array) -> Array:
        x, y = (xp.astype(one, moving.dtype)[..., None] for one in (x, y))
        return x * first + y * second

    point, share, zero, hit = _advance(
        xp, faces, moving, faces.sign * moving, toward(x, y)
    )
    x, y = share * x, share * y
    # Along this direction the entry that was hit stays at 0, and so must all others.
    ex = xp.sum(xp.astype(xp.where(hit, second, 0 * second), xp.float64), axis=-1)
    ey = -xp.sum(xp.astype(xp.where(hit, first, 0 * first), xp.float64), axis=-1)
    size = xp.sqrt(ex * ex + ey * ey)
    size = xp.where(size > 0, size, 1.0 + 0 * size)
    ex, ey = ex / size, ey / size
    slide = toward(ex, ey)
    moves = xp.abs(slide) > tolerance * (xp.abs(first) + xp.abs(second))
    slope = (b1 + c11 * x + c12 * y) * ex + (b2 + c12 * x + c22 * y) * ey
    curved = c11 * ex * ex + 2 * c12 * ex * ey + c22 * ey * ey
    alive = curved > tolerance * (c11 * ex * ex + c22 * ey * ey)
    alive = alive & ~xp.any(zero & moves, axis=-1)
    tau = xp.where(
        alive, -slope / xp.where(alive, curved, 1.0 + 0 * curved), 0 * curved
    )
    tau = xp.where(xp.abs(tau) > FAR, 0 * tau, tau)
    ex, ey = tau * ex, tau * ey
    slide = xp.where(zero, 0 * slide, toward(ex, ey))
    point, share, _, _ = _advance(xp, faces, moving, point, slide)
    x, y = x + share * ex, y + share * ey
    return faces.sign * point, (x, y), _quadratic(faces.slopes, curvature, x, y)


def _along_proximal(
    moving: Array, faces: Faces, curvature: Array, terms: Terms
) -> tuple[Array, Array, Array]:
    """Follow the proximal move alone, at most to its end, where many entries are 0.

    Return the rows, the length along the move's unit, and the objective's change.
    """
    xp = array_namespace(moving)
    epsilon = float(xp.finfo(moving.dtype).eps)
    size, slope, curved = faces.norms[0], faces.slopes[0], curvature[..., 0]
    safe = xp.where(size > 0, size, 1.0 + 0 * size)
    # The chord of the lasso lies above it, and meets it at the end.
    chord = slope + faces.beyond / safe
    flat = xp.astype(slope < 0, xp.float64)  # downhill without end: to the end
    share = -chord / (xp.where(curved > 0, curved, 1.0 + 0 * curved) * safe)
    share = xp.where(curved > 0, share, flat)
    share = xp.where(share > 0, share, 0 * share)
    share = xp.where(share < 1, share, 1.0 + 0 * share)
    # Before a row's curvature is known, the move has no end.
    share = xp.where(faces.curvature > 0, share, 0 * share)
    length = share * size
    line = moving + xp.astype(length, moving.dtype)[..., None] * faces.units[0]
    # Rounding is no change of sign.
    tiny = xp.abs(line) <= 4 * epsilon * xp.abs(moving)
    ended = faces.gone & (share >= 1)[..., None]
    line = xp.where(ended | (faces.bound & tiny), 0 * line, line)
    change = _quadratic(faces.slopes, curvature, length, 0 * length)
    if terms.lasso is not None:
        crossed = xp.where(faces.sign * line < 0, xp.abs(line), 0 * line)
        crossed = xp.where(faces.bound, terms.lasso * crossed, 0 * line)
        change = change + 2 * xp.sum(xp.astype(crossed, xp.float64), axis=-1)
    return line, length, change


def _advance(
    xp: Any, faces: Faces, start: Array, point: Array, move: Array
) -> tuple[Array, Array, Array, Array]:
    """Go along a move in face coordinates, at most to its end or to the first zero.

    `start` is where the row was before all its moves: the entries of `point` carry the
    rounding of that.

    Return the point, the share of the move that was made, what became 0, and which
    entry did so first.
    """
    epsilon = float(xp.finfo(point.dtype).eps)
    falls = faces.bound & (move < 0)
    endless = xp.full_like(point, xp.inf)
    when = xp.where(falls, point / xp.where(falls, -move, endless), endless)
    first = xp.min(when, axis=-1)
    stopped = first <= 1
    share = xp.where(stopped, first, xp.ones_like(first))
    numbers = xp.arange(point.shape[-1])
    hit = stopped[..., None] & (numbers == xp.argmin(when, axis=-1)[..., None])
    end = point + share[..., None] * move
    # A move that leads to a zero ends on it: what rounding leaves of an entry would be
    # met at once by the next move, and stop it.
    zero = hit | (falls & (end <= 16 * epsilon * (xp.abs(start) + point)))
    return xp.where(zero, 0 * end, end), xp.astype(share, xp.float64), zero, hit


def _quadratic(
    slopes: tuple[Array, Array], curvature: Array, x: Array, y: Array
) -> Array:
    """Return the change of a quadratic at lengths x and y along the two units."""
    c11, c12, c22 = (curvature[..., k] for k in range(3))
    linear = slopes[0] * x + slopes[1] * y
    return linear + 0.5 * (c11 * x * x + 2 * c12 * x * y + c22 * y * y)


def _length(xp: Any, strip: Array) -> Array:
    size = xp.sqrt(row_dots(xp, strip, strip))
    return xp.where(size > 0, size, 1.0 + 0 * size)
