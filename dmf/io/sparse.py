"""Sparse matrices in files: scipy.sparse's .npz, and Matrix Market."""

from __future__ import annotations

import io
from typing import Any

from dmf.io.places import check_file, explain, is_url, open_binary

Array = Any

# More rows or columns than that for each entry that is stored are a slip in a header,
# and an array of their counts would fill the memory.
LINES_PER_ENTRY = 100
PLAUSIBLE_LINES = 10**6


def open_npz(place: str) -> Array:
    """Return the matrix that `scipy.sparse.save_npz` has written, in memory."""
    from scipy import sparse

    with open_binary(place) as file:
        try:
            matrix = sparse.load_npz(file)
            _check_indices(matrix)
        except Exception as error:  # an archive of arrays can be broken in any way
            msg = (
                f"{place} isn't a sparse matrix, or it is damaged; write one with "
                "scipy.sparse.save_npz, or save a dense array as .npy"
            )
            raise ValueError(msg) from error
    _check_plausible(matrix, place)
    return matrix


def _check_indices(matrix: Array) -> None:
    """Refuse what kernels, which trust the indices, would follow to anywhere."""
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)
    # SciPy itself doesn't look whether blocks cover the shape, and no more.
    blocks = getattr(matrix, "blocksize", (1, 1))
    if any(size % block for size, block in zip(matrix.shape, blocks, strict=True)):
        msg = f"blocks of shape {blocks} don't fit"
        raise ValueError(msg)


def open_mtx(place: str) -> Array:
    """Return the matrix of a Matrix Market file, in memory; it may be compressed."""
    from scipy.io import mmread

    check_file(place)
    try:
        matrix = mmread(_whole(place), spmatrix=False)
    except Exception as error:  # of decompression, of parsing, of huge shapes
        told = explain(error)[:200]
        msg = f"{place} isn't a Matrix Market file, or it is damaged ({told})"
        raise ValueError(msg) from error
    _check_plausible(matrix, place)
    return matrix


def _whole(place: str) -> Any:
    """Return what SciPy's reader takes: a plain file's path, else the text in memory.

    Other streams would be asked once more when it forgets them after an error, and the
    whole process ends if they have been closed, or can't be read.
    """
    if place.lower().endswith(".mtx") and not is_url(place):
        return place
    with open_binary(place, compression="infer") as file:
        return io.BytesIO(file.read())


def _check_plausible(matrix: Array, place: str) -> None:
    stored = getattr(matrix, "nnz", 0)
    most = max(LINES_PER_ENTRY * stored, PLAUSIBLE_LINES)
    if hasattr(matrix, "nnz") and max(matrix.shape, default=0) > most:
        msg = (
            f"{place} says that it has shape {matrix.shape}, but it stores {stored} "
            "entries only; check its header, or leave out empty rows and columns"
        )
        raise ValueError(msg)
