"""Stand-ins for a GPU's memory: what a fit does with arrays that aren't NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from dmf import device

Array = Any

# What brings the numbers of an array to the host.
TRANSFERS = ("__array__", "__buffer__", "__bool__", "__complex__", "__float__")
TRANSFERS += ("__index__", "__int__", "__iter__", "item", "tolist")


class HiddenCopyError(AssertionError):
    """Numbers left the device, but not through `dmf.device`."""


def memory(self: device.Gpu) -> float:
    """Return the bytes of a device that isn't there."""
    return 1e11


def stand_in(patch: pytest.MonkeyPatch, arrays: Callable[[Array], Array]) -> None:
    """Let a function make the arrays of a device, as CuPy would."""
    patch.setattr(device, "device_array", arrays)
    patch.setattr(device, "pinned_array", np.array)
    patch.setattr(device.Ahead, "bring", lambda self, value: device.to_device(value))
    patch.setattr(device.Gpu, "memory", memory)


def strict_device(patch: pytest.MonkeyPatch) -> list[int]:
    """Let array-api-strict be the device, and refuse copies that `dmf` doesn't name.

    Returns
    -------
    list of int
        The sizes of all arrays that will have come to the host, in their order.
    """
    kind = type(strict.asarray(0))
    allowed, seen = [False], []

    def guarded(method: Callable[..., Any] | None) -> Callable[..., Any]:
        def transfer(self: Array, *arguments: Any, **options: Any) -> Any:
            if method is None or not allowed[0]:
                msg = "an array was copied to the host"
                raise HiddenCopyError(msg)
            return method(self, *arguments, **options)

        return transfer

    to_host = device.host_array

    def host_array(array: Array) -> Array:
        if not isinstance(array, kind):
            return to_host(array)
        allowed[0] = True
        try:
            seen.append(array.size)
            return to_host(array)
        finally:
            allowed[0] = False

    for name in TRANSFERS:
        patch.setattr(kind, name, guarded(getattr(kind, name, None)), False)
    patch.setattr(device, "host_array", host_array)
    stand_in(patch, strict.asarray)
    return seen


def assert_close(found: Any, expected: Any) -> None:
    """Compare fits: float32 to 1e-4 of what they are, float64 to 1e-9."""
    limit = 1e-4 if expected.W.dtype == np.float32 else 1e-9
    assert found.status.code == expected.status.code
    np.testing.assert_allclose(
        found.history.objective, expected.history.objective, rtol=limit
    )
    for name in ("W", "H", "row_offsets", "column_offsets"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert isinstance(one, np.ndarray)
            assert one.dtype == other.dtype
            assert np.linalg.norm(one - other) <= limit * np.linalg.norm(other), name


class DeviceArray(np.ndarray):
    """Stands for CuPy's arrays where it's their kind that matters."""

    def get(self) -> Array:
        return np.array(self, subok=False)

    def __array_function__(self, function: Any, *given: Any) -> Any:
        """Keep what is joined where its parts are, as CuPy does."""
        found = super().__array_function__(function, *given)
        return found.view(DeviceArray) if function is np.concatenate else found


def kinds_told_apart(patch: pytest.MonkeyPatch) -> None:
    """Take `DeviceArray` for what is in the memory of a GPU."""
    patch.setattr(device, "MODULES", (DeviceArray.__module__,))
    stand_in(patch, on_device)


def on_device(array: Array) -> Array:
    return np.asarray(array).view(DeviceArray)
