"""Records of runs for the tests of what is made of them."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

import dmf
from dmf.jobs.findings import find
from dmf.jobs.record import RunRecord
from tests.problems import low_rank


@cache
def _fitted() -> tuple[Any, Any]:
    problem = low_rank(90, 70, observed=0.7)
    X = np.where(problem.mask, problem.truth, np.nan)
    X[:20, :30] = np.nan
    X[5] = np.nan
    fit = dmf.factorize(X, 3, validation=0.1, offsets="both", max_rounds=25)
    return fit, find(X, None, fit)


def record(**changes: Any) -> RunRecord:
    """Return the record of a run that had all there is, but for some changes."""
    fit, found = _fitted()
    values = {
        "name": "panel",
        "id": "20261122T030000-abc123",
        "started": "2026-11-22T03:00:00+00:00",
        "seconds": 83.5,
        "outcome": "done",
        "message": str(fit.status),
        "versions": {"dmf": "0.1.0", "numpy": np.__version__},
        "settings": {"model": {"rank": 3, "offsets": "both"}, "job": {"strict": False}},
        "input": {
            "place": "/data/panel.npy",
            "version": "5.9 kB of Sunday",
            "shape": [90, 70],
            "dtype": "float64",
            "kind": "dense",
            "observed": found["observed"],
            "missing": found["missing"],
        },
        "plan": {
            "grid": [1, 2],
            "tasks": 14,
            "bytes": {"data": 2**20, "factors": 2**16, "temporaries": 2**18},
            "seconds": 0.004,
        },
        "measured": {"seconds": 0.005, "peak_bytes": 3 * 2**27},
        "stages": [["read", 0.5], ["fit", 4.5], ["write", 5.0]],
        "rounds": [asdict(one) for one in fit.history],
        "validation": {"rmse": 0.25, "mae": 0.125, "last_rmse": 0.2},
        "findings": found,
        "output": {"matrix": "/data/filled.npy", "model": "/data/model.zarr"},
        "warnings": ["one row has no observed entry"],
    }
    return RunRecord(**(values | changes))


def bare(**changes: Any) -> RunRecord:
    """Return the record of a run that came to nothing."""
    values = {"name": "panel", "id": "one", "started": "2026-11-22T03:00:00+00:00"}
    return RunRecord(**(values | changes))
