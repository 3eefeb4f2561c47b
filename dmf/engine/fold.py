"""Factors of new rows against a fixed H: one exact half-step."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dmf.engine.arrays import strips_to_array
from dmf.engine.data import load
from dmf.engine.kinds import is_dask
from dmf.engine.lower import Graph
from dmf.engine.rounds import build_half, zero_strip
from dmf.engine.runner import Runner
from dmf.penalties import Penalty
from dmf.solvers import AlternatingLeastSquares

Array = Any


def fold_in_rows(
    X: Array, mask: Array | None, H: Array, penalty: Penalty, runner: Runner
) -> Array:
    """Return W, each row the exact minimiser for its row of X and the fixed H.

    Parameters
    ----------
    X : array, shape (m, n)
    mask : array, shape (m, n), or None
    H : array, shape (r, n)
    penalty : Penalty
        On W.
    runner : Runner

    Returns
    -------
    array, shape (m, r)
        A Dask array if X is one, else NumPy. Rows without observed entries are 0.
    """
    rank = H.shape[0]
    data = load(X, mask, rank, runner, may_be_empty=True)
    P, Q = data.grid.shape
    Ht = np.asarray(H).T.astype(data.dtype)
    columns = [data.grid.strip(1, j) for j in range(Q)]
    strips = [(np.ascontiguousarray(Ht[c.start : c.stop]), None) for c in columns]
    fixed = tuple((f"fixed-H-{data.token}", j) for j in range(Q))
    zeros = tuple((f"start-W-{data.token}", 0, i) for i in range(P))
    graph: Graph = dict(data.leaves)
    graph.update(zip(fixed, runner.put(strips), strict=True))
    for i, key in enumerate(zeros):
        length = len(data.grid.strip(0, i))
        graph[key] = (partial(zero_strip, length, rank, data.dtype),)
    tasks, moved, _ = build_half(
        data,
        AlternatingLeastSquares(),
        penalty,
        axis=0,
        moving=zeros,
        previous=zeros,
        fixed=fixed,
        round=1,
        start=0,
    )
    leaves = runner.run(graph | tasks, list(moved))
    W = [leaves[key] for key in moved]
    lazy = is_dask(X)
    return strips_to_array(data, W if lazy else runner.fetch(W), 0, rank, lazy, runner)
