"""A GPU's memory: what goes there, what comes back, and how much there is of it.

The one place that imports CuPy, and only when a GPU is asked for. On a device a fit is
what it is elsewhere: kernels work in the namespace of the arrays that they are given.
Whatever leaves a device goes through `to_host`, so that no copy is hidden.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

Array = Any

# What a worker must offer to run the tasks of a fit on its GPU.
RESOURCE = {"GPU": 1}
# Where the kinds of arrays that are on a GPU come from.
MODULES = ("cupy.", "cupyx.")
DEVICES = ("auto", "cpu", "gpu")
PRECISIONS = ("float32", "tf32")


def is_on_device(X: Any) -> bool:
    """Return whether X is CuPy's: an array, or a sparse matrix of `cupyx`."""
    return f"{type(X).__module__}.".startswith(MODULES)


def is_array(value: Any) -> bool:
    """Return whether a value is an array of any namespace."""
    return hasattr(value, "__array_namespace__") or is_on_device(value)


def to_device(value: Any) -> Any:
    """Return a value with its arrays in the memory of this process's GPU.

    Parameters
    ----------
    value : array, or a dataclass, tuple or list of such
        What has a method `for_device` is replaced by what that returns, still on the
        host: the form that kernels on a device work with.
    """
    return _mapped(value, device_array, ready=_for_device)


def to_host(value: Any) -> Any:
    """Return a value with its arrays in the memory of the host, as NumPy's."""
    return _mapped(value, host_array)


def to_pinned(value: Any) -> Any:
    """Return a value with its arrays where a device fetches them by itself.

    That is memory of the host that the system doesn't move. What has a method
    `for_device` is replaced, as by `to_device`.
    """
    return _mapped(value, pinned_array, ready=_for_device)


def to_device_ahead(value: Any) -> Any:
    """Return what `to_device` does, copied beside what the GPU is doing.

    Launched work goes on, and what is launched later begins when the copy is done. Of
    two such values the memory is taken at most: before a third one is copied, all work
    on the first is done.
    """
    return ahead.bring(value)


class Ahead:
    """The copies of a process, in a stream of their own."""

    def __init__(self) -> None:
        self._copies: Any = None
        self._launched: Any = None  # all that was launched before the last copy
        self._last: Any = None

    def bring(self, value: Any) -> Any:
        import cupy

        if self._copies is None:
            self._copies = cupy.cuda.Stream(non_blocking=True)
        work = cupy.cuda.get_current_stream()
        launched = work.record()
        if self._launched is not None:
            # Work on the value before the last one: then its memory is free. Whoever
            # makes values waits too, or they would pile up on the host.
            self._launched.synchronize()
        with self._copies:
            # CuPy copies from pinned memory, by way of some if need be, and keeps that
            # until the copy is done.
            brought = to_device(value)
            done = self._copies.record()
        work.wait_event(done)
        # The last copy stays until the next one is asked for: work on it goes on.
        self._last, self._launched = brought, launched
        return brought


ahead = Ahead()


def pinned_array(array: Array) -> Array:
    """Return an array in memory of the host that isn't moved."""
    import cupy

    if array.size == 0:
        return array
    # CuPy's pool of such memory would round each array up to a power of two.
    memory = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(array.nbytes), 0)
    pinned = np.ndarray(array.shape, array.dtype, buffer=memory)
    pinned[...] = array
    return pinned


def device_array(array: Array) -> Array:
    """Return an array as CuPy's; one that is CuPy's already is returned as it is."""
    import cupy

    return cupy.asarray(array)


def host_array(array: Array) -> Array:
    """Return an array as NumPy's; a sparse matrix of `cupyx` as SciPy's."""
    return array.get() if is_on_device(array) else np.asarray(array)


@dataclass(frozen=True)
class Gpu:
    """How the GPU of a process is used.

    Parameters
    ----------
    precision : {"float32", "tf32"}
        What float32 factors are rounded to in the products of dense blocks.
    """

    precision: str = "float32"

    def memory(self) -> float:
        """Return the bytes of this process's GPU, and make it ready to work with.

        Raises
        ------
        ImportError
            CuPy or numba-cuda isn't installed.
        ValueError
            There is no GPU, or none that CuPy can use; this process multiplies in
            another precision already.
        """
        try:
            import cupy
            import numba_cuda  # noqa: F401  (what compiles the kernels)
        except ImportError as error:
            msg = "device='gpu' needs CuPy and numba-cuda: pip install 'dmf[gpu]'"
            raise ImportError(msg) from error
        try:
            total = cupy.cuda.Device().mem_info[1]
        except cupy.cuda.runtime.CUDARuntimeError as error:
            msg = (
                f"device='gpu' needs a GPU, but CuPy finds none ({error}); use "
                "device='cpu'"
            )
            raise ValueError(msg) from error
        self._settle_precision()
        return float(total)

    def _settle_precision(self) -> None:
        """Let CuPy multiply in the precision: it asks before its first product."""
        global _settled
        if _settled not in (None, self.precision):
            msg = (
                f"precision={self.precision!r}, but this process multiplies in "
                f"{_settled} already; use another process for it"
            )
            raise ValueError(msg)
        _settled = self.precision
        os.environ["CUPY_TF32"] = str(int(self.precision == "tf32"))


# The precision of this process, once it has used its GPU.
_settled: str | None = None


def _for_device(value: Any) -> Any:
    convert = getattr(value, "for_device", None)
    return value if convert is None else convert()


def _mapped(
    value: Any,
    convert: Callable[[Array], Array],
    ready: Callable[[Any], Any] = lambda value: value,
) -> Any:
    """Return a value with all of its arrays converted."""
    if is_array(value):
        return convert(value)
    value = ready(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = (getattr(value, field.name) for field in fields(value))
        return type(value)(*(_mapped(part, convert, ready) for part in parts))
    if isinstance(value, tuple | list):
        items = [_mapped(item, convert, ready) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
