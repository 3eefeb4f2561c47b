"""A look at every block of X, where the tasks run: only sums come back."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from dmf.engine.chunks import Chunks, in_chunks
from dmf.engine.kinds import block_kind, in_memory, is_dask
from dmf.engine.predict import AIM_BYTES
from dmf.engine.runner import Runner, Threads
from dmf.engine.trace import add_up

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
    from dask.base import compute
    from dask.delayed import delayed

    if not is_dask(X):
        runner, mask = Threads(), in_memory(mask)
    chunks = X.chunks if is_dask(X) else _strips(X)
    width = (W.shape[1],)
    with runner.session():
        given = [
            in_chunks(X, chunks, runner),
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
                seen.append(
                    task(blocks[i, j], own, W_parts[i, 0], H_parts[j, 0], origin)
                )
                column += q
            row += p
        add = delayed(add_up, pure=False)
        while len(seen) > 1:
            groups = range(0, len(seen), SUMMANDS)
            seen = [add(seen[start : start + SUMMANDS]) for start in groups]
        chosen = {} if runner.remote or is_dask(X) else {"scheduler": "threads"}
        return compute(seen[0], **chosen)[0]


def _strips(X: Array) -> Chunks:
    """Cut an array in memory into strips of rows of about equal, small size."""
    m, n = X.shape
    entries = X.nnz if block_kind(X) == "sparse" else m * n
    P = min(max(m, 1), max(1, math.ceil(8 * entries / AIM_BYTES)))
    ends = [m * k // P for k in range(P + 1)]
    return tuple(b - a for a, b in pairwise(ends)), (n,)
