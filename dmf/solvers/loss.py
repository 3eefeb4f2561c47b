"""The loss of a half-step: its gradient, and its curvature along moves.

Three kinds of data need three ways to them, and no solver needs to know which it is:

- masked blocks are passed over, entry by entry;
- where the rest counts as zeros of weight α, a pass takes back its share of what is
  stored, and Gram matrices of the factors give the whole;
- where every entry counts with weight 1, X F and Gram matrices are all there is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from array_api_compat import array_namespace

from dmf.kernels.strips import row_dots, through
from dmf.solvers.base import HalfStep, Value

Array = Any


class Loss:
    """The loss as the moving factor of a half-step sees it.

    Parameters
    ----------
    half : HalfStep
    """

    def __init__(self, half: HalfStep) -> None:
        self._half = half

    @cached_property
    def gram(self) -> Value:
        """The handle of FᵀF of the whole fixed factor, float64, shape (K, c, c)."""
        half = self._half
        return half.sum_over_all(half.per_fixed("gram", gram_of, half.fixed_strip))

    def gradient(self, moving: Value) -> Value:
        """Return the handle of each strip's gradient, shape (p, K, c), and loss, (K,).

        Where everything is observed, the loss lacks ½ Σ X², which is always the same.
        """
        half = self._half
        if not half.masked:
            product = self._pass("product", half.kernels.product, half.fixed)
            return half.per_strip(
                "gradient", complete_gradient, product, moving, self.gram
            )
        summed = self._pass("gradient", half.kernels.gradient, moving, half.fixed)
        if not half.unobserved:
            return summed
        add = partial(add_unobserved, unobserved=half.unobserved)
        return half.per_strip("gradient", add, summed, moving, self.gram)

    def curvature(self, moves: Value) -> Value:
        """Return the handle of the curvature along moves, float64, (p, K, pairs).

        Parameters
        ----------
        moves : Value
            Of each strip: a tuple of one or two arrays, shape (p, K, c).
        """
        half = self._half
        whole = partial(gram_curvature, unobserved=half.unobserved)
        if not half.masked:
            return half.per_strip("curvature", whole, moves, self.gram)
        summed = self._pass("curvature", half.kernels.curvature, moves, half.fixed)
        if not half.unobserved:
            return summed
        rest = half.per_strip("curvature", whole, moves, self.gram)
        return half.per_strip("curvature", _plus, summed, rest)

    def normal_equations(self, moving: Value) -> Value:
        """Return the handles of `gradient`, and of the Hessian of each row.

        The Hessian has shape (p, K, c, c), or (1, K, c, c) if all rows share it.
        """
        half = self._half
        gradient = self.gradient(moving)
        if not half.masked:
            return gradient, half.per_strip("gram", _for_all_rows, self.gram)
        summed = self._pass("gram", half.kernels.gram, half.fixed)
        if not half.unobserved:
            return gradient, summed
        add = partial(_plus_unobserved, unobserved=half.unobserved)
        return gradient, half.per_strip("gram", add, summed, self.gram)

    def _pass(self, name: str, kernel: Callable[..., Any], *operands: Value) -> Value:
        """Pass over the blocks with a kernel, and add up over each strip."""
        half = self._half
        function = partial(kernel, axis=half.axis)
        return half.sum_over_strip(
            half.per_block(name, function, half.block, *operands)
        )


def gram_of(strip: Array) -> Array:
    """Return FᵀF for each candidate of a strip F, shape (p, K, c)."""
    xp = array_namespace(strip)
    wide = xp.astype(strip, xp.float64)
    return xp.permute_dims(wide, (1, 2, 0)) @ xp.permute_dims(wide, (1, 0, 2))


def complete_gradient(
    product: Array, moving: Array, gram: Array
) -> tuple[Array, Array]:
    """Return the gradient W FᵀF − X F, and its loss but for ½ Σ X²."""
    xp = array_namespace(moving)
    curved = through(moving, gram)
    half = row_dots(xp, moving, 0.5 * curved - product)
    return curved - product, xp.sum(half, axis=0)


def add_unobserved(
    summed: tuple[Array, Array], moving: Array, gram: Array, *, unobserved: float
) -> tuple[Array, Array]:
    """Add what α/2 Σ (W H)² over all entries brings."""
    xp = array_namespace(moving)
    partial_gradient, loss = summed
    curved = unobserved * through(moving, gram)
    added = 0.5 * xp.sum(row_dots(xp, moving, curved), axis=0)
    return partial_gradient + curved, loss + added


def gram_curvature(
    moves: tuple[Array, ...], gram: Array, *, unobserved: float
) -> Array:
    """Return α ⟨d_i, FᵀF s_i⟩ for each pair of moves, shape (p, K, pairs)."""
    xp = array_namespace(moves[0])
    curved = [unobserved * through(move, gram) for move in moves]
    return xp.stack(
        [row_dots(xp, a, b) for k, a in enumerate(moves) for b in curved[k:]], axis=-1
    )


def _for_all_rows(gram: Array) -> Array:
    return gram[None, ...]


def _plus_unobserved(summed: Array, gram: Array, *, unobserved: float) -> Array:
    xp = array_namespace(summed)
    return summed + xp.astype(unobserved * gram, summed.dtype)


def _plus(one: Array, other: Array) -> Array:
    return one + other
