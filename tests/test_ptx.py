"""CUDA kernels compiled for devices of two generations; that takes no device."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from numba import float32, float64, int32, int64, none, types, uint8
from numba.cuda import compile

from dmf.kernels import cuda, cuda_rows, cuda_tiles, lanes, warps
from dmf.kernels.lanes import layout_for
from dmf.kernels.sparse import SparseBlock

# Registers of a thread, as found with CUDA 13.5, and a few more for other versions. A
# multiprocessor has 64 Ki of them: with 64, half of the warps that it has room for.
MOST_REGISTERS = {
    # dtype and width of a row: compute capability 8.0 and 9.0
    ("float32", 16): (136, 72),
    ("float32", 20): (128, 80),
    ("float32", 64): (136, 72),
    ("float32", 256): (152, 96),
    ("float64", 1): (104, 104),
    ("float64", 128): (184, 112),
}
CAPABILITIES = [(8, 0), (9, 0)]
NAMES = tuple(
    name for module in (warps, cuda_rows, cuda_tiles) for name in module.Kernels._fields
)


def array(kind: Any, dimensions: int) -> Any:
    return types.Array(kind, dimensions, "C")


def signatures(number: Any, weighted: bool, alpha: bool, moves: int) -> dict[str, Any]:
    """Return the types of the arguments of each kernel."""
    factor, weights = array(number, 3), array(number, 1) if weighted else none
    block = (array(int32, 1), array(int64, 1), array(int32, 1), array(number, 1))
    head = (*block, weights, array(number, 1))
    second = factor if moves == 2 else none
    totals = array(float64, 3)
    centre, tile = array(number, 2), array(number, 2)
    columns = array(number, 2) if alpha else none
    mask = array(uint8, 2) if weighted else none
    return {
        "gradient": (
            *head,
            number if alpha else none,
            factor,
            factor,
            array(float64, 2),
        ),
        "curvature": (*head, float64 if alpha else none, factor, second, totals),
        "product": (*head, none, factor),
        "gram": (*head, number if alpha else none, array(number, 4)),
        "errors": (*head, none, factor, totals),
        "directions": (
            *(factor, factor, none, second, factor, columns, centre, array(number, 1)),
            *(factor, second, totals, totals),
        ),
        "residual": (tile, tile, mask, array(float64, 2)),
        "row_curvature": (tile, tile if moves == 2 else none, mask, totals),
        "column_curvature": (tile, tile if moves == 2 else none, mask, totals),
        "advance": (
            *(factor, factor, second, totals, factor, columns, centre, int64),
            *(factor, factor, totals),
        ),
    }


def kernel_of(name: str, dtype: str, width: int) -> Any:
    number = np.dtype(dtype)
    if name in cuda_tiles.Kernels._fields:
        return getattr(cuda_tiles.kernels_of(number, lanes.WARP), name)
    module = warps if name in warps.Kernels._fields else cuda_rows
    return getattr(module.kernels_of(layout_for(width), number), name)


@cache
def compiled(
    name: str,
    dtype: str,
    width: int,
    capability: tuple[int, int],
    weighted: bool = True,
    alpha: bool = True,
    moves: int = 2,
) -> str:
    """Return the PTX of a kernel."""
    number = {"float32": float32, "float64": float64}[dtype]
    arguments = signatures(number, weighted, alpha, moves)[name]
    ptx, _ = compile(
        kernel_of(name, dtype, width).py_func,
        types.void(*arguments),
        device=False,
        abi="numba",
        cc=capability,
        output="ptx",
    )
    return str(ptx)


def instructions(ptx: str) -> int:
    return ptx.count(";")


def assembled(ptx: str, capability: tuple[int, int]) -> tuple[int, int]:
    """Return the registers and the bytes of local memory of a thread."""
    from cuda.bindings import nvjitlink

    code = ptx.encode()
    link = nvjitlink.create(2, ["-arch=sm_{}{}".format(*capability), "-Xptxas=-v"])
    try:
        nvjitlink.add_data(link, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(link)
        log = bytearray(nvjitlink.get_info_log_size(link))
        nvjitlink.get_info_log(link, log)
    finally:
        nvjitlink.destroy(link)
    told = log.decode()
    registers = re.search(r"Used (\d+) registers", told)
    stack = re.search(r"(\d+) bytes stack frame", told)
    assert registers is not None, told
    assert stack is not None, told
    return int(registers[1]), int(stack[1])


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "width"), MOST_REGISTERS)
def test_rows_stay_in_registers(
    name: str, dtype: str, width: int, capability: tuple[int, int]
) -> None:
    ptx = compiled(name, dtype, width, capability)
    assert ".target sm_{}{}".format(*capability) in ptx
    registers, local = assembled(ptx, capability)
    assert local == 0
    most = MOST_REGISTERS[dtype, width][CAPABILITIES.index(capability)]
    assert registers <= most


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", warps.Kernels._fields)
def test_every_variant_compiles(name: str, weighted: bool, alpha: bool) -> None:
    """What isn't there, weights or α, costs nothing: no code is left for it."""
    uses_alpha = name in ("gradient", "curvature", "gram")
    ptx = compiled(name, "float32", 16, (9, 0), weighted, alpha)
    whole = compiled(name, "float32", 16, (9, 0))
    if (not weighted and name != "product") or (not alpha and uses_alpha):
        assert instructions(ptx) < instructions(whole)
    else:
        assert instructions(ptx) == instructions(whole)


def test_a_line_needs_less_than_a_plane() -> None:
    line, plane = (
        compiled("curvature", "float32", 16, (9, 0), moves=moves) for moves in (1, 2)
    )
    assert instructions(line) < instructions(plane)


@pytest.mark.parametrize("name", warps.Kernels._fields)
def test_factors_are_summed_in_their_own_dtype(name: str) -> None:
    """No float32 product is made in float64, which consumer devices hardly have."""
    ptx = compiled(name, "float32", 64, (8, 0))
    assert re.search(r"fma\.rn\.f32|mul\.f32|mul\.rn\.f32", ptx)
    wide = len(re.findall(r"(?:fma\.rn|mul)\.f64", ptx))
    assert wide == 0 if name in ("product", "gram") else wide < 40


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_not_there_is_handed_over_too(weighted: bool) -> None:
    """numba-cuda compiles a parameter for None, but launches only with what it knows:
    an array is its memory's owner and parent, sizes, a pointer, shape and strides."""
    ptx = compiled("gradient", "float32", 16, (9, 0), weighted, alpha=False)
    entry = ptx[ptx.index(".entry") : ptx.index("{")]
    arguments = signatures(float32, weighted, alpha=False, moves=2)["gradient"]
    handed = 0
    for kind in arguments:
        kind, _ = lanes.Nothing.prepare_args(kind, None, stream=0, retr=[])
        handed += 5 + 2 * kind.ndim if isinstance(kind, types.Array) else 1
        assert isinstance(kind, types.Array | types.CPointer)
    assert len(re.findall(r"\.param \.", entry)) == handed


def test_few_rows_are_launched_without_a_warning() -> None:
    for name in NAMES:
        kernel = kernel_of(name, "float32", 16)
        assert kernel[(1, 1), (lanes.WARP, lanes.WARPS)].griddim == (1, 1, 1)


def test_kernels_run_in_the_stream_of_the_arrays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CuPy's current one; numba-cuda's default one may be another."""

    class There(np.ndarray):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {**self.__array_interface__, "stream": 7}

    class Launched:
        def __getitem__(self, configuration: Any) -> Any:
            configurations.append(configuration)
            return lambda *arguments: None

    configurations: list[Any] = []
    kernels = warps.Kernels(*(Launched() for _ in warps.Kernels._fields))
    monkeypatch.setattr(warps, "kernels_of", lambda *_: kernels)
    monkeypatch.setattr(lanes, "_view", lambda array: array)
    monkeypatch.setattr(
        lanes.cuda, "external_stream", lambda number: f"CuPy's {number}"
    )
    rows = SparseBlock(
        np.array([0, 1]), np.array([0], np.int32), np.ones(1), None, (1, 2)
    )
    half = (part.view(There) for part in cuda.CudaBlock.of(rows).halves[0][:4])
    block = cuda.CudaBlock((cuda.Half(*half, None),) * 2, rows.shape)
    factors = np.ones((1, 3, 4)), np.ones((2, 3, 4))
    cuda.gradient(block, *factors, 0)
    assert configurations == [((1, 3), (32, 4), "CuPy's 7")]


def test_only_long_rows_are_added_with_atomics() -> None:
    ptx = compiled("gradient", "float32", 16, (8, 0))
    held = layout_for(16).steps  # numbers of a lane, each with an instruction
    assert len(re.findall(r"(?:atom|red)\S*\.add\.f32", ptx)) == held
    assert re.search(r"st\.global\.(?:b32|f32)", ptx)
