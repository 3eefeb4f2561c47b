"""A GPU that numba-cuda simulates: `make test-cuda`, a session of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator import kernelapi
from numba.np.numpy_support import as_dtype

from tests.devices import stand_in


class Shared:
    """Shared memory of a simulated block: one array for each place that asks for one.

    The simulator's own looks and then allocates: threads that are switched in between
    would each have an array for themselves.
    """

    def __init__(self, dynamic: int) -> None:
        self._arrays: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    def array(self, shape: Any, dtype: Any, alignment: Any = None) -> Any:
        caller = sys._getframe(1)
        place = caller.f_code.co_filename, caller.f_lineno
        with self._lock:
            if place not in self._arrays:
                self._arrays[place] = np.empty(shape, as_dtype(dtype))
            return self._arrays[place]


@pytest.fixture(autouse=True, scope="session")
def _often_switched() -> Iterator[None]:
    """Simulated threads are Python's, and the one that watches them never sleeps."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NumPy's arrays stand for CuPy's: simulated kernels take them."""
    monkeypatch.setattr(kernelapi, "FakeCUDAShared", Shared)
    stand_in(monkeypatch, np.asarray)
