"""The report of a run: one page that tells what came in, what came out, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmf._shell import INTERRUPTED
from dmf.jobs import pages, pictures
from dmf.jobs.record import RunRecord
from dmf.jobs.summary import Summary, known, summary

Row = tuple[str, str, str, str]

FILE = "report.html"
# What is said of the input, in this order; all else that is known follows.
INPUT = ("place", "version", "kind", "dtype", "shape", "observed", "missing")


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write the report of a run into a folder, in one step.

    The page names no other file, needs no network, and runs no script.

    Parameters
    ----------
    record : RunRecord
    folder : Path

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
    return pages.write(report(record), folder / FILE)


def report(record: RunRecord) -> str:
    """Return the report of a run as a page in HTML: see `write_report`."""
    short = summary(record)
    return pages.render(
        "report.html.j2",
        run=record,
        short=short,
        tone=_tone(record.code),
        tiles=_tiles(record, short),
        input=_input(record.input),
        found=record.findings,
        pictures=_pictures(record),
        restarts=len({one.get("candidate", 0) for one in record.rounds}),
        held_out=any(known(one.get("validation_rmse")) for one in record.rounds),
        change=_change(short),
        cells=_cells(record.findings.get("cells", {})),
        stages=_stages(record.stages),
        plan=_plan(record.plan, record.measured),
    )


def _tone(code: int) -> str:
    return {0: "good", INTERRUPTED: "warn"}.get(code, "bad")


def _tiles(record: RunRecord, short: Summary) -> list[tuple[str, str, str, str]]:
    """Return name, value, what there is to add, and in which tone."""
    tiles = []
    if short.rows is not None:
        shape = f"{pages.number(short.rows)} × {pages.number(short.columns)}"
        tiles.append(("Matrix", shape, str(record.input.get("kind", "")), ""))
    if short.missing is not None:
        entries = "" if short.observed is None else pages.number(short.observed)
        more = f"{entries} entries observed" if entries else ""
        tiles.append(("Missing", pages.percent(short.missing), more, ""))
    if short.validation_rmse is not None:
        change = _change(short)
        worse = (short.last_rmse or short.validation_rmse) < short.validation_rmse
        more = f"{change} against the last run" if change else ""
        tone = "" if not more else "warn tone" if worse else "good tone"
        tiles.append(("Held-out RMSE", pages.number(short.validation_rmse), more, tone))
    if short.rmse is not None:
        tiles.append(("RMSE", pages.number(short.rmse), "on the observed entries", ""))
    if short.rounds:
        each = known(record.measured.get("seconds"))
        more = "" if each is None else f"{pages.seconds(each)} each"
        tiles.append(("Rounds", pages.number(short.rounds), more, ""))
    tiles.append(("Time", pages.seconds(record.seconds), "", ""))
    return tiles


def _change(short: Summary) -> str:
    """Return how the held-out error has changed; nothing if it can't be said."""
    if not short.last_rmse or short.validation_rmse is None:
        return ""
    change = short.validation_rmse / short.last_rmse - 1
    return f"{change:+.1%}".replace("-", "−") if abs(change) >= 0.0005 else "±0%"


def _input(given: dict[str, Any]) -> list[tuple[str, str]]:
    said = {name: given[name] for name in INPUT if name in given} | given
    formats: dict[str, Callable[[Any], str]] = {
        "shape": lambda shape: " × ".join(map(pages.number, shape)),
        "observed": lambda entries: f"{pages.number(entries)} entries",
        "missing": lambda share: f"{pages.percent(share)} of the cells",
    }
    return [
        (name, formats.get(name, pages.plain)(value))
        for name, value in pages.leaves(said)
        if value is not None
    ]


def _pictures(record: RunRecord) -> dict[str, str]:
    """Return the pictures that there are data for."""
    found, rounds = record.findings, record.rounds
    drawn = dict.fromkeys(("gaps", "objective", "residuals"), "")
    if found.get("picture"):
        drawn["gaps"] = pictures.gaps(found)
        drawn |= {of: pictures.counts(found, of) for of in ("rows", "columns")}
    if found.get("residuals"):
        drawn["residuals"] = pictures.residuals(found["residuals"])
    if any(known(one.get("objective")) is not None for one in rounds):
        drawn["objective"] = pictures.convergence(rounds)
        drawn["errors"] = pictures.errors(rounds)
    return drawn


def _cells(told: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return tables of cells, with as many decimals as their deviations mean."""
    tables = []
    for kind in ("most", "least"):
        own = told.get(kind, [])
        least = min((cell["std"] for cell in own if cell["std"]), default=1.0)
        decimals = min(max(0, 1 - math.floor(math.log10(least))), 12)
        rows = [
            (
                str(cell["row"]),
                str(cell["column"]),
                pages.decimal(cell["value"], decimals),
                "no bound"
                if cell["std"] is None
                else pages.decimal(cell["std"], decimals),
            )
            for cell in own
        ]
        if rows:
            tables.append((f"{kind.capitalize()} certain", rows))
    return tables


def _stages(given: list[Any]) -> list[tuple[str, float, float]]:
    """Return name, seconds and share of each stage."""
    total = sum(seconds for _, seconds in given)
    return [(name, seconds, seconds / (total or 1.0)) for name, seconds in given]


def _plan(plan: dict[str, Any], measured: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what was planned beside what happened, where either is known."""
    plan = dict(plan)
    memory, grid = plan.pop("bytes", None), plan.pop("grid", None)
    parts = []
    if isinstance(memory, dict):
        parts = [(name, part) for name, part in memory.items() if name != "total"]
        memory = memory.get("total", sum(known(part) or 0 for _, part in parts))
    if isinstance(grid, list | tuple):
        grid = " × ".join(map(pages.plain, grid))
    rows = [
        (
            "Time of a round",
            pages.seconds(plan.pop("seconds", None)),
            pages.seconds(measured.get("seconds")),
        ),
        (
            "Memory of the fullest process",
            pages.size(memory),
            pages.size(measured.get("peak_bytes")),
        ),
        *((f"of that, {name}", pages.size(part), "–") for name, part in parts),
        ("Tasks of a round", pages.number(plan.pop("tasks", None)), "–"),
        ("Blocks", pages.plain(grid), "–"),
        *((name, pages.plain(value), "–") for name, value in pages.leaves(plan)),
    ]
    return [row for row in rows if set(row[1:]) != {"–"}]
