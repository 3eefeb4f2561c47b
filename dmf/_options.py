"""Options of the command line that several commands have, or that belong together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any

import click

from dmf.device import DEVICES
from dmf.engine.tls import Tls
from dmf.solvers import AlternatingLeastSquares, Exact, NormalizedGradient, Solver
from dmf.triplets import DUPLICATES

Command = Callable[..., Any]
SECONDS = {"s": 1, "min": 60, "h": 3600}

# Solvers by the names that they have outside of Python.
SOLVERS: dict[str, Solver] = {
    "plane": NormalizedGradient(),
    "scaled": NormalizedGradient(scaled=True),
    "exact": NormalizedGradient("global", Exact()),
    "als": AlternatingLeastSquares(),
}


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds all of these options, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def read_time(text: str) -> timedelta | None:
    """Return a time such as "90s", "10min" or "2h"; None if it isn't one."""
    match = re.fullmatch(r"([0-9]{1,9}) ?(s|min|h)", text)
    return match and timedelta(seconds=int(match[1]) * SECONDS[match[2]])


def _every(
    context: click.Context, option: click.Parameter, given: str | None
) -> int | timedelta | None:
    """Read a number of rounds, or a time."""
    if given is None:
        return None
    time = read_time(given)
    rounds = int(given) if re.fullmatch(r"[0-9]{1,9}", given) else 0
    if not (time or rounds):
        msg = (
            f"{given!r} is neither a number of rounds above 0 nor a time such as 90s, "
            "10min or 2h"
        )
        raise click.BadParameter(msg)
    return time or rounds


@dataclass(frozen=True)
class Where:
    """Where the work is done: at a scheduler, by so many processes, or by threads."""

    scheduler: str | None
    workers: int | None
    tls: Tls

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.workers is not None:
            msg = "--scheduler and --workers exclude each other"
            raise click.UsageError(msg)
        if self.scheduler is None and self.tls != Tls():
            msg = "--tls-ca, --tls-cert and --tls-key need --scheduler"
            raise click.UsageError(msg)


def _where(command: Command) -> Command:
    """Give a command the options of a cluster as one argument."""

    @wraps(command)
    def told(
        *arguments: Any,
        scheduler: str | None,
        workers: int | None,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        **others: Any,
    ) -> Any:
        where = Where(scheduler, workers, Tls(tls_ca, tls_cert, tls_key))
        return command(*arguments, where=where, **others)

    return told


# Where the work is done.
cluster_options = _together(
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Use the Dask cluster at this address, as in tcp://10.0.0.5:8786. Its "
        "workers must see the same files.",
    ),
    click.option(
        "--tls-ca",
        metavar="FILE",
        help="Of a scheduler at tls://…: the certificate of the authority, as PEM.",
    ),
    click.option("--tls-cert", metavar="FILE", help="The certificate of this client."),
    click.option("--tls-key", metavar="FILE", help="Its key, without a passphrase."),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Start N worker processes on this machine, and end them afterwards. "
        "Without this and --scheduler, the threads of this process do the work.",
    ),
    _where,
)
# What the columns of a table hold.
table_options = _together(
    click.option(
        "--row",
        metavar="NAME",
        help="Of a table with an observation a line: the column with ids of rows.",
    ),
    click.option(
        "--column", metavar="NAME", help="The column with the ids of columns."
    ),
    click.option("--value", metavar="NAME", help="The column with the values."),
    click.option(
        "--weight", metavar="NAME", help="The column with weights, if there are any."
    ),
    click.option(
        "--index",
        metavar="NAME",
        help="Of a table that is a matrix: the column with the labels of its rows.",
    ),
    click.option(
        "--duplicates",
        type=click.Choice(DUPLICATES),
        default=DUPLICATES[0],
        show_default=True,
        help="What several values for one pair of ids become.",
    ),
)
# Where a fit is saved on its way.
checkpoint_options = _together(
    click.option(
        "--checkpoint",
        metavar="URL",
        help="Save in this folder how far the fit has come, for --resume.",
    ),
    click.option(
        "--checkpoint-every",
        metavar="N",
        callback=_every,
        help="Save after every N rounds, or after a time, as in 90s, 10min or 2h. "
        "By default, after every 20 rounds.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on from the last checkpoint, if there is one.",
    ),
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default=DEVICES[0],
    show_default=True,
    help="Where the passes over the data run. gpu: on the GPU of this machine or, on a "
    "cluster, on workers that offer the resource GPU; auto: where the data are.",
)
variable_option = click.option(
    "--variable",
    metavar="NAME",
    help="Of a netCDF file or Zarr group: which variable is the matrix. By default, "
    "the one with two dimensions, if there is only one.",
)
mask_option = click.option(
    "--mask",
    metavar="PATH",
    help="A matrix of the shape of INPUT, positive where INPUT is observed; values "
    "other than 0 and 1 are weights.",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an output that is already there."
)
