"""Early stopping: the factors of the best check come back, whatever happens on the way.

The independent way to them: a fit of as many rounds as the best check needed.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmf
from benchmarks.common import power_law
from dmf._factorize import DROP_AFTER
from dmf.engine.loop import Loop
from dmf.engine.losses import WorkersLost
from tests.problems import (
    FORMS,
    fitted,
    form_of,
    interrupt_in,
    interrupted_after,
    low_rank,
    same_factors,
    without_seconds,
)

# Noise, and many parameters: it overfits soon.
NOISY = low_rank(40, 30, noise=0.5)
OPTIONS: dict[str, Any] = {
    "rank": 5,
    "penalty": dmf.Ridge(0.01),
    "validation": 0.25,
    "patience": 5,
    "max_rounds": 100,
    "tol": 0,
}


def stopped(X: Any = None, **options: Any) -> dmf.Factorization:
    """Fit until it overfits."""
    return fitted(NOISY.nan if X is None else X, **(OPTIONS | options))


def same_bits(one: dmf.Factorization, other: dmf.Factorization) -> bool:
    """Return whether two models are the same, bitwise."""
    names = ("W", "H", "row_offsets", "column_offsets")
    parts = [(getattr(one, name), getattr(other, name)) for name in names]
    return one.offset == other.offset and all(
        a is b or np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in parts
    )


def first_stop(errors: list[float], patience: int) -> tuple[int, int]:
    """Return the check that stops, and the best one, by the rule as it is told."""
    best = 0
    for k, error in enumerate(errors):
        if error < errors[best]:
            best = k
        if k - best >= patience:
            return k, best
    return len(errors) - 1, best


@settings(max_examples=20)
@given(
    patience=st.integers(1, 8),
    every=st.sampled_from([1, 1, 2, 3]),
    seed=st.integers(0, 10**6),
    offsets=st.sampled_from(["none", "global", "rows", "both"]),
)
def test_it_stops_when_patience_ends_with_the_best_factors(
    patience: int, every: int, seed: int, offsets: str
) -> None:
    options = {"check_every": every, "seed": seed, "offsets": offsets}
    options |= {"max_rounds": 30}
    whole = stopped(patience=1000, **options)
    assert whole.status.code == "max_rounds"
    assert len(whole.history) == 30
    rounds = np.flatnonzero(np.isfinite(whole.history.validation_rmse)) + 1
    errors = whole.history.validation_rmse[rounds - 1].tolist()
    end, best = first_stop(errors, patience)
    fit = stopped(patience=patience, **options)
    early = end - best >= patience
    assert fit.status.code == ("early_stopped" if early else "max_rounds")
    assert (fit.status.round, fit.status.factors_of) == (rounds[end], rounds[best])
    assert fit.history.validation_rmse[rounds[best] - 1] == min(errors[: end + 1])
    # Up to the end, it is the fit that goes on.
    own = without_seconds(fit.history)
    assert repr(own) == repr(without_seconds(whole.history[: rounds[end]]))
    # A fit that goes no further has the same factors, and the objective is theirs.
    short = stopped(**(options | {"max_rounds": int(rounds[best]), "patience": 1000}))
    assert same_bits(fit, short)
    assert fit.objective == short.objective == fit.history[rounds[best] - 1].objective
    assert fit.certificate == short.certificate


def test_the_status_says_so() -> None:
    fit = stopped()
    best = 1 + int(np.argmin(fit.history.validation_rmse))
    assert fit.status.code == "early_stopped"
    assert not fit.status.converged
    assert fit.status.round == best + 5
    assert str(fit.status) == (
        f"stopped early in round {best + 5}: for 5 checks the error on the held-out "
        "entries hasn't fallen below its least; a larger patience waits longer; the "
        f"factors are those of round {best}, the best on the held-out entries"
    )
    ends = stopped(max_rounds=best + 1)
    assert str(ends.status).startswith(f"stopped after max_rounds={best + 1} rounds, ")
    assert str(ends.status).endswith(
        f"the factors are those of round {best}, the best on the held-out entries"
    )
    at_best = stopped(max_rounds=best)
    assert at_best.status.factors_of == at_best.status.round == best
    assert "factors" not in str(at_best.status)
    assert same_factors(at_best, fit)
    assert same_factors(ends, fit)


def test_it_pays() -> None:
    """What it is for: the entries that nobody has seen are predicted better."""
    hidden = ~NOISY.mask
    train, _ = dmf.split_observed(NOISY.nan, 0.25)
    errors = [
        np.sqrt(np.mean((fit.W @ fit.H - NOISY.truth)[hidden] ** 2))
        for fit in (stopped(), stopped(train, validation=None))
    ]
    assert errors[0] < 0.9 * errors[1]


def test_convergence_comes_first_and_keeps_the_best_too() -> None:
    fit = stopped(tol=0.05, patience=1000)
    assert fit.status.converged
    errors = fit.history.validation_rmse
    best = 1 + int(np.argmin(errors))
    assert fit.status.factors_of == best < len(errors)
    assert same_factors(fit, stopped(max_rounds=best, patience=1000))
    # tol looks at the objective of each round, not at that of the best one.
    path = np.append(fit.history.initial_objective, fit.history.objective)
    small = np.abs(np.diff(path)) < 0.05 * path[1:]
    assert np.flatnonzero(small).tolist() == [len(fit.history) - 1]


@pytest.mark.parametrize("form", FORMS)
def test_the_best_factors_in_any_form(form: str, keep_chunks: None) -> None:
    X = form_of(NOISY, form)
    fit = stopped(X, offsets="both")
    best = fit.status.factors_of
    assert fit.status.code == "early_stopped"
    assert best == fit.status.round - 5
    assert isinstance(fit.W, da.Array) == isinstance(X, da.Array)
    assert same_bits(fit, stopped(X, offsets="both", max_rounds=best))


def simulate(
    errors: list[list[float]], patience: int, drop: bool
) -> dict[int, tuple[str, int, int]]:
    """Return how each candidate ends, when, and its best round: by the rules as told.

    `errors` are those of each candidate in each round, if nothing would end it.
    """
    ends: dict[int, tuple[str, int, int]] = {}
    for round in range(1, len(errors[0]) + 1):
        for k in sorted(set(range(len(errors))) - set(ends)):
            end, best = first_stop(errors[k][:round], patience)
            if end - best >= patience:
                ends[k] = ("early_stopped", round, best + 1)
        left = sorted(
            set(range(len(errors))) - set(ends), key=lambda k: errors[k][round - 1]
        )
        if drop and round in [DROP_AFTER * 2**k for k in range(9)]:
            for k in left[(len(left) + 1) // 2 :]:
                best = int(np.argmin(errors[k][:round]))
                ends[k] = ("dropped", round, best + 1)
    assert len(ends) == len(errors)
    return ends


@pytest.mark.parametrize("drop", [True, False])
def test_each_restart_has_its_own_best(drop: bool) -> None:
    winners, codes = set(), set()
    for seed in range(4):
        told: list[dmf.Record] = []
        seen: list[dmf.Record] = []
        options: dict[str, Any] = {"restarts": 4, "seed": seed}
        stopped(patience=1000, drop=False, callbacks=[told.append], **options)
        errors = [
            [r.validation_rmse for r in told if r.candidate == k] for k in range(4)
        ]
        expected = simulate(errors, 5, drop)
        fit = stopped(drop=drop, callbacks=[seen.append], **options)
        rounds = [max(r.round for r in seen if r.candidate == k) for k in range(4)]
        assert rounds == [expected[k][1] for k in range(4)]
        # Dropped ones are out of the race; of the others, the lowest error wins.
        left = [k for k in range(4) if expected[k][0] != "dropped"]
        winner = min(left, key=lambda k: min(errors[k][: rounds[k]]))
        assert (fit.status.code, fit.status.round, fit.status.factors_of) == (
            expected[winner]
        )
        assert list(fit.history) == [r for r in seen if r.candidate == winner]
        bests = [
            next(r for r in seen if (r.candidate, r.round) == (k, expected[k][2]))
            for k in range(4)
        ]
        assert fit.objectives == tuple(best.objective for best in bests)
        assert fit.objective == bests[winner].objective
        assert len({best.round for best in bests}) > 1
        found = fit.score(dmf.split_observed(NOISY.nan, 0.25, seed)[1])
        assert found.rmse == pytest.approx(bests[winner].validation_rmse, rel=1e-9)
        winners.add(winner)
        codes |= {code for code, _, _ in expected.values()}
    assert len(winners) > 1
    assert codes == {"early_stopped", "dropped"} if drop else {"early_stopped"}


@pytest.mark.parametrize("when", ["callback", "tasks"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_an_interrupt_keeps_the_best(
    when: str, restarts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"restarts": restarts, "patience": 1000, "max_rounds": 40, "drop": False}
    whole = stopped(**options)
    assert whole.status.factors_of is not None
    cut = whole.status.factors_of + 3
    assert cut < 40
    callbacks = [interrupt_in(cut, restarts - 1)] if when == "callback" else []
    with monkeypatch.context() as patch:
        if when == "tasks":
            patch.setattr(Loop, "_collect", interrupted_after(cut))
        fit = stopped(callbacks=callbacks, **options)
    assert (fit.status.code, fit.status.round) == ("interrupted", cut)
    assert fit.status.factors_of == whole.status.factors_of
    assert len(fit.history) == cut
    assert fit.certificate is None
    assert same_factors(fit, whole)
    assert fit.objective == whole.objective


def test_a_callback_that_stops_keeps_the_best() -> None:
    whole = stopped()
    fit = stopped(callbacks=[lambda record: record.round == whole.status.round - 2])
    assert (fit.status.code, fit.status.round) == ("stopped", whole.status.round - 2)
    assert same_factors(fit, whole)


def test_an_explosion_leaves_finite_factors() -> None:
    solver = dmf.GradientDescent(0.1)
    for every in (1, 4):
        fit = stopped(solver=solver, check_every=every, patience=1000)
        assert fit.status.code == "diverged"
        assert np.isfinite(fit.objective)
        assert np.isfinite(fit.W).all()
        assert len(fit.history) == fit.status.round


def test_patience_is_checked() -> None:
    for patience, error, text in (
        (0, ValueError, "patience must be at least 1, got 0"),
        (2.5, TypeError, "patience must be an integer of at least 1, got 2.5"),
    ):
        with pytest.raises(error, match=f"^{text}$"):
            stopped(patience=patience)


# --------------------------------------------------------------------- on a cluster


@pytest.fixture(scope="module")
def uneven() -> Any:
    """A sparse matrix of several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmf.engine.grid.ranked_grids", lambda work, machine: [(3, 2)])
        yield power_law(1000, 600, 40_000, rank=5)


def on_threads(X: Any, **options: Any) -> dmf.Factorization:
    """Fit on this process's threads, also while a client is active."""
    with dask.config.set(scheduler="threads"):
        return stopped(X, **options)


CLUSTER: dict[str, Any] = {"rank": 5, "penalty": dmf.Ridge(0.001), "patience": 8}


@pytest.mark.cluster
def test_workers_stop_where_threads_do(client: Any, uneven: Any) -> None:
    for X in (uneven, da.from_array(NOISY.nan, chunks=(10, 10))):
        expected = on_threads(X, **CLUSTER)
        found = stopped(X, **CLUSTER)
        assert expected.status.code == "early_stopped"
        assert found.status == expected.status
        assert same_bits(found, expected)


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("after", [1, 6], ids="{} after the best".format)
def test_a_worker_killed_after_the_best_check(
    client: Any, uneven: Any, restarts: int, after: int
) -> None:
    """The best factors were with it."""
    options = CLUSTER | {"restarts": restarts}
    expected = on_threads(uneven, **options)
    assert expected.status.code == "early_stopped"
    best = expected.status.factors_of
    assert best is not None
    seen: list[tuple[int, int]] = []

    def kill(record: dmf.Record) -> None:
        if record.round == best + after and all(r < best + after for r, _ in seen):
            pid = client.run(os.getpid).popitem()[1]
            os.kill(pid, signal.SIGKILL)
        seen.append((record.round, record.candidate))

    found = stopped(uneven, callbacks=[kill], **options)
    assert found.status == expected.status
    assert found.objectives == expected.objectives
    assert same_bits(found, expected)
    assert len(seen) == len(set(seen))  # no record comes twice


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.parametrize("lost", [3, 11, 13])
def test_the_best_check_survives_the_loss_of_all(
    client: Any, uneven: Any, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after the best one is kept on this side, and as patience ends."""
    expected = on_threads(uneven, **CLUSTER)
    collect, gone = Loop._collect, []

    def lose(self: Any, batch: Any) -> Any:
        if batch.before.round == lost and not gone:
            gone.append(1)
            msg = "gone"
            raise WorkersLost(msg)
        return collect(self, batch)

    monkeypatch.setattr(Loop, "_collect", lose)
    found = stopped(uneven, **CLUSTER)
    assert gone
    assert found.status == expected.status
    assert same_bits(found, expected)
