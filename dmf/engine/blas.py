"""BLAS while tasks run: one thread of it for each of theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

_blas_lock = threading.Lock()
_blas_sessions = 0
_blas_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: Dask's threads would fight its own for the cores.

    The limit holds for the whole process, so that sessions that overlap share it: the
    first one sets it, the last one lifts it.
    """
    global _blas_sessions, _blas_limits
    with _blas_lock:
        if _blas_sessions == 0:
            _blas_limits = threadpool_limits(limits=1, user_api="blas")
        _blas_sessions += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_sessions -= 1
            if _blas_sessions == 0:
                _blas_limits.restore_original_limits()
