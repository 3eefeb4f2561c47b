"""Held-out RMSE against seconds: one curve a system."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.peers.catalog import CATALOG
from benchmarks.peers.comparison import Comparison

MARKERS = "osD^vP*Xdh"


def draw(found: Comparison, path: Path) -> None:
    """Draw the curves. What is far above the lowest RMSE is cut off."""
    # A backend without a window: the picture goes to a file.
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {n: m for n, m in found.systems.items() if np.isfinite(m.best)}
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, name in enumerate(name for name in CATALOG if name in shown):
        curve = shown[name].curve
        axes.plot(
            [point.seconds for point in curve],
            [point.rmse for point in curve],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=3 if name == "dmf" else 1.3,
            color="black" if name == "dmf" else f"C{number - 1}",
            zorder=3 if name == "dmf" else 2,
            label=name,
        )
    bests = [measured.best for measured in shown.values()]
    lowest = min(bests)
    highest = np.clip(1.01 * max(bests), 1.06 * lowest, 1.12 * lowest)
    axes.set_ylim(0.995 * lowest, highest)
    if np.isfinite(found.target):
        axes.axhline(
            found.target,
            color="grey",
            linestyle="--",
            label="best fast peer + 0.1%",
            zorder=1,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds of a whole fit")
    axes.set_ylabel("RMSE on what is held out")
    axes.set_title(f"{found.data}, rank {found.rank}")
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
