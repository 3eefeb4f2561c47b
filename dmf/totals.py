"""What is to be known of observed entries as a whole: their number, mean and spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from dmf.device import to_host

Array = Any


@dataclass(frozen=True)
class Totals:
    """What is to be known of the entries of a block that the loss sees; they add up.

    Parameters
    ----------
    entries : int
        Observed entries.
    weight : float
        The sum of their weights; what isn't observed counts as zeros of weight α.
    mean : float
        Weighted.
    spread : float
        The weighted sum of squares around the mean: the squares themselves would lose
        it where the level is far above it.
    masked : int
        Blocks whose entries aren't all observed with weight 1.
    held_out : float
        The weight of the entries that are held out.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise
       algorithm for computing sample variances", COMPSTAT 1982 (the sum of two).
    """

    entries: int = 0
    weight: float = 0.0
    mean: float = 0.0
    spread: float = 0.0
    masked: int = 0
    held_out: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        weight = self.weight + other.weight
        share = other.weight / weight if weight > 0 else 0.0
        apart = other.mean - self.mean
        return Totals(
            self.entries + other.entries,
            weight,
            self.mean + share * apart,
            self.spread + other.spread + apart * apart * self.weight * share,
            self.masked + other.masked,
            self.held_out + other.held_out,
        )

    @classmethod
    def of(cls, values: Array, weights: Array | None) -> Totals:
        """Return the weight, mean and spread of some values."""
        xp = array_namespace(values)
        values = xp.astype(values, xp.float64)  # squares may leave float32
        if weights is None:
            if values.size == 0:
                return cls()
            mean = float(xp.mean(values))
            spread = float(xp.sum((values - mean) ** 2))
            return cls(weight=float(values.size), mean=mean, spread=spread)
        weights = xp.astype(weights, xp.float64)
        weight = float(to_host(xp.sum(weights)))
        if weight <= 0:
            return cls()
        mean = float(to_host(xp.sum(weights * values))) / weight
        spread = float(to_host(xp.sum(weights * (values - mean) ** 2)))
        return cls(weight=weight, mean=mean, spread=spread)

    @property
    def sum_of_squares(self) -> float:
        return self.spread + self.weight * self.mean * self.mean

    @property
    def mean_square(self) -> float:
        """The weighted mean square of the observed entries; 0 if there are none."""
        return self.sum_of_squares / self.weight if self.weight > 0 else 0.0

    @property
    def deviation(self) -> float:
        """The weighted standard deviation of the observed entries; 0 without any."""
        return math.sqrt(self.spread / self.weight) if self.weight > 0 else 0.0
