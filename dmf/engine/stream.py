"""Blocks that are made anew in each pass, where X is larger than the memory.

Only how to make such a block stays in memory, and what a fit has to know of it. Each
task that works on it makes it, and forgets it at its end, so that a worker holds as
many blocks as it has threads. What is larger than the memory of a GPU may also stay on
the host. Either way it is brought to the GPU while that works on the block before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dmf.device import to_device, to_device_ahead, to_pinned
from dmf.observed import NO_COUNTS, Observed
from dmf.sizes import Sized
from dmf.totals import Totals

Key = Any
Graph = dict[Key, Any]


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
class Held(Sized):
    """A block in the memory of the host, for passes on a GPU.

    Parameters
    ----------
    observed : Observed
        In pinned memory.
    """

    observed: Observed

    def make(self) -> Observed:
        """Bring the block to the GPU, beside what it is doing."""
        made: Observed = to_device_ahead(self.observed)
        return made


@dataclass(frozen=True)
class Streamed(Sized):
    """Stands for an `Observed` of which the small parts alone are in memory.

    Parameters
    ----------
    recipe : Recipe or Held
    counts, totals : as in `Observed`
    """

    recipe: Recipe | Held
    counts: tuple[Any, Any]
    totals: Totals

    @classmethod
    def first(cls, recipe: Recipe) -> Streamed:
        """Make a block for the first time: its values are checked, and counted."""
        made = recipe.make(again=False)
        return cls(recipe, made.counts, made.totals)

    @classmethod
    def held(cls, observed: Observed) -> Streamed:
        """Keep a block on the host."""
        held = Held(to_pinned(replace(observed, counts=NO_COUNTS)))
        return cls(held, to_device(observed.counts), observed.totals)


class Opened:
    """A streamed block while a task works on it: it is read once, when it's needed."""

    def __init__(self, streamed: Streamed) -> None:
        self.counts, self.totals = streamed.counts, streamed.totals
        self._recipe = streamed.recipe

    @cached_property
    def _made(self) -> Observed:
        return self._recipe.make()

    @property
    def block(self) -> Any:
        return self._made.block

    @property
    def held_out(self) -> Any:
        return self._made.held_out


def opened(value: Any) -> Any:
    """Return what a task works on: a block that isn't in memory is read only once."""
    return Opened(value) if isinstance(value, Streamed) else value
