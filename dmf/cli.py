"""The command line: it parses, and calls what the library offers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

import dmf
from dmf._commands import history, report
from dmf._job_commands import init, run
from dmf._options import (
    SOLVERS,
    Where,
    checkpoint_options,
    cluster_options,
    device_option,
    mask_option,
    overwrite_option,
    table_options,
    variable_option,
)
from dmf._shell import INTERRUPTED, reported, say
from dmf.offsets import COLUMNS


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dmf.__version__, prog_name="dmf")
def main() -> None:
    """Factorize matrices with missing entries, and fill what is missing.

    A matrix is a .npy file, a Zarr array, a table (.csv, .tsv, .parquet), or a variable
    of a .nc file or of a Zarr group of xarray, in which NaN means missing, or a sparse
    .npz or .mtx file, in which whatever isn't stored is missing. A table may also have
    one observation a line: then --row, --column and --value name its columns. All may
    be URLs, as in s3://bucket/X.zarr.
    """


@main.command(
    epilog="Example: dmf factorize ratings.npz --rank 20 --ridge 0.05 "
    "--ridge-by-count -o ratings-model.zarr"
)
@click.argument("input", metavar="INPUT")
@click.option("--rank", type=int, required=True, help="The number of columns of W.")
@click.option(
    "-o", "--output", metavar="MODEL", required=True, help="Where to save the model."
)
@mask_option
@click.option(
    "--ridge",
    type=float,
    metavar="STRENGTH",
    help="The strength of the ridge penalty on both factors, 0 for none. By default, "
    "a light one that follows the scale of the data.",
)
@click.option(
    "--ridge-by-count/--ridge-plain",
    default=None,
    help="Scale STRENGTH for each row (and column) by the number of its observed "
    "entries, as is usual for ratings; plain is the default.",
)
@click.option(
    "--offsets",
    type=click.Choice(list(COLUMNS)),
    default="none",
    show_default=True,
    help="Fit a level together with the factors: one for all, and one for each row, "
    "each column, or both.",
)
@click.option(
    "--non-negative", is_flag=True, help="Keep the factors' entries at 0 or above."
)
@click.option(
    "--unobserved-weight",
    type=float,
    default=0.0,
    show_default=True,
    metavar="WEIGHT",
    help="Take what is unobserved for zeros of this weight, at most 1; 0: missing.",
)
@click.option(
    "--validation",
    type=float,
    metavar="SHARE",
    help="Hold out this share of the observed entries, stop when their error no longer "
    "falls, and save the factors that were best on them.",
)
@click.option(
    "--solver",
    type=click.Choice(list(SOLVERS)),
    default="plane",
    show_default=True,
    help="plane: each row moves to the minimum in the plane of its gradient and its "
    "previous move; scaled: the same, for ratings, with gradients divided by a mean "
    "curvature; exact: all rows move along the gradient, by the best common length; "
    "als: alternating least squares.",
)
@click.option("--max-rounds", type=int, default=200, show_default=True)
@click.option(
    "--tol",
    type=float,
    default=1e-4,
    show_default=True,
    help="Stop when a round changes the objective by less than this share of it; "
    "0 runs all rounds.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--restarts",
    type=int,
    default=1,
    show_default=True,
    help="How many random starts to run; the best one is saved.",
)
@checkpoint_options
@cluster_options
@device_option
@overwrite_option
@table_options
@variable_option
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
def factorize(
    input: str,
    rank: int,
    output: str,
    mask: str | None,
    ridge: float | None,
    ridge_by_count: bool | None,
    offsets: str,
    non_negative: bool,
    unobserved_weight: float,
    validation: float | None,
    solver: str,
    max_rounds: int,
    tol: float,
    seed: int,
    restarts: int,
    checkpoint: str | None,
    checkpoint_every: int | timedelta | None,
    resume: bool,
    where: Where,
    device: str,
    overwrite: bool,
    quiet: bool,
    duplicates: str,
    variable: str | None,
    **columns: str | None,
) -> None:
    """Find W and H such that W H is close to INPUT where INPUT is observed.

    `dmf --help` says what INPUT may be. The factors are saved as MODEL, a Zarr group.
    Ctrl-C and SIGTERM save the factors that have been reached, and a checkpoint if one
    was asked for, and exit with status 130.
    """
    from dmf.io import model
    from dmf.io.matrices import open_mask, open_matrix
    from dmf.io.tables import Columns

    if ridge is None and ridge_by_count is not None:
        msg = "--ridge-by-count and --ridge-plain need --ridge"
        raise click.UsageError(msg)
    with (
        reported("interrupted before the model was saved"),
        _working(where, lambda: model.check_writable(output, overwrite)),
    ):
        X = open_matrix(input, Columns(**columns), duplicates, variable)
        fit = dmf.factorize(
            X,
            rank,
            mask=open_mask(mask, columns["index"]),
            offsets=offsets,
            penalty=_penalty(ridge, bool(ridge_by_count), non_negative),
            unobserved_weight=unobserved_weight,
            validation=validation,
            solver=SOLVERS[solver],
            restarts=restarts,
            max_rounds=max_rounds,
            tol=tol,
            seed=seed,
            progress=False if quiet else None,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            device=device,
        )
        model.save(fit, output, overwrite)
    if not quiet:
        say(_summary(X, mask, fit, output))
    if fit.status.code == "interrupted":
        say(f"{fit.status}; saved as {output}", err=True)
        raise SystemExit(INTERRUPTED)


def _penalty(
    ridge: float | None, by_count: bool, non_negative: bool
) -> dmf.Penalty | str:
    if ridge is None:
        return dmf.NonNegative() if non_negative else "auto"
    penalty = dmf.Ridge(ridge, by_count)
    return penalty + dmf.NonNegative() if non_negative else penalty


@main.command(
    epilog="Example: dmf impute ratings.npz --model ratings-model.zarr -o filled.npy"
)
@click.argument("input", metavar="INPUT")
@click.option(
    "--model", "url", metavar="MODEL", required=True, help="What factorize has saved."
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    help="The filled matrix: .npy or .zarr, for a table a table, or with labels .nc.",
)
@mask_option
@cluster_options
@device_option
@overwrite_option
@table_options
@variable_option
@click.option("--quiet", is_flag=True, help="Say nothing at the end.")
def impute(
    input: str,
    url: str,
    output: str,
    mask: str | None,
    where: Where,
    device: str,
    overwrite: bool,
    quiet: bool,
    duplicates: str,
    variable: str | None,
    **columns: str | None,
) -> None:
    """Write INPUT to OUT with its missing entries filled in from MODEL.

    Observed entries stay as they are, bit by bit. A .npy or Zarr INPUT is read, filled
    and written block by block, so that it may be larger than the memory.
    """
    from dmf.io.matrices import (
        check_output,
        check_writable,
        open_mask,
        open_matrix,
        write_made,
    )
    from dmf.io.tables import Columns

    with (
        reported(f"interrupted; {output} was not written"),
        _working(where, lambda: check_writable(output, overwrite)),
    ):
        X = open_matrix(input, Columns(**columns), duplicates, variable)
        check_output(X, output)
        fit, own_mask = dmf.load(url), open_mask(mask, columns["index"])
        filled = write_made(
            lambda: dmf.impute(X, fit, own_mask, device=device), output, overwrite
        )
    if not quiet:
        m, n = filled.shape
        kind = f", {filled.dtype}" if hasattr(filled, "dtype") else ""
        say(f"{output}: {m} × {n}{kind}, filled from {url}")


@main.command(epilog="Example: dmf plan big.zarr --rank 32 --memory-limit 8GiB")
@click.argument("input", metavar="INPUT")
@click.option("--rank", type=int, required=True, help="The number of columns of W.")
@mask_option
@click.option(
    "--memory-limit",
    metavar="BYTES",
    help="Plan for workers with so much memory, as in 8GiB, not for what there is.",
)
@click.option(
    "--restarts", type=int, default=1, show_default=True, help="Random starts at once."
)
@click.option("--validation", type=float, metavar="SHARE", help="As in factorize.")
@click.option(
    "--unobserved-weight",
    type=float,
    default=0.0,
    metavar="WEIGHT",
    help="As in factorize.",
)
@cluster_options
@device_option
@table_options
@variable_option
def plan(
    input: str,
    rank: int,
    mask: str | None,
    memory_limit: str | None,
    restarts: int,
    validation: float | None,
    unobserved_weight: float,
    where: Where,
    device: str,
    duplicates: str,
    variable: str | None,
    **columns: str | None,
) -> None:
    """Say how INPUT would be factorized, and what a round would take.

    That is the blocks it is cut into, whether they stay in memory, tasks and seconds of
    a round, and bytes of a worker. A fit that can't work is refused, with what would.
    """
    from dmf.io.matrices import open_mask, open_matrix
    from dmf.io.tables import Columns

    with (
        reported("interrupted; nothing was planned"),
        _working(where, lambda: None),
    ):
        found = dmf.plan(
            open_matrix(input, Columns(**columns), duplicates, variable),
            rank,
            mask=open_mask(mask, columns["index"]),
            restarts=restarts,
            validation=validation,
            unobserved_weight=unobserved_weight,
            memory_limit=memory_limit,
            device=device,
        )
        click.echo(f"{replace(found, refusal=None)}")
        if found.refusal is not None:
            raise ValueError(found.refusal)


@main.command(epilog="Example: dmf demo --output demo.png")
@click.option(
    "--output",
    metavar="PNG",
    default="demo.png",
    show_default=True,
    help="Where to save the picture.",
)
def demo(output: str) -> None:
    """Hide most pixels of a photograph, and find them again.

    Needs matplotlib: pip install 'dmf[plot]'.
    """
    with reported("interrupted; no picture was drawn"):
        from dmf.demo import run_demo

        run_demo(Path(output))


@contextmanager
def _working(where: Where, check: Callable[[], None]) -> Iterator[None]:
    """Run `check`, then connect to a cluster or start one; it becomes Dask's default.

    The order matters: an output that can't be written must not cost a start.
    """
    check()
    if where.scheduler is None and where.workers is None:
        yield
        return
    from dmf.engine.cluster import connected, started

    if where.scheduler is not None:
        place = connected(where.scheduler, where.tls)
    else:
        place = started(where.workers or 1)
    with place:
        yield


def _summary(X: Any, mask: str | None, fit: dmf.Factorization, output: str) -> str:
    m, n = fit.shape
    lines = [("matrix", f"{m} × {n}"), ("rank", f"{fit.rank}")]
    if mask is None and hasattr(X, "nnz"):
        lines[0] = ("matrix", f"{m} × {n}, {X.nnz / (m * n):.3g} of it stored")
    if len(fit.history):
        kept = fit.history[(fit.status.factors_of or len(fit.history)) - 1]
        lines += [
            ("rounds", f"{len(fit.history)}"),
            ("objective", f"{kept.objective:.6g}"),
            ("RMSE", f"{kept.rmse:.6g} on the observed entries"),
        ]
        if not math.isnan(kept.validation_rmse):
            lines.append(("held out", f"{kept.validation_rmse:.6g} RMSE"))
    lines += [("status", f"{fit.status}"), ("model", output)]
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


for command in (init, run, report, history):
    main.add_command(command)

if __name__ == "__main__":
    main()
