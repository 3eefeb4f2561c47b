"""Plain gradient descent on a matrix of 5 × 6 of which 18 entries are observed.

X = W* H* + noise has rank 2, apart from the noise, whose standard deviation is 0.05.
Two rows are observed whole, the others in two entries each: 18 entries, as many as W
and H have degrees of freedom, (5 + 6) · 2 − 2². The whole rows tell what H is, up to a
change of basis, and two entries tell what each other row's two weights are. So there
are factors that meet all 18, noise included, and the objective can fall to 0.

On most seeds it does. On the others the descent is trapped, and the script shows how:
take a row with two entries, in the columns j and k. Where W and H meet the data,
det W[whole rows] · det H[:, (j, k)] = det X[whole rows, (j, k)]. If the descent fits
the row while the left side still has the wrong sign, it would have to lead both columns
of H through a point where they are parallel, and there the row's weights are infinite.
So it creeps along with growing factors. Another start isn't trapped: see --restarts.

    python examples/masked_gradient_descent.py --output-dir .
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dmf
from dmf.plots import INK, SEEN, convergence, overview, require

Array = Any

SHAPE = (5, 6)
RANK = 2
NOISE = 0.05
LEARNING_RATE = 0.05
ROUNDS = 2000
# What counts as having got there: residuals that are 20 times smaller than the noise.
REACHED = 1e-4
SHOWN = 7  # the seed that is shown in detail


@dataclass(frozen=True)
class Problem:
    """A matrix with missing entries: arrays of shape (5, 6)."""

    truth: Array  # W* H*
    X: Array  # with noise
    mask: Array  # True where observed


def make_problem(seed: int) -> Problem:
    """Return a random matrix of rank 2 whose entries have mean square 1, about."""
    rng = np.random.default_rng(seed)
    truth = spread(SHAPE[0], rng) @ spread(SHAPE[1], rng).T
    return Problem(
        truth=truth,
        X=truth + NOISE * rng.standard_normal(SHAPE),
        mask=make_mask(rng),
    )


def spread(count: int, rng: np.random.Generator) -> Array:
    """Return vectors that point everywhere, shape (count, 2).

    Evenly spread, in random order, so that no two rows, or columns, are nearly parallel
    and make the problem ill-conditioned.
    """
    angles = np.pi * (rng.permutation(count) / count + rng.random())
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return 2**0.25 * rng.choice([-1, 1], size=(count, 1)) * vectors


def make_mask(rng: np.random.Generator) -> Array:
    """Return a mask with two whole rows, and two entries in each of the others."""
    mask = np.zeros(SHAPE, dtype=bool)
    for row, entries in zip(rng.permutation(SHAPE[0]), (6, 6, 2, 2, 2), strict=True):
        mask[row, rng.permutation(SHAPE[1])[:entries]] = True
    return mask


def fit_problem(
    problem: Problem, seed: int, restarts: int = 1, callbacks: Any = ()
) -> dmf.Factorization:
    """Run 2000 rounds of gradient descent from dmf's random start."""
    return dmf.factorize(
        problem.X,
        RANK,
        mask=problem.mask,
        penalty=None,
        solver=dmf.GradientDescent(LEARNING_RATE),
        restarts=restarts,
        max_rounds=ROUNDS,
        tol=0,
        check_every=100,  # small tasks: sent a hundred rounds at a time
        seed=seed,
        callbacks=callbacks,
    )


def count_turned(problem: Problem, fit: dmf.Factorization) -> int:
    """Return how many rows with two entries see their columns the wrong way round."""
    entries = problem.mask.sum(axis=1)
    whole = np.flatnonzero(entries == SHAPE[1])
    turned = 0
    for row in np.flatnonzero(entries == RANK):
        pair = np.flatnonzero(problem.mask[row])
        ours = np.linalg.det(fit.W[whole]) * np.linalg.det(fit.H[:, pair])
        theirs = np.linalg.det(problem.X[np.ix_(whole, pair)])
        turned += bool(ours * theirs < 0)
    return turned


def print_hundredth(record: dmf.Record) -> None:
    """A callback: print every hundredth round."""
    if record.round % 100 == 0:
        print(f"  {record.round:5}  {record.objective:.3e}")


def print_entries(problem: Problem, fit: dmf.Factorization) -> None:
    """Print every entry beside its prediction."""
    prediction = fit.W @ fit.H
    for name, where, target in (
        ("observed", problem.mask, problem.X),
        ("unobserved", ~problem.mask, problem.truth),
    ):
        print(f"\n{name}: entry, {'X' if target is problem.X else 'W* H*'}, W H")
        for i, j in np.argwhere(where):
            print(f"  [{i}, {j}]  {target[i, j]:7.3f}  {prediction[i, j]:7.3f}")
        error = np.sqrt(np.mean((prediction - target)[where] ** 2))
        size = np.sqrt(np.mean(target[where] ** 2))
        print(f"  root mean square {size:.3f}, of the error {error:.3f}")


def show_one(seed: int, picture: Path) -> dmf.Factorization:
    """Fit one matrix, and print and draw all about it."""
    problem = make_problem(seed)
    print(f"seed {seed}, objective after round")
    fit = fit_problem(problem, seed, callbacks=[print_hundredth])
    print(f"it began at {fit.history.initial_objective:.3g}")
    print_entries(problem, fit)
    overview(
        problem.mask,
        problem.X,
        fit.W @ fit.H,
        fit.history,
        problem.truth,
        titles=("Mask: 60% observed", "Observed X", "W H", "W* H*"),
    ).savefig(picture, dpi=150)
    return fit


def show_seeds(seeds: int, restarts: int, picture: Path) -> list[dmf.Factorization]:
    """Fit as many matrices, say how many get there, and draw their objectives."""
    problems = [make_problem(seed) for seed in range(seeds)]
    fits = [fit_problem(problem, k, restarts) for k, problem in enumerate(problems)]
    print("\nseed  start  round 1000  round 2000  rows the wrong way round")
    for seed, (problem, fit) in enumerate(zip(problems, fits, strict=True)):
        objective = fit.history.objective
        print(
            f"{seed:4}  {fit.history.initial_objective:5.1f}"
            f"  {objective[ROUNDS // 2 - 1]:10.1e}  {objective[-1]:10.1e}"
            f"  {count_turned(problem, fit)}"
        )
    reached = [fit.objective <= REACHED for fit in fits]
    print(f"{sum(reached)} of {seeds} reach {REACHED:g}")
    draw_seeds(fits, reached).savefig(picture, dpi=150)
    return fits


def draw_seeds(fits: list[dmf.Factorization], reached: list[bool]) -> Any:
    """Draw the objectives of many fits; those that don't get there stand out."""
    figure = require("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    for fit, there in zip(fits, reached, strict=True):
        convergence(fit.history, ax, label="")
        ax.lines[-1].set(color=SEEN if there else "#d1731f", alpha=0.8, linewidth=1.2)
    ax.set_yscale("log")
    ax.set_ylim(1e-12, 100)
    ax.axhline(REACHED, color=INK, linewidth=1, linestyle="--")
    ax.set_title(f"{sum(reached)} of {len(fits)} matrices reach {REACHED:g}", color=INK)
    return figure


def main() -> None:
    """Read the command line, and show one matrix, then many."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=SHOWN, help="the one shown whole")
    parser.add_argument("--seeds", type=int, default=20, help="how many are counted")
    parser.add_argument("--restarts", type=int, default=1, help="starts of each")
    options = parser.parse_args()
    show_one(options.seed, options.output_dir / "masked_gradient_descent.png")
    show_seeds(
        options.seeds,
        options.restarts,
        options.output_dir / "masked_gradient_descent_seeds.png",
    )


if __name__ == "__main__":
    main()
