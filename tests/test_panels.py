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
from dmf.engine.cost import Machine, Work, cost_of, panels_of
from dmf.engine.loading import load
from dmf.engine.memory import bytes_of
from dmf.engine.runner import Threads
from dmf.engine.stream import opened
from dmf.kernels.panels import LEAST_ENTRIES, PANEL_BYTES, panels_for
from dmf.observed import observe
from tests.blocks import block_of, every_kernel, narrow_panels
from tests.problems import low_rank, sparse_chunks, stacked_start

Array = Any


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_panels(monkeypatch)


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
            # With α, sums of both signs cancel.
            size = np.max((W[:, 0] @ H[:, 0].T) ** 2) * len(block.values)
            np.testing.assert_allclose(
                other[name], part, rtol=close, atol=1e-12 * size, err_msg=name
            )
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
    """Its start neither, which follows from totals of X."""
    problems = [low_rank(60, 50, 3, 0.4, seed=seed) for seed in range(6)]
    options = {"max_rounds": 12, "tol": 0, **options}
    plain = [dmf.factorize(p.sparse(), 3, **options) for p in problems]
    narrow_panels(monkeypatch, 300)
    assert all(lines > 60 for lines in lines_of(problems[0].sparse()))
    for problem, fit in zip(problems, plain, strict=True):
        cut = dmf.factorize(problem.sparse(), 3, **options)
        np.testing.assert_array_equal(cut.W, fit.W)
        np.testing.assert_array_equal(cut.H, fit.H)
        assert cut.objective == pytest.approx(fit.objective, rel=1e-12)


def lines_of(X: Any, **options: Any) -> list[int]:
    """Return the lines of each block that a fit would work on."""
    data = load(X, None, 3, Threads(), **options)
    blocks = [opened(v) for key, v in data.leaves.items() if key[0].startswith("block")]
    assert blocks
    return [len(one.block.starts) - 1 for one in blocks]


@pytest.mark.usefixtures("narrow")
def test_what_is_read_anew_or_passed_over_once_stays_in_plain_rows() -> None:
    problem = low_rank(60, 50, 3, 0.4)
    X = sparse_chunks(problem.sparse(), ((30, 30), (50,)))
    assert min(lines_of(X)) > 30
    assert lines_of(X, once=True) == lines_of(X, stream=True) == [30, 30]
    kept, streamed = (
        dmf.factorize(X, 3, max_rounds=5, tol=0, stream=stream)
        for stream in (False, True)
    )
    for one, other in ((kept.W, streamed.W), (kept.H, streamed.H)):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("bytes_of_panel", [100, 10**6])
def test_blocks_without_rows(
    bytes_of_panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Dask array has them after a selection."""
    narrow_panels(monkeypatch, bytes_of_panel)
    problem = low_rank(40, 30, 2, 0.5)
    fits = [
        dmf.factorize(sparse_chunks(problem.sparse(), chunks), 2, max_rounds=5, tol=0)
        for chunks in (((20, 20), (30,)), ((0, 20, 20), (30,)))
    ]
    one, other = (np.asarray(fit.W @ fit.H) for fit in fits)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


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


@given(K=st.integers(1, 9), streamed=st.booleans(), P=st.integers(1, 4))
def test_candidates_pass_one_after_the_other(K: int, streamed: bool, P: int) -> None:
    """Each of them in panels that are wide enough for one; blocks are read once."""
    work = Work((100_000, 50_000), 20_000_000, 32, "sparse", streamed=streamed)
    one, all_of_them = (
        cost_of(work, (P, 1), Machine(2), candidates=count) for count in (1, K)
    )
    assert all_of_them.arithmetic == pytest.approx(K * one.arithmetic)
    assert all_of_them.tasks == one.tasks
    if streamed and K > 1:
        assert one.memory < all_of_them.memory < K * one.memory
