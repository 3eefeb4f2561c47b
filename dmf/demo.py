"""The demo: a photograph without most of its pixels, and what fills the gaps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf._factorize import factorize
from dmf._impute import impute
from dmf.plots import overview, require
from dmf.result import Factorization

Matrix = NDArray[np.float64]

PHOTOGRAPH = "china.jpg"
HIDDEN = 0.6
# Below, the roofs blur; above, the hidden pixels get no better (0.108 from 40 to 80).
DEFAULT_RANK = 40
# A part of the photograph in which single pixels can be seen: a corner of two roofs.
DETAIL = (slice(120, 180), slice(220, 310))
# At this resolution, a pixel of the photograph is about one of the picture.
DPI = 190


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Parameters
    ----------
    picture : Path
        The PNG.
    hidden : float
        The share of the entries that was hidden, in [0, 1].
    seconds : float
        For the fit and for filling the gaps.
    rmse : float
        Root mean square error on the hidden entries, filled by `impute`; colours run
        from 0 to 1.
    rmse_mean : float
        The same if the gaps are filled with the mean of the observed entries.
    rmse_means : float
        The same if they are filled with row mean + column mean − overall mean, cut off
        at 0 and 1: the best of the fills that need no fit and, like a factorization,
        don't know which pixels are neighbours.
    fit : Factorization
    """

    picture: Path
    hidden: float
    seconds: float
    rmse: float
    rmse_mean: float
    rmse_means: float
    fit: Factorization

    def __str__(self) -> str:
        m, n = self.fit.shape
        return "\n".join(
            [
                f"matrix      {m} × {n}, red, green and blue of a photo side by side",
                f"hidden      {self.hidden:.1%} of its entries, in whole pixels",
                f"fit         rank {self.fit.rank}, {len(self.fit.history)} rounds, "
                f"{self.seconds:.1f} s",
                f"status      {self.fit.status}",
                "RMSE on the hidden entries (colours from 0 to 1)",
                f"  {self.rmse:.4f}    dmf.impute",
                f"  {self.rmse_means:.4f}    row mean + column mean − overall mean",
                f"  {self.rmse_mean:.4f}    overall mean",
                f"picture     {self.picture}",
            ]
        )


def run_demo(
    output: Path,
    *,
    rank: int = DEFAULT_RANK,
    seed: int = 0,
    progress: bool | None = None,
) -> DemoResult:
    """Hide 60% of a photograph's pixels, fill them, say how well, and draw it.

    The photograph comes with scikit-learn: 427 × 640 pixels, as a matrix of shape
    (427, 1920), red, green and blue side by side, values in [0, 1]. A pixel is hidden
    with its three colours, so that none of them tells of the others.

    Parameters
    ----------
    output : Path
        Where to write the picture, a PNG: mask, observed entries, approximation and
        truth, a part of them enlarged, and the objective against rounds. Its folder
        must exist; a file that is there is replaced.
    rank : int, default 40
    seed : int, default 0
        For the hidden pixels and for the start.
    progress : bool, optional
        As in `factorize`.

    Returns
    -------
    DemoResult

    Raises
    ------
    ImportError
        matplotlib or pillow isn't installed; the message says how to install them.
    FileNotFoundError
        The folder of `output` doesn't exist.
    ValueError, TypeError
        The rank or the seed is bad, as in `factorize`.

    Notes
    -----
    It shows what a factorization finds, not the best way to repair photographs: that
    would use that neighbouring pixels are alike.
    """
    require("matplotlib")
    require("PIL")  # scikit-learn reads photographs with it
    output = Path(output)
    _check_folder(output)
    photograph = _photograph()
    truth = _as_matrix(photograph)
    mask = _hide(photograph.shape[:2], seed)
    observed = np.where(mask, truth, np.nan)

    began = perf_counter()
    fit = factorize(observed, rank, seed=seed, progress=progress)
    filled = impute(observed, fit)
    seconds = perf_counter() - began

    mean, means = _trivial_fills(observed)
    result = DemoResult(
        picture=output,
        hidden=float(1 - mask.mean()),
        seconds=seconds,
        rmse=_rmse(filled, truth, ~mask),
        rmse_mean=_rmse(mean, truth, ~mask),
        rmse_means=_rmse(means, truth, ~mask),
        fit=fit,
    )
    _draw(result, mask, observed, truth)
    print(result)
    return result


def _check_folder(output: Path) -> None:
    if not output.parent.is_dir():
        msg = f"there is no folder {output.parent} to write the picture to; create it"
        raise FileNotFoundError(msg)


def _photograph() -> NDArray[np.float64]:
    """Return the photograph, shape (h, w, 3), values in [0, 1]."""
    from sklearn.datasets import load_sample_image

    colours: NDArray[np.float64] = load_sample_image(PHOTOGRAPH) / 255.0
    return colours


def _as_matrix(picture: NDArray[Any]) -> NDArray[Any]:
    """Return a picture, shape (h, w, 3), as a matrix, shape (h, 3 w)."""
    return picture.transpose(0, 2, 1).reshape(picture.shape[0], -1)


def _as_picture(matrix: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_as_matrix`."""
    return matrix.reshape(matrix.shape[0], 3, -1).transpose(0, 2, 1)


def _as_detail(matrix: NDArray[Any]) -> NDArray[Any]:
    return _as_picture(matrix)[DETAIL]


def _hide(shape: tuple[int, ...], seed: int) -> NDArray[np.bool_]:
    """Return a matrix's mask, True where the pixel stays, shape (h, 3 w)."""
    stays = np.random.default_rng(seed).random(shape) >= HIDDEN
    return np.tile(stays, (1, 3))


def _trivial_fills(observed: Matrix) -> tuple[Matrix, Matrix]:
    """Return two matrices (m, n): the overall mean, and row and column means added."""
    overall = np.nanmean(observed)
    rows = np.nanmean(observed, axis=1, keepdims=True)
    columns = np.nanmean(observed, axis=0, keepdims=True)
    return np.full(observed.shape, overall), np.clip(rows + columns - overall, 0, 1)


def _rmse(filled: Matrix, truth: Matrix, where: NDArray[np.bool_]) -> float:
    return float(np.sqrt(np.mean((filled - truth)[where] ** 2)))


def _draw(
    result: DemoResult, mask: NDArray[np.bool_], observed: Matrix, truth: Matrix
) -> None:
    fit = result.fit
    figure = overview(
        mask,
        observed,
        fit.W @ fit.H,
        fit.history,
        truth,
        image=_as_picture,
        detail=_as_detail,
        titles=(
            f"Mask: {mask.mean():.0%} observed",
            "Observed",
            f"W H of rank {fit.rank}, clipped to [0, 1]",
            "Truth",
        ),
        heading=(
            f"RMSE on the hidden pixels {result.rmse:.3f} "
            f"(row and column means: {result.rmse_means:.3f})"
        ),
    )
    rows, columns = DETAIL
    for ax in figure.axes[:4]:
        ax.add_patch(_frame(rows, columns))
    figure.savefig(result.picture, dpi=DPI, format="png")


def _frame(rows: slice, columns: slice) -> Any:
    """Return the outline of a part of a picture."""
    return require("matplotlib.patches").Rectangle(
        (columns.start - 0.5, rows.start - 0.5),
        columns.stop - columns.start,
        rows.stop - rows.start,
        fill=False,
        edgecolor="black",
        linewidth=1.2,
    )
