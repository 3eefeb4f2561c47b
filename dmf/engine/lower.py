"""From a trace to tasks: a plain dict, as Dask's graph specification has it.

Operations that follow each other in one place become one task, a *stage*. Where a strip
has a single block, "per block" and "per strip" are the same place, so that a whole
half-step of the row scope is one task; and so it is where a task may work on all blocks
of its strip, one after the other. Where X is a single block, all places are one. So
tasks are few and fat, which is what a scheduler wants, and solvers need not care.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from dmf.engine.stages import (
    Stage,
    Step,
    alone,
    no_neighbours,
    stages_of,
    sum_of,
)
from dmf.engine.trace import (
    Operation,
    Path,
    Trace,
    Value,
    add_up,
    edges_of,
    follow,
    halo_of,
)

Key = Any  # a tuple, its first item the name
Graph = dict[Key, Any]


class Argument(NamedTuple):
    """A task's argument: a value, a part of it, or the list of what a sum adds up."""

    number: int
    path: Path = ()
    kind: Literal["value", "part", "list"] = "value"


# Where a task has a value: an argument or a result, of a block of its strip or of all.
Slots = dict[tuple[Argument, int | None], int]

# How many partial sums one task adds up: wide trees are shallow, and each level waits.
# What is large is added up in narrow ones, side by side, and neighbours, which are on
# one worker, before they travel.
FAN_IN = 16
FAN_IN_LARGE = 4


@dataclass(frozen=True)
class Place:
    """Where a value is found: its key for (strip, block of the strip), and the path
    into what that task returns. `users` says how many blocks want the same one."""

    key: Callable[[int, int], Key]
    path: Path = ()
    users: int = 1


class Lowering:
    """Turns one trace into tasks.

    Parameters
    ----------
    trace : Trace
    inputs : dict
        Where the trace's inputs are found.
    outputs : tuple of Value
        What will be asked for.
    shape : (strips, blocks in each strip)
    label : str
        Ends the tasks' names, which people read on a dashboard: "update-W-1f3c".
    prefix : tuple
        Makes the keys different from those of other rounds.
    bounds : tuple of int
        Of the strips; needed where they look at their neighbours.
    fan_in : int
        How many partial sums one task adds up.
    apart : bool
        Whether a part that several blocks want of a value is a task of its own, so that
        it alone travels to other workers.
    near : bool
        Whether nothing travels at all: then edges of strips, and what is summed of
        each, need no tasks.
    together : bool
        Whether a task may work on all blocks of a strip.

    Attributes
    ----------
    graph : dict
        The tasks.
    """

    def __init__(
        self,
        trace: Trace,
        inputs: dict[Value, Place],
        outputs: tuple[Value, ...],
        shape: tuple[int, int],
        label: str,
        prefix: tuple[Hashable, ...],
        bounds: tuple[int, ...] = (),
        fan_in: int = FAN_IN,
        apart: bool = False,
        near: bool = False,
        together: bool = False,
    ) -> None:
        self.graph: Graph = {}
        self._strips, self._blocks = shape
        self._label = label
        self._prefix = prefix
        self._bounds = bounds
        self._apart = apart
        self._near = near
        self._fan_in = fan_in
        self._found = {value.number: place for value, place in inputs.items()}
        asked = {v.number for v in outputs}
        stages = stages_of(trace.operations, asked, shape, together)
        for kind, stage, later in stages:
            if kind == "all":
                self._add_total(stage[-1])
            elif kind == "edges":
                self._add_halos(stage[-1])
            else:
                self._add_stage(stage, kind, later)

    def find(self, value: Value) -> Place:
        """Return where a value is."""
        place = self._found[value.number]
        return Place(place.key, self._path(value), place.users)

    def _path(self, value: Value) -> Path:
        return self._found[value.number].path + value.path

    def _add_stage(self, stage: list[Operation], place: str, later: set[int]) -> None:
        """Add one task for each strip or block that does all of a stage."""
        own = [op.result.number for op in stage]
        blocks = range(self._blocks)
        several = place == "strip" and self._blocks > 1

        def turns(value: Value) -> Iterable[int | None]:
            """Return the blocks of its strip for which a task has such a value."""
            return blocks if several and value.place == "block" else (None,)

        # An operand from outside the stage is an argument of its tasks.
        arguments = dict.fromkeys(
            (self._argument(op, value), j)
            for op in stage
            for value in op.operands
            if value.number not in own
            for j in ((None,) if self._sums_blocks(op) else turns(value))
        )
        slots: Slots = {argument: k for k, argument in enumerate(arguments)}
        uses = Counter(value.number for op in stage for value in op.operands)
        steps = []
        for op in stage:
            for j in turns(op.result):
                steps.append(self._step(op, slots, own, uses, j))
                slots[Argument(op.result.number), j] = len(slots)
        results = [number for number in own if number in later]
        returned = tuple(slots[Argument(number), None] for number in results)
        function = Stage(tuple(steps), returned)

        head = self._head(stage[-1])
        per_block = place == "block" and self._blocks > 1
        strips = 1 if place == "fixed" else self._strips
        for i in range(strips):
            for j in range(self._blocks if per_block or place == "fixed" else 1):
                keys = [
                    self._key(argument, i, j if block is None else block, head)
                    for argument, block in arguments
                ]
                self.graph[*head, i, j] = (function, *keys)
        for k, number in enumerate(results):
            key = partial(
                _fixed_key
                if place == "fixed"
                else _block_key
                if per_block
                else _strip_key,
                head,
            )
            users = 1 if per_block or place == "fixed" else self._blocks
            self._found[number] = Place(key, (k,) if len(results) > 1 else (), users)

    def _add_total(self, op: Operation) -> None:
        """Add the tasks that sum a value over all strips."""
        head = self._head(op)
        place = self.find(op.operands[0])
        path = place.path
        if op.operands[0].place == "fixed":
            keys = [place.key(0, j) for j in range(self._blocks)]
        else:
            keys = [place.key(i, 0) for i in range(self._strips)]
        if path and len(keys) > 1 and not self._near:
            # Only what is summed shall travel, not all that the strip's task returns.
            keys = [self._part(key, path) for key in keys]
            path = ()
        left = self._tree(keys, path, head)
        # The lowest level of a tree has followed the path already.
        self.graph[head] = (add_up, left, path if left == keys else ())
        self._found[op.result.number] = Place(partial(_one_key, head))

    def _add_halos(self, op: Operation) -> None:
        """Add the tasks that bring each strip the edges of its neighbours.

        Where they travel, edges are tasks of their own: nothing but a few rows does.
        """
        head = self._head(op)
        place = self.find(op.operands[0])
        edges: list[Key | None] = [None]
        for i in range(self._strips if self._strips > 1 else 0):
            edge = (edges_of, place.key(i, 0), place.path, op.reach)
            if not self._near:
                self.graph[*head, "edge", i] = edge
            edges.append(edge if self._near else (*head, "edge", i))
        edges += [None, None]
        for i in range(self._strips):
            where = (self._bounds[i], self._bounds[-1])
            self.graph[*head, i, 0] = (halo_of, edges[i], edges[i + 2], *where)
        self._found[op.result.number] = Place(partial(_strip_key, head))

    def _step(
        self,
        op: Operation,
        slots: Slots,
        own: list[int],
        uses: Counter[int],
        block: int | None,
    ) -> Step:
        """Return an operation as a step of its stage: a function of slots.

        `own` are the values that the stage makes, and `uses` how often it asks for each
        value. `block` is the one of its strip that the operation works on, where the
        stage has several.
        """

        def slot(argument: Argument, value: Value) -> int:
            return slots[argument, block if value.place == "block" else None]

        if self._sums_blocks(op):
            value = op.operands[0]
            if value.number in own:
                argument = Argument(value.number)
                each = [(argument, j) for j in range(self._blocks)]
                once = uses[value.number] == 1
                summed = partial(sum_of, fan_in=self._fan_in, own=once)
                return summed, tuple((slots[one], value.path) for one in each)
            argument = self._argument(op, value)
            # Parts and trees, at their lowest level, have followed the path already.
            within = self._blocks <= self._fan_in and not self._apart
            path = argument.path if within else ()
            return partial(add_up, path=path), ((slots[argument, None], ()),)
        operands = []
        for value in op.operands:
            if value.number in own:
                argument, path = Argument(value.number), value.path
            else:
                argument, path = self._argument(op, value), self._path(value)
            operands.append((slot(argument, value), () if argument.path else path))
        if op.reach:
            return partial(no_neighbours, total=self._bounds[-1]), tuple(operands)
        return (alone if op.sums else op.function), tuple(operands)

    def _sums_blocks(self, op: Operation) -> bool:
        return op.sums and self._blocks > 1

    def _argument(self, op: Operation, value: Value) -> Argument:
        """Return what an operand from outside a stage is to its tasks."""
        if self._sums_blocks(op):
            return Argument(value.number, self._path(value), "list")
        users = self._found[value.number].users if op.result.place == "block" else 1
        if self._apart and users > 1 and (path := self._path(value)):
            return Argument(value.number, path, "part")
        return Argument(value.number)

    def _key(
        self, argument: Argument, i: int, j: int, head: tuple[Hashable, ...]
    ) -> Any:
        """Return what stands for an argument of the task at a place: keys."""
        place, path = self._found[argument.number], argument.path
        if argument.kind == "list":
            keys = [place.key(i, j) for j in range(self._blocks)]
            head = (*head, i, argument.number, path)
            if self._apart and path:
                keys, path = [self._part(key, path) for key in keys], ()
            return self._tree(keys, path, head)
        key = place.key(i, j)
        return self._part(key, path) if argument.kind == "part" else key

    def _part(self, key: Key, path: Path) -> Key:
        """Return the key of a part: only that shall travel, not all that it is in."""
        name, *rest = key
        part = (f"part-{name}", *rest, *path)
        self.graph[part] = (follow, key, path)
        return part

    def _tree(
        self, keys: list[Key], path: Path, head: tuple[Hashable, ...]
    ) -> list[Key]:
        """Add up keys in groups until one task can do the rest; return what is left."""
        level = 0
        while len(keys) > self._fan_in:
            groups = [
                keys[k : k + self._fan_in] for k in range(0, len(keys), self._fan_in)
            ]
            keys = [(*head, "tree", level, k) for k in range(len(groups))]
            self.graph.update(
                {
                    key: (add_up, group, path)
                    for key, group in zip(keys, groups, strict=True)
                }
            )
            path, level = (), level + 1
        return keys

    def _head(self, op: Operation) -> tuple[Hashable, ...]:
        return (f"{op.name}-{self._label}", *self._prefix, op.result.number)


def _block_key(head: tuple[Hashable, ...], i: int, j: int) -> Key:
    return (*head, i, j)


def _strip_key(head: tuple[Hashable, ...], i: int, j: int) -> Key:
    return (*head, i, 0)


def _fixed_key(head: tuple[Hashable, ...], i: int, j: int) -> Key:
    return (*head, 0, j)


def _one_key(head: tuple[Hashable, ...], i: int, j: int) -> Key:
    return head
