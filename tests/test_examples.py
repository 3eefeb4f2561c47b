"""The examples run, and what they claim is true."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> Any:
    """Import an example; nothing but definitions may run."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def masked() -> Any:
    return load("masked_gradient_descent")


@pytest.fixture(scope="module")
def normalized() -> Any:
    return load("normalized_gradient")


@pytest.fixture(scope="module")
def metro() -> Any:
    return load("smooth_metro")


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return min(pixels.shape) > 500 and pixels.std() > 10


def run_main(
    module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str
) -> None:
    argv = [module.__name__, "--output-dir", str(folder), *options]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()


def test_masked_problems_can_be_met_and_have_no_entry_to_spare(masked: Any) -> None:
    m, n = masked.SHAPE
    freedom = (m + n) * masked.RANK - masked.RANK**2
    for seed in range(20):
        problem = masked.make_problem(seed)
        assert problem.mask.sum() == freedom == 18
        assert np.linalg.matrix_rank(problem.truth) == masked.RANK
        assert np.mean(problem.truth**2) == pytest.approx(1.0, abs=0.2)


def test_masked_main_shows_one_matrix_whole(
    masked: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A few rounds: whether they lead far enough is the next tests' business.
    monkeypatch.setattr(masked, "ROUNDS", 200)
    run_main(masked, monkeypatch, tmp_path, "--seeds", "2")
    printed = capsys.readouterr().out
    assert re.findall(r"^ +(\d+)  \d\.\d{3}e", printed, re.M) == ["100", "200"]
    assert len(re.findall(r"^  \[\d, \d\]", printed, re.M)) == 30
    assert re.search(r"^\d of 2 reach 0.0001$", printed, re.M)
    assert is_picture(tmp_path / "masked_gradient_descent.png")
    assert is_picture(tmp_path / "masked_gradient_descent_seeds.png")


def test_masked_descent_falls_and_flattens(masked: Any) -> None:
    problem = masked.make_problem(masked.SHOWN)
    fit = masked.fit_problem(problem, masked.SHOWN)
    objective = fit.history.objective
    assert 5 < fit.history.initial_objective < 20
    assert objective[-1] <= masked.REACHED
    assert objective[999] - objective[-1] < 1e-3  # the second half adds next to nothing
    fitted = fit.W @ fit.H
    assert abs(fitted - problem.X)[problem.mask].max() < masked.NOISE
    unobserved = (fitted - problem.truth)[~problem.mask]
    assert np.std(unobserved) < 0.5 * np.std(problem.truth[~problem.mask])


@pytest.mark.slow
def test_masked_descent_reaches_as_many_seeds_as_the_readme_says(
    masked: Any, tmp_path: Path
) -> None:
    fits = masked.show_seeds(20, 1, tmp_path / "seeds.png")
    reached = [fit.objective <= masked.REACHED for fit in fits]
    assert f"on {sum(reached)} of 20 seeds" in (
        (EXAMPLES / "README.md").read_text(encoding="utf-8")
    )
    assert sum(reached) > 10
    # The explanation holds on every seed: trapped is what sees a pair turned round.
    turned = [
        masked.count_turned(masked.make_problem(seed), fit)
        for seed, fit in enumerate(fits)
    ]
    assert reached == [count == 0 for count in turned]
    assert all(3 < fit.history.initial_objective < 30 for fit in fits)


def test_plain_gradients_explode_where_normalised_ones_work(normalized: Any) -> None:
    problem = normalized.make_problem()
    fits = normalized.show_explosion(problem)
    codes = {name: fit.status.code for name, fit in fits.items()}
    assert codes == {
        "normalised, 4": "max_rounds",
        "plain, 4": "diverged",
        "plain, 0.01": "diverged",
        "plain, 0.003": "max_rounds",
    }
    normalised = fits["normalised, 4"]
    assert normalised.objective < 0.05 * normalised.history.initial_objective


@pytest.mark.slow
def test_normalized_main_shows_what_steps_reach(
    normalized: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_main(normalized, monkeypatch, tmp_path)
    assert is_picture(tmp_path / "normalized_gradient.png")
    printed = capsys.readouterr().out
    above = {
        name: float(share)
        for name, share in re.findall(
            r"^  (\w+\([\d.]*\)).* (\d\S+e\S+)$", printed, re.M
        )
    }
    assert set(above) == {
        *("Constant(4)", "Constant(2)", "Constant(1)"),
        *("Decay(4)", "Exact()", "Plane()"),
    }
    # The floor goes with the square of the learning rate.
    assert 3 < above["Constant(4)"] / above["Constant(2)"] < 5
    assert 3 < above["Constant(2)"] / above["Constant(1)"] < 5
    assert above["Decay(4)"] < 0.5 * above["Constant(1)"]
    assert max(above["Exact()"], above["Plane()"]) < 0.01 * above["Decay(4)"]
    starts = re.findall(r"^  start \d +(\S+)(  kept)?$", printed, re.M)
    kept = [float(objective) for objective, mark in starts if mark]
    assert kept == [min(float(objective) for objective, _ in starts)]
    assert len(starts) == normalized.STARTS


def test_a_constant_step_bounces_and_an_exact_one_descends(normalized: Any) -> None:
    problem = normalized.make_problem()
    bouncing = normalized.fit_with(problem, normalized.constant(4.0), max_rounds=100)
    exact = normalized.fit_with(problem, normalized.dmf.NormalizedGradient())
    tail = np.diff(bouncing.history.objective[50:])
    assert (tail > 0).any()
    assert (tail < 0).any()
    assert (np.diff(exact.history.objective) <= 1e-9 * exact.objective).all()
    assert bouncing.history.objective[50:].min() > 1.1 * exact.objective


# ------------------------------------------------------------------------- the metro


def test_metro_error_counts_what_was_taken_away_and_no_more(metro: Any) -> None:
    truth = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    mask = np.array([[True, False, False], [False, True, True]])
    flows = metro.Flows(truth, mask)
    np.testing.assert_array_equal(
        flows.X, np.where(mask, truth, np.nan).astype(np.float32)
    )
    filled = np.array([[9.0, 2.5, 7.0], [2.0, 9.0, 9.0]])
    assert flows.rmse(filled) == pytest.approx(np.sqrt((0.5**2 + 1.0**2) / 2))


def test_metro_interpolation_draws_straight_lines(metro: Any) -> None:
    rng = np.random.default_rng(0)
    line = np.linspace([1.0, -2.0], [5.0, 3.0], 50).T
    X = np.where(rng.random(line.shape) < 0.5, line, np.nan)
    X[:, [0, -1]] = line[:, [0, -1]]
    np.testing.assert_allclose(metro.interpolate(X), line)
    # Beyond the first and the last count, theirs goes on.
    ends = metro.interpolate(np.array([[np.nan, 2.0, np.nan, 4.0, np.nan]]))
    assert ends.tolist() == [[2.0, 2.0, 3.0, 4.0, 4.0]]


def test_metro_strengths_are_weighed_on_held_out_counts(
    metro: Any, real_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts that were taken away can't leak: the fit would be the same."""
    data = real_data("hangzhou-metro.npz")
    flows = metro.Flows(data["x"][:, :400], data["train_rm40"][:, :400])
    other = metro.Flows(np.where(flows.mask, flows.truth, 1e4), flows.mask)
    monkeypatch.setattr(metro, "RANK", 5)
    fills = []
    for one in (flows, other):
        trials, fit, filled = metro.fill(one)
        assert len(trials) == len(metro.STRENGTHS)
        assert fit.penalty == trials[0].penalty == trials.best.penalty
        kept = [trial for trial in trials if trial.status != "dropped"]
        least = min(trial.validation_rmse for trial in kept)
        assert trials[0].validation_rmse == least
        fills.append(filled)
    np.testing.assert_array_equal(*fills)


def test_metro_beats_straight_lines(
    metro: Any,
    real_data: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the counts that were taken away, which chose nothing."""
    data = real_data("hangzhou-metro.npz")
    path = tmp_path / "metro.npz"
    np.savez(path, **data)
    run_main(metro, monkeypatch, tmp_path, "--data", str(path))
    printed = capsys.readouterr().out
    straight, ours = (
        float(re.search(rf"^{name}.* (\d+\.\d\d)$", printed, re.M)[1])
        for name in ("straight lines", "dmf, chosen")
    )
    print(f"Hangzhou metro: {ours} against {straight}")
    flows = metro.read(path)
    hidden = ~data["train_rm40"] & np.isfinite(data["x"])
    error = (metro.interpolate(flows.X) - data["x"])[hidden]
    assert straight == pytest.approx(np.sqrt(np.mean(error**2)), abs=0.006)
    assert ours <= 31.0
    assert ours < straight
    assert len(re.findall(r"Smooth\(strength=", printed)) == len(metro.STRENGTHS)
    assert is_picture(tmp_path / "smooth_metro.png")
