"""Wrong input gets one sentence that names the way out, before any task runs.

Rows and columns without a single observed entry are not wrong: see test_empty.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_strict
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from tests.problems import (
    CHUNKS,
    FORMS,
    Problem,
    form_of,
    low_rank,
    mask_for,
    sparse_chunks,
)

Array = Any

pytestmark = pytest.mark.timeout(60)  # nothing may hang

SHAPE = (30, 20)


def assert_refused(error: type[Exception], text: str, call: Callable[[], Any]) -> None:
    """Assert that a call raises one sentence that contains a text."""
    with pytest.raises(error, match=re.escape(text)) as info:
        call()
    sentence = str(info.value)
    assert type(info.value) is error
    assert "\n" not in sentence
    assert ". " not in sentence
    assert not sentence.endswith(".")


def test_the_scheduler_that_refuses_would_notice(no_tasks: None) -> None:
    for form in FORMS:
        X = form_of(low_rank(), form)
        with pytest.raises(AssertionError, match="a task was about to run"):
            dmf.factorize(X, 2)


# What X is.


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("X", [[1.0, 2.0], [3.0, 4.0]], "list"),
        ("X", "data.npy", "str"),
        ("X", None, "NoneType"),
        ("mask", [[True, False], [False, True]], "list"),
        ("mask", "mask.npy", "str"),
    ],
)
def test_not_an_array(no_tasks: None, name: str, value: Any, got: str) -> None:
    arguments = {"X": low_rank().nan, name: value}
    assert_refused(
        TypeError,
        f"{name} must be a NumPy, scipy.sparse or Dask array, got {got}; convert it "
        "first, for example with numpy.asarray",
        lambda: dmf.factorize(rank=1, **arguments),
    )


@pytest.mark.parametrize("name", ["X", "mask"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 2)])
@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_not_two_dimensions(
    no_tasks: None, form: str, shape: tuple[int, ...], name: str
) -> None:
    value = np.ones(shape) if form == "numpy" else da.ones(shape)
    arguments = {"X": low_rank().nan, name: value}
    assert_refused(
        ValueError,
        f"{name} must have two dimensions, got shape {shape}",
        lambda: dmf.factorize(rank=1, **arguments),
    )


@pytest.mark.parametrize("name", ["X", "mask"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128", "object", "U3", "M8[s]"])
@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_not_real(no_tasks: None, form: str, dtype: str, name: str) -> None:
    value: Any = np.zeros(SHAPE, dtype=dtype)
    if form == "dask":
        value = da.from_array(value, chunks=CHUNKS)
    arguments = {"X": low_rank().nan, name: value}
    assert_refused(
        TypeError,
        f"{name} must hold real numbers, got dtype {np.dtype(dtype)}; convert it "
        f"first, for example with {name}.astype('float64')",
        lambda: dmf.factorize(rank=1, **arguments),
    )


def test_sparse_complex(no_tasks: None) -> None:
    X = low_rank().sparse().astype(complex)
    text = "X must hold real numbers, got dtype complex128"
    assert_refused(TypeError, text, lambda: dmf.factorize(X, 1))


@pytest.mark.parametrize("name", ["X", "mask"])
def test_shapes_that_are_not_known(no_tasks: None, name: str) -> None:
    rows = da.from_array(np.ones(SHAPE), chunks=CHUNKS)
    unknown = rows[rows[:, 0] > 0]
    arguments = {"X": low_rank().nan, name: unknown}
    assert_refused(
        ValueError,
        f"the shape of {name} isn't known ((nan, 20)); call {name}."
        "compute_chunk_sizes() first",
        lambda: dmf.factorize(rank=1, **arguments),
    )


def test_masked_arrays_would_lose_their_mask(no_tasks: None) -> None:
    """np.asarray drops the mask: what it hides would count as observed."""
    X = np.ma.masked_array(low_rank().truth, ~low_rank().mask)
    assert_refused(
        TypeError,
        "X is a masked array; pass X.filled(numpy.nan)",
        lambda: dmf.factorize(X, 1),
    )


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_numpy_matrices_are_refused(no_tasks: None) -> None:
    """`*` and `sum` mean something else for them, somewhere deep inside."""
    X = np.matrix(low_rank().nan)
    assert_refused(TypeError, "numpy.asarray", lambda: dmf.factorize(X, 1))


@pytest.mark.parametrize("form", FORMS)
def test_shapes_differ(no_tasks: None, form: str) -> None:
    X = form_of(low_rank(), form)
    for mask in (
        np.ones((20, 30)),
        da.ones((20, 30), chunks=5),
        sp.csr_array((20, 30)),
    ):
        assert_refused(
            ValueError,
            "mask has shape (20, 30), but X has shape (30, 20); give one mask entry "
            "for each entry of X",
            lambda mask=mask: dmf.factorize(X, 1, mask=mask),
        )


# Numbers and objects that don't depend on X.

_AT_LEAST_1 = "must be an integer of at least 1, got"
_PENALTY = (
    'penalty must be a penalty such as dmf.Ridge(0.1), None, "auto", or a pair of them '
    "(for W, for H); got "
)
_SOLVER = (
    "solver must be a solver such as dmf.NormalizedGradient(), "
    "dmf.GradientDescent(0.01) or dmf.AlternatingLeastSquares(); got "
)
ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
    ({"rank": -3}, ValueError, "rank must be at least 1, got -3"),
    (
        {"rank": 21},
        ValueError,
        "rank must be at most min(m, n) = 20 for X of shape (30, 20), got 21",
    ),
    ({"rank": True}, TypeError, f"rank {_AT_LEAST_1} True"),
    ({"rank": 2.5}, TypeError, f"rank {_AT_LEAST_1} 2.5"),
    ({"rank": 2.0}, TypeError, f"rank {_AT_LEAST_1} 2.0"),
    ({"rank": "3"}, TypeError, f"rank {_AT_LEAST_1} '3'"),
    ({"rank": None}, TypeError, f"rank {_AT_LEAST_1} None"),
    ({"restarts": 0}, ValueError, "restarts must be at least 1, got 0"),
    ({"restarts": 1.0}, TypeError, f"restarts {_AT_LEAST_1} 1.0"),
    ({"max_rounds": 0}, ValueError, "max_rounds must be at least 1, got 0"),
    ({"max_rounds": "9"}, TypeError, f"max_rounds {_AT_LEAST_1} '9'"),
    ({"max_rounds": np.inf}, TypeError, f"max_rounds {_AT_LEAST_1} inf"),
    ({"check_every": 0}, ValueError, "check_every must be at least 1, got 0"),
    ({"check_every": False}, TypeError, f"check_every {_AT_LEAST_1} False"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": None}, TypeError, "seed must be an integer of at least 0, got None"),
    ({"seed": 0.5}, TypeError, "seed must be an integer of at least 0, got 0.5"),
    ({"tol": -1e-3}, ValueError, "tol must be finite and at least 0, got -0.001"),
    ({"tol": np.nan}, ValueError, "tol must be finite and at least 0, got nan"),
    ({"tol": np.inf}, ValueError, "tol must be finite and at least 0, got inf"),
    ({"tol": "1e-4"}, TypeError, "tol must be a number at least 0, got '1e-4'"),
    ({"tol": True}, TypeError, "tol must be a number at least 0, got True"),
    ({"tol": None}, TypeError, "tol must be a number at least 0, got None"),
    ({"penalty": "ridge"}, TypeError, f"{_PENALTY}'ridge'"),
    ({"penalty": 0.1}, TypeError, f"{_PENALTY}0.1"),
    ({"penalty": dmf.Ridge}, TypeError, f"{_PENALTY}<class"),
    ({"penalty": (None,) * 3}, TypeError, f"{_PENALTY}(None, None, None)"),
    ({"penalty": (None,)}, TypeError, f"{_PENALTY}(None,)"),
    ({"penalty": (None, 0.1)}, TypeError, f"{_PENALTY}(None, 0.1)"),
    ({"penalty": ("auto", "ridge")}, TypeError, f"{_PENALTY}('auto', 'ridge')"),
    ({"penalty": [None, None]}, TypeError, f"{_PENALTY}[None, None]"),
    ({"penalty": np.array([0.1, 0.2])}, TypeError, f"{_PENALTY}array([0.1, 0.2])"),
    ({"solver": "als"}, TypeError, f"{_SOLVER}'als'"),
    ({"solver": dmf.NormalizedGradient}, TypeError, f"{_SOLVER}<class"),
    ({"solver": dmf.Plane()}, TypeError, f"{_SOLVER}Plane()"),
    ({"callbacks": print}, TypeError, "callbacks must be"),
    ({"callbacks": [3]}, TypeError, "callbacks must be"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    ARGUMENTS,
    ids=[f"{name}={value}" for a, _, _ in ARGUMENTS for name, value in a.items()],
)
def test_arguments(
    no_tasks: None,
    arguments: dict[str, Any],
    error: type[Exception],
    text: str,
    form: str,
) -> None:
    X = form_of(low_rank(), form)
    assert_refused(error, text, lambda: dmf.factorize(X, **({"rank": 2} | arguments)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"rank": np.int64(2)},
        {"tol": np.float32(0.1)},
        {"tol": 0},
        {"seed": 2**100},
        {"penalty": (None, dmf.Ridge(1))},
        {"penalty": ("auto", None)},
        {"callbacks": iter([])},
    ],
)
def test_arguments_that_are_right(arguments: dict[str, Any]) -> None:
    fit = dmf.factorize(low_rank().nan, **({"rank": 2, "max_rounds": 2} | arguments))
    assert np.isfinite(fit.objective)


@pytest.mark.parametrize(
    ("strength", "error", "text"),
    [
        (-1, ValueError, "must be finite and at least 0, got -1"),
        (np.nan, ValueError, "must be finite and at least 0, got nan"),
        (np.inf, ValueError, "must be finite and at least 0, got inf"),
        ("0.1", TypeError, "must be a number at least 0, got '0.1'"),
        (True, TypeError, "must be a number at least 0, got True"),
        (None, TypeError, "must be a number at least 0, got None"),
    ],
)
def test_ridge_strength(strength: Any, error: type[Exception], text: str) -> None:
    assert_refused(error, f"Ridge's strength {text}", lambda: dmf.Ridge(strength))


@pytest.mark.parametrize("make", [dmf.GradientDescent, dmf.Constant, dmf.Decay])
@pytest.mark.parametrize(
    ("rate", "error", "text"),
    [
        (0, ValueError, "must be finite and above 0, got 0"),
        (-0.1, ValueError, "must be finite and above 0, got -0.1"),
        (np.inf, ValueError, "must be finite and above 0, got inf"),
        ("fast", TypeError, "must be a number above 0, got 'fast'"),
    ],
)
def test_learning_rate(make: Any, rate: Any, error: type[Exception], text: str) -> None:
    assert_refused(error, f"learning_rate {text}", lambda: make(rate))


def test_decay_power() -> None:
    text = "power must be finite and above 0, got 0"
    assert_refused(ValueError, text, lambda: dmf.Decay(0.1, power=0))


@pytest.mark.parametrize("scope", ["column", None, 1])
def test_unknown_scope(scope: Any) -> None:
    text = f'scope must be "row" or "global", got {scope!r}'
    assert_refused(ValueError, text, lambda: dmf.NormalizedGradient(scope=scope))


@pytest.mark.parametrize("step", ["exact", dmf.Exact, 0.1, None])
def test_unknown_step(step: Any) -> None:
    assert_refused(
        TypeError,
        f"step must be one of Constant(…), Decay(…), Exact(…), Plane(…); got {step!r}",
        lambda: dmf.NormalizedGradient(step=step),
    )


# Values. For NumPy and scipy.sparse before any task; in Dask arrays as they are read.

INFINITE = (
    "X is infinite in row 17, column 13; replace the value, or mark it as missing with "
    "NaN or in the mask"
)
NOTHING = (
    "X of shape (30, 20) has no observed entry; check the mask, or which value stands "
    "for missing (NaN in dense arrays, what isn't stored in sparse ones)"
)
WEIGHT = (
    "mask has the weight {}; weights must be at least 0 (for what is unobserved) and "
    "at most 1e+12"
)
NAN_MASK = (
    "mask has NaN; use 0 (or False) for what is unobserved and a positive weight (or "
    "True) for what is observed"
)
WEIGHTS = [-2.5, np.inf, -np.inf, np.nan]


def weight_refused(weight: float) -> str:
    return NAN_MASK if np.isnan(weight) else WEIGHT.format(weight)


def infinite_problem() -> Problem:
    problem = low_rank(observed=0.9)
    assert problem.mask[17, 13]
    problem.truth[17, 13] = -np.inf
    return problem


def bad_weights(problem: Problem, weight: float) -> Array:
    weights = problem.weights.copy()
    weights[17, 13] = weight
    return weights


@pytest.mark.parametrize("form", ["numpy", "sparse"])
def test_infinite_values(no_tasks: None, form: str) -> None:
    X = form_of(infinite_problem(), form)
    assert_refused(ValueError, INFINITE, lambda: dmf.factorize(X, 2))


@pytest.mark.parametrize("form", ["dask", "dask-sparse"])
def test_infinite_values_in_dask_arrays(form: str, keep_chunks: None) -> None:
    X = form_of(infinite_problem(), form)
    assert_refused(ValueError, INFINITE, lambda: dmf.factorize(X, 2))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("form", FORMS)
def test_bad_weights(no_tasks: None, form: str, weight: float) -> None:
    """A mask in memory is checked before any task runs, also if X is lazy."""
    problem = low_rank(observed=0.9)
    X = form_of(problem, form)
    mask = mask_for(bad_weights(problem, weight), problem.mask, form)
    text = weight_refused(weight)
    assert_refused(ValueError, text, lambda: dmf.factorize(X, 2, mask=mask))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("form", FORMS)
def test_bad_weights_in_dask_arrays(form: str, weight: float) -> None:
    problem = low_rank(observed=0.9)
    X = form_of(problem, form)
    weights = bad_weights(problem, weight)
    if "sparse" in form:
        mask = sparse_chunks(np.where(problem.mask, weights, 0))
    else:
        mask = da.from_array(weights, chunks=(7, 20))
    text = weight_refused(weight)
    assert_refused(ValueError, text, lambda: dmf.factorize(X, 2, mask=mask))


def test_bad_weights_of_integers(no_tasks: None) -> None:
    problem = low_rank(observed=0.9)
    mask = problem.mask.astype(int) - 1
    text = WEIGHT.format(-1)
    assert_refused(ValueError, text, lambda: dmf.factorize(problem.nan, 2, mask=mask))


def nothing(form: str) -> list[dict[str, Any]]:
    """Return arguments in which nothing is observed, for several reasons."""
    problem = low_rank()
    empty = low_rank(observed=0.0)
    zeros = np.zeros(SHAPE)
    by_mask = [
        mask_for(zeros, problem.mask, form),
        mask_for(zeros.astype(bool), problem.mask, form),
    ]
    return [
        {"X": form_of(empty, form)},
        *({"X": form_of(problem, form), "mask": mask} for mask in by_mask),
    ]


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("form", ["numpy", "sparse"])
def test_nothing_observed(no_tasks: None, form: str, case: int) -> None:
    arguments = nothing(form)[case]
    assert_refused(ValueError, NOTHING, lambda: dmf.factorize(rank=2, **arguments))


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("form", ["dask", "dask-sparse"])
def test_nothing_observed_in_dask_arrays(form: str, case: int) -> None:
    arguments = nothing(form)[case]
    assert_refused(ValueError, NOTHING, lambda: dmf.factorize(rank=2, **arguments))


def test_weights_that_overflow_float32_are_refused() -> None:
    """1e300 is finite, but not in float32, which a float32 X is computed in."""
    problem = low_rank(dtype=np.float32)
    weights = problem.weights.astype(float) * 1e300
    call = partial(dmf.factorize, problem.nan, 2, mask=weights, max_rounds=2)
    assert_refused(ValueError, "at most 1e+12", call)


# Masks of sparse matrices.

PATTERN = "the mask of a sparse X must store the same entries as X (it stores {}, X sto"


def shifted(problem: Problem) -> Any:
    """Weights for as many entries as X stores, but not for the same."""
    mask = np.roll(problem.mask, 1, axis=1)
    return sp.csr_array((np.ones(mask.sum()), np.nonzero(mask)), shape=mask.shape)


def test_a_sparse_mask_has_the_pattern_of_x(no_tasks: None) -> None:
    problem = low_rank()
    for mask in (shifted(problem), sp.eye_array(*SHAPE)):
        assert_refused(
            ValueError,
            PATTERN.format(mask.nnz),
            lambda mask=mask: dmf.factorize(problem.sparse(), 2, mask=mask),
        )


def test_sparse_chunks_of_a_mask_have_the_pattern_of_those_of_x() -> None:
    X = form_of(low_rank(), "dask-sparse")
    mask = sparse_chunks(shifted(low_rank()).toarray())
    text = "the mask of a sparse X must store the same entries as X"
    assert_refused(ValueError, text, lambda: dmf.factorize(X, 2, mask=mask))


@pytest.mark.parametrize("form", ["sparse", "dask-sparse"])
def test_sparse_x_takes_no_dense_mask(no_tasks: None, form: str) -> None:
    X = form_of(low_rank(), form)
    text = (
        "mask is dense, but X is sparse; give a mask of X's kind, for a sparse X one "
    )
    text += "that stores the entries it speaks of"
    for mask in (low_rank().mask, da.from_array(low_rank().mask, chunks=CHUNKS)):
        assert_refused(ValueError, text, partial(dmf.factorize, X, 2, mask=mask))


@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_dense_x_takes_no_sparse_mask(no_tasks: None, form: str) -> None:
    X = form_of(low_rank(), form)
    text = (
        "mask is sparse, but X is dense; give a mask of X's kind, for a sparse X one "
    )
    text += "that stores the entries it speaks of"
    for mask in (low_rank().sparse(), form_of(low_rank(), "dask-sparse")):
        assert_refused(ValueError, text, partial(dmf.factorize, X, 2, mask=mask))


def test_sparse_chunks_of_a_mask_are_those_of_x(no_tasks: None) -> None:
    X = form_of(low_rank(), "dask-sparse")
    mask = sparse_chunks(low_rank().weights, chunks=(15, 20))
    assert_refused(
        ValueError,
        "the chunks of mask, ((15, 15), (20,)), must be those of X, ((10, 10, 10), "
        "(10, 10)): sparse chunks can't be cut anew",
        lambda: dmf.factorize(X, 2, mask=mask),
    )


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("form", ["sparse", "dask-sparse"])
def test_masks_of_every_sparse_format(form: str, format: str) -> None:
    problem = low_rank()
    mask = problem.sparse(problem.weights)
    X = form_of(problem, form)
    expected = dmf.factorize(X, 2, mask=mask, max_rounds=2)
    fit = dmf.factorize(X, 2, mask=mask.asformat(format), max_rounds=2)
    np.testing.assert_array_equal(fit.W, expected.W)


# Clients.


@pytest.mark.parametrize("client", ["tcp://10.0.0.1:8786", 4, object()])
def test_a_client_that_is_none(no_tasks: None, client: Any) -> None:
    text = f"client must be a distributed.Client or None, got {client!r}"
    X = low_rank().nan
    assert_refused(TypeError, text, lambda: dmf.factorize(X, 2, client=client))


@pytest.mark.cluster
def test_a_closed_client(cluster: Any) -> None:
    from distributed import Client

    client = Client(cluster)
    client.close()
    for form in FORMS:
        X = form_of(low_rank(), form)
        assert_refused(
            ValueError,
            "client is closed; connect a new distributed.Client, or pass client=None "
            "to run on the threads of this process",
            lambda X=X: dmf.factorize(X, 2, client=client),
        )


@pytest.mark.cluster
def test_an_asynchronous_client(cluster: Any) -> None:
    from distributed import Client

    text = "client is asynchronous; pass Client(…, asynchronous=False)"
    X = low_rank().nan

    async def fits() -> None:
        address = cluster.scheduler_address
        async with Client(address, asynchronous=True) as client:
            assert_refused(TypeError, text, lambda: dmf.factorize(X, 2, client=client))
            # The active client is taken too.
            assert_refused(TypeError, text, lambda: dmf.factorize(X, 2))

    asyncio.run(fits())


@pytest.mark.cluster
@pytest.mark.parametrize("form", FORMS)
def test_values_are_refused_on_a_cluster_too(client: Any, form: str) -> None:
    X = form_of(infinite_problem(), form)
    assert_refused(ValueError, "X is infinite in row 17", lambda: dmf.factorize(X, 2))


def test_sparse_matrices_with_columns_beyond_their_shape() -> None:
    """Compiled kernels would read, and write, whatever lies behind the factors."""
    X = sp.csr_array(np.eye(4))
    X.indices[2] = 9
    text = "a sparse matrix of shape (4, 4) stores entries in the columns 0 to 9"
    assert_refused(ValueError, text, lambda: dmf.factorize(X, 2))


def test_blocks_that_are_not_what_their_array_says() -> None:
    X = da.ones((6, 4), chunks=(3, 4)).map_blocks(
        sp.csr_array, dtype=float, meta=np.empty((0, 0))
    )
    text = "a block of X is sparse (csr_array), but its Dask array says dense"
    assert_refused(ValueError, text, lambda: dmf.factorize(X, 2))


@pytest.mark.parametrize(
    ("dtype", "unit", "word"),
    [
        (np.float32, 1e-25, "too small for float32"),
        (np.float32, 1e25, "too large for float32"),
        (np.float64, 1e-150, "too small for float64"),
        (np.float64, 1e150, "too large for float64"),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_values_whose_squares_leave_the_dtype_are_refused(
    kind: str, dtype: Any, unit: float, word: str
) -> None:
    """Silence would end in factors of 0 that claim to have converged."""
    problem = low_rank(dtype=dtype)
    X = problem.nan if kind == "dense" else problem.sparse()
    assert_refused(
        ValueError,
        f"(root mean square), {word}",
        lambda: dmf.factorize(X * dtype(unit), 2),
    )


def test_arrays_of_other_libraries() -> None:
    X = array_api_strict.asarray(np.ones((4, 3)))
    assert_refused(TypeError, "X must hold real numbers", lambda: dmf.factorize(X, 2))
