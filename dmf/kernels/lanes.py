"""How the lanes of a GPU's warp share rows of factors, for kernels of numba-cuda.

The lanes of a warp are *teams*. A team holds a row, a few numbers in each lane, and
lanes add up what they have of it by handing it to each other, without a barrier. Teams
are as narrow as that allows: then one instruction does something for several rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda, types

Array = Any

WARP = 32
# Warps of a block of threads: they have nothing to do with each other.
WARPS = 4
# Numbers of a row that a lane holds, unless a warp is too narrow for the rank.
HELD = 4
# All lanes of a warp hand over what they have.
EVERY = 0xFFFFFFFF
# Few rows are no mistake of the user's, whom Numba would warn of idle processors.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


class Nothing:
    """Hands None to kernels: numba-cuda compiles for it, but doesn't pass it on."""

    @staticmethod
    def prepare_args(kind: Any, value: Any, **_: Any) -> tuple[Any, Any]:
        if kind == types.none:  # a pointer that nobody follows
            return types.CPointer(types.int8), 0
        return kind, value


# Cached on disk: to compile takes a process longer than many a fit. (To mypy,
# numba.cuda is its simulator, whose kernels need no extension.)
jit: Any = cuda.jit(extensions=[Nothing], cache=True)  # type: ignore[call-arg]
inlined = cuda.jit(device=True, inline="always")


@inlined
def this_warp():
    """Return the number of a warp among those of its candidate."""
    return cuda.blockIdx.x * numba.int64(cuda.blockDim.y) + cuda.threadIdx.y


class Layout(NamedTuple):
    """How rows lie in the lanes of a team: lane l holds columns l, l + team, ...

    These are constants of the kernels, so that numbers stay in registers.
    """

    lanes: int  # of a warp: 32 on devices
    team: int
    steps: int  # numbers in each lane
    even: bool  # whether all of them belong to the row


def layout_for(width: int) -> Layout:
    """Return the layout for rows of so many columns."""
    team = min(WARP, 1 << (-(-width // HELD) - 1).bit_length())
    steps = -(-width // team)
    return Layout(WARP, team, steps, width == team * steps)


class Tools(NamedTuple):
    """What lanes do with rows, compiled into the kernels that use it."""

    load: Any
    gather: Any
    across: Any
    dot: Any


@lru_cache
def tools_of(layout: Layout, dtype: np.dtype[Any]) -> Tools:
    """Return the tools for rows of a layout."""
    lanes, team, steps, _ = layout
    zero = dtype.type(0)

    @inlined
    def load(rows, i, k, lane, into):
        """Let each lane hold its numbers of a row; beyond the row they are zeros."""
        for t in range(steps):
            c = lane + t * team
            into[t] = rows[i, k, c] if c < rows.shape[2] else zero

    @inlined
    def gather(shares, count):
        """Add up what the lanes of a team have: some numbers each, replaced by sums."""
        distance = team // 2
        while distance > 0:
            for s in range(count):
                shares[s] += cuda.shfl_xor_sync(EVERY, shares[s], distance)
            distance //= 2

    @inlined
    def across(share):
        """Return the sum of what the teams of a warp have, lane by lane."""
        distance = team
        while distance < lanes:
            share += cuda.shfl_xor_sync(EVERY, share, distance)
            distance *= 2
        return share

    @inlined
    def dot(row, other, at):
        """Return the dot product of a row and of one that begins at some place."""
        total = zero
        for t in range(steps):
            total += row[t] * other[at + t]
        distance = team // 2
        while distance > 0:
            total += cuda.shfl_xor_sync(EVERY, total, distance)
            distance //= 2
        return total

    return Tools(load, gather, across, dot)


def launch(kernel: Any, warps: int, candidates: int, *arguments: Any) -> None:
    """Run a kernel with some warps for each candidate."""
    if warps == 0:
        return
    held = [_in_order(argument) for argument in arguments]
    # CuPy's own stream, which its arrays name: what is read was launched there.
    stream = _stream_of(held[0])
    views = [_view(argument) for argument in held]
    kernel[(-(-warps // WARPS), candidates), (WARP, WARPS), stream](*views)


def _in_order(value: Any) -> Any:
    if not hasattr(value, "__cuda_array_interface__") or value.flags.c_contiguous:
        return value
    return value.copy(order="C")


def _view(value: Any) -> Any:
    """Return an array of a device as numba-cuda's; nothing is copied."""
    if not hasattr(value, "__cuda_array_interface__"):
        return value
    there = value.__cuda_array_interface__
    return _view_of(there["data"][0], there["shape"], there["typestr"])


@lru_cache(maxsize=2**12)
def _view_of(pointer: int, shape: tuple[int, ...], kind: str) -> Any:
    """Return a view of memory, which whoever launches a kernel keeps.

    It takes numba-cuda longer to make than to launch; rounds use the same memory.
    """
    there = {"data": (pointer, False), "shape": shape, "typestr": kind, "version": 3}
    view: Any = cuda.from_cuda_array_interface
    # It shall not wait for what was launched before: all of that is in the same stream.
    return view(there, sync=False)


def _stream_of(value: Any) -> Any:
    number = getattr(value, "__cuda_array_interface__", {}).get("stream")
    return 0 if number is None else _stream(number)


@lru_cache
def _stream(number: int) -> Any:
    stream: Any = cuda.external_stream
    return stream(number)
