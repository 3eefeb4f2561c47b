"""Checks of what a fit is asked to do, before any task is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from inspect import signature
from os import PathLike
from typing import TYPE_CHECKING, Any

from dmf._candidates import Callback, Settings
from dmf._checkpoint import check_checkpoint
from dmf.engine.endings import Rules
from dmf.engine.kinds import check_kinds, gpu_for
from dmf.holdout import Share
from dmf.labels import numbers_of
from dmf.offsets import check_offsets
from dmf.penalties import Penalty, Ridge, Smooth
from dmf.solvers import NormalizedGradient, Solver
from dmf.validation import (
    check_bool,
    check_integer,
    check_mask,
    check_matrix,
    check_real,
)

if TYPE_CHECKING:
    from distributed import Client

    from dmf.labels import Labels

Array = Any


def check_settings(
    X: Array,
    *,
    labels: Labels | None = None,
    mask: Array | None = None,
    offsets: str = "none",
    offset_penalty: Any = "auto",
    unobserved_weight: float = 0.0,
    validation: Any = None,
    patience: int = 10,
    solver: Solver | None = None,
    max_rounds: int = 200,
    tol: float = 1e-4,
    check_every: int = 1,
    seed: int = 0,
    client: Client | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    drop_after: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int | timedelta | None = None,
    resume: bool = False,
    stream: bool | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> Settings:
    """Return what all candidates of a fit have in common, or refuse it."""
    if mask is not None:
        check_mask(X, mask)
    solver = NormalizedGradient() if solver is None else solver
    check_solver(solver)
    seed = check_integer("seed", seed, at_least=0)
    return Settings(
        mask=mask,
        offsets=check_offsets(offsets),
        offset_penalty=check_offset_penalty(offset_penalty),
        unobserved_weight=check_share("unobserved_weight", unobserved_weight),
        validation=check_validation(X, validation, seed, labels),
        solver=solver,
        rules=Rules(
            max_rounds=check_integer("max_rounds", max_rounds, at_least=1),
            tol=check_real("tol", tol),
            check_every=check_integer("check_every", check_every, at_least=1),
            patience=check_integer("patience", patience, at_least=1),
            drop_after=drop_after,
        ),
        seed=seed,
        client=client,
        callbacks=check_callbacks(callbacks),
        progress=progress,
        checkpoint=check_checkpoint(checkpoint, checkpoint_every, resume),
        stream=stream if stream is None else check_bool("stream", stream),
        gpu=gpu_for(X, device, precision),
    )


# What sweep and Ensemble.fit pass on.
OPTIONS = tuple(
    name
    for name in signature(check_settings).parameters
    if name not in ("X", "labels", "mask", "validation", "drop_after")
)


def check_options(options: dict[str, Any], function: str) -> None:
    """Refuse options that `factorize` doesn't have, or that have no place here."""
    for name in options:
        if name not in (*OPTIONS, "validation"):
            msg = (
                f"{function} has no option {name!r}; besides its own, it takes "
                f"{', '.join(OPTIONS)}"
            )
            raise TypeError(msg)


def check_penalty(penalty: Any) -> tuple[Any, Any]:
    """Return the penalties for W and for H, or refuse them."""
    pair = penalty if isinstance(penalty, tuple) else (penalty, penalty)
    if len(pair) != 2 or not all(_is_penalty(one) for one in pair):
        msg = (
            'penalty must be a penalty such as dmf.Ridge(0.1), None, "auto", or a pair '
            f"of them (for W, for H); got {penalty!r}"
        )
        raise TypeError(msg)
    return pair[0], pair[1]


def _is_penalty(one: Any) -> bool:
    if isinstance(one, str):
        return one == "auto"
    return one is None or isinstance(one, Penalty)


def check_offset_penalty(penalty: Any) -> Any:
    """Return the penalty on the offsets, or refuse it."""
    is_auto = isinstance(penalty, str) and penalty == "auto"
    if not (is_auto or penalty is None or isinstance(penalty, Ridge)):
        msg = f'offset_penalty must be a dmf.Ridge, None or "auto", got {penalty!r}'
        raise TypeError(msg)
    return penalty


def check_share(name: str, value: Any) -> float:
    """Return a number in [0, 1], or refuse it."""
    share = check_real(name, value)
    if share > 1:
        msg = f"{name} must be at most 1, got {value}"
        raise ValueError(msg)
    return share


def check_validation(
    X: Array, validation: Any, seed: int, labels: Labels | None
) -> Any:
    """Return what is held out: a `Share`, an array that fits X, or None."""
    if validation is None:
        return None
    if hasattr(validation, "shape") and validation.shape != ():
        shape = check_matrix("validation", validation)
        if shape != tuple(X.shape):
            msg = (
                f"validation has shape {shape}, but X has shape {tuple(X.shape)}; give "
                "an array of the shape of X, or the share to hold out"
            )
            raise ValueError(msg)
        check_kinds(X, validation, "validation")
        return validation
    share = check_real("validation", validation, positive=True)
    if share >= 1:
        msg = f"validation must be below 1, got {validation}; 0.1 holds out a tenth"
        raise ValueError(msg)
    return Share(share, seed, numbers_of(labels))


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(callable(callback) for callback in listed):
        msg = (
            "callbacks must be a list of functions that take a dmf.Record, "
            f"got {callbacks!r}"
        )
        raise TypeError(msg)
    return listed


def check_solver(solver: Any) -> None:
    if isinstance(solver, type) or not callable(getattr(solver, "half_step", None)):
        msg = (
            "solver must be a solver such as dmf.NormalizedGradient(), "
            "dmf.GradientDescent(0.01) or dmf.AlternatingLeastSquares(); "
            f"got {solver!r}"
        )
        raise TypeError(msg)


def check_compatible(
    shape: tuple[int, int], pairs: Sequence[tuple[Any, Any]], solver: Solver
) -> None:
    """Refuse penalties, solvers and axes that don't fit together."""
    for axis in (0, 1):
        penalties = [p[axis] for p in pairs if isinstance(p[axis], Penalty)]
        for penalty in penalties:
            # A solver from elsewhere may take whatever it is given.
            getattr(solver, "check", _take)(penalty)
            for smooth in penalty.smooth:
                _check_steps(smooth, shape[axis], axis)
        smooth = any(penalty.smooth for penalty in penalties)
        if smooth and not all(penalty.quadratic for penalty in penalties):
            given = " and ".join(repr(penalty) for penalty in penalties)
            msg = (
                "Smooth and Lasso or NonNegative can't be on one factor, got "
                f"{given} for {'WH'[axis]}; put them on different factors"
            )
            raise ValueError(msg)


def _take(penalty: Penalty) -> None:
    """Refuse nothing."""


def _check_steps(smooth: Smooth, length: int, axis: int) -> None:
    if length <= smooth.order:
        msg = (
            f"Smooth of order {smooth.order} needs at least {smooth.order + 1} "
            f"{('rows', 'columns')[axis]}, but X has {length}; use a lower order"
        )
        raise ValueError(msg)
    if isinstance(smooth.step, tuple) and len(smooth.step) != length - 1:
        msg = (
            f"Smooth has {len(smooth.step)} steps, but {'WH'[axis]} has {length} "
            f"{('rows', 'columns')[axis]}; give one step for each of the {length - 1} "
            "gaps"
        )
        raise ValueError(msg)
