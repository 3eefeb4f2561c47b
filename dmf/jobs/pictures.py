"""Pictures for pages: vector graphics in the colours and the letters of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from dmf.jobs.pages import brief, require
from dmf.jobs.summary import Summary, began

# What stands for the colours of a page; its style sheet says what they are, by day and
# by night.
INK, MUTED, LINE, FIRST, SECOND = (f"#01020{k}" for k in range(3, 8))
NAMES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "first", SECOND: "second"}
# Pixels can't name a colour of the page: this one shows on white and on black.
OBSERVED = (0.17, 0.48, 0.75)
FAINTEST = 0.1  # where something is observed
# What a page doesn't need of a file: name spaces, a style for all of it, letters of its
# own, and names that nothing refers to.
PLAINER = (
    (r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>"),
    (r"<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", ""),
    (r" *font-family: [^;\"]*;?", ""),
    (r"<g id=\"[^\"]*\"", "<g"),
    (r"xlink:href", "href"),
    (r"\s*\n\s*", "\n"),
)
# About as wide as a phone, in points: letters have the size that they have on paper.
WIDTH = 5.2
SIZE = 11
# A curve that falls by more than this factor is drawn on a log scale.
STEEP = 5.0


def gaps(found: dict[str, Any]) -> str:
    """Draw which share of X is observed, cell by cell of a coarse grid.

    The faintest place is the one with the most missing: few gaps shall show, too.
    """
    shares = np.asarray(found["picture"], dtype=float)
    rows, columns = found["shape"]
    figure, ax = _figure(3.6)
    least, spread = shares.min(), np.ptp(shares)
    pixels = np.empty((*shares.shape, 4))
    pixels[..., :3], pixels[..., 3] = OBSERVED, shares
    if spread > 0 and least > 0:
        pixels[..., 3] = FAINTEST + (1 - FAINTEST) * (shares - least) / spread
    # Rounding may lead out of what a picture can show.
    np.clip(pixels[..., 3], 0, 1, out=pixels[..., 3])
    extent = (0, columns, rows, 0)
    ax.imshow(pixels, interpolation="none", aspect="auto", extent=extent)
    _tidy(ax, "column", "row")
    ax.spines[:].set_visible(True)
    ax.grid(False)
    return _svg(figure, "gaps")


def counts(found: dict[str, Any], of: str) -> str:
    """Draw how many rows (columns) have so many observed entries."""
    figure, ax = _figure(2.0)
    ax.stairs(found[of]["counts"], found[of]["edges"], fill=True, color=FIRST)
    ax.set_xlim(0, found[of]["edges"][-1])
    _tidy(ax, f"observed entries of a {of[:-1]}", of)
    return _svg(figure, f"counts-{of}")


def residuals(found: dict[str, Any]) -> str:
    """Draw the residuals by size, and the bell curve with their mean and spread."""
    edges = np.asarray(found["edges"], dtype=float)
    heights = np.asarray(found["counts"], dtype=float)
    figure, ax = _figure(2.6)
    ax.stairs(heights, edges, fill=True, color=FIRST, alpha=0.55)
    if found["std"] > 0:
        x = np.linspace(edges[0], edges[-1], 161)
        z = (x - found["mean"]) / found["std"]
        total = heights.sum() / max(1 - found["beyond"], 1e-9)
        height = total * (edges[1] - edges[0]) / found["std"] / np.sqrt(2 * np.pi)
        ax.plot(x, height * np.exp(-(z**2) / 2), color=SECOND, label="normal")
        _name_curves(ax)
    ax.set_xlim(edges[0], edges[-1])
    _tidy(ax, "observed less predicted", "entries")
    return _svg(figure, "residuals")


def convergence(rounds: Sequence[dict[str, Any]]) -> str:
    """Draw the objective against rounds, a curve for each restart."""
    figure, ax = _figure(2.4)
    curves = _by_candidate(rounds, "objective")
    for k, (x, y) in enumerate(curves):
        ax.plot(x, y, color=FIRST, alpha=1.0 if k == 0 else 0.45, **_dots(x))
    _log_if_steep(ax, [y for _, y in curves])
    _tidy(ax, "round", "objective")
    _from_the_start(ax, rounds)
    return _svg(figure, "objective")


def errors(rounds: Sequence[dict[str, Any]]) -> str:
    """Draw the errors on observed and on held-out entries against rounds."""
    figure, ax = _figure(2.4)
    kinds = (("rmse", "observed", FIRST), ("validation_rmse", "held out", SECOND))
    drawn = []
    for field, name, colour in kinds:
        for k, (x, y) in enumerate(_by_candidate(rounds, field)):
            style = {"color": colour, "alpha": 1.0 if k == 0 else 0.45}
            ax.plot(x, y, label=name if k == 0 else None, **style, **_dots(x))
            drawn.append(y)
    _log_if_steep(ax, drawn)
    _name_curves(ax)
    _tidy(ax, "round", "RMSE")
    _from_the_start(ax, rounds)
    return _svg(figure, "errors")


def drift(runs: Sequence[Summary], field: str, scale: float, label: str) -> str:
    """Draw a number of each run against the day on which it began.

    Runs that failed are crosses, at the foot of the picture if they have no number.
    """
    figure, ax = _figure(2.2)
    times = [began(run) for run in runs]
    values = [getattr(run, field) for run in runs]
    known = [k for k, value in enumerate(values) if value is not None]
    done = [k for k in known if runs[k].code == 0]
    failed = [k for k, run in enumerate(runs) if run.code != 0]

    def points(chosen: list[int]) -> tuple[list[datetime], list[float]]:
        return [times[k] for k in chosen], [scale * values[k] for k in chosen]

    ax.plot(*points(done), color=FIRST, marker="o", markersize=3.5)
    cross = {"color": SECOND, "marker": "x", "linestyle": "none", "markersize": 5}
    ax.plot(*points([k for k in failed if k in known]), **cross)
    lost = [times[k] for k in failed if k not in known]
    foot = ax.get_xaxis_transform()
    ax.plot(lost, [0.02] * len(lost), transform=foot, clip_on=False, **cross)
    dates = require("matplotlib.dates")
    locator = dates.AutoDateLocator(minticks=3, maxticks=6)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    ax.margins(x=0.03, y=0.15)
    _tidy(ax, "", label)
    return _svg(figure, f"drift-{field}")


def _by_candidate(
    rounds: Sequence[dict[str, Any]], field: str
) -> list[tuple[list[int], list[float]]]:
    """Return the curve of each restart, without what isn't finite."""
    curves: dict[int, tuple[list[int], list[float]]] = {}
    for one in rounds:
        value = one.get(field)
        if value is not None and np.isfinite(value):
            x, y = curves.setdefault(one.get("candidate", 0), ([], []))
            x.append(one["round"])
            y.append(value)
    return [curves[k] for k in sorted(curves)]


def _dots(x: Sequence[Any]) -> dict[str, Any]:
    """A curve of few points shows them; one of a single point would be nothing."""
    return {"marker": "o", "markersize": 3} if len(x) <= 3 else {}


def _log_if_steep(ax: Any, curves: Sequence[Sequence[float]]) -> None:
    values = [value for curve in curves for value in curve]
    if values and min(values) > 0 and max(values) > STEEP * min(values):
        ax.set_yscale("log")
        ticker = require("matplotlib.ticker")
        if max(values) > 100 * min(values):
            ax.yaxis.set_minor_formatter(ticker.NullFormatter())
        else:
            ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(ticker.NullLocator())


def _from_the_start(ax: Any, rounds: Sequence[dict[str, Any]]) -> None:
    last = max(one["round"] for one in rounds)
    ax.set_xlim(0, 1.02 * max(last, 2))
    ax.xaxis.set_major_locator(
        require("matplotlib.ticker").MaxNLocator(6, integer=True)
    )


def _name_curves(ax: Any) -> None:
    ax.legend(frameon=False, labelcolor="linecolor", handlelength=1.2, fontsize=SIZE)


def _figure(height: float) -> tuple[Any, Any]:
    figure = require("matplotlib.figure").Figure
    made = figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
    return made, made.subplots()


def _tidy(ax: Any, x: str, y: str) -> None:
    ax.set_facecolor("none")
    ax.set_xlabel(x, color=MUTED, fontsize=SIZE)
    ax.set_ylabel(y, color=MUTED, fontsize=SIZE)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(LINE)
    ax.tick_params(which="both", color=LINE, labelcolor=MUTED, labelsize=SIZE)
    ax.xaxis.get_offset_text().set(color=MUTED, fontsize=SIZE)
    ticker = require("matplotlib.ticker")
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: brief(value)))
    ax.grid(axis="y", color=LINE, linewidth=0.6)
    ax.set_axisbelow(True)


def _svg(figure: Any, name: str) -> str:
    """Return a figure as an element of a page, the same for the same figure."""
    options = {"svg.fonttype": "none", "svg.hashsalt": name}
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with require("matplotlib").rc_context(options), io.StringIO() as text:
        figure.savefig(text, format="svg", metadata=nothing)
        drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for pattern, instead in PLAINER:
        drawn = re.sub(pattern, instead, drawn, flags=re.DOTALL)
    for colour, known_as in NAMES.items():
        drawn = drawn.replace(colour, f"var(--{known_as})")
    return drawn.strip()
