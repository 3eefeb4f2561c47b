"""Penalties: their algebra, their formulas, and what doesn't fit together."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar

import dmf
from dmf.objective import Side, Terms
from dmf.penalties import Sum
from tests.problems import form_of, low_rank

Array = Any

COUNTS = np.array([0.0, 1.0, 3.0, 8.0])
ATOMS = [
    dmf.Ridge(0.5),
    dmf.Ridge(0.2, by_count=True),
    dmf.Lasso(0.3),
    dmf.Lasso(0.1, by_count=True),
    dmf.NonNegative(),
    dmf.Smooth(2.0),
    dmf.Smooth(1.0, order=2, step=(1.0, 2.0, 0.5)),
    dmf.Penalty(),
]
atoms = st.sampled_from(ATOMS)
SEPARABLE = ATOMS[:5]
# Sums of penalties on single rows; at least one part.
sums = st.lists(st.sampled_from(SEPARABLE), min_size=1, max_size=4)


def total(parts: Any) -> Any:
    """Add penalties up with +, from the left."""
    result, *others = parts
    for one in others:
        result = result + one
    return result


def terms_of(penalty: Any, shape: tuple[int, int], dtype: Any = np.float64) -> Terms:
    """Return the terms of a strip of one candidate."""
    side = Side((penalty,), (shape[1],), shape[1])
    strip = np.zeros((shape[0], 1, shape[1]), dtype=dtype)
    return side.terms(strip, COUNTS[: shape[0]], np.zeros(1))


def omega(parts: Any, w: float, n: float) -> float:
    """Return what penalties take for one entry of a row with n entries of X."""
    found = 0.0
    for part in parts:
        if isinstance(part, dmf.NonNegative):
            found += 0.0 if w >= 0 else np.inf
            continue
        strength = part.strength * (n if part.by_count else 1.0)
        found += strength * (abs(w) if isinstance(part, dmf.Lasso) else 0.5 * w * w)
    return found


@given(atoms, atoms, atoms)
def test_sums_are_flat_whatever_the_brackets(a: Any, b: Any, c: Any) -> None:
    left, right = (a + b) + c, a + (b + c)
    assert left == right
    assert hash(left) == hash(right)
    assert repr(left) == repr(right) == f"{a!r} + {b!r} + {c!r}"
    assert left.parts == (a, b, c)
    assert not any(isinstance(part, Sum) for part in left.parts)
    assert (a + b == b + a) == (a == b)
    assert a + b != a


@given(atoms, st.lists(atoms, max_size=4))
def test_what_penalties_bring_adds_up(first: Any, others: list[Any]) -> None:
    parts = [first, *others]
    penalty = total(parts)
    ridges = sum(
        p.strength * (COUNTS if p.by_count else np.ones(4))
        for p in parts
        if isinstance(p, dmf.Ridge)
    )
    np.testing.assert_allclose(penalty.ridge(COUNTS), ridges + np.zeros(4))
    lassos = [
        p.strength * (COUNTS if p.by_count else np.ones(4))
        for p in parts
        if isinstance(p, dmf.Lasso)
    ]
    if lassos:
        np.testing.assert_allclose(penalty.lasso(COUNTS), sum(lassos))
    else:
        assert penalty.lasso(COUNTS) is None
    assert penalty.smooth == tuple(p for p in parts if isinstance(p, dmf.Smooth))
    assert penalty.nonnegative == (dmf.NonNegative() in parts)
    assert penalty.quadratic == (not lassos and not penalty.nonnegative)


def test_penalties_are_values() -> None:
    """Equal ones are equal, as keys too; others differ in any field."""
    again = [
        dmf.Ridge(0.5),
        dmf.Ridge(0.2, by_count=True),
        dmf.Lasso(0.3),
        dmf.Lasso(0.1, by_count=True),
        dmf.NonNegative(),
        dmf.Smooth(2.0, order=1, step=1.0),
        dmf.Smooth(1.0, order=2, step=[1.0, 2.0, 0.5]),
    ]
    for one, other in zip(again, ATOMS[:-1], strict=True):
        assert one == other
        assert hash(one) == hash(other)
        assert eval(repr(one), vars(dmf)) == one
    for one, other in itertools.combinations(ATOMS, 2):
        assert one != other
    with pytest.raises(AttributeError, match="cannot assign"):
        dmf.Ridge(0.5).strength = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="unsupported operand"):
        dmf.Ridge(0.5) + 1.0  # type: ignore[operator]
    assert repr(Sum(())) == "Sum()"
    assert not np.any(Sum(()).ridge(COUNTS))


def test_smooth_of_no_strength_ties_nothing() -> None:
    assert dmf.Smooth(0.0).smooth == ()
    assert (dmf.Smooth(0.0) + dmf.Lasso(1.0)).smooth == ()


@given(
    parts=sums,
    w=arrays(float, (4, 2), elements=st.floats(-3, 3)),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_value_and_gradient_are_those_of_the_formulas(
    parts: list[Any], w: Array, dtype: Any
) -> None:
    w = w.astype(dtype)
    if dmf.NonNegative() in parts:
        w = np.abs(w)
    terms = terms_of(total(parts), (4, 2), dtype)
    expected = sum(omega(parts, float(w[i, s]), COUNTS[i]) for i, s in np.ndindex(4, 2))
    value = terms.value(w[:, None])
    assert value.dtype == np.float64
    assert value[0] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    # The gradient is that of the squares alone: their difference quotients.
    squares = [part for part in parts if isinstance(part, dmf.Ridge)]
    gradient = terms.gradient(w[:, None])[:, 0]
    assert gradient.dtype == dtype
    for i, s in np.ndindex(4, 2):
        x = float(w[i, s])
        slope = omega(squares, x + 0.5, COUNTS[i]) - omega(squares, x - 0.5, COUNTS[i])
        assert gradient[i, s] == pytest.approx(slope, rel=1e-5, abs=1e-6)


@given(
    parts=sums,
    point=arrays(float, (4, 2), elements=st.floats(-3, 3)),
    step=st.floats(0.01, 2.0),
)
def test_prox_is_what_scipy_minimises(parts: list[Any], point: Array, step: float):
    """Of the parts that aren't squares; from both sides of the kink."""
    found = terms_of(total(parts), (4, 2)).prox(point[:, None], step)[:, 0]
    rough = [part for part in parts if not isinstance(part, dmf.Ridge)]
    bounded = dmf.NonNegative() in parts
    for (i, s), w in np.ndenumerate(found):
        n, z = COUNTS[i], point[i, s]

        def cost(w: float, n: float = n, z: float = z) -> float:
            return 0.5 * (w - z) ** 2 / step + omega(rough, w, n)

        sides = [(0.0, 4.0)] if bounded else [(-4.0, 0.0), (0.0, 4.0)]
        tries = [minimize_scalar(cost, bounds=b, method="bounded") for b in sides]
        best = min((0.0, *(one.x for one in tries)), key=cost)
        assert cost(w) <= cost(best) + 1e-12
        assert w == pytest.approx(best, abs=1e-4)
        if bounded:
            assert w >= 0


@given(point=arrays(float, (3, 2), elements=st.floats(-5, 5)))
def test_prox_and_stationarity_agree(point: Array) -> None:
    """z − prox(z) is in the subdifferential at prox(z), so it is stationary there."""
    terms = terms_of(dmf.Lasso(0.4) + dmf.NonNegative(), (3, 2))
    w = terms.prox(point[:, None], 1.0)
    assert terms.stationarity(w, w - point[:, None])[0] == pytest.approx(0, abs=1e-20)
    off = terms.stationarity(w, w - point[:, None] - 20.0)
    assert off[0] >= 1.0


def test_candidates_have_strengths_of_their_own() -> None:
    """One stack, three penalties: each candidate is as if it were alone."""
    penalties = (dmf.Ridge(1.0), dmf.Lasso(0.3), dmf.NonNegative() + dmf.Ridge(0.2))
    rng = np.random.default_rng(0)
    strip = np.abs(rng.standard_normal((4, 3, 2)))
    point = rng.standard_normal((4, 3, 2))
    stack = Side(penalties, (2, 2, 2), 2).terms(strip, COUNTS, np.zeros(3))
    for k, penalty in enumerate(penalties):
        alone, own = terms_of(penalty, (4, 2)), slice(k, k + 1)
        assert stack.value(strip)[k] == pytest.approx(alone.value(strip[:, own])[0])
        np.testing.assert_allclose(
            stack.prox(point, 0.5)[:, own], alone.prox(point[:, own], 0.5)
        )
        np.testing.assert_allclose(
            stack.gradient(strip)[:, own], alone.gradient(strip[:, own])
        )


@pytest.mark.parametrize("form", ["numpy", "sparse"])
def test_by_count_scales_with_what_is_observed(form: str) -> None:
    """The objective of a fit, with the counts of rows and of columns."""
    problem = low_rank(observed=0.4)
    penalty = (dmf.Lasso(0.05, by_count=True), dmf.Ridge(0.07, by_count=True))
    fit = dmf.factorize(form_of(problem, form), 3, penalty=penalty, max_rounds=9, tol=0)
    residual = (fit.W @ fit.H - problem.truth)[problem.mask]
    rows, columns = problem.mask.sum(axis=1), problem.mask.sum(axis=0)
    assert len(set(rows)) > 3
    expected = 0.5 * np.sum(residual**2)
    expected += 0.05 * np.sum(rows * np.abs(fit.W).sum(axis=1))
    expected += 0.07 * 0.5 * np.sum(columns * (fit.H**2).sum(axis=0))
    assert fit.objective == pytest.approx(expected, rel=1e-10)


PAIRS = [
    (dmf.NonNegative(), dmf.Ridge(0.3)),
    (dmf.Ridge(0.3), dmf.NonNegative()),
    (dmf.Lasso(1.0) + dmf.Ridge(0.1), None),
    (None, dmf.Lasso(1.0) + dmf.Ridge(0.1)),
    (dmf.Smooth(5.0), dmf.Lasso(0.5)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_each_factor_has_its_own(pair: Any) -> None:
    """What a penalty does is seen in its factor, not in the other one.

    And the transposed problem with the penalties swapped has the same objective.
    """
    problem = low_rank()
    fit = dmf.factorize(problem.nan, 3, penalty=pair, max_rounds=40, tol=0)
    for factor, penalty in zip((fit.W, fit.H), fit.penalty, strict=True):
        assert (factor.min() < 0) == (not penalty.nonnegative)
        assert np.any(factor == 0) == (not penalty.quadratic)
    assert fit.penalty == tuple(dmf.Ridge(0.0) if p is None else p for p in pair)
    swapped = dmf.factorize(
        problem.nan.T, 3, penalty=pair[::-1], start=transposed(fit), max_rounds=1, tol=0
    )
    assert swapped.history.initial_objective == pytest.approx(fit.objective, rel=1e-9)


def transposed(fit: dmf.Factorization) -> dmf.Factorization:
    from dataclasses import replace

    return replace(fit, W=fit.H.T, H=fit.W.T, penalty=fit.penalty[::-1])


LEAST = "must be finite and at least 0"
NUMBER = "must be a number at least 0"


@pytest.mark.parametrize(
    ("make", "argument", "error", "message"),
    [
        (dmf.Ridge, {"strength": -1}, ValueError, f"Ridge's strength {LEAST}, got -1"),
        (dmf.Lasso, {"strength": np.nan}, ValueError, f"Lasso's strength {LEAST}"),
        (dmf.Smooth, {"strength": np.inf}, ValueError, f"Smooth's strength {LEAST}"),
        (
            dmf.Ridge,
            {"strength": "1"},
            TypeError,
            f"Ridge's strength {NUMBER}, got '1'",
        ),
        (dmf.Lasso, {"strength": True}, TypeError, f"Lasso's strength {NUMBER}"),
        (dmf.Smooth, {"strength": None}, TypeError, f"Smooth's strength {NUMBER}"),
        (dmf.Smooth, {"order": 0}, ValueError, "Smooth's order must be at least 1"),
        (dmf.Smooth, {"order": 3}, ValueError, "Smooth's order must be 1 or 2, got 3"),
        (dmf.Smooth, {"order": 1.5}, TypeError, "Smooth's order must be an integer"),
        (dmf.Smooth, {"step": 0.0}, ValueError, "step must be finite and above 0"),
        (dmf.Smooth, {"step": np.nan}, ValueError, "step must be finite and above 0"),
        (dmf.Smooth, {"step": [1, -2]}, ValueError, "finite and above 0, got -2"),
        (dmf.Smooth, {"step": [1, "2"]}, TypeError, "a number above 0, got '2'"),
    ],
)
def test_bad_arguments_are_refused(
    make: Any, argument: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**{"strength": 1.0} | argument)


@pytest.mark.parametrize(
    "penalty", [0.1, "ridge", (dmf.Ridge(1),), (None, None, None), [None, None], (1, 2)]
)
def test_what_is_no_penalty_is_refused(penalty: Any, no_tasks: None) -> None:
    with pytest.raises(TypeError, match="penalty must be a penalty") as caught:
        dmf.factorize(np.eye(3), 1, penalty=penalty)
    assert str(caught.value) == (
        'penalty must be a penalty such as dmf.Ridge(0.1), None, "auto", or a pair of '
        f"them (for W, for H); got {penalty!r}"
    )


SMOOTH = dmf.Smooth(1.0)
ALS = dmf.AlternatingLeastSquares()
CONSTANT = dmf.NormalizedGradient("global", dmf.Constant(0.1))
DECAY = dmf.NormalizedGradient("row", dmf.Decay(0.1))
ON_ONE = (
    "Smooth and Lasso or NonNegative can't be on one factor, got {} for {}; put them "
    "on different factors"
)
ROWS = (
    "AlternatingLeastSquares solves for each row on its own, but Smooth ties "
    "neighbouring rows; use dmf.NormalizedGradient()"
)
RIDGE_ONLY = (
    "GradientDescent works with Ridge only, got the penalty {}; use "
    "dmf.NormalizedGradient()"
)
EXACT_ONLY = (
    "{!r} works with Ridge only, got the penalty {!r}; use dmf.NormalizedGradient(), "
    "which has steps for the others"
)
LASSO = dmf.Lasso(1.0)


@pytest.mark.parametrize(
    ("penalty", "solver", "message"),
    [
        (SMOOTH + LASSO, None, ON_ONE.format(SMOOTH + LASSO, "W")),
        (
            (None, dmf.NonNegative() + SMOOTH),
            None,
            ON_ONE.format(dmf.NonNegative() + SMOOTH, "H"),
        ),
        ((None, SMOOTH), ALS, ROWS),
        ((SMOOTH + dmf.Ridge(1.0), None), ALS, ROWS),
        ((LASSO, None), dmf.GradientDescent(0.1), RIDGE_ONLY.format(LASSO)),
        ((None, SMOOTH), dmf.GradientDescent(0.1), RIDGE_ONLY.format(SMOOTH)),
        ((LASSO, None), CONSTANT, EXACT_ONLY.format(CONSTANT, LASSO)),
        ((None, SMOOTH), DECAY, EXACT_ONLY.format(DECAY, SMOOTH)),
        (dmf.NonNegative(), DECAY, EXACT_ONLY.format(DECAY, dmf.NonNegative())),
        (
            (None, dmf.Smooth(1.0, step=(1.0, 2.0))),
            None,
            "Smooth has 2 steps, but H has 4 columns; give one step for each of the 3 "
            "gaps",
        ),
        (
            (dmf.Smooth(1.0, step=(1.0,) * 5), None),
            None,
            "Smooth has 5 steps, but W has 5 rows; give one step for each of the 4 "
            "gaps",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    penalty: Any, solver: Any, message: str, no_tasks: None
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dmf.factorize(np.ones((5, 4)), 2, penalty=penalty, solver=solver)


@pytest.mark.parametrize(("order", "length"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_axis_too_short_for_the_order_is_refused(
    order: int, length: int, axis: int, no_tasks: None
) -> None:
    X = np.ones((length, 9) if axis == 0 else (9, length))
    penalty: list[Any] = [None, None]
    penalty[axis] = dmf.Smooth(1.0, order=order)
    with pytest.raises(ValueError, match="Smooth of order") as caught:
        dmf.factorize(X, 1, penalty=tuple(penalty))
    assert str(caught.value) == (
        f"Smooth of order {order} needs at least {order + 1} "
        f"{('rows', 'columns')[axis]}, but X has {length}; use a lower order"
    )
    fine = np.ones((order + 1, 9) if axis == 0 else (9, order + 1))
    penalty[axis] = dmf.Smooth(1.0, order=order)
    with pytest.raises(AssertionError, match="a task was about to run"):
        dmf.factorize(fine, 1, penalty=tuple(penalty))
