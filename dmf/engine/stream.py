"""Blocks that are read anew in each pass, where X is larger than the memory.

Only how to make such a block stays in memory, and what a fit has to know of it. Each
task that works on it makes it, and forgets it at its end, so that a worker holds as
many blocks as it has threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dmf.observed import Observed

Key = Any
Graph = dict[Key, Any]

# Where an `Observed` keeps what is large.
LARGE = tuple(Observed._fields.index(name) for name in ("block", "held_out"))


@dataclass(frozen=True)
class Recipe:
    """The tasks that make a block, from the source on.

    Parameters
    ----------
    graph : dict
    key : key
    """

    graph: Graph = field(repr=False)
    key: Key

    @classmethod
    def of(cls, graph: Graph, key: Key) -> Recipe:
        """Take what one key needs out of the graph of a whole array."""
        from dask.optimization import cull

        own, _ = cull(graph, [key])
        return cls(dict(own), key)

    def make(self) -> Observed:
        """Make the block, in the thread that asks for it."""
        from dask.local import get_sync

        made: Observed = get_sync(self.graph, self.key)
        return made


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
        parts = enumerate(recipe.make())
        return cls(recipe, {k: part for k, part in parts if k not in LARGE})

    def __getitem__(self, item: int) -> Any:
        return self.recipe.make()[item] if item in LARGE else self.kept[item]


def opened(value: Any) -> Any:
    """Return a block that a task works on: read now, if it isn't in memory."""
    return value.recipe.make() if isinstance(value, Streamed) else value
