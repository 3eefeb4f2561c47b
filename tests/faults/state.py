"""What the processes of a case share: counters in a file, and each other's ids.

A counter has one writer, but for the operations on a store, which an append to a file
counts.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

PHASES = ("load", "round", "reduction", "checkpoint", "publish")
# Of the tasks of a fit, by what their names begin with.
TASKS = {
    "load": ("block", "part-block", "counts", "fingerprint", "start", "part-sum"),
    "round": ("gradient", "curvature", "direction", "update", "part-update"),
    "reduction": ("sum-WH", "sum-all"),
    "checkpoint": ("checkpoint", "restored"),
}
WORKERS = ("worker-0", "worker-1")
ROLES = ("scheduler", *WORKERS, "client")
COUNTERS = (
    *PHASES,  # events of each, written by the scheduler, or for publish by the client
    "transitions",
    "updates",
    "fired",  # 1: the fault has struck
    "bound",  # 1: there were more transitions than a fit may take
    "lost",  # rounds, by deaths of workers
    "restarts",  # of the loop
    "store",  # 1: the store is failing
    *(f"jump-{role}" for role in ROLES),
)


@dataclass(frozen=True)
class Case:
    """A fault, and when it strikes whom: all that a seed decides.

    Parameters
    ----------
    seed : int
    fault, phase : str
    form : str
        The suffix of X: "npz" is sent to the workers, "zarr" is read by them.
    event : int
        At which event of its phase.
    victim : int
        Which worker.
    chance : int
        For whatever else depends on luck.
    short : bool
        Whether what may be shortened is.
    bound : int
        The transitions of tasks that a fit may take.
    """

    seed: int
    fault: str
    phase: str
    form: str
    event: int = 0
    victim: int = 0
    chance: int = 0
    short: bool = True
    bound: int = 10**9

    def __str__(self) -> str:
        return f"{self.seed}-{self.fault}-{self.phase}-{self.form}"


class Shared:
    """The folder of a case, as each of its processes sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.case = Case(**json.loads((folder / "case.json").read_text()))
        self._counters = np.memmap(
            folder / "counters", dtype=np.int64, mode="r+", shape=(len(COUNTERS),)
        )

    @classmethod
    def create(cls, folder: Path, case: Case) -> Shared:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case.json").write_text(json.dumps(asdict(case)))
        np.zeros(len(COUNTERS), dtype=np.int64).tofile(folder / "counters")
        (folder / "operations").touch()
        return cls(folder)

    def __getitem__(self, name: str) -> int:
        return int(self._counters[COUNTERS.index(name)])

    def __setitem__(self, name: str, value: int) -> None:
        self._counters[COUNTERS.index(name)] = value

    def add(self, name: str) -> int:
        """Count one more, and return how many there are."""
        self[name] += 1
        return self[name]

    def progress(self) -> int:
        """Return what grows while anything happens: tasks, the log of the client."""
        log = self.folder / "client.log"
        return self["transitions"] + (log.stat().st_size if log.exists() else 0)

    def operation(self) -> int:
        """Count an operation on the store, by whichever process it is."""
        file = os.open(self.folder / "operations", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, b".")
            return os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)

    def enter(self, role: str) -> None:
        """Note that this process plays a role."""
        (self.folder / f"{role}.pid").write_text(str(os.getpid()))

    def signal(self, role: str, number: int) -> None:
        """Send a signal to whoever plays a role now."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / f"{role}.pid").read_text()), number)

    def kill(self, role: str) -> None:
        self.signal(role, signal.SIGKILL)

    def report(self, **told: Any) -> None:
        with open(self.folder / "told.jsonl", "a") as file:
            file.write(json.dumps(told) + "\n")
