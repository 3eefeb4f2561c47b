"""The history, why a fit ended, restarts, callbacks, interrupts, the progress line."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from dmf.result import COLUMNS
from tests.problems import MONOTONE, SOLVERS, Problem, low_rank, objective

Array = Any


def fitted(X: Array | None = None, rank: int = 3, **options: Any) -> dmf.Factorization:
    X = low_rank().nan if X is None else X
    return dmf.factorize(X, rank, **({"max_rounds": 6, "tol": 0} | options))


def same_factors(one: dmf.Factorization, other: dmf.Factorization) -> bool:
    """Return whether the factors are the same, bitwise."""
    return one.W.tobytes() == other.W.tobytes() and one.H.tobytes() == other.H.tobytes()


def without_seconds(records: Any) -> list[dict[str, Any]]:
    rows = [asdict(record) for record in records]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# History and Record.


def test_history_is_a_sequence_of_records() -> None:
    history = fitted().history
    assert len(history) == 6
    assert [record.round for record in history] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(record, dmf.Record) for record in history)
    assert history[-1] is history[5]
    assert list(history[1:3]) == [history[1], history[2]]
    assert history[2] in history
    assert next(reversed(history)) == history[-1]
    with pytest.raises(IndexError):
        history[6]


def test_history_has_columns() -> None:
    history = fitted().history
    assert {f.name for f in fields(dmf.Record)} == set(COLUMNS)
    for name in COLUMNS:
        column = getattr(history, name)
        assert isinstance(column, np.ndarray)
        assert column.tolist() == [getattr(record, name) for record in history]
        if name != "round":
            assert column.dtype == np.float64
    assert np.all(np.diff(history.seconds) >= 0)
    assert history.seconds[0] > 0


def test_an_unknown_column() -> None:
    history = fitted().history
    text = r"History has no column 'error'; it has round, objective, rmse, gradient_nor"
    with pytest.raises(AttributeError, match=text):
        _ = history.error
    assert not hasattr(history, "loss")


def test_history_to_json_and_back() -> None:
    history = fitted().history
    columns = history.to_dict()
    assert tuple(columns) == COLUMNS
    back = dmf.History.from_dict(
        json.loads(json.dumps(columns)), history.initial_objective
    )
    assert list(back) == list(history)
    assert back.initial_objective == history.initial_objective
    assert isinstance(back[0].round, int)


def test_columns_of_different_lengths_make_no_history() -> None:
    columns = fitted().history.to_dict()
    columns["rmse"].pop()
    with pytest.raises(ValueError, match="zip"):
        dmf.History.from_dict(columns, 1.0)


def test_a_history_survives_copies_and_pickles() -> None:
    history = fitted().history
    for other in (
        copy.copy(history),
        copy.deepcopy(history),
        pickle.loads(pickle.dumps(history)),
    ):
        assert list(other) == list(history)
        assert other.initial_objective == history.initial_objective


def test_an_empty_history() -> None:
    history = dmf.History([], 3.5)
    assert len(history) == 0
    assert history.rmse.shape == (0,)
    assert repr(history) == "History(0 rounds)"
    assert list(dmf.History.from_dict(history.to_dict(), 3.5)) == []


def test_reprs() -> None:
    fit = fitted()
    first, last = fit.history.initial_objective, fit.history[-1]
    assert repr(fit.history) == (
        f"History(6 rounds, objective {first:.6g} -> {last.objective:.6g}, "
        f"rmse {last.rmse:.6g})"
    )
    assert repr(fit) == (
        f"Factorization(30 × 20, rank 3, {fit.history!r}, status='max_rounds')"
    )


def test_what_a_factorization_holds() -> None:
    solver, ridge = dmf.NormalizedGradient(), dmf.Ridge(0.2)
    fit = fitted(solver=solver, penalty=(None, ridge), seed=7)
    assert (fit.shape, fit.rank, fit.seed) == ((30, 20), 3, 7)
    assert fit.solver is solver
    assert fit.penalty == (dmf.Ridge(0.0), ridge)
    assert fit.objective == fit.history[-1].objective
    assert fit.objectives == (fit.objective,)
    assert isinstance(fit.W, np.ndarray)
    deviation = np.nanstd(low_rank().nan)
    for auto in fitted().penalty:
        assert auto.by_count
        assert auto.strength == pytest.approx(0.02 * deviation)


# What the history says is true: compare with the formulas, written plainly.

RIDGES = {
    "none": (None, None),
    "ridge": (dmf.Ridge(0.3), dmf.Ridge(0.7)),
    "by count": (dmf.Ridge(0.1, by_count=True), None),
}


def plain_objective(
    problem: Problem, M: Array, fit: dmf.Factorization, ridges: Any
) -> float:
    strengths: list[Any] = [0.0, 0.0]
    for axis, ridge in enumerate(ridges):
        if ridge is not None:
            counts = np.sum(M > 0, axis=1 - axis)
            strengths[axis] = ridge.strength * (counts if ridge.by_count else 1)
    W, H = (np.asarray(factor, dtype=float) for factor in (fit.W, fit.H))
    pair = (strengths[0], strengths[1])
    return objective(problem.truth.astype(float), M.astype(float), W, H, pair)


def plain_rmse(problem: Problem, M: Array, fit: dmf.Factorization) -> float:
    residual = problem.truth - np.asarray(fit.W) @ np.asarray(fit.H)
    return math.sqrt(np.average(residual[M > 0] ** 2, weights=M[M > 0]))


@pytest.mark.parametrize("weighted", [False, True], ids=["bool", "weighted"])
@pytest.mark.parametrize("ridges", RIDGES)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_objective_and_rmse(solver: Any, ridges: str, weighted: bool) -> None:
    problem = low_rank()
    M = problem.weights if weighted else problem.mask
    penalty = RIDGES[ridges]
    mask = M if weighted else None
    for rounds in (1, 4):
        fit = fitted(
            problem.nan, mask=mask, solver=solver, penalty=penalty, max_rounds=rounds
        )
        expected = plain_objective(problem, M, fit, penalty)
        assert fit.history[-1].objective == pytest.approx(expected, rel=1e-9)
        rmse = plain_rmse(problem, M, fit)
        assert fit.history[-1].rmse == pytest.approx(rmse, rel=1e-9)


@pytest.mark.parametrize("form", ["sparse", "dask", "dask-sparse", "float32"])
@pytest.mark.parametrize("solver", MONOTONE[-2:], ids=str)
def test_objective_and_rmse_of_other_arrays(
    solver: Any, form: str, keep_chunks: None
) -> None:
    problem = low_rank(dtype=np.float32 if form == "float32" else np.float64)
    lazy = da.from_array(problem.nan, chunks=(8, 6))
    X = {
        "sparse": problem.sparse(),
        "dask": lazy,
        "dask-sparse": da.from_array(
            np.where(problem.mask, problem.truth, 0), chunks=(8, 6)
        ).map_blocks(sp.csr_array, meta=sp.csr_array((0, 0))),
        "float32": problem.nan,
    }[form]
    fit = fitted(X, solver=solver, penalty=RIDGES["by count"])
    expected = plain_objective(problem, problem.mask, fit, RIDGES["by count"])
    tolerance = 1e-4 if form == "float32" else 1e-9
    assert fit.objective == pytest.approx(expected, rel=tolerance)
    rmse = plain_rmse(problem, problem.mask, fit)
    assert fit.history[-1].rmse == pytest.approx(rmse, rel=tolerance)


def test_the_objective_stays_true_when_almost_nothing_is_left() -> None:
    """It is the loss before a move plus a change: differences cancel."""
    problem = low_rank(noise=0.0)
    fit = fitted(
        problem.nan,
        solver=dmf.AlternatingLeastSquares(),
        penalty=None,
        max_rounds=25,
    )
    expected = plain_objective(problem, problem.mask, fit, (None, None))
    first = fit.history.initial_objective
    assert expected < 1e-9 * first
    assert fit.objective == pytest.approx(expected, rel=1e-2, abs=1e-14 * first)


def test_initial_objective_is_that_of_the_start() -> None:
    """A step of next to no length stays at the start."""
    problem = low_rank()
    ridges = RIDGES["ridge"]
    solver = dmf.GradientDescent(1e-13)
    fit = fitted(problem.nan, solver=solver, penalty=ridges, max_rounds=1)
    expected = plain_objective(problem, problem.mask, fit, ridges)
    assert fit.history.initial_objective == pytest.approx(expected, rel=1e-9)


def test_gradient_norms_and_steps() -> None:
    """From three fits that end after 0 (almost), 1 and 2 rounds."""
    problem = low_rank()
    M, X = problem.mask, np.where(problem.mask, problem.truth, 0)
    ridges = RIDGES["ridge"]
    options = {"penalty": ridges, "solver": dmf.NormalizedGradient()}
    before = fitted(problem.nan, max_rounds=1, **options)
    after = fitted(problem.nan, max_rounds=2, **options)
    W, H = before.W, before.H
    for_W = (M * (W @ H - X)) @ H.T + ridges[0].strength * W
    for_H = after.W.T @ (M * (after.W @ H - X)) + ridges[1].strength * H
    record = after.history[1]
    assert record.gradient_norm_W == pytest.approx(np.linalg.norm(for_W))
    assert record.gradient_norm_H == pytest.approx(np.linalg.norm(for_H))
    norm = np.linalg.norm
    assert record.step_W == pytest.approx(norm(after.W - W) / norm(after.W))
    assert record.step_H == pytest.approx(norm(after.H - H) / norm(after.H))
    # The first round has no previous move; then every row has one.
    assert (after.history[0].plane_W, after.history[0].plane_H) == (0, 0)
    assert (record.plane_W, record.plane_H) == (1, 1)
    line = fitted(problem.nan, solver=dmf.NormalizedGradient(step=dmf.Exact()))
    assert not line.history.plane_W.any()


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


# The progress line.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_when_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    fitted()
    fitted(progress=False)
    assert capfd.readouterr() == ("", "")


def test_draws_if_asked(capfd: pytest.CaptureFixture[str]) -> None:
    fit = fitted(progress=True)
    out, err = capfd.readouterr()
    last = fit.history[-1]
    assert out == ""
    assert "round 6/6" in err
    assert f"objective {last.objective:.5g}" in err
    assert f"rmse {last.rmse:.4g}" in err
    assert f"‖∇‖ {last.gradient_norm_H:.2g}" in err
    assert "at most 0:00 left" in err


def test_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fitted(restarts=2)
    assert "start 2/2" in terminal.getvalue()
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fitted(progress=False)
    assert terminal.getvalue() == ""


def test_there_may_be_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs without a console have none: sys.stderr is None."""
    monkeypatch.setattr("sys.stderr", None)
    assert fitted().status.code == "max_rounds"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_the_line_ends_with_the_fit(
    capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    """Whatever ends the fit, no thread goes on drawing."""

    def fails(record: dmf.Record) -> None:
        raise error

    with suppress(OSError):
        fitted(progress=True, callbacks=[fails])
    assert "round 1/6" in capfd.readouterr().err
    drawing = [t for t in threading.enumerate() if type(t).__module__ == "rich.live"]
    for thread in drawing:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_the_line_doesnt_change_the_fit() -> None:
    assert same_factors(fitted(progress=True), fitted())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    from dmf.progress import _clock

    assert _clock(seconds) == text


def test_factorizations_are_compared_by_identity() -> None:
    fit = fitted(max_rounds=1)
    assert fit == fit
    assert fit != fitted(max_rounds=1)
    assert len({fit, fit}) == 1
