"""Commands about runs that are over: what happened in one, and what drifts in many."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import click

from dmf._shell import reported


@click.command(epilog="Example: dmf report runs/20261122T121418-b1c3c7")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the page; by default, report.html in RUN.",
)
def report(run: Path, output: Path | None) -> None:
    """Draw the report of a run anew, from its record.

    RUN is the folder of a run, with the file run.json in it. The page is one file that
    needs no network. Needs matplotlib and jinja2: pip install 'dmf[jobs]'.
    """
    with reported("interrupted; no report was written"):
        from dmf.jobs import pages, report
        from dmf.jobs.record import RunRecord

        page = report.report(RunRecord.read(run))
        written = pages.write(page, run / report.FILE if output is None else output)
    click.echo(f"{written}")


@click.command(epilog="Example: dmf history runs --output drift.html")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a page with pictures of what drifts: error, gaps, size and time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def history(folder: Path, output: Path | None, as_json: bool) -> None:
    """List the runs in FOLDER, and how they went, the last one last.

    FOLDER holds a folder for each run. Records that are damaged are named on standard
    error, and left out. --output needs matplotlib and jinja2: pip install 'dmf[jobs]'.
    """
    with reported("interrupted; no history was written"):
        from dmf.jobs.history import read_runs, table, write_history
        from dmf.jobs.summary import summary

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            records = read_runs(folder)
        for warning in caught:
            click.echo(f"Warning: {warning.message}", err=True)
        if output is not None:
            write_history(records, output)
    runs = [summary(record)._asdict() for record in records]
    click.echo(json.dumps(runs, indent=1) if as_json else table(records))
