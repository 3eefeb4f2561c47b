"""Fill panels in a process of its own, one system at a time, and time it.

`benchmarks.imputation` starts this file by its path, with the Python that has the
system. It reads a request a line from standard input, and answers each with a line:

    {"data": "panel.npy", "system": "KNNImputer", "settings": {…}, "out": "filled.npy"}
    {"seconds": 1.2}
    {"about": ["numpy"]}
    {"versions": {"numpy": "2.4.0"}, "kernels": ["Haswell"]}

Nothing of dmf is imported unless dmf is the system: the others live elsewhere.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


def soft_impute(X: Array, *, scale: str, shrinkage: float | None) -> Array:
    """Fill by fancyimpute's SoftImpute.

    `scale` is "both" (rows and columns to mean 0 and deviation 1, as BiScaler does it),
    "centre" (to mean 0) or "none"; `shrinkage` a share of the largest singular value,
    None what the class takes by itself.
    """
    from fancyimpute import BiScaler, SoftImpute

    scaler = None
    if scale != "none":
        scales = scale == "both"
        scaler = BiScaler(scale_rows=scales, scale_columns=scales, verbose=False)
        X = scaler.fit_transform(X)
    value = None
    if shrinkage is not None:
        value = shrinkage * float(np.linalg.norm(np.nan_to_num(X), 2))
    filled = SoftImpute(shrinkage_value=value, verbose=False).fit_transform(X)
    return filled if scaler is None else scaler.inverse_transform(filled)


def knn(X: Array, *, n_neighbors: int, weights: str) -> Array:
    """Fill by scikit-learn's KNNImputer."""
    from sklearn.impute import KNNImputer

    model = KNNImputer(
        n_neighbors=n_neighbors, weights=weights, keep_empty_features=True
    )
    return model.fit_transform(X)


def iterative(X: Array, *, n_nearest_features: int | None) -> Array:
    """Fill by scikit-learn's IterativeImputer, ridge regressions as by default."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    model = IterativeImputer(
        n_nearest_features=n_nearest_features,
        keep_empty_features=True,
        random_state=0,
    )
    return model.fit_transform(X)


def factorization(
    X: Array,
    *,
    rank: int,
    strength: float,
    light: float,
    tied: bool,
    order: int = 1,
    **options: Any,
) -> Array:
    """Fill by dmf: a ridge on the rows, smoothness along the columns.

    `strength`, of both, is in standard deviations of what is observed; `light` is the
    share of it that the ridge on the columns has. `tied` puts a smoothness on the rows
    that is far too weak to matter, for the sake of how they then move: through an
    approximate inverse of the Hessian, not against the bare gradient.
    """
    import dmf

    unit = strength * float(X[np.isfinite(X)].std())
    on_rows: dmf.Penalty = dmf.Ridge(unit)
    if tied:
        on_rows = on_rows + dmf.Smooth(1e-6 * unit)
    on_columns = dmf.Smooth(unit, order=order) + dmf.Ridge(light * unit)
    fit = dmf.factorize(
        X, rank, penalty=(on_rows, on_columns), tol=0, progress=False, **options
    )
    return dmf.impute(X, fit)


SYSTEMS: dict[str, Callable[..., Array]] = {
    "SoftImpute": soft_impute,
    "KNNImputer": knn,
    "IterativeImputer": iterative,
    "dmf": factorization,
}


def fill(request: dict[str, Any]) -> dict[str, Any]:
    X = np.load(request["data"])
    settings = dict(request["settings"])
    turned = settings.pop("transpose", False)
    threads = settings.pop("blas_threads", None)
    # The libraries must be loaded before they can be limited.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads, user_api="blas"):
        began = time.perf_counter()
        filled = SYSTEMS[request["system"]](X.T if turned else X, **settings)
        took = time.perf_counter() - began
    np.save(request["out"], filled.T if turned else filled)
    return {"seconds": took}


def about(packages: list[str]) -> dict[str, Any]:
    """Return the versions of packages, and the kernels of the BLAS libraries."""
    from importlib.metadata import version

    # A library picks its kernel when it is loaded; SciPy brings one of its own.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    kernels = {
        str(info.get("architecture"))
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    versions = {name: version(name) for name in packages}
    return {"versions": versions, "kernels": sorted(kernels)}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    return about(request["about"]) if "about" in request else fill(request)


def main() -> None:
    # Some print from inside their loops; standard output is for the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
