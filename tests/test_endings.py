"""Why a fit ends, and what it returns then: stops, interrupts, explosions."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest

import dmf
from tests.problems import (
    SOLVERS,
    fitted,
    interrupt_in,
    interrupted_after,
    low_rank,
    same_factors,
    without_seconds,
)

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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("observed", [0.7, 1.0])
def test_an_exact_fit_converges(observed: float, dtype: Any) -> None:
    """The share by which a loss of rounding errors changes never settles."""
    problem = low_rank(noise=0.0, observed=observed, dtype=dtype)
    fit = fitted(problem.nan, penalty=None, tol=1e-8, max_rounds=500)
    assert fit.status.code == "converged"
    W, H = (factor.astype(float) for factor in (fit.W, fit.H))
    residual = (W @ H - problem.truth)[problem.mask]
    error, size = (
        np.sqrt(np.mean(part.astype(float) ** 2))
        for part in (residual, problem.truth[problem.mask])
    )
    epsilon = np.finfo(dtype).eps
    if observed < 1:
        # A sum of squares of residuals, each with the rounding of X: ten of them are
        # called the end, and the last tenth is for the rounding of W H here.
        assert error < 1.1 * 10 * epsilon * size
    else:
        # ½ ‖W H‖² − ⟨X, W H⟩ + ½ ‖X‖²: the mean square of the residual is known up to
        # a few ε of that of X (here: 3), and one ε of it is called the end.
        assert error < np.sqrt((1 + 3) * epsilon) * size


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
    monkeypatch.setattr(loop.Loop, "_collect", interrupted_after(2))
    fit = fitted()
    assert (fit.status.code, fit.status.round) == ("interrupted", 2)
    assert same_factors(fit, expected)


@pytest.mark.parametrize("restarts", [1, 3])
def test_interrupted_before_the_first_round(
    restarts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to return yet but the start, of several the first."""
    from dmf.engine import loop

    solver = dmf.GradientDescent(1e-300)  # stays where it begins
    start = fitted(max_rounds=1, solver=solver, penalty=None)
    monkeypatch.setattr(loop.Loop, "_collect", interrupted_after(0))
    fit = fitted(restarts=restarts)
    assert (fit.status.code, fit.status.round) == ("interrupted", 0)
    assert len(fit.history) == 0
    assert len(fit.objectives) == restarts
    assert same_factors(fit, start)


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
