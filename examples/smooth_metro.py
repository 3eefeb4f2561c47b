"""Gaps in time series: passengers of a metro, with 40% of the counts taken away.

The Hangzhou metro's flows, 80 stations × 25 days of 108 ten-minute slots. A plain
factorization doesn't know that ten past eight comes after eight: it loses to drawing a
straight line across each gap. With `Smooth` on the factor of time it wins, because it
also knows how the other stations fared. How smooth is chosen by `dmf.sweep`, on a tenth
of the entries that are left; the ones taken away are looked at once, at the end.

    python examples/smooth_metro.py --data hangzhou-metro.npz --output-dir .
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import dmf
from dmf.plots import CURVES, INK, require, tidy

Array = Any

RANK = 20  # held-out entries are met as well as with 40, in half of the time
SLOTS = 108  # ten minutes each, from six in the morning to midnight
# One number for both sides, as only the product of ridge and smoothness matters.
STRENGTHS = (300.0, 1000.0, 3000.0)
DAY = 12  # for the picture: one in the middle


@dataclass(frozen=True)
class Flows:
    """Passengers by station and time; arrays of shape (80, 2700)."""

    truth: Array  # NaN where nobody counted
    mask: Array  # True where the count was kept

    @property
    def X(self) -> Array:
        """What the fit sees."""
        return np.where(self.mask, self.truth, np.nan).astype(np.float32)

    def rmse(self, filled: Array) -> float:
        """Return the error on the counts that were taken away."""
        hidden = ~self.mask & np.isfinite(self.truth)
        return float(np.sqrt(np.mean((filled - self.truth)[hidden] ** 2)))


def read(path: Path) -> Flows:
    """Read the data: `x`, and `train_rm40`, the published random mask."""
    with np.load(path) as archive:
        return Flows(archive["x"], archive["train_rm40"])


def interpolate(X: Array) -> Array:
    """Return X with a straight line across each gap of each row."""
    times = np.arange(X.shape[1])
    filled = np.array(X, dtype=float)
    for row in filled:
        seen = np.isfinite(row)
        row[~seen] = np.interp(times[~seen], times[seen], row[seen])
    return filled


def penalty(strength: float) -> tuple[dmf.Penalty, dmf.Penalty]:
    """Return a ridge on stations, and smoothness on time.

    The light ridge on time settles what smoothness leaves open: a factor that never
    changes is as smooth as can be, however large it is.
    """
    smooth = dmf.Smooth(strength) + dmf.Ridge(strength / 200)
    return dmf.Ridge(strength), smooth


def fill(flows: Flows) -> tuple[dmf.Sweep, dmf.Factorization, Array]:
    """Choose the strength on held-out entries, fit once more with all, and fill."""
    options: dict[str, Any] = {"offsets": "rows", "max_rounds": 100}
    penalties = [penalty(strength) for strength in STRENGTHS]
    # Few rounds don't tell how smooth is best, so none is dropped early.
    trials = dmf.sweep(flows.X, [RANK], penalties=penalties, drop=False, **options)
    fit = dmf.factorize(flows.X, RANK, penalty=trials.best.penalty, **options)
    return trials, fit, dmf.impute(flows.X, fit)


def typical_station(flows: Flows, straight: Array, filled: Array) -> int:
    """Return the station where the gain over straight lines is the median of all."""
    hidden = ~flows.mask & np.isfinite(flows.truth)
    errors = [
        np.sqrt(np.nanmean(np.where(hidden, (fill - flows.truth) ** 2, np.nan), axis=1))
        for fill in (straight, filled)
    ]
    gains = errors[0] / errors[1]
    return int(np.argsort(gains)[len(gains) // 2])


def draw(flows: Flows, straight: Array, filled: Array, path: Path) -> None:
    """Draw one day of one station: observed, interpolated, ours, and the truth."""
    pyplot = require("matplotlib.pyplot")
    station = typical_station(flows, straight, filled)
    day = slice(DAY * SLOTS, (DAY + 1) * SLOTS)
    hours = 6 + np.arange(SLOTS) / 6
    seen = flows.mask[station, day]
    figure, ax = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    truth = flows.truth[station, day]
    ax.plot(hours, truth, color="0.75", linewidth=6, label="truth", zorder=1)
    curves = (
        (straight, CURVES[1], "interpolated"),
        (filled, CURVES[0], "dmf, smooth in time"),
    )
    for values, colour, name in curves:
        error = f"{name} (RMSE {flows.rmse(values):.1f})"
        ax.plot(hours, values[station, day], color=colour, linewidth=1.6, label=error)
    ax.scatter(hours[seen], truth[seen], s=26, color=INK, zorder=3, label="observed")
    tidy(ax, "passengers in ten minutes")
    ax.set_xlim(6, 24)
    ax.set_xlabel("hour of the day")
    ax.set_title(f"Station {station}, day {DAY}: 40% of the counts taken away")
    ax.legend(frameon=False, title="RMSE over all counts taken away")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hangzhou-metro.npz")
    parser.add_argument("--output-dir", type=Path, default=Path())
    options = parser.parse_args()
    flows = read(options.data)
    straight = interpolate(flows.X)
    began = perf_counter()
    trials, fit, filled = fill(flows)
    seconds = perf_counter() - began
    print(trials)
    print(f"\nRMSE on the {np.sum(~flows.mask & np.isfinite(flows.truth))} counts")
    print(f"straight lines across the gaps  {flows.rmse(straight):.2f}")
    print(f"dmf, chosen and fitted in {seconds:.1f} s  {flows.rmse(filled):.2f}")
    print(fit.status)
    path = options.output_dir / "smooth_metro.png"
    draw(flows, straight, filled, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
