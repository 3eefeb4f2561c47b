"""A round as tasks: a half-step on W, then one on H."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from dmf.device import to_host
from dmf.engine.chunks import in_chunks
from dmf.engine.data import Data, counts_key
from dmf.engine.kinds import is_dask
from dmf.engine.lower import FAN_IN, FAN_IN_LARGE, Graph, Key, Lowering, Place
from dmf.engine.runner import Runner
from dmf.engine.state import State, Strips, new_stack
from dmf.engine.trace import HalfTrace, Trace
from dmf.init import Start
from dmf.objective import Objective, Side
from dmf.solvers.base import Moved, Report, Solver
from dmf.solvers.certificate import stationarity
from dmf.solvers.level import lift


def start_state(
    data: Data, runner: Runner, *, start: Start, objective: Objective
) -> State:
    """Return the factors to begin with.

    What isn't observed at all begins at 0: the least that any penalty allows, and what
    no gradient will ever move.
    """
    graph: Graph = dict(data.leaves)
    strips: list[Strips] = []
    centres: list[Key] = []
    candidates = tuple(range(len(objective.sides[0].penalties)))
    for axis, side in enumerate(objective.sides):
        name = f"start-{'WH'[axis]}-{data.token}"
        rows = [data.grid.strip(axis, i) for i in range(data.grid.shape[axis])]
        given = _given_strips(start.given(axis), rows, f"given-{name}", runner)
        graph.update(given)
        keys: list[Key] = []
        for i, r in enumerate(rows):
            begin = partial(
                _begin,
                start=start,
                axis=axis,
                rows=r,
                side=side,
                dtype=data.dtype,
                place=runner.place,
            )
            counts = data.counts(axis).key(i, 0)
            own = (f"given-{name}", i) if given else None
            keys.append((name, i))
            graph[name, i] = (begin, counts, own)
        strips.append(tuple(keys))
        centres.append((f"centre-{'WH'[axis]}-{data.token}", 0))
        level = start.level(axis) / side.unit
        graph[centres[-1]] = (_level, len(candidates), level, runner.place)
    state = State(
        0,
        candidates,
        (strips[0], strips[1]),
        (centres[0], centres[1]),
        new_stack(),
        {},
    )
    return replace(state, leaves=runner.run(graph, state.keys))


def _given_strips(
    factor: Any | None, rows: list[range], name: str, runner: Runner
) -> Graph:
    """Return the strips of a given factor: (name, i) is the one of the i-th rows."""
    if factor is None:
        return {}
    if not is_dask(factor):
        strips = runner.put([factor[r.start : r.stop] for r in rows])
        return {(name, i): strip for i, strip in enumerate(strips)}
    lengths = tuple(len(r) for r in rows)
    lazy = in_chunks(factor, (lengths, (factor.shape[1],)), runner)
    own = {(name, i): key for i, (key,) in enumerate(lazy.__dask_keys__())}
    return {**lazy.__dask_graph__(), **own}


def _begin(
    counts: Any,
    given: Any | None,
    *,
    start: Start,
    axis: int,
    rows: range,
    side: Side,
    dtype: Any,
    place: Callable[[Any], Any] | None,
) -> Moved:
    # Drawn on the host, so that a seed gives the same start wherever rounds run.
    counts, given = to_host((counts, given))
    strip = side.scaled(start.strip(axis, rows, side, given, dtype))
    strip[counts == 0, :, : side.rank] = 0
    return Moved(strip if place is None else place(strip), None, None)


def _level(candidates: int, level: float, place: Callable[[Any], Any] | None) -> Any:
    levels = np.full(candidates, level)
    return levels if place is None else place(levels)


def build_rounds(
    data: Data, state: State, solver: Solver, objective: Objective, number: int
) -> tuple[Graph, State, list[tuple[Key, Key]]]:
    """Return the tasks of the next rounds; nothing is computed.

    Parameters
    ----------
    data : Data
    state : State
        Where the rounds begin.
    solver : Solver
    objective : Objective
    number : int
        How many rounds.

    Returns
    -------
    graph : dict
        With what the tasks start from.
    state : State
        Where the rounds end, still without leaves.
    reports : list of (key for W, key for H)
        The sums of the half-steps' reports, for each round.
    """
    graph: Graph = {**data.leaves, **state.leaves}
    reports = []
    for _ in range(number):
        round = state.round + 1
        totals = []
        for axis in (0, 1):
            tasks, moved, total = build_half(data, solver, objective, state, axis)
            graph.update(tasks)
            strips, centres = list(state.strips), list(state.centres)
            strips[axis] = moved
            if objective.sides[axis].offset is not None:
                centres[axis] = (
                    f"centre-{'WH'[axis]}-{data.token}",
                    state.stack,
                    round,
                )
                graph[centres[axis]] = (_centre, total)
            totals.append(total)
            state = replace(
                state,
                strips=(strips[0], strips[1]),
                centres=(centres[0], centres[1]),
                leaves={},
            )
        state = replace(state, round=round)
        reports.append((totals[0], totals[1]))
    return graph, state, reports


def build_half(
    data: Data,
    solver: Solver,
    objective: Objective,
    state: State,
    axis: int,
    *,
    level_moves: bool = True,
) -> tuple[Graph, Strips, Key]:
    """Return the tasks of a half-step, the keys of the moved strips, and the report's.

    Parameters
    ----------
    data : Data
    solver : Solver
    objective : Objective
    state : State
        The factors before it.
    axis : {0, 1}
        0 when W moves, 1 when H moves.
    level_moves : bool
        Whether μ may move, where one number stands for all offsets.
    """
    half = _half_trace(data, objective, state, axis)
    inputs = _inputs(half, data, state)
    if "tied" in half.side.roles and level_moves:
        lift(half, data.totals.weight)
    updated = solver.half_step(half)
    total = half.sum_over_all(updated["report"])
    lowering = _lower(half, data, inputs, (updated, total), state)
    place = lowering.find(updated)
    moved = tuple(place.key(i, 0) for i in range(len(state.strips[axis])))
    return lowering.graph, moved, lowering.find(total).key(0, 0)


def build_stationarity(
    data: Data, objective: Objective, state: State
) -> tuple[Graph, list[Key]]:
    """Return the tasks that measure how stationary the factors are, for W and H."""
    graph: Graph = {**data.leaves, **state.leaves}
    keys = []
    for axis in (0, 1):
        half = _half_trace(data, objective, state, axis)
        inputs = _inputs(half, data, state)
        total = half.sum_over_all(stationarity(half))
        lowering = _lower(half, data, inputs, (total,), state)
        graph.update(lowering.graph)
        keys.append(lowering.find(total).key(0, 0))
    return graph, keys


def build_errors(
    data: Data, state: State, place: Place, objective: Objective | None = None
) -> tuple[Graph, Key]:
    """Return the tasks that sum the errors on the entries at a place, (K, 2).

    With an objective, the offsets of rows and columns without observed entries are
    their centre, as they will be in the result.
    """
    P, Q = data.grid.shape
    trace = Trace()
    entries, W, H = trace.input("block"), trace.input("strip"), trace.input("block")
    inputs = {
        entries: place,
        W: Place(partial(_own, state.strips[0]), ("factor",), users=Q),
        H: Place(partial(_other, state.strips[1]), ("factor",), users=P),
    }
    factors = [W, H]
    for axis, side in enumerate(objective.sides if objective else ()):
        if side.offset is None:
            continue
        if axis == 0:
            strip, counts = trace.input("strip"), trace.input("strip")
            apply, find = trace.per_strip, _own
        else:
            strip, counts = trace.input("fixed"), trace.input("fixed")
            apply, find = trace.per_fixed, _other
        centre = trace.input("all")
        keys = tuple(counts_key(data.token, axis, i, 0) for i in range((P, Q)[axis]))
        inputs[strip] = Place(partial(find, state.strips[axis]), ("factor",))
        inputs[counts] = Place(partial(find, keys))
        inputs[centre] = Place(partial(_one, state.centres[axis]))
        settle = partial(_settled, column=side.offset)
        factors[axis] = apply("settle", settle, strip, counts, centre)
    each = trace.per_block("validate", data.kernels.errors, entries, *factors)
    total = trace.sum_over_all(trace.sum_over_strip(each))
    prefix = (state.stack, state.round)
    label = f"WH-{data.token}"
    apart = data.remote  # no memory of the solver shall travel to be validated
    lowering = Lowering(trace, inputs, (total,), (P, Q), label, prefix, apart=apart)
    return lowering.graph, lowering.find(total).key(0, 0)


def _settled(factor: Any, counts: Any, centre: Any, column: int) -> Any:
    """Return a strip whose offsets are the centre where nothing is observed."""
    xp = array_namespace(factor)
    if to_host(xp.all(counts > 0)):
        return factor
    factor = xp.asarray(factor, copy=True)
    offsets = factor[:, :, column]
    centre = xp.broadcast_to(xp.astype(centre, factor.dtype), offsets.shape)
    factor[:, :, column] = xp.where((counts > 0)[:, None], offsets, centre)
    return factor


# Strips of so many bytes are worth a task more that spares them a journey.
LARGE = 2**20


def _half_trace(data: Data, objective: Objective, state: State, axis: int) -> HalfTrace:
    return HalfTrace(
        axis,
        data.kernels,
        objective.sides[axis],
        unobserved=data.gram_weight,
        masked=data.masked,
        fixed_rows=data.shape[1 - axis],
        round=state.round + 1,
    )


def _inputs(half: HalfTrace, data: Data, state: State) -> dict[Any, Place]:
    axis = half.axis
    moving, fixed = state.strips[axis], state.strips[1 - axis]
    return {
        half.block: data.block(axis),
        half.counts: data.counts(axis),
        half.moving: Place(partial(_own, moving), ("factor",), users=len(fixed)),
        half.memory: Place(partial(_own, moving), ("memory",)),
        half.fixed: Place(partial(_other, fixed), ("factor",), users=len(moving)),
        half.fixed_strip: Place(partial(_other, fixed), ("factor",)),
        half.centre: Place(partial(_one, state.centres[axis])),
    }


def _lower(
    half: HalfTrace,
    data: Data,
    inputs: dict[Any, Place],
    outputs: tuple[Any, ...],
    state: State,
) -> Lowering:
    P, Q = data.grid.shape
    shape = (Q, P) if half.axis else (P, Q)
    label = f"{'WH'[half.axis]}-{data.token}"
    prefix = (state.stack, half.round)
    bounds = data.grid.column_bounds if half.axis else data.grid.row_bounds
    lengths = [data.shape[k] / data.grid.shape[k] for k in (0, 1)]
    numbers = max(lengths) * half.side.width * len(state.candidates)
    large = numbers * data.dtype.itemsize >= LARGE
    return Lowering(
        half,
        inputs,
        outputs,
        shape,
        label,
        prefix,
        bounds,
        fan_in=FAN_IN_LARGE if large else FAN_IN,
        apart=large and data.remote,
        near=not data.remote,
        together=data.together[half.axis],
    )


def _own(keys: Strips, strip: int, other: int) -> Key:
    return keys[strip]


def _other(keys: Strips, strip: int, other: int) -> Key:
    return keys[other]


def _one(key: Key, strip: int, other: int) -> Key:
    return key


def _centre(total: Report) -> Any:
    """Return the mean of the offsets, which makes their penalty least."""
    weight = total.offset_weight
    xp = array_namespace(weight)
    return total.offset / xp.where(weight > 0, weight, xp.ones_like(weight))
