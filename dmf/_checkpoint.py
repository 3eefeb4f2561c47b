"""Checkpoints of a fit: what is asked for, and whether one that is there is of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from dmf.engine.checkpoint import Checkpoints, Reached
from dmf.engine.cost import Machine
from dmf.engine.runner import Runner
from dmf.io.checkpoints import CheckpointStore
from dmf.io.places import check_folder, is_url
from dmf.validation import check_bool, check_integer

# Rounds between two checkpoints, unless something else is asked for.
EVERY = 20


class OtherFitError(ValueError):
    """A checkpoint is of other data or other settings."""


@dataclass(frozen=True)
class Keep:
    """Where checkpoints are kept, and how often: by rounds, or else by seconds."""

    store: CheckpointStore
    rounds: int | None
    seconds: float | None
    resume: bool


def check_checkpoint(url: Any, every: Any, resume: Any) -> Keep | None:
    """Return what is asked for, or refuse it."""
    resume = check_bool("resume", resume)
    if url is None:
        for name, given in (("checkpoint_every", every), ("resume", resume)):
            if given:
                msg = (
                    f"{name}={given!r} needs checkpoint=, the place of the checkpoints"
                )
                raise ValueError(msg)
        return None
    if not isinstance(url, str | os.PathLike):
        msg = f"checkpoint must be a path or a URL, got {url!r}"
        raise TypeError(msg)
    rounds, seconds = None, None
    if isinstance(every, timedelta):
        seconds = every.total_seconds()
        if seconds <= 0:
            msg = f"checkpoint_every must be above 0, got {every!r}"
            raise ValueError(msg)
    else:
        every = EVERY if every is None else every
        rounds = check_integer("checkpoint_every", every, at_least=1)
    store = CheckpointStore.at(url)
    if not is_url(store.url):
        check_folder(os.path.dirname(store.url))
    if store.versions() and not resume:
        msg = (
            f"there are checkpoints at {store.url}; go on from them with resume=True "
            "(on the command line: --resume), or name another place"
        )
        raise FileExistsError(msg)
    return Keep(store, rounds, seconds, resume)


class Saved:
    """The checkpoints of a fit, and the version that it goes on from, if there is one.

    Parameters
    ----------
    keep : Keep
    runner : Runner
    """

    def __init__(self, keep: Keep, runner: Runner) -> None:
        self.checkpoints = Checkpoints(keep.store, runner, keep.rounds, keep.seconds)
        self._version = self.checkpoints.find() if keep.resume else None

    def machine(self, now: Machine) -> Machine:
        """Return what to plan for: the first machine's plan keeps every bit."""
        if self._version is None:
            return now
        return Machine(**self._version.about["machine"])

    def reached(
        self, machine: Machine, settings: dict[str, str], data: str
    ) -> Reached | None:
        """Return where the fit goes on; None: at its start.

        Parameters
        ----------
        machine : Machine
            That was planned for.
        settings : dict
            What the factors depend on besides the data, in words.
        data : str
            The fingerprint of the data.

        Raises
        ------
        OtherFitError
            The checkpoint is of other data or other settings.
        """
        url = self.checkpoints.store.url
        self.checkpoints.about = {
            "machine": asdict(machine),
            "settings": settings,
            "data": data,
        }
        if self._version is None:
            return None
        then = self._version.about
        for name, value in settings.items():
            before = then["settings"].get(name)
            if before != value:
                msg = (
                    f"the checkpoint {url} is of a fit with {name}={before}, but this "
                    f"one has {value}; give the same settings, or name another place"
                )
                raise OtherFitError(msg)
        if then["data"] != data:
            msg = (
                f"the checkpoint {url} is of a fit to other data (X, mask or "
                "validation); give the same data, or name another place"
            )
            raise OtherFitError(msg)
        return self.checkpoints.restore(self._version)
