"""plan: what a fit will take, before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dmf._calibrate import calibrated
from dmf._settings import check_settings
from dmf.containers import unwrap_like, unwrap_pair
from dmf.engine.arrays import number_observed
from dmf.engine.cost import cost_of, tasks_of
from dmf.engine.kinds import is_dask
from dmf.engine.layout import in_units, layout_for, refusal, work_of
from dmf.engine.memory import limited
from dmf.engine.runner import choose_runner
from dmf.entries import canonical_csr
from dmf.validation import check_bool, check_integer, check_matrix, check_rank

if TYPE_CHECKING:
    from distributed import Client

Array = Any


@dataclass(frozen=True)
class Plan:
    """How a fit will run, and what it will take.

    Parameters
    ----------
    shape : (int, int)
    kind : {"dense", "sparse"}
    stored : int
        Entries that a pass visits: those that are stored or, in dense blocks, all.
    rank : int
    workers : int
        Processes of a cluster; 0: the threads of this one.
    threads : int
        Of all of them; on GPUs, one for each.
    grid : (int, int)
        P × Q blocks.
    streamed : bool
        Whether blocks are read anew in each pass, as they don't fit into the memory.
    tasks : int
        Tasks of a round.
    seconds : float
        Of a round; NaN on GPUs, for which nobody has measured them.
    process, data, factors, temporaries : float
        Bytes of the fullest worker: of the process before, of what it keeps of X, of
        the factors, and for a while.
    memory : float
        Bytes that it has.
    refusal : str or None
        Why it can't work, and what would; None: it can.
    """

    shape: tuple[int, int]
    kind: str
    stored: int
    rank: int
    workers: int
    threads: int
    grid: tuple[int, int]
    streamed: bool
    tasks: int
    seconds: float
    process: float
    data: float
    factors: float
    temporaries: float
    memory: float
    refusal: str | None

    @property
    def bytes(self) -> float:
        """Bytes of the fullest worker at its peak."""
        return self.process + self.data + self.factors + self.temporaries

    def __str__(self) -> str:
        m, n = self.shape
        matrix = f"{m} × {n}, {self.kind}"
        if self.kind == "sparse":
            matrix += f", {self.stored / (m * n):.3g} of it stored"
        P, Q = self.grid
        place = (
            f"{self.workers} workers, {self.threads} threads in all"
            if self.workers
            else f"{self.threads} threads of this process"
        )
        kept = "read anew in each pass" if self.streamed else "kept in memory"
        limit = "" if math.isinf(self.memory) else f" of {in_units(self.memory)}"
        lines = {
            "matrix": matrix,
            "rank": f"{self.rank}",
            "runs on": place,
            "blocks": f"{P} × {Q}, {kept}",
            "a round": f"{_told(self.seconds)}, {self.tasks} tasks",
            "memory": f"{in_units(self.bytes)}{limit}, of the fullest worker",
            "  process": in_units(self.process),
            "  data": in_units(self.data),
            "  factors": in_units(self.factors),
            "  for a while": in_units(self.temporaries),
        }
        told = [f"{name:<14} {text}" for name, text in lines.items()]
        return "\n".join(told + ([] if self.refusal is None else [self.refusal]))


def _told(seconds: float) -> str:
    if math.isnan(seconds):
        return "not predicted"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def plan(
    X: Array,
    rank: int,
    *,
    mask: Array | None = None,
    unobserved_weight: float = 0.0,
    validation: float | Array | None = None,
    restarts: int = 1,
    client: Client | None = None,
    stream: bool | None = None,
    memory_limit: float | str | None = None,
    calibrate: bool = True,
    device: str = "auto",
) -> Plan:
    """Return how `factorize` would run, and what it would take.

    Parameters
    ----------
    X : array, shape (m, n)
        As in `factorize`. Of a lazy sparse one the entries are counted, which reads it
        once; of others nothing is read, but for a part of what would be streamed.
    rank : int
    mask, unobserved_weight, validation, restarts, client, stream
        As in `factorize`.
    memory_limit : float or str, optional
        Bytes of a worker, or as in "8 GiB". Default: what it has.
    calibrate : bool, default True
        Whether a few rounds of small problems tell how fast this place is, in about two
        seconds. Otherwise, and where a fit can't work, seconds are those of the machine
        that dmf was measured on.
    device : {"auto", "cpu", "gpu"}, default "auto"
        As in `factorize`. On GPUs no seconds are predicted.

    Returns
    -------
    Plan
        ``print`` it. Its `refusal` says why it couldn't work, if it couldn't.

    Raises
    ------
    ValueError, TypeError
        Bad input, as in `factorize`.

    Notes
    -----
    Seconds are those of the default solver, after compilation.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> found = dmf.plan(np.ones((300, 200)), 8, calibrate=False)
    >>> found.grid, found.streamed, found.refusal
    ((1, 1), False, None)
    """
    X, mask, labels = unwrap_pair(X, mask)
    validation = unwrap_like(validation, labels, "validation")
    rank = check_rank(rank, check_matrix("X", X))
    restarts = check_integer("restarts", restarts, at_least=1)
    settings = check_settings(
        X,
        labels=labels,
        mask=mask,
        unobserved_weight=unobserved_weight,
        validation=validation,
        client=client,
        stream=stream,
        device=device,
    )
    runner = choose_runner(client, settings.gpu)
    machine = limited(runner.machine(), memory_limit)
    work = work_of(
        X,
        rank,
        mask=mask,
        unobserved=settings.unobserved_weight,
        held_out=validation is not None,
        candidates=restarts,
    )
    beside = [Y for Y in (mask, validation) if hasattr(Y, "shape")]
    with runner.session():
        if work.kind == "sparse":
            X = X if is_dask(X) else canonical_csr(X)
            stored = number_observed(X, None) if is_dask(X) else X.nnz
            work = replace(work, stored=stored)
        layout = layout_for(X, work, machine, beside=beside, stream=stream)
        used, speed = runner.used(), None  # before the calibration
        refused = refusal(layout, used)
        # The small fits of a calibration would be refused for want of memory, too.
        measured = check_bool("calibrate", calibrate) and settings.gpu is None
        if measured and refused is None:
            speed = calibrated(layout, X, client)
    work, grid = layout.work, layout.grid.shape
    needed = layout.bytes(used)
    return Plan(
        shape=work.shape,
        kind=work.kind,
        stored=work.stored,
        rank=rank,
        workers=machine.workers,
        threads=machine.threads,
        grid=grid,
        streamed=work.streamed,
        tasks=tasks_of(work, grid, machine),
        seconds=(
            cost_of(work, grid, machine, speed=speed, candidates=restarts).seconds
            if settings.gpu is None
            else math.nan
        ),
        process=needed.process,
        data=needed.data,
        factors=needed.factors,
        temporaries=needed.temporaries,
        memory=machine.memory,
        refusal=refused,
    )
