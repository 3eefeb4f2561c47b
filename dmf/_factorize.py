"""factorize: validate, load, run rounds, return a Factorization."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any

from dmf._candidates import Callback, Candidate, best_of, fit_candidates
from dmf._fold import start_from
from dmf._settings import check_compatible, check_penalty, check_settings
from dmf.containers import unwrap_like, unwrap_pair
from dmf.penalties import Penalty, Ridge
from dmf.result import Factorization
from dmf.solvers import Solver
from dmf.validation import check_bool, check_integer, check_matrix, check_rank

if TYPE_CHECKING:
    from distributed import Client

Array = Any
# Rounds after which restarts of one setting tell which of them will be best.
DROP_AFTER = 8
CUT_SHORT = ("interrupted", "stopped")
OnePenalty = Penalty | str | None


def factorize(
    X: Array,
    rank: int,
    *,
    mask: Array | None = None,
    offsets: str = "none",
    penalty: OnePenalty | tuple[OnePenalty, OnePenalty] = "auto",
    offset_penalty: Ridge | str | None = "auto",
    unobserved_weight: float = 0.0,
    validation: float | Array | None = None,
    patience: int = 10,
    start: Factorization | None = None,
    solver: Solver | None = None,
    restarts: int = 1,
    drop: bool = True,
    max_rounds: int = 200,
    tol: float = 1e-4,
    check_every: int = 1,
    seed: int = 0,
    client: Client | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int | timedelta | None = None,
    resume: bool = False,
    stream: bool | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> Factorization:
    """Factorize a matrix with missing entries: X ≈ μ + b + c + W H where X is observed.

    Minimises E = ½ Σ M (X − μ − b_i − c_j − W H)² + Ω_W(W) + Ω_H(H) by alternating
    half-steps on W and on H, block by block.

    Parameters
    ----------
    X : array, shape (m, n)
        NumPy array, scipy.sparse matrix or array of any format, Dask array of dense
        blocks, or Dask array whose blocks are scipy.sparse (its chunks are then kept);
        CuPy's and `cupyx.scipy.sparse`'s of all these; a pandas DataFrame, a 2-D xarray
        DataArray, or what `from_triplets` returns.
        Real numbers; float16 and float32 are computed in float32, all others in
        float64. Missing: NaN, in dense blocks; whatever isn't stored, in sparse ones
        (a zero that is stored is an observed zero; entries stored twice are added).
    rank : int
        The number of columns of W, from 1 to min(m, n).
    mask : array, shape (m, n), optional
        True (or a weight above 0) where X is observed. Weights w ≥ 0 make the square of
        a residual count w times. For a sparse X: a sparse matrix with the same stored
        entries. Entries that are NaN in X are missing whatever the mask says.
    offsets : {"none", "global", "rows", "columns", "both"}, default "none"
        Which of μ, b_i and c_j are fitted together with W and H: none of them, μ alone,
        or μ with an offset for each row, for each column, or for both.
    penalty : Penalty, None, "auto", or a pair of them, default "auto"
        On both factors, or (for W, for H): `Ridge`, `Lasso`, `NonNegative`, `Smooth`
        and their sums. "auto" is ``Ridge(0.02 * std, by_count=True) + Ridge(4 * std *
        missing**4)``, with the standard deviation of the observed entries, and the
        share of X that is missing: a start, whatever the unit and the level of X. Data
        with little noise do better with less of it, noisy ones with more; `sweep` finds
        out. None: no penalty.
    offset_penalty : Ridge, None, or "auto", default "auto"
        On the offsets of rows and columns, around their mean. "auto" is ``Ridge(2)``: a
        row with two entries gets half of the offset that they call for.
    unobserved_weight : float, default 0.0
        α in [0, 1]. 0: what is unobserved is missing. 1: every entry that a sparse X
        doesn't store is an observed zero (counts of words, say). Between: it is a zero
        of this weight (implicit feedback). What it costs doesn't depend on the number
        of zeros in a sparse X.
    validation : float or array, optional
        What is held out to validate the fit on. A number in (0, 1): this share of the
        observed entries, chosen by `seed`, row and column (by their labels, if X has
        any), and so the same for any chunking. A bool array: the entries of X that it
        names. Numbers (NaN, or not stored: not held out): entries that X doesn't have.
        Their RMSE and MAE are in the history, and the factors of the best check are
        returned.
    patience : int, default 10
        With `validation`: stop after so many checks without a lower RMSE.
    start : Factorization, optional
        Start there, not at random. X may have grown by rows and columns at its ends:
        their factors then come from `Factorization.fold_in`.
    solver : Solver, optional
        Default `NormalizedGradient()`.
    restarts : int, default 1
        How many random starts to fit together, each block of X being read once for all
        of them. The one with the lowest objective (with `validation`: the lowest RMSE
        on what is held out) is kept.
    drop : bool, default True
        Drop the worse half of the restarts after 8 rounds, and again after 16, 32, …
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
        factors wherever X is cut into the same blocks: on 1 to 4 threads of a machine,
        on 5 to 16, on 17 to 64, …, and likewise on clusters with so many threads in
        all. Elsewhere sums are added in another order, and factors agree to rounding.
    client : distributed.Client, optional
        Where to run. Default: the active client, else the threads of this process. The
        factors of a Dask X stay on the cluster: use them while the client is active, or
        inside ``with client.as_current():``.
    callbacks : iterable of callables
        Each is called with every `Record` of every restart; one that returns True stops
        the fit.
    progress : bool, optional
        A line with round, objective, RMSE, gradient and the time left at most. Default:
        only if standard error is a terminal.
    checkpoint : str or path, optional
        A folder, or a URL that fsspec knows, to save how far the fit has come: all that
        it needs to go on, as numbered versions, the last two of them kept. On a cluster
        workers write them, and the scheduler may then forget what led there.
    checkpoint_every : int or timedelta, optional
        Save whenever so many rounds are done, or so much time has gone by. Default: 20
        rounds. It is saved at the end, and at Ctrl-C, too.
    resume : bool, default False
        Go on from the last version in `checkpoint`, with the same bits as if the fit
        had never stopped; one that is damaged is passed over, with a warning. With none
        there yet, the fit begins. A fit that was at its end returns its result.
    stream : bool, optional
        Read each block of a Dask array anew in every pass, two or three times a round,
        rather than keep them all. Default: if a dense X wouldn't fit into the memory.
        With ``device="gpu"`` also of an array in memory: its blocks stay on the host.
    device : {"auto", "cpu", "gpu"}, default "auto"
        Where the passes over X run. "gpu" brings the blocks to the memory of this
        machine's GPU or, on a cluster, of workers that offer the resource ``GPU``, one
        block after the other. "auto": where X is. It takes CuPy: ``pip install
        'dmf[gpu]'``.
    precision : {"float32", "tf32"}, default "float32"
        On a GPU, what the products of dense blocks of float32 are rounded to: "tf32"
        keeps 10 bits of each factor rather than 23, for tensor cores. Emulated on a
        processor, gradients of random factors are within 1e-6 of exact ones in float32,
        and within 5e-4 in TF32. A fit in TF32 comes no closer to X than about 3e-4 of
        its spread; an RMSE of 3% of it is the same to four digits.

    Returns
    -------
    Factorization

    Raises
    ------
    ValueError, TypeError
        Bad input, in one sentence that names the value and the way out: before any task
        is submitted, except for values inside Dask arrays, which are checked as they
        are read. It takes more memory than there is. With `resume`: the checkpoint is
        of other data or other settings, or every version of it is damaged.
    FileExistsError, OSError
        There are checkpoints, and `resume` is False; they can't be written.

    See Also
    --------
    impute : fill what is missing.
    sweep : many ranks and penalties in one pass.
    MatrixFactorization : the same as a scikit-learn estimator.

    Notes
    -----
    A level that is far above the spread of X (temperatures in kelvin, ratings from 1 to
    5) takes up a component and many rounds: let offsets take it.

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
    X, mask, labels = unwrap_pair(X, mask)
    validation = unwrap_like(validation, labels, "validation")
    rank = check_rank(rank, check_matrix("X", X))
    restarts = check_integer("restarts", restarts, at_least=1)
    pair = check_penalty(penalty)
    settings = check_settings(
        X,
        labels=labels,
        mask=mask,
        offsets=offsets,
        offset_penalty=offset_penalty,
        unobserved_weight=unobserved_weight,
        validation=validation,
        patience=patience,
        solver=solver,
        max_rounds=max_rounds,
        tol=tol,
        check_every=check_every,
        seed=seed,
        client=client,
        callbacks=callbacks,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        stream=stream,
        device=device,
        precision=precision,
        drop_after=DROP_AFTER if check_bool("drop", drop) else None,
    )
    check_compatible(X.shape, [pair], settings.solver)
    if start is not None:
        if restarts > 1:
            msg = (
                f"restarts={restarts} start at random, but start= names one start; "
                "give one of them"
            )
            raise ValueError(msg)
        given = start_from(start, X, mask, labels, rank, settings)
        settings = replace(settings, start=given)
    candidates = [Candidate(rank, pair, number) for number in range(restarts)]
    fits = fit_candidates(X, candidates, settings)
    objectives = tuple(fit.outcome.objective for fit in fits)
    best = best_of(fits)
    cut_short = [c for c in (fit.outcome.status.code for fit in fits) if c in CUT_SHORT]
    if cut_short:
        # A fit that was cut short says so, also if the best start had come to its end.
        best = replace(best, status=replace(best.status, code=cut_short[0]))
    return replace(best, objectives=objectives, labels=labels)
