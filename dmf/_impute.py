"""impute: fill what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmf._predict import augmented
from dmf.containers import check_same_labels, unwrap_pair
from dmf.engine.arrays import fill_lazily, fill_on_gpu
from dmf.engine.blas import one_blas_thread
from dmf.engine.kinds import check_kinds, gpu_for, in_memory, is_dask, is_there
from dmf.engine.runner import choose_runner
from dmf.entries import check_weights, fill_block, filled_dtype
from dmf.result import Factorization
from dmf.validation import check_mask, check_matrix

Array = Any


def impute(
    X: Array,
    factorization: Factorization,
    mask: Array | None = None,
    *,
    device: str = "auto",
) -> Array:
    """Fill what is missing in X with μ + b + c + W H; what is observed stays as it is.

    Parameters
    ----------
    X : array, shape (m, n)
        As in `factorize`: NaN, the mask, or not being stored (sparse) mean missing.
    factorization : Factorization
        Of a matrix of the same shape.
    mask : array, shape (m, n), optional
        As in `factorize`: entries are kept where it is True or above 0.
    device : {"auto", "cpu", "gpu"}, default "auto"
        As in `factorize`: where the products W H are made. On a cluster all workers
        that compute the result need one.

    Returns
    -------
    array, shape (m, n)
        A lazy Dask array for a Dask array, a DataFrame or DataArray for one, with its
        labels, a CuPy array for one, else a NumPy array; dense also when X is sparse.
        Its dtype is that of X, or float64 if X holds integers or bools.
        Observed entries are bit-identical to those of X.

    Raises
    ------
    ValueError
        The shapes of X, of the mask and of the factorization don't agree.
    TypeError
        X isn't a real matrix.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
    >>> X[0, 1] = np.nan
    >>> filled = dmf.impute(X, dmf.factorize(X, rank=1))
    >>> bool(np.isnan(filled).any()), float(filled[3, 1])
    (False, 8.0)
    """
    given: Any = factorization
    if not isinstance(given, Factorization):
        msg = f"factorization must be a dmf.Factorization, got {given!r}"
        raise TypeError(msg)
    X, mask, labels = unwrap_pair(X, mask)
    shape = check_matrix("X", X)
    if shape != factorization.shape:
        msg = (
            f"X has shape {shape}, but the factorization is of a matrix of shape "
            f"{factorization.shape}; factorize this X first"
        )
        raise ValueError(msg)
    if mask is not None:
        check_mask(X, mask)
        check_kinds(X, mask)
        if not is_dask(mask):
            check_weights(mask)
    check_same_labels(labels, factorization.labels)
    gpu = gpu_for(X, device)
    if device == "gpu":
        choose_runner(None, gpu).machine()  # is there one?
    filled = _filled(X, mask, *augmented(factorization), gpu is not None)
    return filled if labels is None else labels.wrap_matrix(filled)


def imputed(X: Array, mask: Array | None = None) -> Array:
    """Return a bool matrix, shape (m, n), that is True where `impute` fills X.

    A lazy Dask array for a Dask array, else a NumPy array.
    """
    X, mask, _ = unwrap_pair(X, mask)
    m, n = check_matrix("X", X)
    # What is observed stays 0; all the rest becomes 1.
    factors = np.ones((m, 1)), np.ones((1, n))
    marked: Array = _filled(X * 0, mask, *factors, is_there(X)) == 1
    return marked


def _filled(X: Array, mask: Array | None, W: Array, H: Array, gpu: bool) -> Array:
    if is_dask(X):
        return fill_lazily(X, mask, W, H, gpu)
    W, H = np.asarray(W), np.asarray(H)
    # Products of tiles are small: a second thread of BLAS helps little, and waits for
    # long where something else runs.
    fill = fill_on_gpu if gpu else fill_block
    with one_blas_thread():
        return fill(X, in_memory(mask), W, H.T, filled_dtype(X.dtype))
