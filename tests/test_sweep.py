"""Sweeps: each candidate is the fit it would be alone, and costs no task more."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dmf
from dmf._sweep import Sweep, Trial
from tests.problems import (
    FORMS,
    SOLVERS,
    form_of,
    low_rank,
    mask_for,
    sparse_chunks,
)

Array = Any

PROBLEM = low_rank(observed=0.7, noise=0.3)
OPTIONS: dict[str, Any] = {"max_rounds": 6, "tol": 0, "patience": 100}


def key_of(trial: Trial) -> tuple[int, str, int]:
    return trial.rank, str(trial.penalty), trial.start


def alone(X: Any, trial: Trial, validation: Any = 0.1, **options: Any) -> Any:
    """Return the single fit of a trial's setting from its start, and its record."""
    assert trial.start == 0
    fit = dmf.factorize(
        X,
        trial.rank,
        penalty=trial.penalty,
        validation=validation,
        **(OPTIONS | options),
    )
    return fit, fit.history[fit.status.factors_of - 1]


def check_against_single_fits(X: Any, found: Sweep, **options: Any) -> None:
    for trial in found:
        fit, record = alone(X, trial, **options)
        assert trial.rounds == len(fit.history)
        assert trial.status == fit.status.code
        for name in ("objective", "validation_rmse", "validation_mae"):
            assert getattr(trial, name) == pytest.approx(
                getattr(record, name), rel=1e-6
            )
    first, best = found[0], found.best
    assert first.validation_rmse == min(trial.validation_rmse for trial in found)
    fit, _ = alone(X, first, **options)
    assert best.rank == first.rank
    assert best.penalty == fit.penalty
    assert best.objective == pytest.approx(first.objective)
    for name in ("W", "H", "row_offsets", "column_offsets"):
        mine, other = getattr(best, name), getattr(fit, name)
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


STEPS = tuple(np.linspace(0.5, 2.0, 19))
STACKS: dict[str, list[Any]] = {
    "ridges": [None, dmf.Ridge(0.3), dmf.Ridge(0.05, by_count=True), "auto"],
    "kinds": [
        dmf.Ridge(0.3),
        dmf.Lasso(0.2) + dmf.Ridge(0.1),
        dmf.NonNegative(),
        (dmf.NonNegative() + dmf.Lasso(0.1, by_count=True), dmf.Ridge(0.5)),
        (None, dmf.NonNegative() + dmf.Ridge(0.2)),
    ],
    "smooth": [
        (dmf.Ridge(0.1), dmf.Smooth(0.2) + dmf.Ridge(0.1)),
        (dmf.Ridge(0.1), dmf.Smooth(20.0, order=2) + dmf.Ridge(0.1)),
        (dmf.Ridge(1.0), dmf.Smooth(3.0, step=STEPS) + dmf.Ridge(0.01)),
    ],
    "one smooth, one sparse": [
        (dmf.Lasso(0.1), dmf.Smooth(0.2) + dmf.Ridge(0.1)),
        (dmf.NonNegative(), dmf.Smooth(5.0) + dmf.Ridge(0.1)),
    ],
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offsets", ["none", "both"])
def test_every_trial_is_the_fit_alone(
    name: str, form: str, offsets: str, keep_chunks: None
) -> None:
    """Ranks, and penalties of different kinds, in one stack."""
    X = form_of(PROBLEM, form)
    options = {"offsets": offsets, "seed": 2}
    ranks = [1, 4, 2]
    found = dmf.sweep(
        X, ranks, penalties=STACKS[name], drop=False, **(OPTIONS | options)
    )
    pairs = [p if isinstance(p, tuple) else (p, p) for p in STACKS[name]]
    assert sorted(map(key_of, found)) == sorted(
        (rank, str(pair), 0) for rank, pair in product(ranks, pairs)
    )
    check_against_single_fits(X, found, **options)


BESIDE = [
    (PROBLEM.truth, dmf.Lasso(0.2)),
    (PROBLEM.truth, dmf.NonNegative()),
]


@pytest.mark.parametrize(("X", "other"), BESIDE, ids=["lasso", "bound"])
def test_a_ridge_beside_another_kind_is_the_fit_alone(X: Array, other: Any) -> None:
    """Whatever the others need, on masked data and on complete ones."""
    complete = not np.isnan(X).any()
    options = {"unobserved_weight": 1.0} if complete else {}
    ridge = dmf.Ridge(0.3)
    found = dmf.sweep(
        X, [2], penalties=[ridge, other], drop=False, **(OPTIONS | options)
    )
    (trial,) = (trial for trial in found if trial.penalty[1] is ridge)
    fit, record = alone(X, trial, **options)
    assert trial.rounds == len(fit.history)
    assert trial.objective == pytest.approx(record.objective, rel=1e-6)


def test_a_ridge_beside_a_smooth_comes_to_the_same_minimum() -> None:
    """It moves as a whole, as the other must: another way, to the same end."""
    ridge = dmf.Ridge(0.3)
    smooth = (dmf.Ridge(0.1), dmf.Smooth(1.0) + dmf.Ridge(0.1))
    options = OPTIONS | {"max_rounds": 400, "patience": 1000}
    ends = []
    for penalties in ([ridge, smooth], [ridge]):
        told: list[dmf.Record] = []
        options["callbacks"] = [told.append]
        dmf.sweep(PROBLEM.nan, [2], penalties=penalties, drop=False, **options)
        ends.append([record.objective for record in told if record.candidate == 0][-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_solver_can_stack(solver: Any) -> None:
    penalties = [dmf.Ridge(0.3), None]
    found = dmf.sweep(
        PROBLEM.nan, [3, 1], penalties=penalties, solver=solver, drop=False, **OPTIONS
    )
    check_against_single_fits(PROBLEM.nan, found, solver=solver)


@settings(max_examples=15)
# A move that ended next to a zero, by rounding, stopped the next one.
@example([1, 4], [STACKS["kinds"][3]], 0.0, "global", True, "numpy", 1, 649)
@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    penalties=st.lists(
        st.sampled_from([*STACKS["ridges"], *STACKS["kinds"]]), min_size=1, max_size=3
    ),
    alpha=st.sampled_from([0.0, 0.4]),
    offsets=st.sampled_from(["none", "global", "rows", "columns", "both"]),
    weighted=st.booleans(),
    form=st.sampled_from(FORMS),
    every=st.sampled_from([1, 4]),
    seed=st.integers(0, 1000),
)
def test_any_stack(
    ranks: list[int],
    penalties: list[Any],
    alpha: float,
    offsets: str,
    weighted: bool,
    form: str,
    every: int,
    seed: int,
) -> None:
    mask = None
    if weighted:
        mask = mask_for(PROBLEM.weights, PROBLEM.mask, form)
        mask = sparse_chunks(PROBLEM.weights) if form == "dask-sparse" else mask
    X = form_of(PROBLEM, form)
    options = {
        "unobserved_weight": alpha,
        "offsets": offsets,
        "offset_penalty": dmf.Ridge(0.7),
        "mask": mask,
        "seed": seed,
        "check_every": every,
        "max_rounds": 4,
        "validation": 0.2,
    }
    found = dmf.sweep(X, ranks, penalties=penalties, drop=False, **(OPTIONS | options))
    assert len(found) == len(ranks) * len(penalties)
    check_against_single_fits(X, found, **options)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("form", ["numpy", "dask-sparse"])
def test_the_padding_never_moves(
    form: str, solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns beyond a candidate's rank are 0, bitwise, in every round."""
    from dmf.engine.loop import Loop

    looked: list[int] = []
    submit = Loop._submit

    def look(*arguments: Any) -> Any:
        batch = submit(*arguments)
        for strips in batch.after.strips:
            for key in strips:
                factor = np.asarray(batch.after.leaves[key].factor)
                for k, rank in enumerate((2, 5, 1)):
                    assert not factor[:, k, rank:5].any()
                    assert factor[:, k, :rank].any()
                    looked.append(rank)
        return batch

    monkeypatch.setattr(Loop, "_submit", look)
    penalty = dmf.Ridge(0.1)
    X = form_of(PROBLEM, form)
    options = OPTIONS | {"offsets": "both", "solver": solver}
    dmf.sweep(X, [2, 5, 1], penalties=[penalty], drop=False, **options)
    assert len(looked) >= 6 * 2 * 3


@pytest.mark.parametrize("form", FORMS)
def test_the_data_are_read_as_often_as_for_one_candidate(
    form: str, monkeypatch: pytest.MonkeyPatch, keep_chunks: None
) -> None:
    """In the rounds: as many tasks, and as many calls of each kernel."""
    from dmf.engine import loop
    from dmf.kernels import dense, sparse

    calls: Counter[str] = Counter()
    sizes: list[int] = []
    running = False
    build, submit = loop.build_rounds, loop.Loop._submit

    def counted(name: str, kernel: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += running
            return kernel(*arguments, **options)

        return call

    def watched(*arguments: Any) -> Any:
        nonlocal running
        running = True
        batch = submit(*arguments)
        running = False
        return batch

    def measured(data: Any, state: Any, *rest: Any) -> Any:
        found = build(data, state, *rest)
        sizes.append(len(found[0]) - len(data.leaves) - len(state.leaves))
        return found

    monkeypatch.setattr(loop, "build_rounds", measured)
    monkeypatch.setattr(loop.Loop, "_submit", watched)
    for kernels in (dense, sparse):
        for name in ("gradient", "curvature", "errors"):
            kernel = getattr(kernels, name)
            monkeypatch.setattr(kernels, name, counted(name, kernel))
    X = form_of(PROBLEM, form)
    found = []
    ridges = [dmf.Ridge(strength) for strength in (0.1, 0.3, 1.0)]
    for ranks, penalties, restarts in (
        ([4], ridges[:1], 1),
        ([4], ridges[:1], 6),
        ([1, 2, 4], ridges, 2),
    ):
        calls.clear()
        sizes.clear()
        dmf.sweep(
            X, ranks, penalties=penalties, restarts=restarts, drop=False, **OPTIONS
        )
        found.append((dict(calls), list(sizes)))
    assert found[0] == found[1] == found[2]
    blocks = 6 if "dask" in form else 1
    assert found[0][0] == {
        "gradient": 2 * 6 * blocks,
        "curvature": 2 * 6 * blocks,
        "errors": 6 * blocks,
    }
    assert len(found[0][1]) == 6
