"""What was measured on one data set at one rank, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.peers.catalog import CATALOG
from benchmarks.peers.fit import Point
from benchmarks.peers.settings import Settings

CLOSE = 1.001  # "within 0.1%"


@dataclass
class Measured:
    """A system's curve, and its fits of each turn by their number of iterations."""

    settings: Settings
    curve: list[Point]
    turns: list[dict[int, Point]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The lowest held-out RMSE on the curve; NaN if it predicts no ratings."""
        known = [point.rmse for point in self.curve if np.isfinite(point.rmse)]
        return min(known, default=np.nan)

    def iterations_to(self, level: float) -> int | None:
        """Return the first number of iterations on the curve that reaches a level."""
        return next((p.iterations for p in self.curve if p.rmse <= level), None)

    def seconds(self, iterations: int | None) -> list[float]:
        """Return the times of each turn; NaN where there is none."""
        return [
            turn[iterations].seconds if iterations in turn else np.nan
            for turn in self.turns
        ]

    def whole(self) -> list[Point]:
        """Return the whole fits with the settings as they were tuned."""
        count = self.settings.iterations
        return [turn[count] for turn in self.turns if count in turn]


@dataclass
class Comparison:
    """All systems on one problem."""

    data: str
    rank: int
    path: Path
    systems: dict[str, Measured]
    left_out: dict[str, str]

    @property
    def target(self) -> float:
        """0.1% above the lowest RMSE of any fast peer; NaN without one."""
        fast = [m.best for name, m in self.systems.items() if CATALOG[name].fast]
        return CLOSE * min((rmse for rmse in fast if np.isfinite(rmse)), default=np.nan)

    def counts_that_matter(self, name: str) -> set[int]:
        """Return the numbers of iterations whose times the tables need."""
        measured = self.systems[name]
        levels = {self.target, CLOSE * measured.best}
        if name == "dmf":
            levels |= {CLOSE * peer.best for peer in self.systems.values()}
        counts = {measured.iterations_to(level) for level in levels}
        return {measured.settings.iterations} | {c for c in counts if c is not None}

    def seconds_to(self, name: str, level: float) -> list[float]:
        measured = self.systems[name]
        return measured.seconds(measured.iterations_to(level))

    def ratio(self, name: str, level: float) -> float:
        """Return dmf's time to a level over a peer's: the median over the turns."""
        ours, theirs = (self.seconds_to(one, level) for one in ("dmf", name))
        return median_ratio(ours, theirs)

    def whole_ratio(self, name: str) -> float:
        """Return the time of dmf's whole fit over a peer's."""
        ours, theirs = (
            measured.seconds(measured.settings.iterations)
            for measured in (self.systems["dmf"], self.systems[name])
        )
        return median_ratio(ours, theirs)


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    ratios = np.divide(ours, theirs)
    return float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else np.nan
