"""A GPU that numba-cuda simulates: `make test-cuda`, a session of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numba import cuda
from numba.cuda.simulator import kernelapi

from tests.devices import stand_in

simulated = cuda.jit


def jit(*arguments: Any, extensions: Any = None, **options: Any) -> Any:
    """Simulate a kernel: None needs no extension to be handed to one."""
    return simulated(*arguments, **options)


cuda.jit = jit


def handed_over(self: Any, lanes: int, value: Any, distance: int) -> Any:
    """Return what the lane has whose number differs in one bit: the simulator can't."""
    place = self.threadIdx.x, self.threadIdx.y
    numbers = vars(self).setdefault("handed", {})
    numbers[place] = value
    self.syncthreads()
    value = numbers[place[0] ^ distance, place[1]]
    self.syncthreads()
    return value


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
    name = "shfl_xor_sync"
    monkeypatch.setattr(kernelapi.FakeCUDAModule, name, handed_over, raising=False)
    stand_in(monkeypatch, np.asarray)
