"""Fits of many candidates in one pass over the data: what factorize and sweep share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmf._checkpoint import Keep, Saved
from dmf.device import Gpu
from dmf.engine.arrays import factor_of, level_of, offsets_of
from dmf.engine.data import Data
from dmf.engine.endings import Outcome, Rules
from dmf.engine.fingerprint import digest_of, fingerprint
from dmf.engine.kinds import is_dask
from dmf.engine.loading import load
from dmf.engine.loop import Loop
from dmf.engine.losses import insisting
from dmf.engine.rounds import start_state
from dmf.engine.runner import Runner, choose_runner
from dmf.history import History, Record
from dmf.init import GivenStart, RandomStart, Start
from dmf.objective import Objective, Side
from dmf.offsets import COLUMNS, carrier
from dmf.penalties import Penalty, Ridge
from dmf.progress import Progress
from dmf.result import Factorization
from dmf.solvers import Solver
from dmf.solvers.smooth import reach_of
from dmf.validation import check_scale

if TYPE_CHECKING:
    from distributed import Client

Array = Any
Callback = Callable[[Record], Any]

# penalty="auto": the strength of the ridge for each entry of a row, in units of the
# data's standard deviation; and, as far as X is missing, how many more entries it acts
# as if every row had: where almost all is missing, rows would follow their noise.
AUTO_STRENGTH = 0.02
AUTO_ENTRIES = 200
AUTO_POWER = 4
# offset_penalty="auto": the noise's variance over that of the offsets, in most data.
AUTO_OFFSET = 2.0


@dataclass(frozen=True)
class Candidate:
    """One of the fits.

    Parameters
    ----------
    rank : int
    penalty : (for W, for H)
        Each a penalty, None or "auto".
    number : int
        Of its random start.
    """

    rank: int
    penalty: tuple[Any, Any]
    number: int = 0


@dataclass(frozen=True)
class Settings:
    """What all candidates have in common; already checked.

    The fields are parameters of `factorize`.
    """

    mask: Array | None
    offsets: str
    offset_penalty: Any
    unobserved_weight: float
    validation: Any
    solver: Solver
    rules: Rules
    seed: int
    client: Client | None
    callbacks: tuple[Callback, ...]
    progress: bool | None
    start: GivenStart | None = None
    checkpoint: Keep | None = None
    stream: bool | None = None
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Fitted:
    """A candidate with how its fit went, and the result unless it was dropped."""

    candidate: Candidate
    outcome: Outcome
    factorization: Factorization | None


def best_of(fits: Sequence[Fitted]) -> Factorization:
    """Return the best result: by the held-out error or, without any, the objective."""
    kept = [fit for fit in fits if fit.factorization is not None]
    best = min(kept, key=lambda fit: fit.outcome.rank_by).factorization
    assert best is not None
    return best


def fit_candidates(
    X: Array, candidates: Sequence[Candidate], settings: Settings
) -> list[Fitted]:
    """Fit all candidates together, each block of X being read once a pass for all."""
    runner = choose_runner(settings.client, settings.gpu)
    widest = max(candidate.rank for candidate in candidates)
    with runner.session(), ExitStack() as stack:
        machine = runner.machine()
        saved = None
        if settings.checkpoint is not None:
            saved = Saved(settings.checkpoint, runner)
            machine = saved.machine(machine)
        reload = partial(
            load,
            X,
            settings.mask,
            widest,
            runner,
            unobserved=settings.unobserved_weight,
            validation=settings.validation,
            # Of the cluster as it is now: workers that are lost later change no plan.
            machine=machine,
            candidates=len(candidates),
            stream=settings.stream,
        )

        def loaded() -> tuple[Data, str]:
            data = reload()
            return data, "" if saved is None else fingerprint(data, runner)

        data, print_of_data = insisting(runner.session, loaded, "while X was loaded")
        check_scale(data.totals.mean_square**0.5, data.dtype)
        bar = Progress(settings.progress, settings.rules.max_rounds, len(candidates))
        stack.enter_context(bar)
        objective = _objective(data, candidates, settings)
        _check_strips(data, objective)
        start = settings.start or _random_start(data, candidates, settings)
        checkpoints, reached = None, None
        if saved is not None:
            checkpoints = saved.checkpoints
            settled = _described(candidates, settings, start)
            reached = saved.reached(machine, settled, print_of_data)
        loop = Loop(
            data,
            reload,
            partial(start_state, start=start, objective=objective),
            settings.solver,
            objective,
            runner,
            settings.rules,
            watch=partial(_watch, (bar.show, *settings.callbacks)),
            checkpoints=checkpoints,
            reached=reached,
        )
        outcomes = loop.run()
        return [
            Fitted(
                candidate,
                outcome,
                _result(loop.data, outcome, objective, settings, is_dask(X), runner),
            )
            for candidate, outcome in zip(candidates, outcomes, strict=True)
        ]


def _described(
    candidates: Sequence[Candidate], settings: Settings, start: Start
) -> dict[str, str]:
    """Return all that the factors depend on besides the data, in words."""
    given = [start.given(axis) for axis in (0, 1)]
    of_all: dict[str, list[Any]] = {
        "restarts": [candidate.number for candidate in candidates],
        "rank": [candidate.rank for candidate in candidates],
        "penalty": [candidate.penalty for candidate in candidates],
        "start": [None if one is None else digest_of(one) for one in given],
    }
    of_each = {
        "offsets": settings.offsets,
        "offset_penalty": settings.offset_penalty,
        "unobserved_weight": settings.unobserved_weight,
        "solver": settings.solver,
        "seed": settings.seed,
        "stream": settings.stream,
        **asdict(settings.rules),
    }
    if settings.gpu is not None:  # other bits than a processor's
        of_each["device"] = settings.gpu
    told = {
        name: repr(values[0] if len(values) == 1 else values)
        for name, values in of_all.items()
    }
    return told | {name: repr(value) for name, value in of_each.items()}


def _watch(callbacks: Iterable[Callback], record: Record) -> bool:
    # Every callback sees every record, also when an earlier one has said stop.
    answers = [callback(record) for callback in callbacks]
    return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)


def _objective(
    data: Data, candidates: Sequence[Candidate], settings: Settings
) -> Objective:
    resolved: dict[int, Penalty] = {}
    observed = data.totals.entries / math.prod(data.shape)
    missing = (1 - settings.unobserved_weight) * (1 - observed)

    def penalty(given: Any) -> Penalty:
        # One object for one setting, so that restarts share their strengths.
        key = id(given)
        if key not in resolved:
            if given is None:
                resolved[key] = Ridge(0.0)
            elif isinstance(given, str):
                strength = AUTO_STRENGTH * data.totals.deviation
                shared = AUTO_ENTRIES * missing**AUTO_POWER * strength
                resolved[key] = Ridge(strength, by_count=True) + Ridge(shared)
            else:
                resolved[key] = given
        return resolved[key]

    ranks = tuple(candidate.rank for candidate in candidates)
    W, H = (
        Side(
            tuple(penalty(candidate.penalty[axis]) for candidate in candidates),
            ranks,
            max(ranks),
            COLUMNS[settings.offsets][axis],
            _offset_penalty(settings),
            # Entries of W and H are about so large too: their products are like X.
            data.totals.deviation**0.5 or 1.0,
        )
        for axis in (0, 1)
    )
    return Objective((W, H), settings.unobserved_weight)


def _check_strips(data: Data, objective: Objective) -> None:
    """Refuse strips so short that a difference would reach across one."""
    for axis, side in enumerate(objective.sides):
        if not side.smooth or data.grid.shape[axis] == 1:
            continue
        lengths = [len(data.grid.strip(axis, i)) for i in range(data.grid.shape[axis])]
        if min(lengths) < reach_of(side):
            msg = (
                f"Smooth of order {reach_of(side)} needs chunks of at least "
                f"{reach_of(side)} {('rows', 'columns')[axis]}, but X has one of "
                f"{min(lengths)}; rechunk X"
            )
            raise ValueError(msg)


def _offset_penalty(settings: Settings) -> Ridge:
    if settings.offset_penalty is None:
        return Ridge(0.0)
    if isinstance(settings.offset_penalty, str):
        return Ridge(AUTO_OFFSET)
    penalty: Ridge = settings.offset_penalty
    return penalty


def _random_start(
    data: Data, candidates: Sequence[Candidate], settings: Settings
) -> Start:
    totals = data.totals
    axis = carrier(settings.offsets)
    levels = [0.0, 0.0]
    mean_square = totals.mean_square
    if axis is not None:
        levels[axis] = totals.mean
        mean_square = totals.deviation**2
    numbers = tuple(candidate.number for candidate in candidates)
    return RandomStart(
        settings.seed,
        numbers,
        mean_square,
        (levels[0], levels[1]),
        getattr(settings.solver, "start_scale", 1.0),
    )


def _result(
    data: Data,
    outcome: Outcome,
    objective: Objective,
    settings: Settings,
    lazy: bool,
    runner: Runner,
) -> Factorization | None:
    state = outcome.state
    if state is None:
        return None
    k = outcome.candidate
    ranks = [side.ranks[k] for side in objective.sides]
    W, Ht = (factor_of(data, state, axis, ranks[axis], lazy, runner) for axis in (0, 1))
    offsets: list[Array | None] = [None, None]
    for axis, side in enumerate(objective.sides):
        if side.offset is not None and "tied" not in side.roles:
            offsets[axis] = offsets_of(data, state, axis, side, lazy, runner)
    has_offsets = settings.offsets != "none"
    return Factorization(
        W=W,
        H=Ht.T,
        history=History(outcome.records, outcome.initial_objective),
        status=outcome.status,
        penalty=(objective.sides[0].penalties[k], objective.sides[1].penalties[k]),
        solver=settings.solver,
        seed=settings.seed,
        offsets=settings.offsets,
        offset=sum(
            level_of(state, axis, side, runner)
            for axis, side in enumerate(objective.sides)
        ),
        row_offsets=offsets[0],
        column_offsets=offsets[1],
        offset_penalty=objective.sides[0].offset_penalty if has_offsets else None,
        unobserved_weight=settings.unobserved_weight,
        certificate=outcome.certificate,
    )
