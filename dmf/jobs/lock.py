"""One run at a time: a lock that its holder can't leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmf.jobs.exits import Exit, JobError


@contextmanager
def locked(path: str, wait: float) -> Iterator[None]:
    """Hold a lock; the system lets go of it when this process ends, however it ends.

    Parameters
    ----------
    path : str
        Of a file, which stays: only the lock on it counts.
    wait : float
        Seconds to wait for another holder.

    Raises
    ------
    JobError
        Another one still holds it; or the file can't be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        msg = (
            f"another run holds {path} and hasn't ended in {wait:g} s; wait longer "
            "with job.wait, or run it later"
        )
        raise JobError(Exit.LOCKED, msg) from error
    except OSError as error:
        msg = (
            f"the lock {path} can't be held ({error.strerror}); remove what is there, "
            "or name another output.model"
        )
        raise JobError(Exit.BAD_CONFIGURATION, msg) from error
    try:
        yield
    finally:
        lock.release()
