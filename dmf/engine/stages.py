"""Stages: operations of a trace that follow each other in one place, as one task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from dmf.engine.stream import opened
from dmf.engine.trace import Operation, Path, add_up, follow, halo_of

# A slot, and the path into what is there; a step is a function and its operands.
Operand = tuple[int, Path]
Step = tuple[Callable[..., Any], tuple[Operand, ...]]


@dataclass(frozen=True)
class Stage:
    """A task's function: the operations of one place, in order.

    Parameters
    ----------
    steps : tuple of Step
        The arguments fill the first slots, each step's result the next.
    results : tuple of int
        The slots to return: one alone as it is, several as a tuple.
    """

    steps: tuple[Step, ...]
    results: tuple[int, ...]

    def __call__(self, *arguments: Any) -> Any:
        # When each operand is asked for last: then its memory is for the next results.
        last = {o: n for n, (_, operands) in enumerate(self.steps) for o in operands}
        last |= {(slot, ()): len(self.steps) for slot in self.results}
        wanted = defaultdict(list)
        for operand in last:
            wanted[operand[0]].append(operand)
        held: dict[Operand, Any] = {}

        def hold(slot: int, value: Any) -> None:
            held.update({o: follow(value, o[1]) for o in wanted[slot]})

        for slot, argument in enumerate(arguments):
            hold(slot, opened(argument))
        # A fit that explodes is reported by the loop, not by warnings from its tasks.
        with np.errstate(over="ignore", invalid="ignore"):
            for n, (function, operands) in enumerate(self.steps):
                hold(len(arguments) + n, function(*(held[o] for o in operands)))
                for operand in operands:
                    if last[operand] == n:
                        held.pop(operand, None)
        if len(self.results) == 1:
            return held[self.results[0], ()]
        return tuple(held[slot, ()] for slot in self.results)


# A place, the operations that follow each other there, and the numbers of the values
# that are wanted afterwards.
Group = tuple[str, list[Operation], set[int]]


def stages_of(
    operations: list[Operation],
    asked: set[int],
    shape: tuple[int, int],
    together: bool = False,
) -> list[Group]:
    """Group operations that follow each other in one place.

    If a strip has a single block, or its blocks go together, blocks and strips are one
    place. If there is a single strip as well, so is everything but the totals that are
    asked for. Blocks whose own values are wanted after their stage don't go together.
    """
    groups = list(_grouped(operations, asked, shape, together))
    if together and any(
        op.result.place == "block" and op.result.number in later
        for _, stage, later in groups
        for op in stage
    ):
        return list(_grouped(operations, asked, shape, together=False))
    return groups


def _grouped(
    operations: list[Operation],
    asked: set[int],
    shape: tuple[int, int],
    together: bool,
) -> Iterator[Group]:
    strips, blocks = shape

    def place(op: Operation) -> tuple[str, int]:
        total = op.result.place == "all"
        if strips == blocks == 1 and not (total and op.result.number in asked):
            return "strip", 0
        if op.reach:
            return "edges", op.result.number
        if total:
            return "all", op.result.number  # each total is a tree of its own
        if op.result.place == "fixed":
            return "fixed", 0
        return ("strip" if blocks == 1 or together else op.result.place), 0

    for (kind, _), group in groupby(operations, key=place):
        stage = list(group)
        after = operations[stage[-1].result.number + 1 :]
        yield kind, stage, asked | {v.number for op in after for v in op.operands}


def sum_of(*parts: Any, fan_in: int, own: bool) -> Any:
    """Return the sum over the blocks of a strip, in the order of a tree of tasks.

    The parts are `own` if nothing else wants them.
    """
    left = list(parts)
    while len(left) > fan_in:
        groups = [left[k : k + fan_in] for k in range(0, len(left), fan_in)]
        left = [add_up(group, own=own) for group in groups]
    return add_up(left, own=own)


def alone(value: Any) -> Any:
    """Return the sum over a single block."""
    return value


def no_neighbours(value: Any, total: int) -> Any:
    """Return the halo of a strip that is the whole factor."""
    return halo_of(None, None, 0, total)
