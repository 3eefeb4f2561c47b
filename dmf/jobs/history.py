"""Many runs of a job beside each other: what has drifted from night to night."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmf.jobs import pages, pictures
from dmf.jobs.record import FILE, RunRecord
from dmf.jobs.summary import Summary, began, summary

# What is drawn: field, by what it's multiplied, its unit on the axis, how it's written,
# and what it is.
DRAWN = (
    (
        "validation_rmse",
        1.0,
        "held-out RMSE",
        pages.number,
        "Root mean square error on held-out entries",
    ),
    ("missing", 100.0, "% missing", pages.percent, "Missing cells"),
    ("observed", 1.0, "entries", pages.number, "Observed entries"),
    ("seconds", 1.0, "seconds", pages.seconds, "Time of the whole run"),
)
COLUMNS = (
    "Started",
    "Outcome",
    "Code",
    "Matrix",
    "Missing",
    "RMSE",
    "Held out",
    "Time",
)


def read_runs(folder: Path) -> list[RunRecord]:
    """Return the records of the runs in a folder, in the order in which they began.

    One that is damaged is left out, with a warning.

    Parameters
    ----------
    folder : Path
        The folder that holds a folder for each run.

    Raises
    ------
    FileNotFoundError
        There is no run in it.
    """
    found, damaged = [], 0
    for path in sorted(folder.glob(f"*/{FILE}")):
        if path.parent.is_symlink():  # another name of one of them
            continue
        try:
            record = RunRecord.read(path.parent)
            key = (began(record), record.id)
            summary(record)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            msg = f"{path} was left out: {error}"
            warnings.warn(msg, stacklevel=2)
            damaged += 1
            continue
        found.append((key, record))
    if not found:
        whole = f" that isn't damaged ({damaged} are)" if damaged else ""
        msg = (
            f"there is no run in {folder}{whole}; name the folder that holds the "
            "folders of runs, such as the one under [report] in the job"
        )
        raise FileNotFoundError(msg)
    return [record for _, record in sorted(found, key=lambda one: one[0])]


def table(records: Sequence[RunRecord]) -> str:
    """Return a line for each run, for a terminal."""
    rows = [COLUMNS, *(_cells(summary(record)) for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [
            text.ljust(width) if k < 2 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def write_history(records: Sequence[RunRecord], path: Path) -> Path:
    """Write a page about many runs, in one step; it names no other file.

    Parameters
    ----------
    records : sequence of RunRecord
        As `read_runs` returns them; at least one.
    path : Path

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ImportError
        jinja2 or matplotlib isn't installed.
    OSError
        It can't be written.
    """
    return pages.write(history(records), path)


def history(records: Sequence[RunRecord]) -> str:
    """Return the page about many runs, in HTML: see `write_history`."""
    runs = [summary(record) for record in records]
    drawn = [
        (title, _said(runs, field, write), pictures.drift(runs, field, scale, unit))
        for field, scale, unit, write, title in DRAWN
        if any(getattr(run, field) is not None for run in runs)
    ]
    return pages.render(
        "history.html.j2",
        names=sorted({run.name for run in runs if run.name}),
        runs=runs,
        failed=sum(run.code != 0 for run in runs),
        columns=COLUMNS,
        rows=[(run.code, run.id, _cells(run)) for run in reversed(runs)],
        drawn=drawn,
    )


def _cells(run: Summary) -> tuple[str, ...]:
    """Return what the table says of a run: a text for each of its columns."""
    matrix = "–"
    if run.rows is not None:
        matrix = f"{pages.number(run.rows)} × {pages.number(run.columns)}"
    return (
        pages.moment(run.started),
        run.outcome,
        str(run.code),
        matrix,
        pages.percent(run.missing),
        pages.number(run.rmse),
        pages.number(run.validation_rmse),
        pages.seconds(run.seconds),
    )


def _said(runs: Sequence[Summary], field: str, write: Callable[[Any], str]) -> str:
    """Return the last number of runs, and the least and the largest of all."""
    values = [getattr(run, field) for run in runs]
    known = [value for value in values if value is not None]
    last = "the last run" if values[-1] is not None else "the last run that has one"
    if len(known) == 1:
        return f"{write(known[0])} in {last}."
    between = f"{write(min(known))} to {write(max(known))}"
    return f"{write(known[-1])} in {last}; {between} in all."
