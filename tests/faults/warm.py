"""What all processes of a case begin with: forked from one that has imported all.

It has run a fit already, so that its compiled loops are there too, and has no threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

# Nannies fork their workers from the same process.
os.environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
for name in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

from tests.faults import clock  # noqa: E402

clock.install()

import dask  # noqa: E402
import distributed  # noqa: E402, F401

import dmf  # noqa: E402
import dmf.cli  # noqa: E402
import dmf.jobs.run  # noqa: E402
from dmf.engine import grid  # noqa: E402
from tests.faults import store  # noqa: E402, F401
from tests.problems import low_rank  # noqa: E402

# Small matrices would be one block each, and have nothing to add up.
grid.ranked_grids = lambda work, machine: [(2, 2)]
grid.KEEP_CHUNKS = 10**9

problem = low_rank()
# Threads don't survive a fork, and a pool that Dask made itself would be waited for.
with ThreadPoolExecutor(1) as pool, dask.config.set(pool=pool):
    for X in (problem.nan, problem.sparse()):
        fit = dmf.factorize(X, 2, max_rounds=2, validation=0.1)
        dmf.impute(problem.nan, fit)
