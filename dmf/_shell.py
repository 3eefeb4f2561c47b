"""What all commands have in common: expected errors are one line, Ctrl-C a status."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from dmf.engine.runner import ClusterError

# What bad input and the outside world raise, and extras that aren't installed: their
# messages are for the user's eyes. Anything else is a bug of ours, and shows its
# traceback.
EXPECTED = (ValueError, TypeError, OSError, ImportError, ClusterError)
# What a shell reports for a process that Ctrl-C has ended.
INTERRUPTED = 130


@contextmanager
def reported(interrupted: str) -> Iterator[None]:
    """Turn what is expected to go wrong into one line on standard error."""
    # Batch systems and timers send this one before they kill.
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        yield
    except EXPECTED as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    except KeyboardInterrupt:
        click.echo(f"\n{interrupted}", err=True)
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """Treat a signal as Ctrl-C, also where that one is ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    raise KeyboardInterrupt
