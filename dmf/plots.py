"""Pictures of a fit: its matrices side by side, and how it went.

They need the extra ``plot``: ``pip install 'dmf[plot]'``. Figures are made without
pyplot, so that nothing global is touched: they work without a display and in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmf.history import History

Array = Any
Picture = Callable[[NDArray[Any]], NDArray[Any]]

INK = "#22303c"
FAINT = "#9aa3aa"
SEEN = "#2f6690"
GRID = "#e3e6e8"
# No colour map below holds this grey, and cells that are large enough are hatched too.
MISSING = "#bcc0c4"
HATCH = "#90989e"
# Photographs are full of greys; this is rare in them.
MISSING_PIXEL = "#8d72c4"
# One colour a curve; they differ in lightness, for readers who don't see all hues.
CURVES = ("#2f6690", "#d1731f", "#2a8f6d", "#a63d6e", "#8a7a24", "#5b5ea6")

# Up to this many entries, values are written into their cells; up to that many, missing
# cells are hatched. Beyond, both would be a blur.
_LEGIBLE = 100
_HATCHED = 2500
# A curve that falls by more than this factor is drawn on a log scale.
_STEEP = 5.0


def require(module: str) -> Any:
    """Import a module that only pictures need.

    Parameters
    ----------
    module : str

    Returns
    -------
    module

    Raises
    ------
    ImportError
        It isn't installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        msg = f"pictures need {package}; install it with: pip install 'dmf[plot]'"
        raise ImportError(msg, name=package) from error


def convergence(history: History, ax: Any = None, *, label: str | None = None) -> Any:
    """Draw the objective against rounds; round 0 is the start.

    Parameters
    ----------
    history : History
        ``fit.history``.
    ax : matplotlib Axes, optional
        Where to draw; each curve on the same axes gets a colour of its own. Default: a
        new figure.
    label : str, optional
        The curve's name in a legend; "" for none. Default: none, and the last
        objective and RMSE are written above the axes.

    Returns
    -------
    matplotlib Figure
        The one that holds `ax`.

    Raises
    ------
    ImportError
        matplotlib isn't installed.

    Notes
    -----
    The vertical scale is logarithmic as soon as a curve falls by more than a factor of
    five. The RMSE has no curve of its own: on that scale it would be the same one at
    half the slope, because the objective is half the sum of the squared residuals, plus
    the penalties.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> from dmf.plots import convergence
    >>> fit = dmf.factorize(np.eye(4), rank=2, max_rounds=5, tol=0)
    >>> convergence(fit.history).axes[0].get_xlabel()
    'round'
    """
    ax = _figure(7, 4).subplots() if ax is None else ax
    objective = np.append(history.initial_objective, history.objective)
    rounds = np.append(0, history.round)
    colour = CURVES[len(ax.lines) % len(CURVES)]
    ax.plot(rounds, objective, color=colour, linewidth=1.8, label=label)
    if label is None and len(history):
        last = history[-1]
        ax.set_title(
            f"after round {last.round}: objective {_number(last.objective)}, "
            f"RMSE {_number(last.rmse)}",
            loc="right",
            color=colour,
            fontsize=10,
        )
    if _is_steep(objective):
        ax.set_yscale("log")
    tidy(ax, "objective")
    return ax.figure


def tidy(ax: Any, quantity: str) -> None:
    """Make axes for curves over rounds look like dmf's.

    Parameters
    ----------
    ax : matplotlib Axes
    quantity : str
        What the curves show.
    """
    ax.margins(x=0.01)
    ax.set_xlim(left=0)
    ax.set_xlabel("round", color=INK)
    ax.set_ylabel(quantity, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(which="both", color=FAINT, labelcolor=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, labelcolor="linecolor", handlelength=1.2)


def panels(
    mask: Array,
    observed: Array,
    approximation: Array,
    truth: Array | None = None,
    *,
    image: Picture | None = None,
    titles: Sequence[str] | None = None,
    axes: Sequence[Any] | None = None,
) -> Any:
    """Draw mask, observed entries, approximation and truth side by side.

    Missing entries are grey, which is the colour of no value, and hatched where cells
    are large enough; missing pixels of a picture are violet.

    Parameters
    ----------
    mask : array, shape (m, n)
        True, or a weight above 0, where X is observed.
    observed : array, shape (m, n)
        X. Missing is what the mask leaves out, and NaN.
    approximation : array, shape (m, n)
        W H, or the imputed X.
    truth : array, shape (m, n), optional
        X without anything missing. Default: three panels.
    image : callable, optional
        For matrices that hold a picture: arranges a matrix (m, n) as the picture's red,
        green and blue, of shape (h, w, 3). They are clipped to [0, 1]; a pixel without
        all three is missing. Default: the matrix itself, on a colour scale that all
        panels share. It spans the observed entries and the truth, so that a wild
        approximation doesn't wash them out; its arrows say that it goes beyond.
    titles : sequence of str, optional
        One for each panel. Default: their names, and the share that is observed.
    axes : sequence of matplotlib Axes, optional
        Where to draw, one for each panel. Default: a new figure.

    Returns
    -------
    matplotlib Figure
        The one that holds the axes.

    Raises
    ------
    ValueError
        Shapes, or the numbers of panels, titles and axes, don't agree.
    ImportError
        matplotlib isn't installed.

    Examples
    --------
    >>> import numpy as np
    >>> from dmf.plots import panels
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0])
    >>> mask = np.array([[True, True], [True, False], [False, True]])
    >>> [ax.get_title() for ax in panels(mask, X, X).axes[:3]]
    ['Mask: 67% observed', 'Observed', 'Approximation']
    """
    X = np.asarray(observed, dtype=np.float64)
    seen = (np.asarray(mask) > 0) & np.isfinite(X)
    matrices = [np.where(seen, X, np.nan), np.asarray(approximation)]
    if truth is not None:
        matrices.append(np.asarray(truth))
    for matrix in (np.asarray(mask), *matrices):
        _check_shape(matrix, X.shape)
    if titles is None:
        share = f"Mask: {seen.mean():.0%} observed"
        titles = (share, "Observed", "Approximation", "Truth")[: len(matrices) + 1]
    if axes is None:
        axes = _figure(3.2 * len(titles), 3.2).subplots(1, len(titles))
    if image is None:
        _draw_mask(axes[0], seen)
        _draw_values(axes[1:], matrices)
    else:
        ones = np.where(seen, 1.0, np.nan)
        axes[0].imshow(_paint(image(ones), "white"), interpolation="none")
        for ax, matrix in zip(axes[1:], matrices, strict=True):
            ax.imshow(_paint(image(matrix)), interpolation="none")
    for ax, title in zip(axes, titles, strict=True):
        if title:  # an empty one would leave a gap
            ax.set_title(title, color=INK, fontsize=12)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return axes[0].figure


def overview(
    mask: Array,
    observed: Array,
    approximation: Array,
    history: History,
    truth: Array | None = None,
    *,
    image: Picture | None = None,
    detail: Picture | None = None,
    titles: Sequence[str] | None = None,
    heading: str | None = None,
) -> Any:
    """Draw a fit on one page: the panels, and below them its convergence.

    Parameters
    ----------
    mask, observed, approximation, truth : array, shape (m, n)
    image, titles
        As in `panels`.
    history : History
        ``fit.history``.
    detail : callable, optional
        As `image`, for a second row of panels: a small part of the picture, in which
        single pixels can be seen.
    heading : str, optional
        A line above all.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ValueError
        As in `panels`.
    ImportError
        matplotlib isn't installed.

    Examples
    --------
    >>> import numpy as np, dmf
    >>> from dmf.plots import overview
    >>> X = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])
    >>> fit = dmf.factorize(X, rank=1)
    >>> figure = overview(X > 0, X, fit.W @ fit.H, fit.history)
    """
    rows = [image] if detail is None else [image, detail]
    across = 3 if truth is None else 4
    heights = [*_heights(np.asarray(mask), rows), 2.2]
    figure = _figure(3.6 * across, sum(heights) + 1.0)
    grid = figure.add_gridspec(len(rows) + 1, across, height_ratios=heights)
    for k, picture in enumerate(rows):
        axes = [figure.add_subplot(grid[k, j]) for j in range(across)]
        panels(
            mask,
            observed,
            approximation,
            truth,
            image=picture,
            titles=titles if k == 0 else [""] * across,
            axes=axes,
        )
    convergence(history, figure.add_subplot(grid[-1, :]))
    if heading is not None:
        figure.suptitle(heading, color=INK, fontsize=14)
    return figure


def _figure(width: float, height: float) -> Any:
    figure = require("matplotlib.figure").Figure
    return figure(figsize=(width, height), layout="constrained", facecolor="white")


def _heights(matrix: NDArray[Any], pictures: Sequence[Picture | None]) -> list[float]:
    """Return the heights, in inches, of panels about 3.4 inches wide."""
    shapes = [
        matrix.shape if picture is None else picture(np.zeros(matrix.shape)).shape
        for picture in pictures
    ]
    return [min(max(3.4 * shape[0] / shape[1], 1.0), 5.0) for shape in shapes]


def _check_shape(matrix: NDArray[Any], shape: tuple[int, ...]) -> None:
    if matrix.shape != shape:
        msg = (
            f"all panels must have the shape of X, {shape}; one has shape "
            f"{matrix.shape}"
        )
        raise ValueError(msg)


def _is_steep(objective: NDArray[Any]) -> bool:
    """Return whether only a log scale shows the end of the curve."""
    finite = objective[np.isfinite(objective)]
    if not finite.size or finite.min() <= 0:
        return False
    return bool(finite.max() > _STEEP * finite.min())


def _number(value: float) -> str:
    """Return three digits that matter, without an exponent where one can do without."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def _paint(picture: NDArray[Any], colour: str | None = None) -> NDArray[np.float64]:
    """Return red, green and blue in [0, 1]; in `colour` where nothing is missing."""
    to_rgb = require("matplotlib.colors").to_rgb
    there = np.isfinite(picture).all(axis=-1, keepdims=True)
    shown = np.clip(picture, 0.0, 1.0) if colour is None else to_rgb(colour)
    painted: NDArray[np.float64] = np.where(there, shown, to_rgb(MISSING_PIXEL))
    return painted


def _draw_mask(ax: Any, seen: NDArray[np.bool_]) -> None:
    colours = require("matplotlib.colors").ListedColormap([MISSING, SEEN])
    ax.imshow(seen, cmap=colours, vmin=0, vmax=1, interpolation="none")
    _hatch(ax, ~seen)


def _draw_values(axes: Sequence[Any], matrices: Sequence[NDArray[Any]]) -> None:
    """Draw matrices on one colour scale, with its bar beside the last."""
    low, high = _limits(matrices[0], matrices[-1] if len(matrices) > 2 else None)
    colours = require("matplotlib").colormaps["RdBu_r" if low < 0 else "viridis"]
    colours = colours.with_extremes(bad=MISSING)
    for ax, matrix in zip(axes, matrices, strict=True):
        drawn = ax.imshow(
            matrix, cmap=colours, vmin=low, vmax=high, interpolation="none"
        )
        _hatch(ax, ~np.isfinite(matrix))
        if matrix.size <= _LEGIBLE:
            _write_values(ax, matrix, drawn)
    finite = matrices[1][np.isfinite(matrices[1])]
    beyond = bool(((finite < low) | (finite > high)).any())
    # Inside the last panel's axes, the bar is exactly as high as the panel.
    place = axes[-1].inset_axes([1.05, 0, 0.05, 1])
    extend = "both" if beyond else "neither"
    bar = axes[-1].figure.colorbar(drawn, cax=place, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=FAINT, labelcolor=INK)


def _limits(observed: NDArray[Any], truth: NDArray[Any] | None) -> tuple[float, float]:
    """Return the ends of the colour scale, symmetric if there are negative values."""
    values = observed if truth is None else np.append(observed, truth)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if low < 0:
        high = max(-low, high)
        return -high, high
    return low, high


def _hatch(ax: Any, where: NDArray[np.bool_]) -> None:
    if where.size > _HATCHED:
        return
    rectangle = require("matplotlib.patches").Rectangle
    look = {"fill": False, "edgecolor": HATCH, "hatch": "///", "linewidth": 0}
    for i, j in np.argwhere(where):
        ax.add_patch(rectangle((j - 0.5, i - 0.5), 1, 1, **look))


def _write_values(ax: Any, matrix: NDArray[Any], drawn: Any) -> None:
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            red, green, blue, _ = drawn.to_rgba(value)
            is_dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.55
            number = f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
            colour = "white" if is_dark else INK
            look = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
            ax.text(j, i, number.replace("-", "−"), **look)
