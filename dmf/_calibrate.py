"""How fast work really is here: a few rounds of small problems of the same kind."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dmf._factorize import factorize
from dmf.engine.cost import Machine, Speed, Work, cost_of
from dmf.engine.layout import Layout, layout_for, work_of
from dmf.engine.predict import fetch

if TYPE_CHECKING:
    from distributed import Client

Array = Any
# Entries of the larger problem; the smaller one is nearly nothing but tasks.
ENTRIES = 10**6
SMALL = (64, 48)
ROUNDS = 9
# Bytes of X that are read to see how fast reading is.
READ_BYTES = 2**26


def calibrated(layout: Layout, X: Array, client: Client | None) -> Speed:
    """Return what work costs here: it takes about two seconds.

    Parameters
    ----------
    layout : Layout
    X : array, shape (m, n)
        A part of it is read, if it is to be read in each pass.
    client : distributed.Client or None
    """
    work, machine = layout.work, layout.machine
    speed = machine.speed(work.kind)
    small = replace(work, shape=SMALL, stored=math.prod(SMALL), kind="dense")
    seconds, cost = _measured(small, machine, speed, client)
    tasks = seconds / cost.seconds
    speed = replace(speed, task=speed.task * tasks, stage=speed.stage * tasks)

    seconds, cost = _measured(_alike(work), machine, speed, client)
    # Where tasks are most of it, the rest can't be told; it is what is left at least.
    rest = max(seconds - cost.tasks, 0.1 * seconds) / (cost.seconds - cost.tasks)
    names = ("entry", "product", "line", "number", "added")
    speed = replace(speed, **{name: rest * getattr(speed, name) for name in names})
    return replace(speed, read=_reading(X, work, machine)) if work.streamed else speed


def _alike(work: Work) -> Work:
    """Return a small problem of the same kind, whose rows have as many entries."""
    share = min(1.0, ENTRIES / max(1, work.stored))
    shrink = math.sqrt(share) if work.kind == "dense" else share
    m, n = (max(2, round(length * shrink)) for length in work.shape)
    stored = m * n if work.kind == "dense" else min(round(work.stored * share), m * n)
    return replace(work, shape=(m, n), stored=max(1, stored))


def _measured(
    work: Work, machine: Machine, speed: Speed, client: Client | None
) -> tuple[float, Any]:
    """Return the seconds of a round, as measured and as predicted."""
    X = _noise(work)
    rank = min(work.width, *work.shape)
    fit = factorize(
        X, rank, max_rounds=ROUNDS, tol=0, progress=False, client=client, penalty=None
    )
    seconds = float(np.median(np.diff(fit.history.seconds[1:])))
    same = work_of(X, rank)
    grid = layout_for(X, same, machine).grid.shape
    return seconds, cost_of(same, grid, machine, speed=speed)


def _noise(work: Work) -> Array:
    rng = np.random.default_rng(0)
    dtype = np.dtype(f"float{8 * work.itemsize}")
    if work.kind == "dense":
        X = rng.standard_normal(work.shape).astype(dtype)
        X[::2, ::2] = np.nan
        return X
    from scipy.sparse import random_array

    density = work.stored / math.prod(work.shape)
    return random_array(work.shape, density=density, format="csr", rng=rng, dtype=dtype)


def _reading(X: Array, work: Work, machine: Machine) -> float:
    """Return the seconds that a thread takes for a byte of X in a block."""
    p, q = (int(lengths[0]) for lengths in X.chunks)
    q = min(X.shape[1], max(q, READ_BYTES // (work.itemsize * p)))
    part = X[:p, :q]
    busy = min(machine.threads, int(part.npartitions))
    began = time.perf_counter()
    fetch(part.max())  # NaN or not: all of it is read
    seconds = time.perf_counter() - began
    return seconds * busy / float(p * q * work.entry_bytes)
