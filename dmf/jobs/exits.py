"""How a run ends: exit codes for schedulers, and sentences for people."""

from __future__ import annotations

from enum import IntEnum

from dmf.secrets import without_secrets


class Exit(IntEnum):
    """The exit codes of `dmf run`."""

    DONE = 0
    UNEXPECTED = 1
    BAD_CONFIGURATION = 2
    BAD_INPUT = 3
    NOT_CONVERGED = 4
    CLUSTER_LOST = 5
    LOCKED = 6
    REFUSED = 7
    INTERRUPTED = 130


MEANINGS = {
    Exit.DONE: "done, or nothing to do",
    Exit.UNEXPECTED: "something unexpected: a full disk, a store that fails, a bug",
    Exit.BAD_CONFIGURATION: "bad configuration",
    Exit.BAD_INPUT: "bad input",
    Exit.NOT_CONVERGED: "not converged, and strict; or diverged",
    Exit.CLUSTER_LOST: "the cluster couldn't be had, or was lost",
    Exit.LOCKED: "another run holds the lock",
    Exit.REFUSED: "refused by a guard",
    Exit.INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; a fit saves a checkpoint",
}


class JobError(Exception):
    """What ends a run, in one sentence without credentials, with its exit code."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(without_secrets(message))
        self.code = code
