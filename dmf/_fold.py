"""Factors of new rows and columns, and starts from former fits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmf._split import part_at, part_without_held_out
from dmf.containers import (
    check_continues,
    check_same_labels,
    unwrap_pair,
)
from dmf.engine.arrays import concatenated, factor_of, offsets_of
from dmf.engine.fold import fold_in as fold_in_engine
from dmf.engine.kinds import gpu_for, is_dask, on_host
from dmf.engine.losses import insisting
from dmf.engine.runner import Runner, choose_runner
from dmf.history import History
from dmf.init import GivenStart
from dmf.labels import Labels
from dmf.objective import Objective, Side
from dmf.offsets import COLUMNS, Role, carrier
from dmf.penalties import Penalty, Ridge, Sum
from dmf.result import Factorization
from dmf.status import Status
from dmf.validation import check_mask, check_matrix

if TYPE_CHECKING:
    from distributed import Client

    from dmf._candidates import Settings

Array = Any
SIDES = (("rows", "columns"), ("columns", "rows"))
FOLDING = "while {} were folded in"


def fold_in(
    fit: Factorization,
    *,
    rows: Array | None = None,
    columns: Array | None = None,
    mask: Array | None = None,
    client: Client | None = None,
) -> Factorization:
    """Return the model of new rows (or columns); see `Factorization.fold_in`."""
    if (rows is None) == (columns is None):
        msg = "give either rows= or columns=, the new part of X"
        raise TypeError(msg)
    axis, X = (0, rows) if columns is None else (1, columns)
    own, other = SIDES[axis]
    X, mask, labels = unwrap_pair(X, mask)
    shape = check_matrix(own, X)
    if shape[axis] == 0:
        msg = f"{own} has shape {shape}; give at least one new {own[:-1]}"
        raise ValueError(msg)
    if shape[1 - axis] != fit.shape[1 - axis]:
        msg = (
            f"{own} has shape {shape}, but the model has {fit.shape[1 - axis]} {other};"
            f" new {own} need the {other} that were fitted"
        )
        raise ValueError(msg)
    if mask is not None:
        check_mask(X, mask)
    if fit.penalty[axis].smooth:
        msg = (
            f"new {own} can't be folded in one by one, because Smooth ties them to "
            f"their neighbours; fit the grown matrix with start=this model"
        )
        raise ValueError(msg)
    check_same_labels(labels, fit.labels, (1 - axis,))
    runner = choose_runner(client, gpu_for(X))
    folded = partial(_folded, fit, X, mask, axis, runner)
    return replace(
        insisting(runner.session, folded, FOLDING.format(own)), labels=labels
    )


def _folded(
    fit: Factorization,
    X: Array,
    mask: Array | None,
    axis: int,
    runner: Runner,
) -> Factorization:
    objective = objective_of(fit)
    roles = [side.roles for side in objective.sides]
    new: list[Any] = [None, None]
    factors = [columns_of(fit, k, roles[k]) for k in (0, 1)]
    factors[axis] = _blank(objective.sides[axis], X.shape[axis], _level(fit, axis))
    levels = tuple(_level(fit, k) for k in (0, 1))
    start = GivenStart((factors[0], factors[1]), (levels[0], levels[1]))
    data, state = fold_in_engine(X, mask, start, objective, axis, runner)
    lazy = is_dask(X)
    factor = factor_of(data, state, axis, fit.rank, lazy, runner)
    column = objective.sides[axis].offset
    if column is not None and "offset" in roles[axis]:
        side = objective.sides[axis]
        new[axis] = offsets_of(data, state, axis, side, lazy, runner)
    parts: dict[str, Any] = (
        {"W": factor, "row_offsets": new[0]}
        if axis == 0
        else {"H": factor.T, "column_offsets": new[1]}
    )
    return replace(
        fit,
        **parts,
        history=History([]),
        status=Status("folded_in", 0),
        objectives=(),
        certificate=None,
    )


def start_from(
    fit: Any,
    X: Array,
    mask: Array | None,
    labels: Labels | None,
    rank: int,
    settings: Settings,
) -> GivenStart:
    """Return a fit's factors as a start, with those of what X has grown by."""
    if not isinstance(fit, Factorization):
        msg = f"start must be a dmf.Factorization, got {fit!r}"
        raise TypeError(msg)
    if fit.rank != rank:
        msg = (
            f"start has rank {fit.rank}, but rank is {rank}; give rank={fit.rank}, or "
            "no start"
        )
        raise ValueError(msg)
    check_continues(labels, fit.labels, "X")
    fit = grown(fit, X, mask, settings.validation, settings.client)
    offsets = settings.offsets
    kept = carrier(offsets)
    levels = [0.0, 0.0]
    if kept is not None:
        levels[kept] = fit.offset
    factors = [
        columns_of(fit, axis, COLUMNS[offsets][axis], level=levels[axis])
        for axis in (0, 1)
    ]
    return GivenStart((factors[0], factors[1]), (levels[0], levels[1]))


def grown(
    fit: Factorization,
    X: Array,
    mask: Array | None = None,
    validation: Any = None,
    client: Client | None = None,
) -> Factorization:
    """Return the model of a matrix that has grown by rows and columns at its ends.

    What is new is folded in; what was there stays as it is.

    Parameters
    ----------
    fit : Factorization
    X, mask : arrays, shape (m, n)
    validation : Share, array or None
        As `dmf.observed.observe` takes it: new factors don't see what is held out.
    client : distributed.Client, optional

    Raises
    ------
    ValueError
        X has fewer rows or columns.
    """
    if fit.shape[0] > X.shape[0] or fit.shape[1] > X.shape[1]:
        msg = (
            f"start is of a matrix of shape {fit.shape}, but X has shape "
            f"{tuple(X.shape)}; X may only have grown by rows and columns at its ends"
        )
        raise ValueError(msg)
    for axis in (1, 0):
        fit = _grown(fit, X, mask, validation, axis, client)
    return fit


def _grown(
    fit: Factorization,
    X: Array,
    mask: Array | None,
    validation: Any,
    axis: int,
    client: Client | None,
) -> Factorization:
    """Return a fit with factors for the rows (or columns) that X has grown by."""
    length = fit.shape[axis]
    if X.shape[axis] == length:
        return fit
    # Columns come first, against the rows that the fit knows; then rows see them all.
    cut = (slice(None, fit.shape[0]), slice(length, None))
    cut = cut if axis == 1 else (slice(length, None), slice(None))
    own_mask = None if mask is None else part_at(mask, cut)
    runner = choose_runner(client, gpu_for(X))

    def folded() -> Factorization:
        part = part_without_held_out(X, validation, cut)
        return _folded(fit, part, own_mask, axis, runner)

    new = insisting(runner.session, folded, FOLDING.format(SIDES[axis][0]))
    joined: dict[str, Any] = {}
    name, offsets = (("W", "row_offsets"), ("H", "column_offsets"))[axis]
    joined[name] = concatenated([getattr(fit, name), getattr(new, name)], axis)
    if getattr(fit, offsets) is not None:
        joined[offsets] = concatenated(
            [getattr(fit, offsets), getattr(new, offsets)], 0
        )
    return replace(fit, **joined)


def columns_of(
    fit: Factorization, axis: int, roles: tuple[Role, ...], level: float | None = None
) -> Array:
    """Return a factor, shape (length, c), with the columns of the given roles."""
    factor = on_host(fit.W) if axis == 0 else on_host(fit.H).T
    if not roles:
        return factor
    level = _level(fit, axis) if level is None else level
    offsets = fit.row_offsets if axis == 0 else fit.column_offsets
    ones = factor[:, :1] * 0 + 1
    columns = {"one": ones, "tied": ones * factor.dtype.type(level)}
    columns["offset"] = columns["tied"]
    if offsets is not None:
        columns["offset"] = columns["tied"] + on_host(offsets)[:, None]
    return concatenated([factor, *(columns[role] for role in roles)], 1)


def _blank(side: Side, length: int, level: float) -> Array:
    """Return a factor of zeros, with the columns beside it."""
    blank = np.zeros((length, side.width))
    for role, column in zip(side.roles, range(side.rank, side.width), strict=True):
        blank[:, column] = 1.0 if role == "one" else level
    return blank


def _level(fit: Factorization, axis: int) -> float:
    return fit.offset if carrier(fit.offsets) == axis else 0.0


def objective_of(fit: Factorization) -> Objective:
    """Return what a row is fitted by, on its own: all but what ties it to others."""
    W, H = (
        Side(
            (_separate(fit.penalty[k]),),
            (fit.rank,),
            fit.rank,
            COLUMNS[fit.offsets][k],
            fit.offset_penalty or Ridge(0.0),
        )
        for k in (0, 1)
    )
    return Objective((W, H), fit.unobserved_weight)


def _separate(penalty: Penalty) -> Penalty:
    """Return what a penalty says about a row on its own: all but its smoothness."""
    parts = penalty.parts if isinstance(penalty, Sum) else (penalty,)
    return Sum(tuple(part for part in parts if not part.smooth))
