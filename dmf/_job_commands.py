"""The commands about jobs: run one that a file describes, and begin such a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmf._shell import reported, say
from dmf.jobs.exits import MEANINGS, Exit, JobError

if TYPE_CHECKING:
    from dmf.jobs.config import Job
    from dmf.jobs.record import RunRecord

EXIT_CODES = "; ".join(f"{code.value}: {text}" for code, text in MEANINGS.items())


@click.command(
    epilog=f"Exit codes: {EXIT_CODES}. Example: dmf run job.toml --set model.rank=8"
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "given",
    metavar="KEY=VALUE",
    multiple=True,
    help="Use this value for a key such as model.rank, whatever FILE and the variables "
    "such as DMF_MODEL__RANK say. May be given several times.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check FILE, show its settings and what would be done, and do nothing.",
)
def run(file: Path, given: tuple[str, ...], dry_run: bool) -> None:
    """Do what FILE says: fit or refit a model, fill a matrix, publish both.

    `dmf init` writes a FILE to begin with. Nothing is done if input, settings and
    outputs are those of the last run. Outputs appear when all of them are complete.
    A fit that Ctrl-C or SIGTERM ends saves a checkpoint first; the next run goes on
    from it, also after a run that was killed.
    """
    with reported("interrupted"):
        read_job, run_job = _functions()
        try:
            job = read_job(file, os.environ, given)
            if dry_run:
                _show(job)
                return
        except JobError as error:
            _fail(error)
        record = run_job(job, job.name_in(file))
        if record.code and job.log.file is not None:
            click.echo(f"Error: {record.message}", err=True)
        raise SystemExit(record.code)


def _functions() -> tuple[Callable[..., Job], Callable[..., RunRecord]]:
    try:
        from dmf.jobs.problems import read_job
        from dmf.jobs.run import run_job
    except ModuleNotFoundError as error:
        msg = f"jobs need {error.name}: pip install 'dmf[jobs]'"
        raise ImportError(msg) from error
    return read_job, run_job


def _fail(error: JobError) -> None:
    """Show a line for each problem."""
    for line in str(error).splitlines():
        click.echo(f"Error: {line}", err=True)
    raise SystemExit(int(error.code))


def _show(job: Job) -> None:
    """Show the settings of a job, what it would do, and what that would take."""
    from dmf.jobs.config import Kubernetes, Slurm
    from dmf.jobs.run import look, plan_of
    from dmf.secrets import without_secrets

    todo = look(job)
    shown = without_secrets(job.model_dump(mode="json"))
    if not job.model.validation:
        # It has nothing to compare, and is refused where it's given.
        del shown["guards"]["worsened"]
    for section, settings in shown.items():
        click.echo(f"[{section}]")
        for key, value in settings.items():
            if value is not None:
                click.echo(f"{key} = {_toml(value)}")
        click.echo()
    say(f"{todo}")
    if todo.action not in ("full", "warm"):
        return
    if isinstance(job.cluster, Slurm | Kubernetes):
        click.echo("the plan of the fit is made when the cluster is there")
        return
    plan = plan_of(job)
    click.echo(f"{replace(plan, refusal=None)}")
    if plan.refusal is not None:
        raise JobError(Exit.BAD_CONFIGURATION, plan.refusal)


def _toml(value: Any) -> str:
    """Return a value as a job file may hold it."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@click.command(epilog="Example: dmf init job.toml")
@click.argument(
    "file",
    metavar="FILE",
    default="job.toml",
    type=click.Path(path_type=Path),
)
def init(file: Path) -> None:
    """Write a commented job to FILE, job.toml by default, to begin with."""
    from importlib.resources import files

    with reported("interrupted"):
        text = files("dmf.jobs").joinpath("example.toml").read_text(encoding="utf-8")
        try:
            with open(file, "x", encoding="utf-8") as new:
                new.write(text)
        except FileExistsError:
            msg = f"{file} exists; name another file"
            raise FileExistsError(msg) from None
    click.echo(f"{file}: change it, then dmf run --dry-run {file}")
