"""What the parts of a model cost, each as a ratio to a plain fit of the same rounds.

    python -m benchmarks.model

Restarts share each pass over the data: eight of them should cost less than eight fits.
Zeros of a sparse matrix should cost nothing. Non-negative factors of complete data are
compared with scikit-learn's coordinate descent, from the same start, at equal seconds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import dmf
from benchmarks.common import power_law, print_machine

ROUNDS = 40
REPEATS = 5


def seconds_of(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def ratios(plain: Callable[[], Any], others: dict[str, Callable[[], Any]]) -> None:
    """Print the median ratios of times, each pair measured one after the other."""
    for function in (plain, *others.values()):
        function()  # compiles the kernels
    found: dict[str, list[float]] = {name: [] for name in others}
    base = []
    for _ in range(REPEATS):
        base.append(seconds_of(plain))
        for name, function in others.items():
            found[name].append(seconds_of(function) / base[-1])
    print(f"  a plain fit                    {np.median(base):8.2f} s")
    for name, times in found.items():
        print(f"  {name:<30} {np.median(times):8.2f} ×")


def fit(X: Any, rank: int = 16, **options: Any) -> Any:
    return lambda: dmf.factorize(X, rank, tol=0, max_rounds=ROUNDS, **options)


def report_parts(X: Any) -> None:
    m, n = X.shape
    print(f"\n{m} × {n}, {X.nnz / 1e6:.2f} M stored, rank 16, {ROUNDS} rounds")
    others = {
        "8 restarts, all kept": fit(X, restarts=8, drop=False),
        "8 restarts, losers dropped": fit(X, restarts=8),
        "offsets": fit(X, offsets="both"),
        "a tenth held out": fit(X, validation=0.1, patience=ROUNDS),
        "non-negative": fit(X, penalty=dmf.NonNegative()),
        "zeros of weight 0.3": fit(X, unobserved_weight=0.3),
        "zeros observed": fit(X, unobserved_weight=1),
    }
    ratios(fit(X), others)


def report_zeros() -> None:
    """As many stored entries and factors of the same size, but more and more zeros."""
    print("\n0.34 M stored, the rest observed zeros, m + n = 20000: a round")
    for m in (200, 2000, 10_000):
        X = power_law(m, 20_000 - m, 340_000, 10)
        run = fit(X, unobserved_weight=1)
        run()
        times = [seconds_of(run) / ROUNDS for _ in range(REPEATS)]
        zeros = (m * (20_000 - m) - X.nnz) / 1e6
        print(f"  {zeros:6.1f} M zeros {1e3 * np.median(times):8.2f} ms")


def report_nmf(name: str, X: Any, rank: int) -> None:
    from sklearn.decomposition import NMF

    m, n = X.shape
    print(f"\nnon-negative, complete, {name}, {m} × {n}, rank {rank}, {X.dtype}")
    path: list[tuple[float, float]] = []
    began = time.perf_counter()

    def watch(record: dmf.Record) -> bool:
        path.append((time.perf_counter() - began, record.objective))
        return False

    first = dmf.factorize(X, rank, penalty=dmf.NonNegative(), max_rounds=1)
    # Once for what is imported and compiled at the first use.
    dmf.factorize(X, rank, penalty=dmf.NonNegative(), start=first, max_rounds=2)
    options: dict[str, Any] = {"max_rounds": 400, "tol": 0, "callbacks": [watch]}
    began = time.perf_counter()
    dmf.factorize(X, rank, penalty=dmf.NonNegative(), start=first, **options)
    print("  seconds   scikit-learn            dmf   dmf / scikit-learn")
    for iterations in (10, 30, 100, 300):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = NMF(rank, init="custom", max_iter=iterations, tol=0)
            start = {"W": first.W.copy(), "H": np.ascontiguousarray(first.H)}
            begin = time.perf_counter()
            W = model.fit_transform(X, **start)
            took = time.perf_counter() - begin
        theirs = 0.5 * float(np.sum((X - W @ model.components_) ** 2.0))
        done = [objective for at, objective in path if at <= took]
        ours = f"{done[-1]:15.6g} {done[-1] / theirs:14.4f}" if done else "  none yet"
        print(f"  {took:7.3f} {theirs:14.6g} {ours}")


def main() -> None:
    from sklearn.datasets import load_digits

    print_machine()
    report_parts(power_law(6000, 3000, 340_000, 10))
    report_parts(power_law(60_000, 20_000, 3_450_000, 16))
    report_zeros()
    rng = np.random.default_rng(0)
    parts = rng.random((2000, 20)) ** 3 @ rng.random((20, 1000)) ** 3
    report_nmf("synthetic", parts + 0.1 * rng.random(parts.shape), 20)
    report_nmf("digits", load_digits().data, 16)


if __name__ == "__main__":
    main()
