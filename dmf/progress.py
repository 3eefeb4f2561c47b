"""The progress line of a fit."""

from __future__ import annotations

import math
import sys
from types import TracebackType
from typing import Any

from dmf.history import Record


class Progress:
    """A line with round, objective, RMSE, ‖∇‖ and the time left at most.

    Parameters
    ----------
    show : bool or None
        None: only if standard error is a terminal.
    max_rounds : int
    candidates : int
        How many are fitted together; the line tells of the best one.
    """

    def __init__(self, show: bool | None, max_rounds: int, candidates: int) -> None:
        # A process without a terminal may have no standard error at all.
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._wanted = terminal if show is None else show
        self._max_rounds = max_rounds
        self._candidates = candidates
        self._round: dict[int, Record] = {}
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[line]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._max_rounds, line="loading")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, record: Record) -> None:
        """Draw a record."""
        if self._bar is None:
            return
        self._round[record.candidate] = record
        # Those that have ended, or were dropped, have no record of late.
        self._round = {
            k: other
            for k, other in self._round.items()
            if other.round >= record.round - 1
        }
        best = min(self._round.values(), key=lambda other: other.objective)
        left = record.seconds / record.round * (self._max_rounds - record.round)
        name = "fit"
        if self._candidates > 1:
            name = f"best of {len(self._round)}"
        validated = ""
        if not math.isnan(best.validation_rmse):
            validated = f"held out {best.validation_rmse:.4g}  "
        self._bar.update(
            self._task,
            description=name,
            completed=record.round,
            line=(
                f"round {record.round}/{self._max_rounds}  "
                f"objective {best.objective:.5g}  rmse {best.rmse:.4g}  {validated}"
                f"‖∇‖ {best.gradient_norm_H:.2g}  at most {_clock(left)} left"
            ),
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
