"""Sparse kernels for several candidates at once, one in each lane of a vector.

The factors are laid out with the candidates innermost, so that an entry's column, value
and branches are paid for once for eight of them, and no sum has to be taken across a
vector. Eight candidates of rank 16 cost about half of what they cost one by one. The
loops are those of `dmf.kernels.sparse`, on values of the type `Lanes`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _untyped_intrinsic
from numba.extending import models, overload, register_model
from numpy.typing import NDArray

Array = NDArray[Any]

FASTMATH = ("reassoc", "contract", "nsz")
_compiled = njit(nogil=True, cache=True, fastmath=set(FASTMATH))

_intrinsic: Any = _untyped_intrinsic  # for mypy: it keeps the first argument to itself

LANES = 8
# So many entries ahead, the rows that an entry names are asked for from memory.
AHEAD = 4


def gradient(
    entries: tuple[Any, ...], alpha: Any, moving: Array, fixed: Array, axis: int
) -> tuple[Array, Array]:
    """Return what `dmf.kernels.sparse.gradient` does, for at most LANES candidates.

    `entries` are the starts, columns, values and weights of a block.
    """
    candidates = moving.shape[1]
    result, loss = _lanes(moving.shape, moving.dtype), _lanes((1, LANES, 1), np.float64)
    pair = _to_lanes(moving), _to_lanes(fixed)
    loops: Any = _gradient
    loops(*entries, alpha, *pair, axis, result, loss)
    return _from_lanes(result, candidates), loss[0, 0, :candidates]


def curvature(
    entries: tuple[Any, ...],
    alpha: Any,
    moves: tuple[Array, ...],
    fixed: Array,
    axis: int,
    length: int,
) -> Array:
    """Return what `dmf.kernels.sparse.curvature` does, for at most LANES candidates."""
    starts, columns, _, weights = entries
    candidates = fixed.shape[1]
    result = _lanes((length, LANES, 1 if len(moves) == 1 else 3), np.float64)
    first, *second, fixed = (_to_lanes(factor) for factor in (*moves, fixed))
    pair = first, second[0] if second else None
    _curvature(starts, columns, weights, alpha, *pair, fixed, axis, result)
    return _from_lanes(result, candidates)


def _lanes(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros for a (rows, K, r) array with the candidates innermost: (rows, r,
    LANES). It starts with a cache line, so that no vector lies across two of them."""
    shape = (shape[0], shape[2], LANES)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    result: Array = memory[start : start + size].view(dtype).reshape(shape)
    return result


def _to_lanes(factor: Array) -> Array:
    result = _lanes(factor.shape, factor.dtype)
    _transpose(_frozen(factor), result)
    return _frozen(result)


def _from_lanes(stacked: Array, candidates: int) -> Array:
    rows, rank, _ = stacked.shape
    result = np.empty((rows, candidates, rank), dtype=stacked.dtype)
    _transpose(_frozen(stacked), result)
    return result


def _frozen(array: Array) -> Array:
    """Return a contiguous read-only view: Numba compiles once instead of once for
    each mixture of writable inputs and of the read-only ones that a worker receives."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# Vectors. LLVM unrolls a loop over eight lanes into scalars before it would vectorise
# it, so the stacked loops say what they mean: a value of type `Lanes` is one number for
# each of the LANES candidates, an LLVM vector, of which + - * and these few functions
# are known.


class Lanes(types.Type):
    """The Numba type of one number of a dtype for each candidate."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        number = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(number, LANES))


@_intrinsic
def _spread(typing, number):
    """Return the number in every lane."""

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        positions = ir.VectorType(ir.IntType(32), LANES)
        nothing = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, nothing, ir.Constant(positions, None))

    return Lanes(number)(number), generate


@_intrinsic
def _widened(typing, lanes):
    """Return the numbers in float64."""

    def generate(context, builder, signature, arguments):
        if signature.args == (signature.return_type,):
            return arguments[0]
        wide = context.get_value_type(signature.return_type)
        return builder.fpext(arguments[0], wide)

    return Lanes(types.float64)(lanes), generate


@_intrinsic
def _load(typing, array, m, s):
    """Return array[m, s, :]."""

    def generate(context, builder, signature, arguments):
        lanes = context.get_value_type(signature.return_type)
        address = _address(context, builder, signature, arguments)
        return builder.load(builder.bitcast(address, lanes.as_pointer()), align=4)

    return Lanes(array.dtype)(array, types.intp, types.intp), generate


@_intrinsic
def _add_to(typing, array, m, s, lanes):
    """Do array[m, s, :] += lanes."""

    def generate(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments)
        address = builder.bitcast(address, arguments[3].type.as_pointer())
        old = builder.load(address, align=4)
        builder.store(builder.fadd(old, arguments[3], FASTMATH), address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), generate


@_intrinsic
def _prefetch(typing, array, m, s):
    """Ask for array[m, s, :] without waiting for it."""

    def generate(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments)
        address = builder.bitcast(address, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.prefetch.p0"
        )
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind, (m, s) = signature.args[0], arguments[1:3]
    array = context.make_array(kind)(context, builder, arguments[0])
    place = (m, s, context.get_constant(types.intp, 0))
    return cgutils.get_item_pointer(
        context, builder, kind, array, place, wraparound=False
    )


def _define(instruction: str, *symbols: Callable[..., Any]) -> None:
    """Let compiled code apply an operator to `Lanes` and `Lanes`, or a number."""

    @_intrinsic
    def apply(typing, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments, flags=FASTMATH)

        return a(a, b), generate

    def of_lanes(a, b):
        if isinstance(a, Lanes) and a == b:
            return lambda a, b: apply(a, b)
        if isinstance(a, Lanes) and a.dtype == b:
            return lambda a, b: apply(a, _spread(b))
        return None

    for symbol in symbols:
        overload(symbol)(of_lanes)


_define("fadd", operator.add, operator.iadd)
_define("fsub", operator.sub, operator.isub)
_define("fmul", operator.mul)


@_compiled
def _transpose(source, target):
    """Copy (rows, a, b) to (rows, b, a), as much as both have."""
    for i in range(source.shape[0]):
        for a in range(min(source.shape[1], target.shape[2])):
            for b in range(min(source.shape[2], target.shape[1])):
                target[i, b, a] = source[i, a, b]


@_compiled
def _gradient(
    starts, columns, values, weights, alpha, moving, fixed, axis, result, loss
):
    rank = moving.shape[1]
    zero = _spread(moving.dtype.type(0))
    squares = _spread(0.0)
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            ahead = columns[min(e + AHEAD, columns.size - 1)]
            for s in range(0, rank, 2):
                if axis == 0:
                    _prefetch(fixed, ahead, s)
                else:
                    _prefetch(moving, ahead, s)
                    _prefetch(result, ahead, s)
            predicted = zero
            for s in range(rank):
                predicted += _load(moving, m, s) * _load(fixed, f, s)
            residual = predicted - values[e]
            weighted = residual
            if weights is not None:
                weighted = residual * weights[e]
            squares += _widened(residual) * _widened(weighted)
            if alpha is not None:
                shrunk = predicted * alpha
                squares -= _widened(shrunk) * _widened(predicted)
                weighted -= shrunk
            for s in range(rank):
                _add_to(result, m, s, weighted * _load(fixed, f, s))
    _add_to(loss, 0, 0, squares * 0.5)


@_compiled
def _curvature(starts, columns, weights, alpha, first, second, fixed, axis, result):
    rank = first.shape[1]
    zero = _spread(first.dtype.type(0))
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            m, f = (i, columns[e]) if axis == 0 else (columns[e], i)
            ahead = columns[min(e + AHEAD, columns.size - 1)]
            for s in range(0, rank, 2):
                if axis == 0:
                    _prefetch(fixed, ahead, s)
                else:
                    _prefetch(first, ahead, s)
                    if second is not None:
                        _prefetch(second, ahead, s)
            if axis == 1:
                for s in range(result.shape[1]):
                    _prefetch(result, ahead, s)
            a = zero
            b = zero
            for s in range(rank):
                a += _load(first, m, s) * _load(fixed, f, s)
                if second is not None:
                    b += _load(second, m, s) * _load(fixed, f, s)
            wide_a = _widened(a)
            wide_b = _widened(b)
            weighted_a = wide_a
            weighted_b = wide_b
            if weights is not None:
                weighted_a = wide_a * np.float64(weights[e])
                weighted_b = wide_b * np.float64(weights[e])
            if alpha is not None:
                weighted_a -= wide_a * alpha
                weighted_b -= wide_b * alpha
            _add_to(result, m, 0, weighted_a * wide_a)
            if second is not None:
                _add_to(result, m, 1, weighted_a * wide_b)
                _add_to(result, m, 2, weighted_b * wide_b)
