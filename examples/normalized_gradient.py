"""Normalised gradients: what the normalising is for, and what is left to the step.

A matrix of 60 × 40 and rank 4, half of it observed, with noise; its entries are about
30 in size, as when something is measured on a scale from -100 to 100. The largest
learning rate with which plain gradients don't explode is inversely proportional to that
size: what does well in metres explodes in centimetres. Divided by its length, a
gradient only says where to go. How far, the step decides:

- a constant step can't settle: in the end it jumps over the minimum, to and fro, and
  the objective stays above it by an amount that goes with the learning rate squared;
- a decaying one settles, but the decay has to fit the problem;
- the exact minimum along the gradient, and in the plane of gradient and previous move
  (dmf's default, for each row on its own), need no number at all.

    python examples/normalized_gradient.py --output-dir .
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dmf
from dmf.plots import CURVES, INK, convergence, require, tidy

Array = Any

SHAPE = (60, 40)
RANK = 4
UNIT = 30.0
OBSERVED = 0.5
NOISE = 0.1  # in units of UNIT
PENALTY = dmf.Ridge(1.0)  # on W and on H
RATE = 4.0  # the length of a move; W and H end up about 50 long
PLAIN_RATES = (RATE, 0.01, 0.003)
ROUNDS = 300
STARTS = 8


@dataclass(frozen=True)
class Problem:
    """A matrix with missing entries: arrays of shape (60, 40)."""

    truth: Array
    X: Array  # with noise
    mask: Array  # True where observed


def make_problem(seed: int = 0) -> Problem:
    """Return a random matrix of rank 4 with noise, half of it observed."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((SHAPE[0], RANK))
    H = rng.standard_normal((RANK, SHAPE[1]))
    truth = UNIT * W @ H / RANK**0.5
    noise = UNIT * NOISE * rng.standard_normal(SHAPE)
    return Problem(truth, truth + noise, rng.random(SHAPE) < OBSERVED)


def constant(rate: float) -> dmf.NormalizedGradient:
    """Return the solver whose every move has the same length."""
    return dmf.NormalizedGradient("global", dmf.Constant(rate))


def fit_with(problem: Problem, solver: Any, **options: Any) -> dmf.Factorization:
    """Run 300 rounds with a solver, from the same start for all of them."""
    return dmf.factorize(
        problem.X,
        RANK,
        mask=problem.mask,
        penalty=PENALTY,
        solver=solver,
        tol=0,
        # Tasks are small: 20 rounds at a time are sent, which saves half of the time.
        **{"max_rounds": ROUNDS, "check_every": 20, **options},
    )


def lowest_objective(problem: Problem) -> float:
    """Return the minimum that all descents here go to, from 1000 rounds of ALS."""
    solver = dmf.AlternatingLeastSquares()
    return fit_with(problem, solver, max_rounds=1000).objective


def show_starts(problem: Problem) -> dmf.Factorization:
    """Run several random starts, and keep the one with the lowest objective."""
    fit = fit_with(problem, constant(RATE / 4), restarts=STARTS)
    print(f"{STARTS} random starts, constant step {RATE / 4:g}: objectives")
    for start, objective in enumerate(fit.objectives):
        kept = "  kept" if objective == fit.objective else ""
        print(f"  start {start}  {objective:10.1f}{kept}")
    hidden = ~problem.mask
    error = np.sqrt(np.mean((fit.W @ fit.H - problem.truth)[hidden] ** 2))
    size = np.sqrt(np.mean(problem.truth[hidden] ** 2))
    print(
        f"  unobserved entries: root mean square {size:.1f}, of the error {error:.1f}"
    )
    return fit


def show_explosion(problem: Problem) -> dict[str, dmf.Factorization]:
    """Run normalised gradients, and plain ones at the same rate and at lower ones."""
    solvers = {f"normalised, {RATE:g}": constant(RATE)}
    for rate in PLAIN_RATES:
        solvers[f"plain, {rate:g}"] = dmf.GradientDescent(rate)
    # Round by round, so that the last rounds before an explosion are seen.
    fits = {
        name: fit_with(problem, solver, check_every=1)
        for name, solver in solvers.items()
    }
    print("\nlearning rate: objective at the start, after rounds 1, 2 and the last")
    for name, fit in fits.items():
        objective = [fit.history.initial_objective, *fit.history.objective]
        shown = [*objective[:3], objective[-1]]
        print(
            f"  {name:14}{''.join(f'{value:11.3g}' for value in shown)}"
            f"  {fit.status.code}"
        )
    return fits


def show_steps(problem: Problem, lowest: float) -> dict[str, dmf.Factorization]:
    """Run the same start with every kind of step."""
    solvers = {
        **{f"Constant({RATE / k:g})": constant(RATE / k) for k in (1, 2, 4)},
        f"Decay({RATE:g})": dmf.NormalizedGradient("global", dmf.Decay(RATE)),
        "Exact()": dmf.NormalizedGradient("global", dmf.Exact()),
        "Plane(), row by row": dmf.NormalizedGradient(),
    }
    fits = {name: fit_with(problem, solver) for name, solver in solvers.items()}
    print(f"\nobjective above {lowest:.1f}, its minimum, after {ROUNDS} rounds")
    for name, fit in fits.items():
        print(f"  {name:20}  {fit.objective / lowest - 1:9.2e}")
    return fits


def draw(
    rates: dict[str, dmf.Factorization],
    steps: dict[str, dmf.Factorization],
    lowest: float,
) -> Any:
    """Draw what plain gradients do, and what each step reaches."""
    figure = require("matplotlib.figure").Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, fit in rates.items():
        diverged = " (diverged)" if fit.status.code == "diverged" else ""
        convergence(fit.history, left, label=name + diverged)
    left.set(xlim=(-1, 60), ylim=(1e3, 1e12))
    left.set_title("Learning rates, normalised and plain", color=INK)
    for colour, (name, fit) in zip(CURVES, steps.items(), strict=True):
        above = fit.history.objective / lowest - 1
        right.plot(fit.history.round, above, color=colour, label=name)
    right.set_yscale("log")
    right.set_title("What each step reaches", color=INK)
    tidy(right, "objective above its minimum, as a share of it")
    return figure


def main() -> None:
    """Read the command line, run it all, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path())
    options = parser.parse_args()
    problem = make_problem()
    show_starts(problem)
    rates = show_explosion(problem)
    lowest = lowest_objective(problem)
    steps = show_steps(problem, lowest)
    figure = draw(rates, steps, lowest)
    figure.savefig(options.output_dir / "normalized_gradient.png", dpi=150)


if __name__ == "__main__":
    main()
