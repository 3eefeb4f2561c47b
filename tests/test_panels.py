"""Entries in panels of columns: the same sums as in plain rows, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import dmf
from dmf.engine.cost import Machine, Work, panels_of
from dmf.engine.loading import load
from dmf.engine.memory import bytes_of
from dmf.engine.runner import Threads
from dmf.kernels import panels
from dmf.kernels.panels import LEAST_ENTRIES, PANEL_BYTES, panels_for
from dmf.observed import observe
from tests.blocks import block_of, every_kernel
from tests.problems import low_rank, stacked_start

Array = Any


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let panels be as narrow as a few columns of a small problem."""
    monkeypatch.setattr(panels, "PANEL_BYTES", 100)
    monkeypatch.setattr(panels, "LEAST_ENTRIES", 0)


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    rank=st.integers(1, 20),
    observed=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    axis=st.sampled_from([0, 1]),
    mask=st.sampled_from(["none", "bool", "weights"]),
    alpha=st.sampled_from([0.0, 0.3]),
    K=st.sampled_from([1, 3]),
    number=st.integers(2, 5),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_kernels_do_not_care(
    shape: tuple[int, int],
    rank: int,
    observed: float,
    seed: int,
    axis: int,
    mask: str,
    alpha: float,
    K: int,
    number: int,
    dtype: str,
) -> None:
    problem = low_rank(*shape, rank, observed, seed=seed)
    problem = replace(problem, truth=problem.truth.astype(dtype))
    W, H = (factor.astype(dtype) for factor in stacked_start(problem, K))
    block, _ = block_of(problem, "sparse", mask, alpha)
    cut = block.part(None, number)
    assert len(cut.starts) == number * shape[0] + 1
    one = every_kernel("sparse", mask, block, W, H, axis)
    other = every_kernel("sparse", mask, cut, W, H, axis)
    for name, part in one.items():
        if name in ("loss", "errors"):  # sums over all entries, in their order
            close = 1e-12 if name == "loss" else 1e-5
            np.testing.assert_allclose(other[name], part, rtol=close, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], part, err_msg=name)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("held", [None, "own", "other"])
@pytest.mark.usefixtures("narrow")
def test_what_is_observed_is_the_same(held: str | None, alpha: float) -> None:
    """Counts and totals are, and the entries in another order."""
    problem = low_rank(40, 30, 3, 0.4)
    X, validation = problem.sparse(), None
    if held == "own":
        validation = X.astype(bool)
        validation.data = np.random.default_rng(0).random(X.nnz) < 0.2
    elif held == "other":
        first = np.arange(40) % 3 > 0
        X, validation = (
            sp.csr_array(sp.diags_array(f * 1.0) @ X) for f in (first, ~first)
        )
    options: dict[str, Any] = {"unobserved": alpha, "validation": validation}
    plain = observe(X, None, np.float64, **options)
    seen = observe(X, None, np.float64, row_bytes=24, **options)
    assert len(plain.block.starts) == 41
    assert len(seen.block.starts) == 8 * 40 + 1
    for one, other in zip(plain.counts, seen.counts, strict=True):
        np.testing.assert_array_equal(one, other)
    for name, number in vars(plain.totals).items():
        assert getattr(seen.totals, name) == pytest.approx(number, rel=1e-12), name
    assert (plain.held_out is None) == (held is None)
    if held is not None:
        np.testing.assert_array_equal(seen.held_out.values, plain.held_out.values)
    assert np.sort(seen.block.values).tolist() == np.sort(plain.block.values).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"offsets": "both", "penalty": dmf.Ridge(0.1, by_count=True)},
        {"solver": dmf.NormalizedGradient("global")},
        {"solver": dmf.AlternatingLeastSquares()},
        {"penalty": dmf.NonNegative()},
        {"unobserved_weight": 0.2, "penalty": dmf.Ridge(0.1)},
        {"unobserved_weight": 1.0},
        {"penalty": dmf.Smooth(0.1)},
        {"restarts": 3},
        {"validation": 0.2},
    ],
    ids=str,
)
def test_a_fit_does_not_care(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = low_rank(60, 50, 3, 0.4)
    options = {"max_rounds": 12, "tol": 0, **options}
    plain = dmf.factorize(problem.sparse(), 3, **options)
    monkeypatch.setattr(panels, "PANEL_BYTES", 300)
    monkeypatch.setattr(panels, "LEAST_ENTRIES", 0)
    data = load(problem.sparse(), None, 3, Threads())
    lengths = [len(v.block.starts) for k, v in data.leaves.items() if "block" in k[0]]
    assert all(length > 61 for length in lengths)
    cut = dmf.factorize(problem.sparse(), 3, **options)
    np.testing.assert_array_equal(cut.W, plain.W)
    np.testing.assert_array_equal(cut.H, plain.H)
    assert cut.objective == pytest.approx(plain.objective, rel=1e-12)


@given(
    p=st.integers(1, 10**6),
    q=st.integers(1, 10**6),
    stored=st.integers(0, 10**9),
    rank=st.integers(1, 500),
)
def test_how_many(p: int, q: int, stored: int, rank: int) -> None:
    """As few as stay in a cache; one where rows would have too little in each."""
    found = panels_for((p, q), stored, 4 * rank)
    if found > 1:
        assert q * 4 * rank / found <= PANEL_BYTES < q * 4 * rank / (found - 1)
        assert stored / (p * found) >= LEAST_ENTRIES
    elif q * 4 * rank > PANEL_BYTES:
        assert stored < LEAST_ENTRIES * p * np.ceil(q * 4 * rank / PANEL_BYTES)


def test_the_plan_knows_of_them() -> None:
    work = Work((100_000, 50_000), 20_000_000, 32, "sparse")
    here = Machine(2)
    assert panels_of(work, (2, 1), here) == 10
    assert panels_of(work, (2, 2), here) == 5
    assert panels_of(replace(work, kind="dense"), (2, 1), here) == 1
    assert panels_of(replace(work, streamed=True), (2, 1), here) == 1
    assert panels_of(work, (1, 1), Machine(1, 1, gpu=True)) == 1
    # Where rows begin takes room in each of them.
    few = replace(work, stored=work.stored // 10)
    assert panels_of(few, (2, 1), here) == 1
    more, less = (bytes_of(w, (2, 1), here).data for w in (work, few))
    entries = 8 * (work.stored - few.stored)
    assert more - less == pytest.approx(entries + 9 * 8 * work.shape[0])
