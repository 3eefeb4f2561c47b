"""Problems and independent formulas that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp

import dmf
from dmf.objective import Objective, Side

Array = Any

# The forms that X may take, and the chunks of the Dask arrays among them.
CHUNKS = (10, 10)
FORMS = ["numpy", "sparse", "dask", "dask-sparse"]

# Every kind of solver. Those whose objective never rises, by theory, and the others.
MONOTONE = [
    *(
        dmf.NormalizedGradient(scope, step)
        for scope in ("row", "global")
        for step in (dmf.Exact(), dmf.Plane())
    ),
    dmf.AlternatingLeastSquares(),
    dmf.NormalizedGradient(scaled=True),
]
SOLVERS = [
    *MONOTONE,
    dmf.GradientDescent(1e-3),
    *(
        dmf.NormalizedGradient(scope, step)
        for scope in ("row", "global")
        for step in (dmf.Constant(0.05), dmf.Decay(0.1, power=0.75))
    ),
]


@dataclass(frozen=True)
class Problem:
    """A matrix with missing entries, in all the forms that dmf takes.

    `truth` is complete; `mask` is the bool pattern of what is observed, `weights` the
    same with weights, `start` a pair of random factors (W, H with H kept transposed).
    """

    truth: Array
    mask: Array
    weights: Array
    start: tuple[Array, Array]

    @property
    def nan(self) -> Array:
        return np.where(self.mask, self.truth, np.nan).astype(self.truth.dtype)

    def sparse(self, values: Array | None = None) -> Any:
        values = self.truth if values is None else values
        return sp.csr_array(
            (values[self.mask], np.nonzero(self.mask)), shape=self.truth.shape
        )


def low_rank(
    m: int = 30,
    n: int = 20,
    rank: int = 3,
    observed: float = 0.6,
    noise: float = 0.1,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Problem:
    """Return a random problem of low rank with noise."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    truth += noise * rng.standard_normal((m, n))
    mask = rng.random((m, n)) < observed
    weights = np.where(mask, rng.uniform(0.2, 3.0, (m, n)), 0.0)
    start = (rng.standard_normal((m, rank)), rng.standard_normal((n, rank)))
    W, H = (factor.astype(dtype) for factor in start)
    return Problem(truth.astype(dtype), mask, weights.astype(dtype), (W, H))


def stacked_start(problem: Problem, K: int) -> tuple[Array, Array]:
    """Return factors of K candidates, shapes (m, K, r) and (n, K, r); the first is
    the problem's own start."""
    rng = np.random.default_rng(K)
    W, H = (
        np.stack(
            [factor, *(rng.standard_normal((K - 1, *factor.shape)))], axis=1
        ).astype(factor.dtype)
        for factor in problem.start
    )
    return W, H


def objective_of(penalties: Sequence[Any], rank: int) -> Objective:
    """Return an objective with a penalty, on both factors, for each candidate."""
    side = Side(tuple(penalties), (rank,) * len(penalties), rank)
    return Objective((side, side))


def sparse_chunks(X: Array, chunks: Any = CHUNKS) -> Any:
    """Return a Dask array of sparse chunks that store what isn't 0 in X."""
    X = da.from_array(X, chunks=chunks)
    return X.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0), dtype=X.dtype))


def form_of(problem: Problem, form: str) -> Any:
    """Return the X of a problem in one of the forms that dmf takes."""
    if form == "numpy":
        return problem.nan
    if form == "sparse":
        return problem.sparse()
    if form == "dask":
        return da.from_array(problem.nan, chunks=CHUNKS)
    return sparse_chunks(np.where(problem.mask, problem.truth, 0))


def mask_for(values: Array, mask: Array, form: str) -> Any:
    """Return weights in the form that fits X: of its pattern if it's sparse."""
    if form in ("numpy", "dask"):
        return values
    return sp.csr_array((values[mask], np.nonzero(mask)), shape=values.shape)


def objective(
    X: Array, M: Array, W: Array, H: Array, ridge: tuple[Array | float, Array | float]
) -> float:
    """Return ½ Σ M (W H − X)² + ½ Σ λ_i ‖w_i‖² + ½ Σ λ_j ‖h_j‖², written plainly.

    `H` is (r, n) as users see it; `X` may hold anything where `M` is 0.
    """
    residual = np.where(M > 0, W @ H - np.where(M > 0, X, 0), 0)
    for_W = ridge[0] * np.sum(W**2, axis=1)
    for_H = ridge[1] * np.sum(H**2, axis=0)
    return 0.5 * float(np.sum(M * residual**2) + np.sum(for_W) + np.sum(for_H))


def fitted(X: Array | None = None, rank: int = 3, **options: Any) -> dmf.Factorization:
    X = low_rank().nan if X is None else X
    return dmf.factorize(X, rank, **({"max_rounds": 6, "tol": 0} | options))


def same_factors(one: dmf.Factorization, other: dmf.Factorization) -> bool:
    """Return whether the factors are the same, bitwise."""
    return one.W.tobytes() == other.W.tobytes() and one.H.tobytes() == other.H.tobytes()


def plain_objective(
    problem: Problem, M: Array, fit: dmf.Factorization, ridges: Any
) -> float:
    strengths: list[Any] = [0.0, 0.0]
    for axis, ridge in enumerate(ridges):
        if ridge is not None:
            counts = np.sum(M > 0, axis=1 - axis)
            strengths[axis] = ridge.ridge(counts.astype(float))
    W, H = (np.asarray(factor, dtype=float) for factor in (fit.W, fit.H))
    pair = (strengths[0], strengths[1])
    return objective(problem.truth.astype(float), M.astype(float), W, H, pair)


def without_seconds(records: Any) -> list[dict[str, Any]]:
    """Return records as dicts, but for the time that they took."""
    rows = [asdict(record) for record in records]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def interrupt_in(round: int, candidate: int = 0) -> Callable[[dmf.Record], None]:
    """Return a callback that presses Ctrl-C at the record of a restart's round."""

    def callback(record: dmf.Record) -> None:
        if (record.round, record.candidate) == (round, candidate):
            raise KeyboardInterrupt

    return callback


def interrupted_after(round: int) -> Callable[..., Any]:
    """Return a `Loop._collect` that is interrupted once a round is done."""
    from dmf.engine import loop

    collect = loop.Loop._collect

    def interrupted(self: Any, batch: Any) -> Any:
        if batch.before.round == round:
            raise KeyboardInterrupt
        return collect(self, batch)

    return interrupted
