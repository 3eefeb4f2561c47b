"""What a fit found in X: gaps, residuals, and how sure it is of what it filled in.

X is looked at twice, block by block and where the tasks run. The first look counts what
is observed, adds up the residuals and draws missing cells; the second one, which knows
their spread, counts the residuals by size, and adds up the curvatures of the rows and
columns of those cells.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmf._fold import objective_of
from dmf._predict import augmented
from dmf.containers import unwrap_pair
from dmf.engine.lower import Graph
from dmf.engine.predict import fetch
from dmf.engine.runner import Threads, choose_runner, on_threads
from dmf.engine.survey import survey
from dmf.jobs.looks import SAMPLE, Seen, SeenCloser, drawn, look, look_closer
from dmf.objective import Side
from dmf.result import Factorization
from dmf.totals import Totals
from dmf.validation import check_mask, check_matrix

if TYPE_CHECKING:
    from dmf.labels import Labels

Array = Any

BINS = 40
FAR = 4.0  # standard deviations: where the histogram of the residuals ends
TOLD = 10  # cells, of the most and of the least certain
# Numbers in the curvatures of the sampled rows, and in those of the columns.
CURVATURES = 2**22
# What of a curvature, or along a direction, is nothing but rounding.
ROUNDING = 1e-12


def find(
    X: Any,
    mask: Any | None,
    fit: Factorization,
    *,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Return what a fit found in X, as plain values for JSON.

    Parameters
    ----------
    X : array, shape (m, n), or what `factorize` takes
        The matrix that was factorized. What was held out counts as observed. Of a Dask
        array no more blocks are held than are worked on.
    mask : array, shape (m, n), or None
        As in `factorize`.
    fit : Factorization
    labels : Labels, optional
        What rows and columns are called. Default: as X, or else the fit, says.

    Returns
    -------
    dict
        ``shape``, ``observed`` (entries) and ``missing`` (share).

        ``picture``: the share that is observed in each cell of a coarse grid, at most
        64 × 64. ``rows`` and ``columns``: how many there are by their number of
        observed entries (``counts`` between ``edges``), and how many have none
        (``empty``).

        ``residuals``, of X less what is predicted: ``mean``, ``std`` and ``rmse``
        (weighted if the mask is), ``counts`` between ``edges``, and the share
        ``beyond`` four standard deviations. Empty if nothing is observed.

        ``cells``: the ``most`` and the ``least`` certain of ``sampled`` missing cells,
        each with row, column, value and std. A ``std`` of None has no bound: neither
        entries nor a penalty say anything about the cell.

    Raises
    ------
    ValueError, TypeError
        X or the mask don't fit the factorization.

    Notes
    -----
    The variance of a prediction is that of Laplace's approximation for each factor
    given the other one [1]_: s² (h_jᵀ A_i⁻¹ h_j + w_iᵀ B_j⁻¹ w_i), where
    A_i = Σ_j M_ij h_j h_jᵀ + λ_i I is the curvature of row i, B_j that of column j, and
    s² the variance of the residuals; offsets are columns of the factors. It says how
    well the prediction is known, not how far single entries scatter around it, which s²
    does. It takes the noise to be the same everywhere: where it isn't, it still orders
    cells, but the least certain ones are further off than it says. What `Smooth` ties
    together counts one by one, and `Lasso` and `NonNegative` don't count: with them,
    predictions are surer than that.

    References
    ----------
    .. [1] R. Salakhutdinov, A. Mnih, "Bayesian probabilistic matrix factorization using
       Markov chain Monte Carlo", ICML 2008 (the conditional distributions).
    """
    X, mask, own = unwrap_pair(X, mask)
    shape = check_matrix("X", X)
    if shape != fit.shape:
        msg = (
            f"X has shape {shape}, but the factorization is of a matrix of shape "
            f"{fit.shape}; give the matrix that was factorized"
        )
        raise ValueError(msg)
    if mask is not None:
        check_mask(X, mask)
    runner = choose_runner(None)
    W, H = augmented(fit)
    factors = (W, H.T)
    seen: Seen = survey(
        X, mask, *factors, partial(look, shape=shape, seed=fit.seed), runner
    )
    residuals = seen.residuals
    cells = _cells_of(seen.drawn, shape, fit.seed, CURVATURES // W.shape[1] ** 2)
    reach = FAR * (residuals.deviation or 1.0)
    closer = partial(
        look_closer,
        edges=np.linspace(residuals.mean - reach, residuals.mean + reach, BINS + 1),
        cells=(np.unique(cells[0]), np.unique(cells[1])),
        unobserved=fit.unobserved_weight,
    )
    close: SeenCloser = survey(X, mask, *factors, closer, runner)
    with Threads().session():  # on small systems, threads of BLAS only wait
        values, stds = _certainty(fit, factors, cells, seen, close)
    names = next((one for one in (labels, own, fit.labels) if one is not None), None)
    entries = int(seen.picture.sum())
    return {
        "shape": list(shape),
        "observed": entries,
        "missing": 1 - entries / math.prod(shape),
        "picture": _shares(seen.picture, shape),
        "rows": _counted(seen.counts(0)),
        "columns": _counted(seen.counts(1)),
        "residuals": _residuals(residuals, close, entries),
        "cells": _told(cells, values, stds, names),
    }


def _shares(picture: Array, shape: tuple[int, int]) -> list[list[float]]:
    sizes = [
        np.bincount(np.arange(length) * side // length, minlength=side)
        for length, side in zip(shape, picture.shape, strict=True)
    ]
    shares: list[list[float]] = (picture / np.outer(*sizes)).round(4).tolist()
    return shares


def _counted(counts: Array) -> dict[str, Any]:
    """Return how many rows there are by the number of their observed entries."""
    most = int(counts.max())
    edges = np.unique(np.linspace(0, most + 1, BINS + 1).round().astype(int))
    return {
        "length": len(counts),
        "empty": int(np.count_nonzero(counts == 0)),
        "edges": edges.tolist(),
        "counts": np.histogram(counts, edges)[0].tolist(),
    }


def _residuals(totals: Totals, close: SeenCloser, entries: int) -> dict[str, Any]:
    if totals.weight <= 0:
        return {}
    return {
        "mean": totals.mean,
        "std": totals.deviation,
        "rmse": math.sqrt(totals.mean_square),
        "edges": close.edges.tolist(),
        "counts": close.sizes.tolist(),
        "beyond": 1 - int(close.sizes.sum()) / entries,
    }


def _cells_of(
    missing: Array, shape: tuple[int, int], seed: int, most: int
) -> tuple[Array, Array]:
    """Return the rows and columns of the sample of missing cells."""
    rows, columns = drawn(shape, seed)
    # Drawn twice, a cell is still one.
    places = rows[missing] * shape[1] + columns[missing]
    _, first = np.unique(places, return_index=True)
    kept = missing[np.sort(first)][: min(SAMPLE, max(most, 1))]
    return rows[kept], columns[kept]


def _certainty(
    fit: Factorization,
    factors: tuple[Array, Array],
    cells: tuple[Array, Array],
    seen: Seen,
    close: SeenCloser,
) -> tuple[Array, Array]:
    """Return the predictions for cells, and their standard deviations."""
    (rows, i), (columns, j) = (np.unique(one, return_inverse=True) for one in cells)
    parts = fetch(factors[0][rows], factors[1][columns])
    W, H = (part.astype(np.float64) for part in parts)
    W, H = W[i], H[j]
    sides: Graph = {}
    for axis, own, index, others in ((0, rows, i, H), (1, columns, j, W)):
        counts = seen.counts(axis)[own]
        counts += fit.unobserved_weight * (fit.shape[1 - axis] - counts)
        stack = np.array([close.curvatures[axis][k] for k in own.tolist()])
        side = objective_of(fit).sides[axis]
        task = (_quadratic_forms, stack, side, counts, index, others)
        sides[("certainty", axis)] = task
    variances = sum(on_threads(sides, list(sides)).values())
    known = np.isfinite(variances)  # 0 times infinity is no number
    stds = np.full(len(W), np.inf)
    stds[known] = seen.residuals.deviation * np.sqrt(variances[known])
    return np.vecdot(W, H), stds


def _quadratic_forms(
    stack: list[Array], side: Side, counts: Array, index: Array, others: Array
) -> Array:
    """Return hᵀ (A_i + λ_i)⁻¹ h for pairs of a row i and an h.

    Parameters
    ----------
    stack : array, shape (k, c, c)
        The A_i.
    side : Side
    counts : array, shape (k,)
        Of observed entries.
    index : array of int, shape (cells,)
        Which A_i belongs to a cell.
    others : array, shape (cells, c)
        The h.

    Returns
    -------
    array, shape (cells,)
        ∞ where h reaches into directions that have no curvature.
    """
    like = np.zeros((len(stack), 1, side.width))
    terms = side.terms(like, counts, np.zeros(1))
    moving = slice(None) if terms.free is None else terms.free > 0
    ridge = np.broadcast_to(terms.ridge, like.shape)[:, 0]
    result = np.empty(len(index))
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(len(stack) + 1))
    for k, (A, strengths) in enumerate(zip(stack, ridge, strict=True)):
        own = order[ends[k] : ends[k + 1]]
        curved = (A + np.diag(strengths))[moving][:, moving]
        values, vectors = np.linalg.eigh(curved)
        flat = values <= ROUNDING * max(values[-1], 0.0)
        along = (others[own][:, moving] @ vectors) ** 2
        lost = along[:, flat].sum(axis=1) > ROUNDING * along.sum(axis=1)
        known = (along[:, ~flat] / values[~flat]).sum(axis=1)
        result[own] = np.where(lost, np.inf, known)
    return result


def _told(
    cells: tuple[Array, Array], values: Array, stds: Array, labels: Labels | None
) -> dict[str, Any]:
    order = np.argsort(stds, kind="stable")
    # Few cells are told once: the surer half, and the rest.
    most = min(TOLD, -(-len(order) // 2))
    least = min(TOLD, len(order) - most)

    def told(k: int) -> dict[str, Any]:
        return {
            "row": _label(labels, 0, int(cells[0][k])),
            "column": _label(labels, 1, int(cells[1][k])),
            "value": float(values[k]),
            "std": float(stds[k]) if math.isfinite(stds[k]) else None,
        }

    return {
        "sampled": len(order),
        "most": [told(k) for k in order[:most]],
        "least": [told(k) for k in order[::-1][:least]],
    }


def _label(labels: Labels | None, axis: int, position: int) -> int | str:
    """Return what a row (column) is called; its position if it has no name."""
    if labels is None or not labels.named(axis):
        return position
    label = (labels.rows, labels.columns)[axis][position]
    return " / ".join(map(str, label)) if isinstance(label, tuple) else str(label)
