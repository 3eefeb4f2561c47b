"""Why a fit ends, and what it returns then: stops, interrupts, restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import dask.array as da
import numpy as np
import pytest

import dmf
from tests.problems import (
    SOLVERS,
    fitted,
    low_rank,
    plain_objective,
    same_factors,
)


def without_seconds(records: Any) -> list[dict[str, Any]]:
    rows = [asdict(record) for record in records]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# Why a fit ends.


def test_converged() -> None:
    fit = fitted(tol=1e-3, max_rounds=500)
    rounds = len(fit.history)
    assert fit.status.code == "converged"
    assert fit.status.converged
    assert fit.status.round == rounds < 500
    assert str(fit.status) == (
        f"converged in round {rounds}: the objective changed by less than tol=0.001 of "
        "itself; a smaller tol goes on"
    )
    values = [fit.history.initial_objective, *fit.history.objective]
    shares = np.abs(np.diff(values)) / values[1:]
    assert shares[-1] < 1e-3
    assert np.all(shares[:-1] >= 1e-3)
    # A larger tol stops earlier, a smaller one goes on.
    assert len(fitted(tol=1e-2, max_rounds=500).history) < rounds
    assert len(fitted(tol=1e-4, max_rounds=500).history) > rounds


def test_max_rounds() -> None:
    fit = fitted(max_rounds=4)
    assert (fit.status.code, fit.status.converged) == ("max_rounds", False)
    assert str(fit.status) == (
        "stopped after max_rounds=4 rounds, not yet converged; raise max_rounds, or "
        "tol, if the history shows that the objective still falls"
    )


@pytest.mark.parametrize("check_every", [1, 7])
def test_without_a_tol_all_rounds_run(check_every: int) -> None:
    solver = dmf.AlternatingLeastSquares()
    fit = fitted(tol=0, max_rounds=60, solver=solver, check_every=check_every)
    assert len(fit.history) == 60
    assert fit.status.code == "max_rounds"


@pytest.mark.parametrize("X", ["exact", "zeros"])
def test_without_a_tol_all_rounds_run_also_if_nothing_is_left(X: str) -> None:
    """tol=0 is documented to mean: never converged."""
    matrix = low_rank(rank=1, noise=0.0).nan if X == "exact" else np.zeros((5, 4))
    fit = fitted(matrix, 1, penalty=None, max_rounds=30)
    assert len(fit.history) == 30
    assert fit.status.code == "max_rounds"


def test_an_exact_fit_converges() -> None:
    """The share by which a loss of rounding errors changes never settles."""
    for dtype in (np.float32, np.float64):
        X = low_rank(noise=0.0, observed=1.0, dtype=dtype).truth
        fit = fitted(X, penalty=None, tol=1e-8, max_rounds=500)
        assert fit.status.code == "converged"
        np.testing.assert_allclose(fit.W @ fit.H, X, atol=1e-3)


def test_stopped_by_a_callback() -> None:
    fit = fitted(callbacks=[lambda record: record.round == 3])
    assert (fit.status.code, fit.status.round) == ("stopped", 3)
    assert str(fit.status) == "stopped by a callback after round 3"
    assert len(fit.history) == 3
    assert same_factors(fit, fitted(max_rounds=3))


def test_numpy_says_true_too() -> None:
    """Conditions on arrays give numpy.bool: "one that returns True stops the fit"."""
    fit = fitted(callbacks=[lambda record: np.float64(record.round) >= 3])
    assert (fit.status.code, fit.status.round) == ("stopped", 3)


def test_only_true_stops() -> None:
    """What print and list.append return, and counts, are no wish to stop."""
    seen: list[Any] = []
    fit = fitted(callbacks=[seen.append, lambda record: record.round])
    assert fit.status.code == "max_rounds"
    assert seen == list(fit.history)


def interrupt_in(round: int, start: int = 0) -> Callable[[dmf.Record], None]:
    """Return a callback that presses Ctrl-C in a round of a restart."""
    starts = [-1]

    def callback(record: dmf.Record) -> None:
        starts[0] += record.round == 1
        if record.round == round and starts[0] == start:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("round", [1, 2, 5])
@pytest.mark.parametrize("form", ["numpy", "sparse", "dask"])
def test_interrupted(form: str, round: int) -> None:
    problem = low_rank()
    X: Any = {
        "numpy": problem.nan,
        "sparse": problem.sparse(),
        "dask": da.from_array(problem.nan, chunks=(10, 20)),
    }[form]
    fit = fitted(X, callbacks=[interrupt_in(round)])
    assert (fit.status.code, fit.status.round) == ("interrupted", round)
    assert str(fit.status) == (
        f"interrupted after round {round}; these are the factors so far, fit again to "
        "get better ones"
    )
    assert len(fit.history) == round
    expected = fitted(X, max_rounds=round)
    assert np.asarray(fit.W).tobytes() == np.asarray(expected.W).tobytes()
    assert np.asarray(fit.H).tobytes() == np.asarray(expected.H).tobytes()
    assert without_seconds(fit.history) == without_seconds(expected.history)


def test_interrupted_inside_a_batch_of_rounds() -> None:
    """The batch is done when the callbacks see it."""
    fit = fitted(callbacks=[interrupt_in(2)], check_every=3)
    assert fit.status.code == "interrupted"
    assert len(fit.history) == fit.status.round == 3
    assert same_factors(fit, fitted(max_rounds=3))


def test_interrupted_inside_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while tasks run: the round is lost, those before it aren't."""
    from dmf.engine import loop

    expected = fitted(max_rounds=2)
    advance = loop.Loop._advance

    def interrupted(self: Any, state: Any, number: int) -> Any:
        if state.round == 2:
            raise KeyboardInterrupt
        return advance(self, state, number)

    monkeypatch.setattr(loop.Loop, "_advance", interrupted)
    fit = fitted()
    assert (fit.status.code, fit.status.round) == ("interrupted", 2)
    assert same_factors(fit, expected)


def test_interrupted_before_the_first_round() -> None:
    """There is nothing to return yet but the start."""
    from dmf.engine import loop

    with pytest.MonkeyPatch.context() as patch:

        def interrupted(self: Any, state: Any, number: int) -> Any:
            raise KeyboardInterrupt

        patch.setattr(loop.Loop, "_advance", interrupted)
        fit = fitted()
    assert (fit.status.code, fit.status.round) == ("interrupted", 0)
    assert len(fit.history) == 0
    assert np.isfinite(fit.W).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rate", [1.0, 1e6, 1e300])
@pytest.mark.parametrize("form", ["numpy", "sparse"])
def test_diverged(form: str, rate: float, dtype: Any) -> None:
    problem = low_rank(dtype=dtype)
    X = problem.nan if form == "numpy" else problem.sparse()
    solver = dmf.GradientDescent(rate)
    fit = fitted(X, solver=solver, penalty=None, max_rounds=100)
    rounds = len(fit.history)
    assert (fit.status.code, fit.status.round) == ("diverged", rounds)
    assert rounds < 50
    assert str(fit.status) == (
        f"diverged after round {rounds}, whose factors these are: then the objective "
        "was no longer finite; lower the learning rate, or use "
        "dmf.NormalizedGradient(), which needs none"
    )
    assert np.isfinite(fit.W).all()
    assert np.isfinite(fit.H).all()
    if rounds:
        assert np.isfinite(fit.history.objective).all()
        expected = fitted(X, solver=solver, penalty=None, max_rounds=rounds)
        assert same_factors(fit, expected)


def test_diverged_inside_a_batch_of_rounds() -> None:
    options = {"solver": dmf.GradientDescent(1.0), "penalty": None, "max_rounds": 100}
    alone = fitted(**options)
    fit = fitted(check_every=4, **options)
    assert fit.status.code == "diverged"
    assert fit.status.round == len(fit.history)
    assert 0 <= len(alone.history) - len(fit.history) < 4
    assert np.isfinite(fit.W).all()


def test_an_error_in_a_callback_is_the_users() -> None:
    def fails(record: dmf.Record) -> None:
        msg = "no such file"
        raise OSError(msg)

    with pytest.raises(OSError, match="no such file"):
        fitted(callbacks=[fails])


# Restarts.


def restarted(**options: Any) -> dmf.Factorization:
    solver = dmf.NormalizedGradient("global", dmf.Exact())
    return fitted(rank=4, solver=solver, max_rounds=8, **options)


def test_restarts_keep_the_best_and_list_all() -> None:
    winners = set()
    for seed in range(6):
        fit = restarted(restarts=3, seed=seed)
        assert len(fit.objectives) == 3
        assert len(set(fit.objectives)) == 3
        best = fit.objectives.index(min(fit.objectives))
        assert fit.objective == fit.objectives[best]
        problem = low_rank()
        expected = plain_objective(problem, problem.mask, fit, fit.penalty)
        assert fit.objective == pytest.approx(expected, rel=1e-9)
        alone = restarted(seed=seed)
        assert alone.objectives == fit.objectives[:1]
        if best == 0:
            assert same_factors(fit, alone)
            assert without_seconds(fit.history) == without_seconds(alone.history)
        winners.add(best)
        # Fewer restarts are the first of them.
        assert restarted(restarts=2, seed=seed).objectives == fit.objectives[:2]
    assert 0 in winners
    assert len(winners) > 1


def test_all_restarts_may_diverge() -> None:
    solver = dmf.GradientDescent(1e300)
    fit = fitted(solver=solver, restarts=2)
    assert fit.status.code == "diverged"
    assert len(fit.objectives) == 2


@pytest.mark.parametrize("round", [1, 4])
def test_interrupted_in_a_later_restart(round: int) -> None:
    """Both ways: the first restart is the better one, or the one that was cut short."""
    bests = set()
    for seed in range(6):
        fit = restarted(restarts=3, seed=seed, callbacks=[interrupt_in(round, start=1)])
        # The round is that of the factors which are returned.
        assert (fit.status.code, fit.status.round) == ("interrupted", len(fit.history))
        assert len(fit.objectives) == 2
        assert fit.objective == min(fit.objectives)
        first = restarted(seed=seed)
        assert fit.objectives[0] == first.objective
        bests.add(fit.objectives.index(fit.objective))
        if fit.objective == first.objective:
            assert same_factors(fit, first)
            assert len(fit.history) == 8
        else:
            assert len(fit.history) == round
    assert 0 in bests


def test_interrupted_while_a_later_restart_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first restart is done: Ctrl-C must not throw it away."""
    from dmf import _factorize

    start_state = _factorize.start_state

    def interrupted(*arguments: Any, start: int, **options: Any) -> Any:
        if start == 1:
            raise KeyboardInterrupt
        return start_state(*arguments, start=start, **options)

    expected = restarted()
    monkeypatch.setattr(_factorize, "start_state", interrupted)
    try:
        fit = restarted(restarts=2)
    except KeyboardInterrupt:
        pytest.fail("the factors of the first restart are lost")
    assert (fit.status.code, fit.status.round) == ("interrupted", 8)
    assert same_factors(fit, expected)


def test_a_callback_stops_all_restarts() -> None:
    rounds: list[int] = []

    def callback(record: dmf.Record) -> bool:
        rounds.append(record.round)
        return len(rounds) == 10

    fit = restarted(restarts=3, callbacks=[callback])
    assert rounds == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    assert (fit.status.code, fit.status.round) == ("stopped", len(fit.history))
    assert len(fit.objectives) == 2


# Callbacks.


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_rounds_in_batches_are_the_same_rounds(solver: Any) -> None:
    seen: list[dmf.Record] = []
    alone = fitted(solver=solver, max_rounds=7)
    fit = fitted(solver=solver, max_rounds=7, check_every=3, callbacks=[seen.append])
    assert same_factors(fit, alone)
    assert without_seconds(fit.history) == without_seconds(alone.history)
    assert seen == list(fit.history)
    assert fit.history.initial_objective == alone.history.initial_objective


def test_convergence_waits_for_its_batch() -> None:
    alone = fitted(tol=1e-3, max_rounds=500)
    fit = fitted(tol=1e-3, max_rounds=500, check_every=10)
    assert fit.status.code == "converged"
    assert len(fit.history) == -(-len(alone.history) // 10) * 10
    assert same_factors(fit, fitted(max_rounds=len(fit.history)))


@pytest.mark.parametrize("check_every", [1, 3])
def test_all_callbacks_see_every_record(check_every: int) -> None:
    """Also when an earlier one has said stop."""
    before: list[dmf.Record] = []
    after: list[dmf.Record] = []
    callbacks = [before.append, lambda record: record.round == 2, after.append]
    fit = fitted(callbacks=callbacks, check_every=check_every)
    assert fit.status.code == "stopped"
    assert len(fit.history) == (2 if check_every == 1 else 3)
    assert before == after == list(fit.history)


def test_callbacks_may_come_from_a_generator() -> None:
    seen: list[dmf.Record] = []
    fit = fitted(callbacks=(one for one in [seen.append]))
    assert seen == list(fit.history)
