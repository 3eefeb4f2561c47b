"""Blocks that are read anew in each pass, where X is larger than the memory.

Only how to make such a block stays in memory, and what a fit has to know of it. Each
task that works on it makes it, and forgets it at its end, so that a worker holds as
many blocks as it has threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dmf.observed import Observed

Key = Any
Graph = dict[Key, Any]

# Where an `Observed` keeps what is large.
LARGE = tuple(Observed._fields.index(name) for name in ("block", "held_out"))


@dataclass(frozen=True)
class Recipe:
    """The tasks that read the parts of X, and of what is beside it, from the source on.

    Parameters
    ----------
    look : callable
        Makes an `Observed` of them.
    graph : dict
    keys : tuple of keys
    """

    look: Callable[..., Observed]
    graph: Graph = field(repr=False)
    keys: tuple[Key, ...]

    @classmethod
    def of(
        cls, look: Callable[..., Observed], graph: Graph, keys: tuple[Key, ...]
    ) -> Recipe:
        """Take what some keys need out of the graph of whole arrays."""
        from dask.optimization import cull

        own, _ = cull(graph, list(keys))
        return cls(look, dict(own), keys)

    def make(self, again: bool = True) -> Observed:
        """Make the block, in the thread that asks for it."""
        from dask.local import get_sync

        return self.look(*get_sync(self.graph, list(self.keys)), again=again)


@dataclass(frozen=True)
class Streamed:
    """Stands for an `Observed` of which the small parts alone are in memory.

    Parameters
    ----------
    recipe : Recipe
    kept : dict
        The parts of the `Observed` that are small, by their position in it.
    """

    recipe: Recipe
    kept: dict[int, Any]

    @classmethod
    def first(cls, recipe: Recipe) -> Streamed:
        """Make a block for the first time: its values are checked, and counted."""
        parts = enumerate(recipe.make(again=False))
        return cls(recipe, {k: part for k, part in parts if k not in LARGE})

    def __getitem__(self, item: int) -> Any:
        return self.recipe.make()[item] if item in LARGE else self.kept[item]


class Opened:
    """A streamed block while a task works on it: it is read once, when it's needed."""

    def __init__(self, streamed: Streamed) -> None:
        self._streamed = streamed
        self._made: Observed | None = None

    def __getitem__(self, item: int) -> Any:
        if item not in LARGE:
            return self._streamed[item]
        if self._made is None:
            self._made = self._streamed.recipe.make()
        return self._made[item]


def opened(value: Any) -> Any:
    """Return what a task works on: a block that isn't in memory is read only once."""
    return Opened(value) if isinstance(value, Streamed) else value
