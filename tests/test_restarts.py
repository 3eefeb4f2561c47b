"""Restarts: candidates in one stack, of which the best is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dmf
from dmf._factorize import DROP_AFTER
from tests.problems import (
    FORMS,
    SOLVERS,
    fitted,
    form_of,
    interrupt_in,
    interrupted_after,
    low_rank,
    plain_objective,
    same_factors,
    without_seconds,
)


def restarted(**options: Any) -> dmf.Factorization:
    solver = dmf.NormalizedGradient("global", dmf.Exact())
    return fitted(rank=4, solver=solver, **({"max_rounds": 8} | options))


def test_restarts_keep_the_best_and_list_all() -> None:
    winners = set()
    for seed in range(6):
        seen: list[dmf.Record] = []
        fit = restarted(restarts=3, seed=seed, callbacks=[seen.append])
        assert len(fit.objectives) == 3
        assert len(set(fit.objectives)) == 3
        best = fit.objectives.index(min(fit.objectives))
        assert fit.objective == fit.objectives[best]
        problem = low_rank()
        expected = plain_objective(problem, problem.mask, fit, fit.penalty)
        assert fit.objective == pytest.approx(expected, rel=1e-9)
        assert list(fit.history) == [r for r in seen if r.candidate == best]
        # The others share the pass over the data and the rounding of BLAS, no more.
        alone = restarted(seed=seed)
        assert alone.objectives[0] == pytest.approx(fit.objectives[0], rel=1e-9)
        first = [record for record in seen if record.candidate == 0]
        assert_close(first, alone.history)
        if best == 0:
            np.testing.assert_allclose(fit.W, alone.W, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(fit.H, alone.H, rtol=1e-9, atol=1e-11)
        winners.add(best)
        # Fewer restarts are the first of them.
        fewer = restarted(restarts=2, seed=seed).objectives
        np.testing.assert_allclose(fewer, fit.objectives[:2], rtol=1e-9)
    assert 0 in winners
    assert len(winners) > 1


def assert_close(found: Any, expected: Any) -> None:
    """Assert that records are the same but for rounding and the time they took."""
    pairs = zip(without_seconds(found), without_seconds(expected), strict=True)
    for one, other in pairs:
        assert one == pytest.approx(other, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_restart_in_a_stack_is_that_alone(
    form: str, solver: Any, keep_chunks: None
) -> None:
    seen: list[dmf.Record] = []
    X = form_of(low_rank(), form)
    alone = fitted(X, solver=solver)
    fitted(X, solver=solver, restarts=3, callbacks=[seen.append])
    assert_close([r for r in seen if r.candidate == 0], alone.history)


def test_all_restarts_may_diverge() -> None:
    solver = dmf.GradientDescent(1e300)
    fit = fitted(solver=solver, restarts=2)
    assert fit.status.code == "diverged"
    assert len(fit.objectives) == 2


@pytest.mark.parametrize("candidate", [0, 1, 2])
@pytest.mark.parametrize("round", [1, 4])
def test_interrupted_with_restarts(round: int, candidate: int) -> None:
    """All of them have done the round when the callbacks see it."""
    bests = set()
    for seed in range(6):
        options = {"restarts": 3, "seed": seed}
        fit = restarted(callbacks=[interrupt_in(round, candidate)], **options)
        # The round is that of the factors which are returned.
        assert (fit.status.code, fit.status.round) == ("interrupted", round)
        assert len(fit.history) == round
        assert len(fit.objectives) == 3
        assert fit.objective == min(fit.objectives)
        expected = restarted(**(options | {"max_rounds": round}))
        assert fit.objectives == expected.objectives
        assert same_factors(fit, expected)
        assert without_seconds(fit.history) == without_seconds(expected.history)
        bests.add(fit.objectives.index(fit.objective))
    assert len(bests) > 1


@pytest.mark.parametrize("when", ["callback", "tasks"])
def test_interrupted_after_some_restarts_have_ended(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C must not throw away what is done. Both ways: the best restart is one that
    had converged, or one that was cut short."""
    from dmf.engine import loop

    both = set()
    for seed in range(8):
        seen: list[dmf.Record] = []
        options = {"tol": 1e-3, "restarts": 3, "drop": False, "seed": seed}
        # Light, so that restarts end in different rounds.
        deviation = float(np.nanstd(low_rank().nan))
        options["penalty"] = dmf.Ridge(0.02 * deviation, by_count=True)
        whole = fitted(rank=4, max_rounds=500, callbacks=[seen.append], **options)
        ends = {r.candidate: r for r in seen}  # the last record of each
        cut = min(record.round for record in ends.values()) + 1
        if max(record.round for record in ends.values()) <= cut:
            continue  # too close to each other: nothing would be left to interrupt
        expected = {
            k: next(
                r.objective
                for r in seen
                if (r.candidate, r.round) == (k, min(cut, last.round))
            )
            for k, last in ends.items()
        }
        slow = max(ends, key=lambda k: ends[k].round)
        callbacks = [interrupt_in(cut, slow)] if when == "callback" else []
        with monkeypatch.context() as patch:
            if when == "tasks":
                patch.setattr(loop.Loop, "_collect", interrupted_after(cut))
            fit = fitted(rank=4, max_rounds=500, callbacks=callbacks, **options)
        assert fit.objectives == pytest.approx(tuple(expected[k] for k in range(3)))
        best = fit.objectives.index(min(fit.objectives))
        assert fit.objective == fit.objectives[best]
        # The fit as a whole was cut short, also when its best start had converged.
        assert fit.status.code == "interrupted"
        # At the callback, the round isn't over yet for those that it is the last of.
        ended = ends[best].round < cut + (when == "tasks")
        assert len(fit.history) == fit.status.round == min(cut, ends[best].round)
        if best == whole.objectives.index(whole.objective) and ended:
            assert same_factors(fit, whole)
        both.add(ended)
    assert both == {True, False}


def test_a_callback_stops_all_restarts() -> None:
    seen: list[tuple[int, int]] = []

    def callback(record: dmf.Record) -> bool:
        seen.append((record.round, record.candidate))
        return len(seen) == 10

    fit = restarted(restarts=3, callbacks=[callback])
    # All records of the round are shown, also after one of them has said stop.
    assert seen == [(round, k) for round in (1, 2, 3, 4) for k in range(3)]
    assert (fit.status.code, fit.status.round) == ("stopped", len(fit.history))
    assert fit.status.round == 4
    assert len(fit.objectives) == 3
    assert same_factors(fit, restarted(restarts=3, max_rounds=4))


@pytest.mark.parametrize("drop", [True, False])
def test_the_worse_half_of_the_restarts_is_dropped(drop: bool) -> None:
    """After 8 rounds, and again after 16; the others go on as if nothing was."""
    seen: list[dmf.Record] = []
    options = {"restarts": 5, "max_rounds": 25}
    fit = fitted(drop=drop, callbacks=[seen.append], **options)
    alive = [{r.candidate for r in seen if r.round == round} for round in range(1, 26)]
    if not drop:
        assert alive == [set(range(5))] * 25
    else:
        assert list(map(len, alive)) == [5] * 8 + [3] * 8 + [2] * 9
        for round in (DROP_AFTER, 2 * DROP_AFTER):
            ranking = sorted(
                (r for r in seen if r.round == round), key=lambda r: r.objective
            )
            kept = {r.candidate for r in ranking[: len(alive[round])]}
            assert alive[round] == kept
    # A candidate that was dropped is listed with its last objective.
    last = {r.candidate: r.objective for r in seen}
    assert fit.objectives == tuple(last[k] for k in range(5))
    best = min(alive[-1], key=lambda k: last[k])
    assert fit.objective == last[best]
    assert_close(
        [r for r in seen if r.candidate == 0],
        fitted(max_rounds=25).history[: sum(0 in round for round in alive)],
    )
