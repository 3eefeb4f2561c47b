"""factorize: validate, load, run rounds, return a Factorization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmf.engine.arrays import strips_to_array
from dmf.engine.data import load
from dmf.engine.kinds import is_dask
from dmf.engine.loop import Loop, Outcome
from dmf.engine.rounds import Penalties, start_state
from dmf.engine.runner import choose_runner
from dmf.init import scale_for
from dmf.penalties import Penalty, Ridge
from dmf.progress import Progress
from dmf.result import Factorization, History, Record, Status
from dmf.solvers import NormalizedGradient, Solver
from dmf.validation import (
    check_integer,
    check_mask,
    check_matrix,
    check_rank,
    check_real,
    check_scale,
)

if TYPE_CHECKING:
    from distributed import Client

Array = Any
Callback = Callable[[Record], Any]
OnePenalty = Penalty | None

# penalty="auto": the strength of the ridge, in units of the data's standard deviation.
AUTO_STRENGTH = 0.02


def factorize(
    X: Array,
    rank: int,
    *,
    mask: Array | None = None,
    penalty: OnePenalty | tuple[OnePenalty, OnePenalty] | str = "auto",
    solver: Solver | None = None,
    restarts: int = 1,
    max_rounds: int = 200,
    tol: float = 1e-4,
    check_every: int = 1,
    seed: int = 0,
    client: Client | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
) -> Factorization:
    """Factorize a matrix with missing entries: X ≈ W H where X is observed.

    Minimises E(W, H) = ½ Σ M (X − W H)² + Ω_W(W) + Ω_H(H) by alternating half-steps on
    W and on H, block by block.

    Parameters
    ----------
    X : array, shape (m, n)
        NumPy array, scipy.sparse matrix or array of any format, Dask array of dense
        blocks, or Dask array whose blocks are scipy.sparse (its chunks are then kept).
        Real numbers; float16 and float32 are computed in float32, all others in
        float64. Missing: NaN, in dense blocks; whatever isn't stored, in sparse ones
        (a zero that is stored is an observed zero; entries stored twice are added).
    rank : int
        The number of columns of W, from 1 to min(m, n).
    mask : array, shape (m, n), optional
        True (or a weight above 0) where X is observed. Weights w ≥ 0 make the square of
        a residual count w times. For a sparse X: a sparse matrix with the same stored
        entries. Entries that are NaN in X are missing whatever the mask says.
    penalty : Ridge, None, a pair of them, or "auto", default "auto"
        On both factors, or (for W, for H). "auto" is
        ``Ridge(0.02 * std, by_count=True)``, where std is the standard deviation of the
        observed entries: it pulls predictions towards 0 by a few percent of the spread
        of X, whatever the unit and the level of X. None: no penalty.
    solver : Solver, optional
        Default `NormalizedGradient()`.
    restarts : int, default 1
        How many random starts to run; the one with the lowest objective is kept.
    max_rounds : int, default 200
        A round is a half-step on W, then one on H.
    tol : float, default 1e-4
        The fit has converged when a round changes the objective by less than this share
        of it. 0: never.
    check_every : int, default 1
        Rounds that are sent to the scheduler at once. More than 1 saves round trips to
        a cluster; convergence and callbacks then wait for the whole batch.
    seed : int, default 0
        The same seed gives the same start for any chunking, and bitwise the same
        factors for any number of threads or workers.
    client : distributed.Client, optional
        Where to run. Default: the active client, else the threads of this process. The
        factors of a Dask X stay on the cluster: use them while the client is active, or
        inside ``with client.as_current():``.
    callbacks : iterable of callables
        Each is called with every `Record`; one that returns True stops the fit.
    progress : bool, optional
        A line with round, objective, RMSE, gradient and the time left at most. Default:
        only if standard error is a terminal.

    Returns
    -------
    Factorization

    Raises
    ------
    ValueError, TypeError
        Bad input, in one sentence that names the value and the way out: before any task
        is submitted, except for values inside Dask arrays, which are checked as they
        are read.

    See Also
    --------
    impute : fill what is missing.
    MatrixFactorization : the same as a scikit-learn estimator.

    Notes
    -----
    A level that is far above the spread of X (temperatures in kelvin, ratings from 1 to
    5) takes up a component and many rounds: subtract the mean first.

    References
    ----------
    .. [1] Y. Koren, R. Bell, C. Volinsky, "Matrix factorization techniques for
       recommender systems", Computer 42 (2009), 30-37.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
    >>> X[0, 1] = np.nan
    >>> fit = dmf.factorize(X, rank=1)
    >>> bool(abs(dmf.impute(X, fit)[0, 1] - 2.0) < 0.1)
    True
    """
    shape = check_matrix("X", X)
    rank = check_rank(rank, shape)
    if mask is not None:
        check_mask(X, mask)
    solver = NormalizedGradient() if solver is None else solver
    _check_solver(solver)
    _check_penalty(penalty)
    restarts = check_integer("restarts", restarts, at_least=1)
    max_rounds = check_integer("max_rounds", max_rounds, at_least=1)
    check_every = check_integer("check_every", check_every, at_least=1)
    seed = check_integer("seed", seed, at_least=0)
    tol = check_real("tol", tol)
    callbacks = _check_callbacks(callbacks)
    runner = choose_runner(client)

    with runner.session(), ExitStack() as stack:
        reload = partial(load, X, mask, rank, runner)
        data = reload()
        check_scale(data.totals.mean_square**0.5, data.dtype)
        penalties = _resolve(penalty, data.totals.deviation)
        scale = scale_for(data.totals.mean_square, rank)
        bar = stack.enter_context(Progress(progress, max_rounds, restarts))
        best: Outcome | None = None
        objectives: list[float] = []
        for start in range(restarts):
            bar.begin(start)
            loop = Loop(
                data,
                reload,
                partial(start_state, rank=rank, seed=seed, start=start, scale=scale),
                solver,
                penalties,
                runner,
                max_rounds=max_rounds,
                tol=tol,
                check_every=check_every,
                watch=partial(_watch, (bar.show, *callbacks)),
            )
            try:
                outcome = loop.run()
                status = outcome.status
                objectives.append(outcome.objective)
                # Only the best factors are kept: they may be large.
                best = outcome if best is None else min(best, outcome, key=_rank_of)
            except KeyboardInterrupt:  # before the start was there
                if best is None:
                    raise
                status = Status("interrupted", 0)
            data = loop.data  # loaded anew if workers were lost
            cut_short = status.code in ("interrupted", "stopped")
            if cut_short:
                break
        assert best is not None
        W, Ht = (
            strips_to_array(
                data, best.state.strips(axis), axis, rank, is_dask(X), runner
            )
            for axis in (0, 1)
        )
    return Factorization(
        W=W,
        H=Ht.T,
        history=History(best.records, best.initial_objective),
        # A fit that was cut short says so, also when an earlier start was the better.
        status=replace(best.status, code=status.code) if cut_short else best.status,
        penalty=penalties,
        solver=solver,
        seed=seed,
        objectives=tuple(objectives),
    )


def _watch(callbacks: tuple[Callback, ...], record: Record) -> bool:
    # Every callback sees every record, also when an earlier one has said stop.
    answers = [callback(record) for callback in callbacks]
    return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)


def _rank_of(outcome: Outcome) -> float:
    """Order outcomes by their objective; one that never finished a round comes last."""
    return math.inf if math.isnan(outcome.objective) else outcome.objective


def _resolve(penalty: Any, deviation: float) -> Penalties:
    """Return the penalties for W and for H."""
    if isinstance(penalty, str):
        penalty = Ridge(AUTO_STRENGTH * deviation, by_count=True)
    pair = penalty if isinstance(penalty, tuple) else (penalty, penalty)
    W, H = (Ridge(0.0) if one is None else one for one in pair)
    return W, H


def _check_penalty(penalty: Any) -> None:
    pair = penalty if isinstance(penalty, tuple) else (penalty, penalty)
    fits = len(pair) == 2 and all(isinstance(one, Ridge | None) for one in pair)
    if not fits and not (isinstance(penalty, str) and penalty == "auto"):
        msg = (
            'penalty must be a dmf.Ridge, None, "auto", or a pair (for W, for H) of '
            f"the first two; got {penalty!r}"
        )
        raise TypeError(msg)


def _check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(callable(callback) for callback in listed):
        msg = (
            "callbacks must be a list of functions that take a dmf.Record, "
            f"got {callbacks!r}"
        )
        raise TypeError(msg)
    return listed


def _check_solver(solver: Any) -> None:
    if isinstance(solver, type) or not callable(getattr(solver, "half_step", None)):
        msg = (
            "solver must be a solver such as dmf.NormalizedGradient(), "
            "dmf.GradientDescent(0.01) or dmf.AlternatingLeastSquares(); "
            f"got {solver!r}"
        )
        raise TypeError(msg)
