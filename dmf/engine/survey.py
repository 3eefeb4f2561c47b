"""A look at every block of X, where the tasks run: only sums come back."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from dmf.engine.chunks import in_chunks
from dmf.engine.kinds import block_kind, in_memory, is_dask
from dmf.engine.losses import insisting
from dmf.engine.lower import Graph
from dmf.engine.predict import AIM_BYTES, fetch
from dmf.engine.runner import Runner, Threads, on_threads
from dmf.engine.trace import add_up
from dmf.entries import canonical_csr

Array = Any

# So many sums are added up by a task.
SUMMANDS = 8


def survey(
    X: Array,
    mask: Array | None,
    W: Array,
    H: Array,
    look: Callable[..., Any],
    runner: Runner,
) -> Any:
    """Return the sum of what is seen in each block; none is held longer than that.

    Parameters
    ----------
    X : NumPy, scipy.sparse or Dask array, shape (m, n)
    mask : array, shape (m, n), or None
    W : array, shape (m, c)
    H : array, shape (n, c)
    look : callable
        Called with a block of X, its mask (or None), the rows of W and of H that belong
        to it, and where it begins (row, column); what it returns is added up with
        ``+``, in an order that follows from the blocks.
    runner : Runner
        What is in memory is looked at by threads of this process.
    """
    if is_dask(X):
        seen_there = partial(_survey_lazily, X, mask, W, H, look, runner)
        return insisting(runner.session, seen_there, "while X was looked at")
    W, H = fetch(W, H)
    matrices = [X] if mask is None else [X, in_memory(mask)]
    if block_kind(X) == "sparse":
        matrices = [canonical_csr(Y) for Y in matrices]

    def seen(start: int, stop: int) -> Any:
        own = slice(start, stop)
        block, *masks = (Y[own] for Y in matrices)
        return look(block, masks[0] if masks else None, W[own], H, (start, 0))

    ends = pairwise(_ends(X))
    tasks: Graph = {("look", k): (seen, *pair) for k, pair in enumerate(ends)}
    with Threads().session():
        return add_up(list(on_threads(tasks, list(tasks)).values()))


def _survey_lazily(
    X: Array,
    mask: Array | None,
    W: Array,
    H: Array,
    look: Callable[..., Any],
    runner: Runner,
) -> Any:
    from dask.base import compute
    from dask.delayed import delayed

    chunks = X.chunks
    width = (W.shape[1],)
    given = [
        X,
        in_chunks(W, (chunks[0], width), runner),
        in_chunks(H, (chunks[1], width), runner),
    ]
    if mask is not None:
        given.append(in_chunks(mask, chunks, runner))
    blocks, W_parts, H_parts, *masks = (array.to_delayed() for array in given)
    task = delayed(look, pure=False)
    seen, row = [], 0
    for i, p in enumerate(chunks[0]):
        column = 0
        for j, q in enumerate(chunks[1]):
            own = masks[0][i, j] if masks else None
            origin = (row, column)
            seen.append(task(blocks[i, j], own, W_parts[i, 0], H_parts[j, 0], origin))
            column += q
        row += p
    add = delayed(add_up, pure=False)
    while len(seen) > 1:
        groups = range(0, len(seen), SUMMANDS)
        seen = [add(seen[start : start + SUMMANDS]) for start in groups]
    return compute(seen[0])[0]


def _ends(X: Array) -> list[int]:
    """Cut an array in memory into strips of rows of about equal, small size.

    There are a multiple of four of them, so that few threads have equally much to do.
    """
    m, n = X.shape
    entries = X.nnz if block_kind(X) == "sparse" else m * n
    P = min(max(m, 1), 4 * max(1, math.ceil(2 * entries / AIM_BYTES)))
    return [m * k // P for k in range(P + 1)]
