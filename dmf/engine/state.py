"""The factors between rounds: where their strips are, and whose they are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from array_api_compat import array_namespace

from dmf.engine.lower import Graph, Key
from dmf.engine.runner import Leaf, Runner
from dmf.solvers.base import Moved

Strips = tuple[Key, ...]  # the keys of a factor's strips


@dataclass(frozen=True)
class State:
    """The factors of the candidates after a round, strip by strip, where tasks run.

    Attributes
    ----------
    round : int
    candidates : tuple of int
        Which of the fit's candidates are in the stack, in its order.
    strips : (keys for W, keys for H)
        Each strip is stored as `Moved`.
    centres : (key for W, key for H)
        What the offsets of each factor are pulled towards, shape (K,).
    stack : str
        Names the stack, so that tasks on different ones have different keys.
    leaves : dict
    home : bool
        Whether the leaves are values on this side of a cluster.
    """

    round: int
    candidates: tuple[int, ...]
    strips: tuple[Strips, Strips]
    centres: tuple[Key, Key]
    stack: str
    leaves: dict[Key, Leaf] = field(repr=False)
    home: bool = False

    @property
    def keys(self) -> list[Key]:
        return list(dict.fromkeys([*self.strips[0], *self.strips[1], *self.centres]))

    def restored(self, leaves: list[Leaf]) -> State:
        """Return the same state under new keys: the scheduler may remember the old."""
        stack = new_stack()
        names: dict[Key, Key] = {
            key: (f"restored-{stack}", k) for k, key in enumerate(self.leaves)
        }
        W, H = (tuple(names[key] for key in strips) for strips in self.strips)
        return replace(
            self,
            strips=(W, H),
            centres=(names[self.centres[0]], names[self.centres[1]]),
            stack=stack,
            home=False,
            leaves=dict(zip(names.values(), leaves, strict=True)),
        )

    def put_back(self, runner: Runner) -> State:
        """Return a state that is at home where tasks find it."""
        return self.restored(runner.put(list(self.leaves.values()), ready=runner.place))

    def fetched(self, runner: Runner) -> State:
        """Return the same state with its leaves as values on this side of a cluster."""
        if self.home:
            return self
        values: list[Any] = runner.fetch(list(self.leaves.values()))
        return replace(
            self, leaves=dict(zip(self.leaves, values, strict=True)), home=True
        )

    def renamed(self) -> State:
        """Return the same state, for tasks that aren't those of its next round."""
        return replace(self, stack=new_stack())

    def select(self, positions: Sequence[int], runner: Runner) -> State:
        """Return the state of some of the candidates alone."""
        candidates = tuple(self.candidates[k] for k in positions)
        if candidates == self.candidates:
            return self
        picked: list[Key] = [
            (f"select-{new_stack()}", k) for k in range(len(self.leaves))
        ]
        graph: Graph = dict(self.leaves)
        for name, key in zip(picked, self.leaves, strict=True):
            graph[name] = (_select, key, list(positions))
        leaves = runner.run(graph, picked)
        chosen = replace(self, candidates=candidates)
        return chosen.restored([leaves[name] for name in picked])


@dataclass(frozen=True)
class Batch:
    """Rounds that were sent to run: where they begin and end, and what they'll tell."""

    before: State
    after: State
    reports: list[Leaf]  # of W and of H, for each round
    errors: list[Leaf]  # on what is held out, if anything is


def new_stack() -> str:
    return uuid.uuid4().hex[:6]


def _select(value: Any, positions: list[int]) -> Any:
    """Return the chosen candidates of a strip, or of numbers of shape (K,)."""
    if isinstance(value, Moved):
        memory = value.memory
        if memory is not None:
            memory = tuple(_take(part, positions) for part in memory)
        return Moved(_take(value.factor, positions), memory, None)
    return _take(value, positions, axis=0)


def _take(strip: Any, positions: list[int], axis: int = 1) -> Any:
    """Return the chosen candidates of an array of shape (p, K, …), rows as before.

    Indexing would leave another order in memory, in which sums have other bits than
    those of the same numbers that a checkpoint brings back.
    """
    xp = array_namespace(strip)
    return xp.take(strip, xp.asarray(positions), axis=axis)
