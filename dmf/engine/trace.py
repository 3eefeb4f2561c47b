"""What a half-step says, written down: operations on handles; no task exists yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from dmf.objective import Side
from dmf.solvers.base import Halo

# Where an operation happens: once a block, once a strip of the moving factor, once a
# strip of the fixed factor, or once.
Place = Literal["block", "strip", "fixed", "all"]
Path = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
    """A handle on an input or on the result of an operation.

    `path` leads into a result: ("move", 1) is the second item of its `move`.
    """

    place: Place
    number: int
    path: Path = ()

    def __getitem__(self, item: int | str) -> Value:
        return Value(self.place, self.number, (*self.path, item))


@dataclass(frozen=True)
class Operation:
    """One line of a trace.

    `sums` says whether it adds up its operand's instances; `reach`, above 0, that it
    looks at so many rows of the neighbouring strips.
    """

    result: Value
    name: str
    function: Callable[..., Any]
    operands: tuple[Value, ...]
    sums: bool = False
    reach: int = 0


@dataclass
class Trace:
    """Records operations. Inputs have negative numbers, results count from 0."""

    operations: list[Operation] = field(default_factory=list)
    _inputs: int = 0

    def input(self, place: Place) -> Value:
        self._inputs += 1
        return Value(place, -self._inputs)

    def per_block(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value:
        """Apply a function in every block."""
        return self._record("block", name, function, operands)

    def per_strip(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value:
        """Apply a function in every strip of the moving factor."""
        return self._record("strip", name, function, operands)

    def per_fixed(
        self, name: str, function: Callable[..., Any], *operands: Value
    ) -> Value:
        """Apply a function in every strip of the fixed factor."""
        return self._record("fixed", name, function, operands)

    def sum_over_strip(self, value: Value) -> Value:
        """Add up the blocks of each strip, in a tree."""
        return self._record("strip", "sum", add_up, (value,), sums=True)

    def sum_over_all(self, value: Value) -> Value:
        """Add up all strips, of the moving or of the fixed factor, in a tree."""
        return self._record("all", "sum-all", add_up, (value,), sums=True)

    def neighbours(self, value: Value, reach: int) -> Value:
        """Give each strip the rows of its neighbours that border on it, as a `Halo`."""
        return self._record("strip", "edges", Halo, (value,), reach=reach)

    def _record(
        self,
        place: Place,
        name: str,
        function: Callable[..., Any],
        operands: tuple[Value, ...],
        sums: bool = False,
        reach: int = 0,
    ) -> Value:
        result = Value(place, len(self.operations))
        self.operations.append(Operation(result, name, function, operands, sums, reach))
        return result


class HalfTrace(Trace):
    """A trace with the inputs that a half-step of a solver starts from."""

    def __init__(
        self,
        axis: int,
        kernels: ModuleType,
        side: Side,
        *,
        unobserved: float,
        masked: bool,
        fixed_rows: int,
        round: int,
    ) -> None:
        super().__init__()
        self.axis = axis
        self.kernels = kernels
        self.side = side
        self.unobserved = unobserved
        self.masked = masked
        self.fixed_rows = fixed_rows
        self.round = round
        self.block = self.input("block")
        self.fixed = self.input("block")
        self.fixed_strip = self.input("fixed")
        self.moving = self.input("strip")
        self.memory = self.input("strip")
        self.counts = self.input("strip")
        self.centre = self.input("all")


def add_up(parts: list[Any], path: Path = (), *, own: bool = False) -> Any:
    """Add partial sums: arrays, numbers, or (named) tuples of them, item by item.

    If they are the caller's `own`, arrays are added to those of the first.
    """
    parts = [follow(part, path) for part in parts]
    first = parts[0]
    if isinstance(first, tuple):
        sums = [add_up(list(items), own=own) for items in zip(*parts, strict=True)]
        return type(first)(*sums) if hasattr(first, "_fields") else tuple(sums)
    total = first
    for k, part in enumerate(parts[1:]):
        # The first sum is a new object, so the others may be added in place.
        total = total + part if k == 0 and not own else _add_in_place(total, part)
    return total


def follow(value: Any, path: Path) -> Any:
    for item in path:
        value = getattr(value, item) if isinstance(item, str) else value[item]
    return value


def _add_in_place(total: Any, part: Any) -> Any:
    total += part
    return total


def edges_of(value: Any, path: Path, reach: int) -> tuple[Any, Any]:
    """Return the first and the last rows of a strip: of an array or a tuple of them."""
    value = follow(value, path)
    if isinstance(value, tuple):
        pairs = [edges_of(part, (), reach) for part in value]
        return tuple(first for first, _ in pairs), tuple(last for _, last in pairs)
    return value[:reach, ...], value[-reach:, ...]


def halo_of(before: Any, after: Any, start: int, total: int) -> Halo:
    """Return a strip's halo from the edges of its neighbours; None: there is none."""
    return Halo(
        None if before is None else before[1],
        None if after is None else after[0],
        start,
        total,
    )
