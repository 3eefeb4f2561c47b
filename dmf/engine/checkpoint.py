"""What a fit needs to go on from where it is, brought to a store and back."""

from __future__ import annotations

import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from dmf.device import to_host
from dmf.engine.endings import Best, Outcome
from dmf.engine.lower import Graph, Key
from dmf.engine.runner import Leaf, Runner, computed
from dmf.engine.state import State
from dmf.engine.store import (
    DamagedError,
    Store,
    UnreadableError,
    look,
    read_again,
    reading,
)
from dmf.history import Record, as_columns, from_columns
from dmf.solvers.base import Moved
from dmf.status import Certificate, Status

Array = Any


@dataclass(frozen=True)
class Reached:
    """Where a fit is, after a batch of rounds.

    Attributes
    ----------
    state : State or None
        Of the candidates that go on; None if all have ended.
    best : dict
        The best factors so far, of candidates that are validated.
    records : list of lists of Record
    initial : list of float
        The objectives of the starts.
    outcomes : dict
        Of the candidates that have ended.
    drop_next : int or None
        The round in which losers are dropped next.
    """

    state: State | None
    best: dict[int, Best]
    records: list[list[Record]]
    initial: list[float]
    outcomes: dict[int, Outcome]
    drop_next: int | None

    @classmethod
    def at_start(cls, count: int, drop_next: int | None) -> Reached:
        """Return where a fit of so many candidates is before it has a start."""
        records: list[list[Record]] = [[] for _ in range(count)]
        return cls(None, {}, records, [math.nan] * count, {}, drop_next)

    @property
    def round(self) -> int:
        if self.state is not None:
            return self.state.round
        return max((len(one.records) for one in self.outcomes.values()), default=0)

    def records_of(self, candidate: int) -> list[Record]:
        """Return a candidate's records; there may be later ones than it has come to."""
        outcome = self.outcomes.get(candidate)
        if outcome is not None:
            return list(outcome.records)
        assert self.state is not None
        return self.records[candidate][: self.state.round]


@dataclass
class Checkpoints:
    """Saves where a fit is, every so often, and finds the last sound version.

    Parameters
    ----------
    store : Store
    runner : Runner
    rounds : int or None
        Save whenever so many rounds more are done.
    seconds : float or None
        Save whenever so many seconds have gone by.
    """

    store: Store
    runner: Runner
    rounds: int | None
    seconds: float | None
    about: dict[str, Any] = field(default_factory=dict)  # what fit it is

    def __post_init__(self) -> None:
        self._version = 0  # of what this fit has saved, or goes on from
        self._round = 0
        self._time = time.monotonic()

    def due(self, round: int) -> bool:
        """Return whether it is time to save, after a round."""
        if self.rounds is not None:
            return round // self.rounds > self._round // self.rounds
        assert self.seconds is not None
        return time.monotonic() - self._time >= self.seconds

    def save(self, reached: Reached) -> None:
        """Write a version, inside tasks, and publish it."""
        self._version += 1
        files = _Files()
        told = {"about": self.about, "reached": _describe(reached, files)}
        receipts = self._write(files)
        self.store.publish(self._version, told, receipts)
        self._saved = Version(self._version, **told, receipts=receipts)
        self._round, self._time = reached.round, time.monotonic()

    def rooted(self, reached: Reached) -> Reached:
        """Return where a fit is that was just saved, to go on from there.

        On a cluster its factors are read from the store when they're needed: the
        scheduler may forget how they were made.
        """
        if not self.runner.remote:
            return reached
        return self._rebuild(self._saved, _records(reached))

    def find(self) -> Version | None:
        """Return the last version that is sound; None if there never was one.

        Raises
        ------
        DamagedError
            There are versions, but none of them is sound.
        UnreadableError
            None of them can be read, but some may be sound.
        """
        passed: list[str] = []
        away: UnreadableError | None = None
        with reading(self.store):
            numbers = self.store.versions()
        for number in numbers:
            try:
                with reading(self.store):
                    told, receipts = self.store.manifest(number)
                self._check(number, receipts)
            except DamagedError as error:
                passed.append(f"version {number} is damaged ({error})")
                continue
            except UnreadableError as error:
                passed.append(f"version {number} can't be read")
                away = error
                continue
            if passed:
                msg = (
                    f"of the checkpoint {self.store.url}, {' and '.join(passed)}; the "
                    f"fit goes on from version {number}, after round "
                    f"{told['reached']['round']}"
                )
                warnings.warn(msg, UserWarning, stacklevel=2)
            return Version(number, **told, receipts=receipts)
        if away is not None:
            raise away
        if passed:
            msg = (
                f"of the checkpoint {self.store.url}, {' and '.join(passed)}, and "
                "there is no other; remove it, or name another place, to begin anew"
            )
            raise DamagedError(msg)
        return None

    def restore(self, version: Version) -> Reached:
        """Return where the fit was, to go on from there."""
        reached = self._rebuild(version, self._read_records(version))
        # What is newer is no use: it is written over before a sound one goes.
        self._version = version.number
        self._round, self._time = reached.round, time.monotonic()
        return reached

    def last(self) -> Reached | None:
        """Return what was saved last, after workers have taken their part along.

        None if nothing was, or if none of it is sound: the fit has other ways back.
        """
        try:
            version = self.find() if self._version else None
        except DamagedError:
            msg = (
                f"no version of the checkpoint {self.store.url} is sound any more; the "
                "fit goes on from a round before it"
            )
            warnings.warn(msg, UserWarning, stacklevel=2)
            return None
        return None if version is None else self.restore(version)

    def _write(self, files: _Files) -> list[Any]:
        """Write all files; return their receipts."""
        # Names of their own: a task that outlives its save writes over nothing.
        token = uuid.uuid4().hex[:8]
        write = {
            key: partial(
                _write,
                store=self.store,
                version=self._version,
                name=f"{token}-{number:08}.npz",
            )
            for key, number in files.numbers.items()
        }
        tasks = [(write[key], key) for key in files.remote]
        receipts = computed(self.runner, "checkpoint", tasks, files.remote)
        # What is on this side of a cluster is written from here.
        receipts += [write[key](leaf) for key, leaf in files.home.items()]
        return sorted(receipts, key=lambda receipt: receipt.name)

    def _check(self, version: int, receipts: list[Any]) -> None:
        """Read all files, inside tasks; raise what is wrong with one of them."""
        own = partial(look, store=self.store, version=version)
        tasks = [(partial(own, receipt=receipt),) for receipt in receipts]
        for wrong in computed(self.runner, "look", tasks, {}):
            if wrong:
                raise DamagedError(wrong)

    def _read_records(self, version: Version) -> list[list[Record]]:
        """Return the records of each candidate."""
        described = version.reached
        receipt = version.receipts[described["records"]]
        columns = read_again(self.store, version.number, receipt)
        records: list[list[Record]] = [[] for _ in described["initial"]]
        for record in from_columns(columns):
            records[record.candidate].append(record)
        return records

    def _rebuild(self, version: Version, records: list[list[Record]]) -> Reached:
        """Return where the fit was, with factors that tasks read from the store."""
        described = version.reached
        read = partial(
            _read, store=self.store, version=version.number, place=self.runner.place
        )
        token = f"restored-{uuid.uuid4().hex[:8]}"
        graph: Graph = {
            (token, number): (partial(read, receipt=receipt),)
            for number, receipt in enumerate(version.receipts)
            if number != described["records"]
        }
        leaves = self.runner.run(graph, list(graph)) if graph else {}
        state = partial(_state, token=token, leaves=leaves)
        best = {
            one["candidate"]: Best(one["rmse"], state(one["state"]), one["checks"])
            for one in described["best"]
        }
        outcomes = {}
        for one in described["outcomes"]:
            candidate, certificate = one["candidate"], one["certificate"]
            outcomes[candidate] = Outcome(
                candidate,
                state(one["state"]) if one["state"] else None,
                tuple(records[candidate]),
                one["initial"],
                Status(**one["status"]),
                Certificate(**certificate) if certificate else None,
                one["validated"],
            )
        return Reached(
            state(described["state"]) if described["state"] else None,
            best,
            records,
            described["initial"],
            outcomes,
            described["drop_next"],
        )


@dataclass(frozen=True)
class Version:
    """A sound version: its number, what it was told, and where its files are."""

    number: int
    about: dict[str, Any]
    reached: dict[str, Any]
    receipts: list[Any]


@dataclass
class _Files:
    """The leaves to write, each once, and their numbers."""

    numbers: dict[Key, int] = field(default_factory=dict)
    remote: dict[Key, Leaf] = field(default_factory=dict)
    home: dict[Key, Any] = field(default_factory=dict)

    def add(self, state: State, keys: Iterable[Key]) -> list[int]:
        """Return the numbers of a state's leaves."""
        found = []
        for key in keys:
            if key not in self.numbers:
                self.numbers[key] = len(self.numbers)
                (self.home if state.home else self.remote)[key] = state.leaves[key]
            found.append(self.numbers[key])
        return found

    def table(self, columns: dict[str, Array]) -> int:
        """Return the number of a table that is written from this side."""
        number = len(self.numbers)
        self.numbers["table", number] = number
        self.home["table", number] = columns
        return number

    def describe(self, state: State | None) -> dict[str, Any] | None:
        if state is None:
            return None
        return {
            "round": state.round,
            "candidates": list(state.candidates),
            "strips": [self.add(state, keys) for keys in state.strips],
            "centres": self.add(state, state.centres),
        }


def _describe(reached: Reached, files: _Files) -> dict[str, Any]:
    return {
        "round": reached.round,
        "state": files.describe(reached.state),
        "best": [
            {
                "candidate": candidate,
                "rmse": best.rmse,
                "checks": best.checks,
                "state": files.describe(best.state),
            }
            for candidate, best in reached.best.items()
            if candidate not in reached.outcomes
        ],
        # Not among what is described: there are more of them with each round.
        "records": files.table(as_columns(chain(*_records(reached)))),
        "initial": list(reached.initial),
        "outcomes": [
            {
                "candidate": outcome.candidate,
                "state": files.describe(outcome.state),
                "initial": outcome.initial_objective,
                "status": asdict(outcome.status),
                "certificate": asdict(outcome.certificate)
                if outcome.certificate
                else None,
                "validated": outcome.validated,
            }
            for outcome in reached.outcomes.values()
        ],
        "drop_next": reached.drop_next,
    }


def _records(reached: Reached) -> list[list[Record]]:
    """Return the records that each candidate has come to."""
    return [reached.records_of(k) for k in range(len(reached.records))]


def _state(told: dict[str, Any], *, token: str, leaves: dict[Key, Leaf]) -> State:
    """Return the state that `_Files.describe` has described."""
    strips = [tuple((token, number) for number in one) for one in told["strips"]]
    of_W, of_H = ((token, number) for number in told["centres"])
    state = State(
        round=told["round"],
        candidates=tuple(told["candidates"]),
        strips=(strips[0], strips[1]),
        centres=(of_W, of_H),
        stack="",
        leaves={},
    )
    return replace(state, leaves={key: leaves[key] for key in state.keys}).renamed()


def _write(value: Any, *, store: Store, version: int, name: str) -> Any:
    return store.write(version, name, _arrays(to_host(value)))


def _read(
    *, store: Store, version: int, receipt: Any, place: Callable[[Any], Any] | None
) -> Any:
    value = _value(read_again(store, version, receipt))
    return value if place is None else place(value)


def _arrays(value: Any) -> dict[str, Array]:
    """Return a strip, numbers or a table as named arrays."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Moved):
        return {"value": value}
    memory = value.memory or ()
    named = {f"memory_{k}": part for k, part in enumerate(memory)}
    return {"factor": value.factor, **named}


def _value(arrays: dict[str, Array]) -> Any:
    """The inverse of `_arrays`, but for tables."""
    if "value" in arrays:
        return arrays["value"]
    memory = tuple(arrays[f"memory_{k}"] for k in range(len(arrays) - 1))
    return Moved(arrays["factor"], memory or None, None)
