"""Ctrl-C, so that it neither hides behind another error nor gets lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Notices Ctrl-C while a fit runs.

    Python ignores whatever is raised where an object is being deleted, and a cluster's
    futures are deleted all the time: an interrupt that strikes there would be lost.
    """

    def __init__(self) -> None:
        self._pressed = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Note each Ctrl-C on its way, unless somebody else takes care of them."""
        ours = threading.current_thread() is threading.main_thread()
        if (
            not ours
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def raise_lost(self) -> None:
        """Raise the KeyboardInterrupt that nobody has seen, if there is one."""
        if self._pressed:
            self.seen()
            raise KeyboardInterrupt

    def seen(self) -> None:
        """Say that a KeyboardInterrupt has arrived."""
        self._pressed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        signal.default_int_handler(number, frame)


@contextmanager
def kept() -> Iterator[None]:
    """Raise KeyboardInterrupt where Ctrl-C meets Python as it waits on a queue.

    It may then surface as "release unlocked lock", an error of the queue's lock.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
