"""Factors of new rows or columns against the other factor: one exact half-step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dmf.engine.data import Data
from dmf.engine.loading import load
from dmf.engine.rounds import build_half, start_state
from dmf.engine.runner import Runner
from dmf.engine.state import State
from dmf.init import GivenStart
from dmf.objective import Objective
from dmf.solvers import AlternatingLeastSquares

Array = Any


def fold_in(
    X: Array,
    mask: Array | None,
    start: GivenStart,
    objective: Objective,
    axis: int,
    runner: Runner,
) -> tuple[Data, State]:
    """Move one factor to the minimum of the objective, the other one as given.

    Parameters
    ----------
    X : array, shape (m, n)
    mask : array, shape (m, n), or None
    start : GivenStart
        Both factors; of the one that moves, only the level of its offsets counts.
    objective : Objective
    axis : {0, 1}
        0 to find W, 1 to find H.
    runner : Runner

    Returns
    -------
    data : Data
    state : State
        With the factor that was found. Rows without observed entries are 0.
    """
    rank = objective.sides[axis].rank
    data = load(
        X,
        mask,
        rank,
        runner,
        unobserved=objective.unobserved,
        may_be_empty=True,
        once=True,
    )
    state = start_state(data, runner, start=start, objective=objective)
    solver = AlternatingLeastSquares()
    # μ is that of the fit: new rows or columns tell nothing of the others.
    tasks, moved, _ = build_half(
        data, solver, objective, state, axis, level_moves=False
    )
    graph = {**data.leaves, **state.leaves, **tasks}
    leaves = runner.run(graph, list(moved))
    strips = list(state.strips)
    strips[axis] = moved
    return data, replace(
        state, strips=(strips[0], strips[1]), leaves=state.leaves | leaves
    )
