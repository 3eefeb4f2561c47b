"""What all commands have in common: expected errors are one line, Ctrl-C a status.

Nothing that they show holds credentials.
"""

from __future__ import annotations

import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from dmf.engine.losses import ClusterError
from dmf.secrets import without_secrets

# What bad input and the outside world raise, and extras that aren't installed: their
# messages are for the user's eyes. Anything else is a bug of ours, and shows its
# traceback.
EXPECTED = (ValueError, TypeError, OSError, ImportError, ClusterError)
# What a shell reports for a process that Ctrl-C has ended.
INTERRUPTED = 130


def say(text: str, err: bool = False) -> None:
    """Print a text, which may name URLs."""
    click.echo(without_secrets(text), err=err)


@contextmanager
def reported(interrupted: str) -> Iterator[None]:
    """Turn what is expected to go wrong into one line on standard error."""
    # Batch systems and timers send this one before they kill.
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show
            yield
    except EXPECTED as error:
        told = " ".join(str(without_secrets(str(error))).split())
        raise click.ClickException(told) from error
    except KeyboardInterrupt:
        say(f"\n{interrupted}", err=True)
        raise SystemExit(INTERRUPTED) from None
    except click.ClickException:
        raise
    except Exception:
        # Python would show it as it is.
        say(traceback.format_exc().rstrip(), err=True)
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    shown = warnings.formatwarning(message, category, filename, lineno, line)
    say(shown.rstrip("\n"), err=True)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """Treat a signal as Ctrl-C, also where that one is ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    raise KeyboardInterrupt
