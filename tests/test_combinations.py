"""Everything that a model may be made of, put together at random.

One formula, written plainly on dense arrays, must give the objective of every fit; and
the four forms that X may have must give the same fit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import dmf
from dmf.offsets import COLUMNS
from dmf.penalties import Sum
from tests.problems import (
    CHUNKS,
    FORMS,
    Problem,
    form_of,
    low_rank,
    mask_for,
    sparse_chunks,
)

Array = Any

STEPS = tuple(np.linspace(0.5, 2.5, 19))
ROUGH = [dmf.Smooth(2.0), dmf.Smooth(0.5, order=2, step=STEPS) + dmf.Ridge(0.1)]
PENALTIES = [
    None,
    dmf.Ridge(0.3),
    dmf.Ridge(0.02, by_count=True),
    dmf.Lasso(0.2) + dmf.Ridge(0.1),
    dmf.Lasso(0.05, by_count=True),
    dmf.NonNegative(),
    dmf.NonNegative() + dmf.Lasso(0.1) + dmf.Ridge(0.2),
]


def plain_penalty(penalty: Any, rows: Array, counts: Array) -> float:
    """Return Ω of a factor whose rows are penalised, by the textbook."""
    parts = penalty.parts if isinstance(penalty, Sum) else (penalty,)
    total = 0.0
    for part in parts:
        if isinstance(part, dmf.NonNegative):
            assert rows.min() >= 0
            continue
        if isinstance(part, dmf.Smooth):
            total += 0.5 * part.strength * roughness(rows, part)
            continue
        scale = part.strength * (counts if part.by_count else np.ones_like(counts))
        norms = np.abs(rows) if isinstance(part, dmf.Lasso) else 0.5 * rows**2
        total += float(np.sum(scale[:, None] * norms))
    return total


def roughness(rows: Array, smooth: dmf.Smooth) -> float:
    """Return Σ g (Δh / g)², or with h'' from three neighbours, gap by gap."""
    gaps = np.broadcast_to(np.asarray(smooth.step, dtype=float), len(rows) - 1)
    slopes = np.diff(rows, axis=0) / gaps[:, None]
    if smooth.order == 1:
        return float(np.sum(gaps[:, None] * slopes**2))
    middle = (gaps[:-1] + gaps[1:]) / 2
    return float(
        np.sum(middle[:, None] * (np.diff(slopes, axis=0) / middle[:, None]) ** 2)
    )


def plain_objective(
    truth: Array, M: Array, alpha: Array, fit: dmf.Factorization
) -> float:
    """Return E of a fit: of the loss on every single entry, and of the penalties."""
    W, H = (np.asarray(factor, dtype=float) for factor in (fit.W, fit.H))
    b, c = (
        np.zeros(size) if given is None else np.asarray(given, dtype=float)
        for given, size in zip(
            (fit.row_offsets, fit.column_offsets), truth.shape, strict=True
        )
    )
    predicted = W @ H + fit.offset + b[:, None] + c[None, :]
    observed = M > 0
    residual = np.where(observed, predicted - truth, predicted)
    weights = np.where(observed, M, alpha)
    total = 0.5 * float(np.sum(weights * residual**2))
    for axis, (penalty, rows, offsets) in enumerate(
        zip(fit.penalty, (W, H.T), (b, c), strict=True)
    ):
        counts = np.where(observed, 1.0, alpha).sum(axis=1 - axis)
        total += plain_penalty(penalty, rows, counts)
        if fit.offset_penalty is not None:
            total += plain_penalty(fit.offset_penalty, offsets[:, None], counts)
    return total


def fit_form(problem: Problem, form: str, weighted: bool, **options: Any) -> Any:
    mask = None
    if weighted:
        mask = mask_for(problem.weights, problem.mask, form)
        if form == "dask":
            mask = da.from_array(problem.weights, chunks=CHUNKS)
        elif form == "dask-sparse":
            mask = sparse_chunks(problem.weights)
    return dmf.factorize(form_of(problem, form), 3, mask=mask, tol=0, **options)


@given(
    offsets=st.sampled_from(list(COLUMNS)),
    for_W=st.sampled_from(PENALTIES),
    for_H=st.sampled_from([*PENALTIES, *ROUGH]),
    weighted=st.booleans(),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    validation=st.sampled_from([None, 0.15]),
    observed=st.sampled_from([0.5, 0.95]),
    seed=st.integers(0, 1000),
)
# A row whose entries are all held out: its offset is the centre, at no cost.
@example(
    offsets="rows",
    for_W=None,
    for_H=None,
    weighted=False,
    alpha=0.0,
    validation=0.15,
    observed=0.5,
    seed=598,
)
def test_any_model_on_any_form(
    offsets: str,
    for_W: Any,
    for_H: Any,
    weighted: bool,
    alpha: float,
    validation: float | None,
    observed: float,
    seed: int,
) -> None:
    problem = low_rank(observed=observed, seed=seed)
    options = {
        "offsets": offsets,
        "penalty": (for_W, for_H),
        "offset_penalty": dmf.Ridge(0.4, by_count=bool(seed % 2)),
        "unobserved_weight": alpha,
        "validation": validation,
        "max_rounds": 7,
        "patience": 100,
    }
    fits = [fit_form(problem, form, weighted, **options) for form in FORMS]
    M = problem.weights if weighted else problem.mask.astype(float)
    weight_of_zeros = np.full(M.shape, alpha)
    if validation is not None:
        _, held_out = dmf.split_observed(problem.nan, validation)
        # What is held out is neither observed nor a zero.
        M = np.where(np.isfinite(held_out), 0.0, M)
        weight_of_zeros[np.isfinite(held_out)] = 0.0
    for fit in fits:
        expected = plain_objective(problem.truth, M, weight_of_zeros, fit)
        assert fit.certificate is not None
        scale = 1e-11 * float(np.sum(M * problem.truth**2))
        assert fit.certificate.objective == pytest.approx(expected, rel=1e-9, abs=scale)
        path = np.append(fit.history.initial_objective, fit.history.objective)
        assert np.all(np.diff(path) <= 1e-9 * path[:-1] + scale)
        # The offsets' level settles after the last half-step: it can only help.
        assert fit.certificate.objective <= fit.objective * (1 + 1e-9) + scale
        for factor, penalty in zip((fit.W, fit.H), fit.penalty, strict=True):
            if penalty.nonnegative:
                assert np.asarray(factor).min() >= 0
    first, others = fits[0], fits[1:]
    if fits[0].penalty[1].smooth:
        # Each strip solves its own part of a smooth step: strips change the way, though
        # not where it leads. Those of the same grid are compared.
        others = fits[1:2]
    if not all(penalty.quadratic for penalty in first.penalty):
        # Sooner or later rounding decides on which face a row goes on, and the ways
        # part: they are one in the first round, and each is held to the formula above.
        for fit in others:
            start = fit.history[0].objective
            assert start == pytest.approx(first.history[0].objective, rel=1e-6)
        return
    for fit in others:
        assert fit.objective == pytest.approx(first.objective, rel=1e-7)
        for name in ("W", "H", "row_offsets", "column_offsets"):
            mine, other = getattr(fit, name), getattr(first, name)
            assert (mine is None) == (other is None)
            if mine is not None:
                np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
        if validation is not None:
            np.testing.assert_allclose(
                fit.history.validation_rmse, first.history.validation_rmse, rtol=1e-5
            )


@given(
    offsets=st.sampled_from(list(COLUMNS)),
    for_W=st.sampled_from(PENALTIES),
    for_H=st.sampled_from([*PENALTIES, *ROUGH]),
    form=st.sampled_from(["numpy", "dask"]),
    validation=st.sampled_from([None, 0.15]),
)
def test_any_model_comes_back_from_disk(
    offsets: str, for_W: Any, for_H: Any, form: str, validation: float | None
) -> None:
    fit = dmf.factorize(
        form_of(low_rank(), form),
        2,
        offsets=offsets,
        penalty=(for_W, for_H),
        validation=validation,
        max_rounds=2,
        tol=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.zarr"
        fit.save(str(path))
        again = dmf.load(str(path))
        for name in ("W", "H", "row_offsets", "column_offsets"):
            mine, other = getattr(fit, name), getattr(again, name)
            if mine is None:
                assert other is None
            else:
                assert np.asarray(mine).tobytes() == np.asarray(other).tobytes()
    for name in ("penalty", "offset_penalty", "offsets", "offset", "status"):
        assert getattr(again, name) == getattr(fit, name)
    assert again.certificate == fit.certificate
    assert repr(list(again.history)) == repr(list(fit.history))
